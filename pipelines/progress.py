"""Progress on stderr: one line per stage, redrawn on a terminal, else a plain line every 30 seconds and at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from gristmill.core.stage import Receipt

PLAIN_SECONDS = 30.0
DRAW_SECONDS = 0.2


class StageProgress:
    """Counts receipts, so the figures are right after any resume: documents per second are of this run alone."""

    def __init__(
        self,
        stage: str,
        total: int,
        done: list[Receipt],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.total = stage, total
        self.stream = stream or sys.stderr
        self.clock = clock
        self.live = self.stream.isatty() and "GRISTMILL_NO_PROGRESS" not in os.environ
        self.quiet = "GRISTMILL_NO_PROGRESS" in os.environ
        self.started = self.drawn = clock()
        self.finished = self.fresh = len(done)
        self.failed = 0
        self.rows_in = sum(r.rows_in for r in done)
        self.rows_out = sum(r.rows_out for r in done)
        self.quarantined = sum(r.quarantined for r in done)
        self.maps_rows = all(r.drops is not None for r in done)
        self.rows_now = 0
        self._draw(first=True)

    def add(self, receipt: Receipt) -> None:
        self.finished += 1
        self.rows_in += receipt.rows_in
        self.rows_out += receipt.rows_out
        self.rows_now += receipt.rows_in
        self.quarantined += receipt.quarantined
        self.maps_rows &= receipt.drops is not None
        self._draw()

    def fail(self) -> None:
        self.failed += 1
        self._draw()

    def line(self, final: bool = False) -> str:
        seconds = max(self.clock() - self.started, 1e-6)
        text = f"{self.stage:<20} {self.finished:>5,}/{self.total:,}"
        ran = self.finished - self.fresh
        if self.rows_now and self.maps_rows:
            text += f"   {_short(self.rows_now / seconds)} docs/s"
        if self.maps_rows and self.rows_in:
            text += f"   kept {self.rows_out / self.rows_in:.1%}"
        if self.quarantined:
            text += f"   {self.quarantined:,} quarantined"
        if self.failed:
            text += f"   {self.failed} FAILED"
        if final:
            text += f"   {_time(seconds)}" if ran or self.finished < self.total else "   up to date"
        elif ran and self.finished < self.total:
            text += f"   ETA {_time(seconds / ran * (self.total - self.finished))}"
        return text

    def close(self) -> None:
        if self.quiet:
            return
        self.stream.write(("\r\x1b[K" if self.live else "") + self.line(final=True) + "\n")
        self.stream.flush()

    def _draw(self, first: bool = False) -> None:
        now = self.clock()
        if self.quiet or (not self.live and (first or self.finished + self.failed >= self.total)):
            return  # close() says the last word
        if now - self.drawn < (DRAW_SECONDS if self.live else PLAIN_SECONDS) and not first:
            return
        self.drawn = now
        self.stream.write(("\r\x1b[K" + self.line()) if self.live else self.line() + "\n")
        self.stream.flush()


def _short(x: float) -> str:
    return f"{x / 1000:.1f}k" if x >= 10_000 else f"{x:,.0f}" if x >= 10 else f"{x:.1f}"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s"
