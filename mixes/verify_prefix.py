"""Whether a phase's rows, in the order of the schedule, hold every source's share at every prefix to within one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gristmill.core.tokshards import PackedPhase

CHUNK = 16_384
"""Rows looked at together: with 40 sources some 5 MB an array."""


class Prefix:
    """Counts the sources of a phase's rows, in row order. After t of N rows source i, with n_i in all, must have had
    strictly between t n_i / N - 1 and t n_i / N + 1 (the bound of `order.interleave`). Integers only."""

    def __init__(self, phase: PackedPhase, rows: Mapping[str, int]) -> None:
        self.phase, self.total = phase, phase.rows
        self.names = list(rows)
        self.rows = np.array(list(rows.values()), np.int64)
        self.seen = np.zeros(len(self.names), np.int64)
        self.at = 0
        self.whole = True
        self._worst = 0  # in units of 1 / N rows
        self._where: tuple[int, str] | None = None

    @classmethod
    def of(cls, phase: PackedPhase, locked: Mapping[str, Any] | None) -> Prefix | None:
        """None when the lock does not tell the rows of each source."""
        sources = (locked or {}).get("sources")
        if not isinstance(sources, dict) or not sources:
            return None
        rows = {str(n): s["rows"] for n, s in sources.items() if isinstance(s, dict) and isinstance(s.get("rows"), int)}
        return cls(phase, rows) if len(rows) == len(sources) else None

    def lost(self) -> None:
        """A shard could not be read: what comes after it cannot be counted."""
        self.whole = False

    def add(self, names: Sequence[str], code: np.ndarray) -> None:
        """The next rows; `code` is each one's index into `names`."""
        if not self.whole:
            return
        known = {name: i for i, name in enumerate(self.names)}
        place = np.array([known.get(name, -1) for name in names] or [-1], np.int64)[code]
        for begin in range(0, len(place), CHUNK):
            part = place[begin : begin + CHUNK]
            counts = self.seen + np.cumsum(part[:, None] == np.arange(len(self.names)), axis=0)
            position = self.at + 1 + np.arange(len(part), dtype=np.int64)
            error = np.abs(counts * self.total - position[:, None] * self.rows)
            worst = int(error.max(initial=0))
            if worst > self._worst:
                self._worst = worst
                row, source = np.unravel_index(int(error.argmax()), error.shape)
                self._where = (int(position[row]), self.names[source])
            self.seen, self.at = counts[-1].copy(), self.at + len(part)

    @property
    def worst(self) -> float:
        """The largest distance from a share at any prefix, in rows."""
        return self._worst / max(self.total, 1)

    def faults(self) -> list[tuple[str, str]]:
        """(code, what): `prefix` where a source ran ahead or behind, `share` where its rows are not those of the lock."""
        out: list[tuple[str, str]] = []
        if self.whole and self._worst >= self.total and self._where is not None:
            rows, name = self._where
            out.append(("prefix", f"after {rows} rows {name} is {self.worst:.3f} rows away from its share"))
        if self.whole:
            out += [
                ("share", f"{name} has {got} rows, the lock says {want}")
                for name, got, want in zip(self.names, self.seen.tolist(), self.rows.tolist(), strict=True)
                if got != want
            ]
        for name, want in zip(self.names, self.rows.tolist(), strict=True):
            share = self.phase.shares.get(name, {}).get("target")
            if share is not None and abs(want - share * self.total) >= 1 + 1e-9 * self.total:
                out.append(("share", f"{name} has {want} rows, its share of {self.total} is {share * self.total:.2f}"))
        return out
