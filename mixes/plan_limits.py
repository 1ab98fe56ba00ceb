"""What E104 and E109 of a plan say: how often a source would be seen, what is too small, and what would do instead."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gristmill.mixes.schema import Phase


@dataclass(frozen=True)
class Short:
    """A source, child or "group NAME" beyond its limit: tokens drawn `before` and `after` a phase of `rows` rows, of which
    it has a `share`. `taken`: the tokens of its rows; `key` of the mix brought it in and has `whole` of the rows."""

    name: str
    key: str
    tokens: int
    limit: float
    before: int
    after: int
    taken: int
    rows: int
    share: float
    whole: float


def too_small(number: int, phase: Phase, rows: float) -> tuple[str, str]:
    message = (
        f"E109 phase `{phase.name}` has {rows:.1f} rows of {phase.seq_len} tokens, "
        f"one global batch is {phase.batch_rows} rows ({phase.global_batch:,} tokens)"
    )
    if rows >= 1:
        return message, f"lower stages.{number}.global_batch to {int(rows) * phase.seq_len}, or give it more tokens"
    return message, f"give it more tokens, or lower stages.{number}.seq_len and its global_batch"


def too_often(phase: Phase, short: Short, parent: str) -> tuple[str, str]:
    """E104 with the largest budget and share that would do. `parent`: the source with the limit, empty for a group."""
    kind, label = ("source", short.name) if parent else ("group", short.name[6:])
    message = (
        f"E104 {kind} `{label}` would be seen {_above(short.after / short.tokens, short.limit)} times by the end of "
        f"phase `{phase.name}` ({short.after:,} of {short.tokens:,} tokens), its limit is {short.limit:g}"
    )
    row = phase.seq_len + 1
    # what may still be drawn, as tokens of rows: fewer where documents are truncated
    left = (short.limit * short.tokens - short.before) * short.taken / max(short.after - short.before, 1)
    raise_it = f"raise sources.{parent}.max_epochs" if parent else "raise max_epochs of its sources"
    if left < row:
        return message, f"{raise_it}, or take less of it before `{phase.name}`"
    budget = int(left / short.share / row) // phase.batch_rows * phase.global_batch
    most = left / (short.rows * row)
    given = "it"
    if short.key == parent != short.name:  # a child by its parent's name: only that can be given a share
        given, most = f"`{short.key}`", most * short.whole / short.share
    return message, (
        f"`{phase.name}` can have {budget:,} tokens at this share, or give {given} a share of {_below(most)} of "
        f"{short.rows * phase.seq_len:,}; or {raise_it}"
    )


def _below(share: float) -> str:
    """Rounded down, to four digits that say something."""
    digits = max(4, 3 - math.floor(math.log10(share)))
    return f"{math.floor(share * 10**digits + 1e-6) / 10**digits:.{digits}f}"


def _above(times: float, limit: float) -> str:
    """With two digits, or as many as show that it is above the limit."""
    texts = (f"{times:.{digits}f}" for digits in range(2, 9))
    return next((text for text in texts if float(text) > limit), f"{times:.2f}")
