"""Save and exit on request: signals and a trigger file set a flag, and the ranks of a run agree on it at a step's edge.

SIGTERM, SIGINT and SIGUSR1 (Slurm's warning before the time limit) ask one process; the file OUT/STOP, which anyone who
may write there can touch, asks the whole run. Nobody saves alone: a rank that lost another fails in the agreement, which
is a collective, and leaves without writing. A second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from gristmill.core.errors import EXIT_INTERRUPTED

STOP_FILE = "STOP"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN_SECONDS = 1.0
"""A signal this soon after the first is the same request: torchrun passes on a Ctrl-C that its ranks got as well."""
POLL_SECONDS = 0.2
"""Between two looks at the trigger file: on a shared file system a look takes milliseconds."""


class Ranks(Protocol):
    """What agreeing needs of an Exchange (exchange.py): messages over CPU memory, so that no GPU is waited for."""

    @property
    def leads(self) -> bool: ...

    def any(self, *flags: bool) -> tuple[bool, ...]: ...


class Stop:
    """Whether this run was asked to stop. `asked` is this process' own knowledge; `agreed` is the same on all ranks."""

    def __init__(self, out: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.file = out / STOP_FILE
        self.say = say
        self.asked = False
        self._looked = -POLL_SECONDS

    def ask(self, why: str) -> None:
        """Set the flag, from any thread."""
        if not self.asked:
            self.asked = True
            self.say(f"{why}: stopping after this step")

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was asked. A collective: every rank calls it once a step.

        Only the leading rank looks for the trigger file, so that a file seen by some ranks first cannot split them.
        Raises what the collective raises when a rank is gone: nothing may be saved then.
        """
        if ranks.leads and not self.asked and time.monotonic() - self._looked >= POLL_SECONDS:
            self._looked = time.monotonic()
            if self.file.exists():
                self.ask(f"{self.file} is there")
        (told,) = ranks.any(self.asked)
        if told:
            self.ask("another rank was told to stop")
        return told

    def honoured(self) -> None:
        """Remove the trigger file, once the state is saved: the next launch is to train on."""
        with contextlib.suppress(OSError):  # a folder of another user's file: it stops the next launch as well
            self.file.unlink()


@contextmanager
def signals(first: Callable[[str], None], second: Callable[[], None] | None = None) -> Iterator[None]:
    """Call `first` with the name of the first signal of SIGNALS and `second` at a later one (default: exit with 130).

    They run in a thread of their own, told through a pipe by the C handler, because Python's own handlers wait until
    the main thread leaves native code, and a collective that waits for a lost rank never does. Outside the main
    thread this does nothing: whoever embeds the trainer handles signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _nothing) for number in SIGNALS}
    thread = threading.Thread(target=_listen, args=(reader, first, second), daemon=True, name="signals")
    thread.start()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_wakeup)
        os.close(writer)  # the thread reads the end of the pipe and leaves
        thread.join()
        os.close(reader)


def _nothing(number: int, frame: object) -> None:
    """A handler must be set for the wake-up pipe to be written."""


def _listen(reader: int, first: Callable[[str], None], second: Callable[[], None] | None) -> None:
    asked_at: float | None = None
    while data := os.read(reader, 64):
        for number in data:
            if number not in SIGNALS:  # another handler's signal, a child's end for instance
                continue
            if asked_at is None:
                asked_at = time.monotonic()
                first(signal.Signals(number).name)
            elif time.monotonic() - asked_at >= AGAIN_SECONDS:
                (second or _leave)()


def _leave() -> None:
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)
