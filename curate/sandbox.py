"""Runs extraction in a process that a page may kill: answers in order, the culprit retried alone, then quarantined.

A child answers pages one after another, so when it dies the first page without an answer is the one in hand. That
page is tried again alone in a fresh process; a second death quarantines it. The other pages in flight are sent again.
What a page gives therefore depends on neither the window nor the timing. Deaths are counted in memory only: a
`kill -9` of the whole tree counts against no page.

A page cannot send SIGKILL: that is the kernel short of memory, or a person. A page whose process was killed so is
quarantined at the third death, with pauses before the second and third try; a page that crashes (SIGSEGV, SIGABRT, an
exit code), breaks a limit (SIGXCPU, memory) or hangs is quarantined at its second death of that kind, as ever. A page
that always takes its process down is thus always quarantined, and one that never does needs three ill-timed kills.
A process that ends before its first page counts against none: it is started again, up to START_TRIES times in a row;
one that itself reports why it cannot start is an error at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from gristmill.core.errors import GristmillError
from gristmill.curate import sandbox_idle
from gristmill.curate.process_state import peak_rss_kb
from gristmill.curate.sandbox_process import POLL_SECONDS as POLL_SECONDS
from gristmill.curate.sandbox_process import Answer as Answer
from gristmill.curate.sandbox_process import Child as _Child
from gristmill.curate.sandbox_process import Job as Job
from gristmill.curate.sandbox_process import Stillborn
from gristmill.curate.schema import Extract

WINDOW = 4
"""Pages in flight: enough that the child never waits while the parent reads the next records (1 ms against 20 ms)."""
WINDOW_BYTES = 32 << 20
QUEUE = 1024
"""Items held back at most, decided ones included, so that memory is bounded while a slow page is in hand."""
STALL_SECONDS = 120.0
"""A child that sleeps this long over a page without using any CPU is blocked for good. A busy machine does not do that:
a process that waits for a CPU is runnable, one that waits for a disk is in state D."""
START_TRIES = 5
"""Starts in a row that may end before `ready`: a kill from outside is not repeated so often, a broken install is."""
DEATHS = 2
DEATHS_IN_ALL = 3
"""A page's own deaths, and those with kills from outside, at which it is quarantined."""
PAUSE_SECONDS = 0.5
"""Pause after a kill from outside, doubled each time: memory that the kernel ran short of comes free."""

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    key: T
    job: Job | None
    answer: Answer | None = None
    sent: bool = False
    deaths: int = 0
    kills: int = 0
    """Those of `deaths` that were a SIGKILL from outside."""
    reason: str | None = None

    @property
    def done(self) -> bool:
        return self.job is None or self.answer is not None


class Sandbox:
    """A killable extraction process and its replacements. Use as a context manager, from one thread.

    `language` is what `schema.Language.for_pages` gives: how texts are read, and the gate where one acts. With `keep` the
    process is left to the next sandbox of this worker with the same settings (curate.sandbox_idle).
    """

    def __init__(
        self, settings: Extract, model: Path, *, language: Mapping[str, Any] | None = None,
        window: int = WINDOW, stall_seconds: float = STALL_SECONDS, keep: bool = False,
    ):  # fmt: skip
        self.hello = {"extract": settings.model_dump(mode="json"), "model": str(model), **(language or {})}
        self.recycle_pages = settings.recycle_pages
        self.window = window
        self.stall_seconds = stall_seconds
        self.started = 0
        self.peak_rss_kb = 0
        self._child: _Child | None = None
        self._began = False
        self._key = _start_key(self.hello, model) if keep else None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The living child's process id."""
        return self._child.pid if self._child else None

    def map(self, items: Iterable[tuple[T, Job | None]]) -> Iterator[tuple[T, Answer | None]]:
        """Answer each item's job, in order; an item without a job passes through with None.

        Raises GristmillError when an extraction process cannot be started.
        """
        source = iter(items)
        queue: deque[_Entry[T]] = deque()
        more = True
        while True:
            while queue and queue[0].done:
                entry = queue.popleft()
                yield entry.key, entry.answer
            while more and len(queue) < QUEUE and self._room(queue):
                item = next(source, None)
                if item is None:
                    more = False
                    break
                queue.append(_Entry(*item))
                if item[1] is not None:
                    self._turn(queue, 0.0)
                if queue[0].done:
                    break
            if queue and not queue[0].done:
                self._turn(queue, POLL_SECONDS)
            elif not queue and not more:
                return

    def close(self) -> None:
        child = self._child
        if self._key is not None and child is not None and child.idle() and child.sent < self.recycle_pages:
            self._child = None
            self.peak_rss_kb = max(self.peak_rss_kb, peak_rss_kb(child.pid))
            sandbox_idle.keep(self._key, child)
        self._end()

    def _end(self) -> None:
        if self._child is not None:
            self.peak_rss_kb = max(self.peak_rss_kb, self._child.end())
            self._child = None

    def _room(self, queue: deque[_Entry[T]]) -> bool:
        waiting = [len(e.job.body) for e in queue if e.job is not None and e.answer is None]
        return len(waiting) < self.window and (not waiting or sum(waiting) < WINDOW_BYTES)

    def _turn(self, queue: deque[_Entry[T]], wait: float) -> None:
        """Send what may be sent, move bytes for up to `wait` seconds, take answers, judge a death."""
        open_entries = [e for e in queue if not e.done]
        if not open_entries:
            return
        child = self._child
        if child is None:
            child = self._child = self._begin()
        alone = open_entries[0].deaths > 0
        for entry in open_entries[:1] if alone else open_entries:
            if not entry.sent and child.sent < self.recycle_pages:
                assert entry.job is not None
                child.send(entry.job)
                entry.sent = True
        child.pump(wait, self.stall_seconds)
        flying = iter([e for e in open_entries if e.sent])
        for answer in child.answers():
            next(flying).answer = answer
        left = next(flying, None)
        if child.ended:
            self._bury(child, left, open_entries)
        elif left is None and child.sent >= self.recycle_pages:
            self._end()

    def _begin(self) -> _Child:
        """A child that is ready for pages. Raises GristmillError when it cannot start."""
        if self._key is not None and not self._began and isinstance(kept := sandbox_idle.take(self._key), _Child):
            self._began = True
            return kept
        self._began = True  # a page that is tried again gets a fresh one
        for tries in range(1, START_TRIES + 1):
            try:
                child = _Child(self.hello)
            except Stillborn as error:
                if tries == START_TRIES:
                    raise GristmillError(
                        f"the extraction process ended before its first page, {tries} times in a row ({error})",
                        hint=f"try `{sys.executable} -m gristmill.curate.sandbox_child < /dev/null`",
                    ) from None
                time.sleep(PAUSE_SECONDS / 4 * 2**tries)
            else:
                self.started += 1
                return child
        raise AssertionError("unreachable")

    def _bury(self, child: _Child, culprit: _Entry[T] | None, entries: list[_Entry[T]]) -> None:
        """Take a dead child away; the first page without an answer is the one it died of."""
        reason, outside = child.cause(), child.killed_from_outside()
        self._end()
        for entry in entries:
            entry.sent = False
        if culprit is None:
            return
        culprit.deaths += 1
        culprit.kills += outside
        if not outside or culprit.reason is None:
            culprit.reason = reason
        if culprit.deaths - culprit.kills >= DEATHS or culprit.deaths >= DEATHS_IN_ALL:
            culprit.answer = Answer(reason=culprit.reason, quarantined=True)
        elif outside:
            time.sleep(PAUSE_SECONDS * 2 ** (culprit.kills - 1))


def _start_key(hello: Mapping[str, Any], model: Path) -> str:
    """All that a child's start depends on."""
    stat = model.stat()
    return repr([sorted(hello.items()), stat.st_size, stat.st_mtime_ns, sorted(os.environ.items())])
