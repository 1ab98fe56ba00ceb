"""The extraction process: reads pages from stdin, answers on stdout, and may be killed by any of them.

Started by curate.sandbox as `python -m gristmill.curate.sandbox_child`. A frame is two little-endian u32 lengths, a
JSON header and a body. First the parent sends its settings and the child answers `ready`; then one answer a page, in
order. End of input ends the process, so it dies with its parent. What libraries print goes nowhere.

Limits are the kernel's: RLIMIT_AS for the process, RLIMIT_CPU moved ahead before each page. A page that breaks one
kills the process; the parent knows which page that was.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import struct
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import orjson

if TYPE_CHECKING:
    from gristmill.curate.schema_extract import Extract
    from gristmill.curate.schema_language import Gate

LENGTHS = struct.Struct("<II")
EXIT_MEMORY = 77
"""The page needed more than the limit, or came within a fifth of it."""
TIGHT = 0.8
"""A library may swallow a MemoryError and go on with less text. A page whose process ever held this share of the limit
is not believed; it is tried alone in a fresh process and then counts as `extract.memory`."""
SPARE_MIB = 128
TEST_VARIABLE = "GRISTMILL_TEST_SANDBOX"
TEST_MARK = b"<!--gristmill-test:"


def pack(header: dict[str, Any], body: bytes = b"") -> list[bytes]:
    """A frame as buffers to write in order."""
    head = orjson.dumps(header)
    return [LENGTHS.pack(len(head), len(body)) + head, body]


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame of a blocking stream, or None at its end (also in the middle of a frame)."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    n_head, n_body = LENGTHS.unpack(lengths)
    head, body = stream.read(n_head), stream.read(n_body)
    if len(head) < n_head or len(body) < n_body:
        return None
    return orjson.loads(head), body


def main() -> int:
    requests, answers = _claim_pipes()
    first = read_frame(requests)
    if first is None:
        return 0
    settings = first[0]
    _bind_to_parent(int(settings["parent"]))
    try:
        worker = _Worker(settings)
    except Exception as error:  # the parent turns it into an error with a hint
        _write(answers, pack({"error": f"{type(error).__name__}: {error}"}))
        return 1
    _write(answers, pack({"ready": True, "mib": round(_peak_mib())}))
    while (frame := read_frame(requests)) is not None:
        try:
            answer = worker.answer(*frame)
            tight = _peak_mib() > TIGHT * worker.memory_mb
        except MemoryError:
            os._exit(EXIT_MEMORY)
        if tight:
            os._exit(EXIT_MEMORY)
        _write(answers, answer)
    return 0


class _Worker:
    """Everything a page needs, loaded once; the memory limit is set after loading."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from gristmill.curate.engines import load_engine
        from gristmill.curate.extract import page_text
        from gristmill.curate.gate import LanguageGate
        from gristmill.curate.identify import LID_CHARS, LID_SLICES, Identifier

        # The parent's schema has checked these values; pydantic would take a fifth of a start here.
        self.settings = cast("Extract", SimpleNamespace(**settings["extract"]))
        reading = {"chars": LID_CHARS, "slices": LID_SLICES} | (settings.get("language") or {})
        self.identifier = Identifier(settings["model"], reading["chars"], reading["slices"])
        self.gate: LanguageGate | None = None
        if settings.get("gate"):
            gate = cast("Gate", SimpleNamespace(**settings["gate"]))
            self.gate = LanguageGate(gate, settings["wanted"], self.identifier)
            self.gate.refuses("<p>A first page.")
        self.page_text = page_text
        warm = f"<html><body><article><p>{'A first page. ' * 30}</p></article></body></html>"
        unbounded = settings["extract"] | {"max_html_bytes": 1 << 20, "max_nodes": 1 << 20}
        load_engine(self.settings.engine, self.settings.mode)  # a broken one is an error now, not every page's fault
        # Imports happen before the limits.
        page_text(warm.encode(), "text/html; charset=utf-8", cast("Extract", SimpleNamespace(**unbounded)))
        self.identifier.identify(["A first page."])
        self.test = os.environ.get(TEST_VARIABLE) == "1"
        self.memory_mb = self.settings.memory_mb
        needed = round(_peak_mib() + SPARE_MIB)
        if needed > TIGHT * self.memory_mb:
            raise ValueError(f"memory_mb of {self.memory_mb} is too small: {round(needed / TIGHT) + 1} are the least")
        _lower(resource.RLIMIT_AS, self.memory_mb << 20)
        _lower(resource.RLIMIT_CORE, 0)
        gc.freeze()  # what is loaded stays; looking for cycles among it at every 700 new objects took 3 % of the time
        gc.set_threshold(100_000, 20, 20)

    def answer(self, request: dict[str, Any], body: bytes) -> list[bytes]:
        # The soft limit counts the process's CPU from its start, in whole seconds: rounded up, never short.
        _lower(resource.RLIMIT_CPU, int(time.process_time()) + 1 + self.settings.cpu_seconds)
        if self.test and TEST_MARK in body:
            _misbehave(body.split(TEST_MARK, 1)[1].split(b"-->", 1)[0].decode())
        page = self.page_text(body, request["type"], self.settings, self.gate)
        header: dict[str, Any] = {"charset": page.charset, "notes": dict(page.notes)}
        if page.reason is not None:
            header |= {"reason": page.reason, "value": page.value, "threshold": page.threshold}
            return pack(header)
        language, score = self.identifier.identify([page.text])[0]
        header |= {"language": language, "score": score, "facts": dict(page.facts)}
        return pack(header, page.text.encode())


def _misbehave(how: str) -> None:
    """What tests ask of a page, only with GRISTMILL_TEST_SANDBOX=1."""
    if how == "segv":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "hang":
        while True:
            pass
    elif how == "sleep":
        time.sleep(3600)
    elif how == "oom":
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))
    elif how == "exit":
        os._exit(1)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how.startswith("kill:"):  # kill:N:FILE, an operator who kills it N times; FILE counts
        times, path = how.removeprefix("kill:").split(":", 1)
        with open(path, "ab", buffering=0) as f:
            f.write(b"x")
            if f.tell() <= int(times):
                os.kill(os.getpid(), signal.SIGKILL)


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes under private numbers; 0, 1 and 2 become /dev/null, so that no print can break a frame."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    return os.fdopen(requests, "rb", 1 << 20), os.fdopen(answers, "wb", 0)


def _write(stream: BinaryIO, buffers: list[bytes]) -> None:
    view = memoryview(b"".join(buffers))
    while view:
        view = view[stream.write(view) :]


def _bind_to_parent(parent: int) -> None:
    """Signals meant for the run do not count against a page; the parent's end is this process's end.

    End of input covers that but for a page in hand, hence the parent-death signal (Linux).
    """
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)


def _lower(limit: int, value: int) -> None:
    """Set a soft limit, within the hard one; a platform without it goes without."""
    _, hard = resource.getrlimit(limit)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(limit, (soft, hard))


_status: list[int] = []
"""The open /proc/self/status: it is read after every page."""


def _peak_mib() -> float:
    """The largest address space this process ever had (MiB; Linux), elsewhere its largest resident set."""
    try:
        if not _status:
            _status.append(os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC))
        told = os.pread(_status[0], 4096, 0).partition(b"VmPeak:")[2]
        if told:
            return int(told.split(maxsplit=1)[0]) / 1024
    except OSError:
        pass
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    sys.exit(main())
