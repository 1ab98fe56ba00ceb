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

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson

import gristmill
from gristmill.core.errors import GristmillError
from gristmill.curate.process_state import peak_rss_kb, process_state
from gristmill.curate.sandbox_child import EXIT_MEMORY, LENGTHS, pack
from gristmill.curate.schema import Extract

WINDOW = 4
"""Pages in flight: enough that the child never waits while the parent reads the next records (1 ms against 20 ms)."""
WINDOW_BYTES = 32 << 20
QUEUE = 1024
"""Items held back at most, decided ones included, so that memory is bounded while a slow page is in hand."""
PIPE_BYTES = 1 << 20  # Linux's largest pipe for an unprivileged process; most pages fit
POLL_SECONDS = 5.0
STALL_SECONDS = 120.0
"""A child that sleeps this long over a page without using any CPU is blocked for good. A busy machine does not do that:
a process that waits for a CPU is runnable, one that waits for a disk is in state D."""
START_SECONDS = 300.0
START_TRIES = 5
"""Starts in a row that may end before `ready`: a kill from outside is not repeated so often, a broken install is."""
DEATHS = 2
DEATHS_IN_ALL = 3
"""A page's own deaths, and those with kills from outside, at which it is quarantined."""
PAUSE_SECONDS = 0.5
"""Pause after a kill from outside, doubled each time: memory that the kernel ran short of comes free."""

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One page: its payload (content decoded) and its Content-Type header."""

    body: bytes
    content_type: str = ""


@dataclass(frozen=True)
class Answer:
    """A page's text and language, or the reason why it has none. `quarantined` pages took their process down each time."""

    text: str = ""
    charset: str = ""
    language: str = ""
    score: float = 0.0
    reason: str | None = None
    value: float | None = None
    threshold: float | None = None
    quarantined: bool = False
    notes: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


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

    `language` is what `schema.Language.for_pages` gives: how texts are read, and the gate where one acts.
    """

    def __init__(
        self, settings: Extract, model: Path, *, language: Mapping[str, Any] | None = None,
        window: int = WINDOW, stall_seconds: float = STALL_SECONDS,
    ):  # fmt: skip
        self.hello = {"extract": settings.model_dump(mode="json"), "model": str(model), **(language or {})}
        self.recycle_pages = settings.recycle_pages
        self.window = window
        self.stall_seconds = stall_seconds
        self.started = 0
        self.peak_rss_kb = 0
        self._child: _Child | None = None

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
                self._turn(queue, 0.0)
                if queue[0].done:
                    break
            if queue and not queue[0].done:
                self._turn(queue, POLL_SECONDS)
            elif not queue and not more:
                return

    def close(self) -> None:
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
            self.close()

    def _begin(self) -> _Child:
        """A child that is ready for pages. Raises GristmillError when it cannot start."""
        for tries in range(1, START_TRIES + 1):
            try:
                child = _Child(self.hello)
            except _Stillborn as error:
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
        self.close()
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


class _Stillborn(Exception):
    """An extraction process ended before it was ready and without a word."""


class _Child:
    """One extraction process and the bytes on their way to and from it."""

    def __init__(self, hello: Mapping[str, Any]) -> None:
        package = Path(next(iter(gristmill.__path__))).parent
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        # One thread per process, and no hash seed of its own: nothing but the page decides.
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gristmill.curate.sandbox_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._out: deque[memoryview] = deque()
        self._in = bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._from, selectors.EVENT_READ)
        for number in (self._to, self._from):
            os.set_blocking(number, False)
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.pid = self._process.pid
        self.sent = 0
        self.ended = False
        self._stalled = 0.0
        self._ticks = -1
        self._hung = False
        self._start(hello)

    def _start(self, hello: Mapping[str, Any]) -> None:
        self._put(pack({**hello, "parent": os.getpid()}))
        waited = 0.0
        while not self.ended and waited < START_SECONDS:
            self.pump(POLL_SECONDS, START_SECONDS)
            waited += POLL_SECONDS
            for header, _ in self._frames():
                if header.get("ready"):
                    return
                self.end()
                raise GristmillError(f"the extraction process cannot start: {header.get('error')}")
        if not self.ended:
            self.end()
            raise GristmillError(f"the extraction process was not ready after {START_SECONDS:.0f} s")
        cause = self.cause()
        self.end()
        raise _Stillborn(f"{cause}, status {self._process.returncode}")

    def send(self, job: Job) -> None:
        self.sent += 1
        self._stalled = 0.0
        content_type = job.content_type.encode("utf-8", "replace").decode()
        self._put(pack({"type": content_type}, job.body))

    def _put(self, buffers: list[bytes]) -> None:
        if not self._out:
            self._selector.register(self._to, selectors.EVENT_WRITE)
        self._out.extend(memoryview(b) for b in buffers if b)

    def pump(self, wait: float, stall_seconds: float) -> None:
        """Move bytes both ways; wait up to `wait` seconds for the first of them. Kills a child that sleeps for good."""
        events = self._selector.select(wait)
        for key, _ in events:
            if key.fd == self._from:
                self._read()
            else:
                self._write()
        if events:
            self._stalled = 0.0
        elif wait:
            self._watch(wait, stall_seconds)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._from, PIPE_BYTES):
                self._in += piece
            self._selector.unregister(self._from)
            self.ended = True

    def _write(self) -> None:
        try:
            while self._out:
                written = os.write(self._to, self._out[0])
                self._out[0] = self._out[0][written:]
                if not self._out[0]:
                    self._out.popleft()
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._out.clear()  # it died; its last answers are still to be read
        self._selector.unregister(self._to)

    def _watch(self, waited: float, stall_seconds: float) -> None:
        state, ticks = process_state(self.pid)
        idle = state == "S" and ticks == self._ticks
        self._ticks = ticks
        self._stalled = self._stalled + waited if idle else 0.0
        if self._stalled >= stall_seconds:
            self._hung = True
            self._process.kill()

    def answers(self) -> Iterator[Answer]:
        for header, body in self._frames():
            yield Answer(
                text=body.decode(),
                charset=header["charset"],
                language=header.get("language", ""),
                score=header.get("score", 0.0),
                reason=header.get("reason"),
                value=header.get("value"),
                threshold=header.get("threshold"),
                notes=header["notes"],
                facts=header.get("facts", {}),
            )

    def _frames(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        while len(self._in) >= LENGTHS.size:
            n_head, n_body = LENGTHS.unpack_from(self._in)
            total = LENGTHS.size + n_head + n_body
            if len(self._in) < total:
                return
            header = orjson.loads(bytes(self._in[LENGTHS.size : LENGTHS.size + n_head]))
            body = bytes(self._in[LENGTHS.size + n_head : total])
            del self._in[:total]
            yield header, body

    def cause(self) -> str:
        """Why a dead child died: `extract.hung`, `extract.memory` or `extract.killed`."""
        try:
            status = self._process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            self._process.kill()
            status = self._process.wait()
        if self._hung or status == -signal.SIGXCPU:
            return "extract.hung"
        return "extract.memory" if status == EXIT_MEMORY else "extract.killed"

    def killed_from_outside(self) -> bool:
        """Whether a dead child got a SIGKILL that was not ours."""
        return self._process.returncode == -signal.SIGKILL and not self._hung

    def end(self) -> int:
        """Close the pipes and end the process. Returns its peak resident set (KiB; 0 where unknown)."""
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        peak = peak_rss_kb(self.pid) if self._process.poll() is None else 0
        # Nothing in it is worth waiting for: its answers were read, and it keeps no files.
        self._process.kill()
        self._process.wait()
        return peak
