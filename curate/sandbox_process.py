"""One extraction process seen from its parent: starting it, the bytes on their way to and from it, and how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

import gristmill
from gristmill.core.errors import GristmillError
from gristmill.curate.process_state import peak_rss_kb, process_state
from gristmill.curate.sandbox_child import EXIT_MEMORY, LENGTHS, pack

PIPE_BYTES = 1 << 20  # Linux's largest pipe for an unprivileged process; most pages fit
BUFFERS = 64  # given to one call, of at least 16 (POSIX)
POLL_SECONDS = 5.0
START_SECONDS = 300.0


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


class Stillborn(Exception):
    """An extraction process ended before it was ready and without a word."""


class Child:
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
        self.answered = 0
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
        raise Stillborn(f"{cause}, status {self._process.returncode}")

    def send(self, job: Job) -> None:
        self.sent += 1
        self._stalled = 0.0
        content_type = job.content_type.encode("utf-8", "replace").decode()
        self._put(pack({"type": content_type}, job.body))

    def _put(self, buffers: list[bytes]) -> None:
        waiting = bool(self._out)
        self._out.extend(memoryview(b) for b in buffers if b)
        if not waiting:
            self._write()  # most pages fit into the pipe at once
            if self._out:
                self._selector.register(self._to, selectors.EVENT_WRITE)

    def pump(self, wait: float, stall_seconds: float) -> None:
        """Move bytes both ways; wait up to `wait` seconds for the first of them. Kills a child that sleeps for good."""
        events = self._selector.select(wait)
        for key, _ in events:
            if key.fd == self._from:
                self._read()
            else:
                self._write()
                if not self._out:
                    self._selector.unregister(self._to)
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
                written = os.writev(self._to, list(islice(self._out, BUFFERS)))
                while written:
                    first = self._out.popleft()
                    if written < len(first):
                        self._out.appendleft(first[written:])
                    written = max(0, written - len(first))
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._out.clear()  # it died; its last answers are still to be read

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
            self.answered += 1
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

    def alive(self) -> bool:
        return self._process.poll() is None

    def idle(self) -> bool:
        """Whether it lives and has answered all pages that it was sent."""
        return not self.ended and self.alive() and self.answered == self.sent and not self._out and not self._in

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
