"""Rows that a phase wants of every source: shares, tokens, epochs and the rest, divided among children, and rescaled."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from gristmill.mixes.order import largest_remainder
from gristmill.mixes.schema import EpochsPart, Mixture, Phase, TokensPart


@dataclass
class Want:
    """Rows by drawable source, before rounding, and the name in the `mix` that each came from (the first, if several)."""

    rows: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, source: str, rows: float) -> None:
        self.rows[source] = self.rows.get(source, 0.0) + rows
        self.keys.setdefault(source, key)


def divide(
    mixture: Mixture, name: str, tokens: Mapping[str, int | None], supplies: Container[str]
) -> list[tuple[str, float]]:
    """The drawable sources behind a name of a mix and the part of its amount that each gets; empty where there are none.

    A source with children is divided by their available tokens. One that is itself drawable, because its children are
    not counted, stands for itself.
    """
    if name in supplies:
        return [(name, 1.0)]
    if name not in mixture.split:
        return []
    children = {c: n for c, n in tokens.items() if c in supplies and c != name and mixture.parent(c) == name}
    total = sum(n or 0 for n in children.values())
    return [(c, n / total) for c, n in children.items() if n] if total else []


def wanted_rows(
    phase: Phase,
    divided: Mapping[str, list[tuple[str, float]]],
    tokens: Mapping[str, int | None],
    kept: Callable[[str], float],
) -> Want | list[str]:
    """Rows wanted of each source; the rest may come out at or below 0. A list: sources whose tokens one must know first.

    kept: the part of a source's tokens that ends up in rows.
    """
    rows = (phase.tokens or 0) / phase.seq_len
    shares = [part for part in phase.mix.values() if isinstance(part, float)]
    scale = 1 / sum(shares) if phase.normalize else 1.0
    want, unknown = Want(), []
    rest = None
    for name, part in phase.mix.items():
        for source, piece in divided[name]:
            if isinstance(part, float):
                want.add(name, source, part * scale * rows * piece)
            elif isinstance(part, TokensPart):
                want.add(name, source, part.tokens / phase.seq_len * piece)
            elif isinstance(part, EpochsPart):
                available = tokens[source]
                if available is None:
                    unknown.append(source)
                else:
                    want.add(name, source, part.epochs * available * kept(source) / (phase.seq_len + 1))
            else:
                rest = name
                want.add(name, source, 0.0)
    if unknown:
        return unknown
    if rest is not None:
        left = rows - sum(want.rows.values())
        for source, piece in divided[rest]:
            want.add(rest, source, left * piece)
    return want


def rescale(want: Mapping[str, float], rows: int, room: Mapping[str, float]) -> tuple[dict[str, int] | None, list[str]]:
    """Whole rows, `rows` in all, none above its `room`: what one cannot give, the others do in proportion.

    Also the sources that were cut. None when all of them together have too little room.
    """
    free, fixed = dict(want), dict[str, int]()
    while True:
        left, weight = rows - sum(fixed.values()), sum(free.values())
        over = [s for s, w in free.items() if w / weight * left > room[s]]
        if not over:
            counts = dict(zip(free, largest_remainder(list(free.values()), left), strict=True))
            over = [s for s, n in counts.items() if n > room[s]]  # by the rounding
            if not over:
                both = {**fixed, **counts}
                return {s: both[s] for s in want}, list(fixed)
        for source in over:
            fixed[source] = int(room[source])
            del free[source]
        if not free:
            enough = sum(fixed.values()) >= rows
            return ({s: fixed[s] for s in want} if enough and sum(fixed.values()) == rows else None), list(fixed)
