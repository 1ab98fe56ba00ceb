"""The plan of a mixture: rows, tokens and epochs of every source in every phase, refused or warned about, then printed.

Two units meet here. A phase's budget counts positions trained on, seq_len per row. What a source gives counts stored
tokens, seq_len + 1 per row; epochs are stored tokens over the source's available ones. Rows that packing cannot fill
to the last token make the true epochs a little smaller, never larger.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import token_dtype
from gristmill.mixes.order import largest_remainder
from gristmill.mixes.schema import MAX_EPOCHS, EpochsPart, Mixture, Phase, TokensPart
from gristmill.mixes.sources import Stock

WARN_EPOCHS = 4.0  # up to 4 epochs cost almost nothing (Muennighoff et al., arXiv 2305.16264)
WARN_ROUNDING = 0.01


@dataclass(frozen=True)
class Supply:
    """What a source has."""

    name: str
    documents: int
    tokens: int
    heldout_documents: int
    heldout_tokens: int
    max_epochs: float


@dataclass(frozen=True)
class Use:
    """What one phase takes of one source. `epochs` is cumulative over the phases up to this one."""

    source: str
    rows: int
    tokens: int  # stored: rows x (seq_len + 1)
    share: float  # of the phase's rows, before rounding to whole rows
    epochs: float


@dataclass(frozen=True)
class PhasePlan:
    """One phase: `rows` rows in `batches` whole global batches; `tokens` are positions trained on."""

    name: str
    seq_len: int
    batch_rows: int
    batches: int
    rows: int
    tokens: int
    bytes: int  # of the packed .bin files
    learning_rate: str
    uses: list[Use]


@dataclass(frozen=True)
class Plan:
    """A mixture with the token counts of its sources filled in."""

    seed: int
    vocab_size: int
    dtype: str
    supplies: list[Supply]
    phases: list[PhasePlan]
    warnings: list[str]


def make_plan(mixture: Mixture, stock: Sequence[Stock], vocab_size: int) -> Plan:
    """Rows per source and phase. Raises UsageError with every E104 and E109 of the mixture at once."""
    supplies = [
        Supply(s.name, len(s.documents), s.tokens, len(s.heldout), s.heldout_tokens, mixture.limit(s.name))
        for s in stock
    ]
    by_name = {s.name: s for s in supplies}
    used = dict.fromkeys(by_name, 0)
    faults: list[tuple[str, str]] = []
    phases: list[PhasePlan] = []
    exhausted: set[str] = set()
    for number, phase in enumerate(mixture.stages):
        want = _wanted_rows(phase, by_name)
        total = sum(want.values())
        if min(want.values()) <= 0:
            short = next(s for s, rows in want.items() if rows <= 0)
            faults.append((f"E109 phase `{phase.name}`: nothing is left for the rest, `{short}`", "raise its tokens"))
            continue
        batches = int((total + 1e-9) // phase.batch_rows)
        if batches < 1:
            faults.append(_too_small(number, phase, total))
            continue
        rows = batches * phase.batch_rows
        counts = dict(zip(want, largest_remainder(list(want.values()), rows), strict=True))
        for source, n in counts.items():
            before, used[source] = used[source], used[source] + n * (phase.seq_len + 1)
            # rounding to whole rows may add one row a phase
            allowed = by_name[source].max_epochs * by_name[source].tokens + (number + 1) * (phase.seq_len + 1)
            hard = MAX_EPOCHS * by_name[source].tokens + (number + 1) * (phase.seq_len + 1)
            most = allowed if mixture.defaults.on_short == "error" else hard
            if used[source] > most and source not in exhausted:
                exhausted.add(source)
                faults.append(_too_often(phase, by_name[source], before, used[source], rows, want[source] / total))
        uses = [
            Use(s, n, n * (phase.seq_len + 1), want[s] / total, used[s] / by_name[s].tokens) for s, n in counts.items()
        ]
        size = rows * (phase.seq_len + 1) * token_dtype(vocab_size).itemsize
        phases.append(
            PhasePlan(
                phase.name,
                phase.seq_len,
                phase.batch_rows,
                batches,
                rows,
                rows * phase.seq_len,
                size,
                phase.lr.phase,
                uses,
            )
        )
    if faults:
        hints = "; ".join(dict.fromkeys(hint for _, hint in faults))
        raise UsageError("\n".join(message for message, _ in faults), hint=hints)
    found = _warnings(mixture, supplies, phases, stock)
    return Plan(mixture.seed, vocab_size, token_dtype(vocab_size).str, supplies, phases, found)


def _wanted_rows(phase: Phase, supplies: Mapping[str, Supply]) -> dict[str, float]:
    """Rows wanted of each source, before rounding; the rest may come out at or below 0."""
    rows = (phase.tokens or 0) / phase.seq_len
    shares = {s: part for s, part in phase.mix.items() if isinstance(part, float)}
    scale = 1 / sum(shares.values()) if phase.normalize else 1.0
    want: dict[str, float] = {}
    for source, part in phase.mix.items():
        if isinstance(part, float):
            want[source] = part * scale * rows
        elif isinstance(part, TokensPart):
            want[source] = part.tokens / phase.seq_len
        elif isinstance(part, EpochsPart):
            want[source] = part.epochs * supplies[source].tokens / (phase.seq_len + 1)
        else:
            want[source] = 0.0
    for source, part in phase.mix.items():
        if part == "rest":
            want[source] = rows - sum(want.values())
    return want


def _too_small(number: int, phase: Phase, rows: float) -> tuple[str, str]:
    message = (
        f"E109 phase `{phase.name}` has {rows:.1f} rows of {phase.seq_len} tokens, "
        f"one global batch is {phase.batch_rows} rows ({phase.global_batch:,} tokens)"
    )
    if rows >= 1:
        return message, f"lower stages.{number}.global_batch to {int(rows) * phase.seq_len}, or give it more tokens"
    return message, f"give it more tokens, or lower stages.{number}.seq_len and its global_batch"


def _too_often(phase: Phase, supply: Supply, before: int, after: int, rows: int, share: float) -> tuple[str, str]:
    """E104 with the largest budget and share that would do."""
    message = (
        f"E104 source `{supply.name}` would be seen {after / supply.tokens:.2f} times by the end of phase `{phase.name}` "
        f"({after:,} of {supply.tokens:,} tokens), its limit is {supply.max_epochs:g}"
    )
    left = supply.max_epochs * supply.tokens - before
    row = phase.seq_len + 1
    if left < row:
        return message, f"raise sources.{supply.name}.max_epochs, or take less of it before `{phase.name}`"
    budget = int(left / share / row) // phase.batch_rows * phase.global_batch
    most = left / (rows * row)
    return message, (
        f"`{phase.name}` can have {budget:,} tokens at this share, or give it a share of {most:.4f} of {rows * phase.seq_len:,}; "
        f"or raise sources.{supply.name}.max_epochs"
    )


def _warnings(
    mixture: Mixture, supplies: Sequence[Supply], phases: Sequence[PhasePlan], stock: Sequence[Stock]
) -> list[str]:
    out = []
    last = {use.source: use.epochs for phase in phases for use in phase.uses}
    for supply in supplies:
        if supply.name not in last:
            out.append(f"W203 source `{supply.name}` is in no phase")
        elif last[supply.name] > supply.max_epochs * 1.0001 and mixture.defaults.on_short == "repeat":
            out.append(
                f"W201 source `{supply.name}` is seen {last[supply.name]:.2f} times, its limit is {supply.max_epochs:g}"
            )
        elif last[supply.name] > WARN_EPOCHS * 1.0001:
            out.append(f"W201 source `{supply.name}` is seen {last[supply.name]:.2f} times; repeats lose value after 4")
    seen: set[str] = set()
    for number, phase in enumerate(phases):
        for use in phase.uses:
            where = f"source `{use.source}` in phase `{phase.name}`"
            if use.rows * 100 < phase.batches:
                out.append(f"W202 {where} has {use.rows} rows in {phase.batches} batches")
            elif abs(use.rows / (use.share * phase.rows) - 1) > WARN_ROUNDING:
                out.append(f"W205 {where} gets {use.rows} whole rows for {use.share * phase.rows:.2f}")
            if number and phase.learning_rate == "decay" and use.source not in seen:
                out.append(f"W204 {where} is first seen while the learning rate decays")
        seen.update(use.source for use in phase.uses)
    for one, other in itertools.combinations([s for s in stock if s.name in last], 2):
        shared = len(np.intersect1d(one.documents, other.documents, assume_unique=True))
        if shared:
            out.append(
                f"W210 sources `{one.name}` and `{other.name}` share {shared:,} documents: epochs understate repeats"
            )
    return out


def short(n: float) -> str:
    """A count for people: 5.10T, 1.20M, 812."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= size * 0.9995:
            return f"{n / size:.2f}{unit}"
    return f"{n:.0f}"


def render(plan: Plan) -> str:
    """The plan as a table: sources by row, phases by column; `ep` is cumulative, in tokens over available tokens."""
    total = sum(p.tokens for p in plan.phases)
    lines = [
        f"{short(total)} tokens in {sum(p.batches for p in plan.phases):,} global batches, "
        f"{short(sum(p.bytes for p in plan.phases))} bytes of {np.dtype(plan.dtype).name}, vocabulary {plan.vocab_size:,}"
    ]
    for p in plan.phases:
        lines.append(
            f"  {p.name}: {p.batches:,} batches of {p.batch_rows} rows of {p.seq_len} tokens, learning rate {p.learning_rate}"
        )
    heads = [f"{p.name} {short(p.tokens)}" for p in plan.phases]
    widths = [max(len(h), 15) for h in heads]
    name = max([6, *(len(s.name) for s in plan.supplies)])
    head = f"{'source':<{name}} {'documents':>9} {'available':>9} {'held out':>8}"
    for text, width in zip(heads, widths, strict=True):
        head += f" | {text:>{width}} {'ep':>6}"
    lines += ["", head + f" | {'total':>8} {'epochs':>6} {'limit':>5}"]
    flags = {
        s.name: " ".join(dict.fromkeys(w.split()[0] for w in plan.warnings if f"`{s.name}`" in w))
        for s in plan.supplies
    }
    for s in plan.supplies:
        line = f"{s.name:<{name}} {s.documents:>9,} {short(s.tokens):>9} {short(s.heldout_tokens):>8}"
        used, epochs = 0, 0.0
        for p, width in zip(plan.phases, widths, strict=True):
            use = next((u for u in p.uses if u.source == s.name), None)
            if use is None:
                line += f" | {'':>{width}} {'':>6}"
                continue
            used, epochs = used + use.tokens, use.epochs
            line += f" | {f'{short(use.tokens)} {use.rows / p.rows:6.1%}':>{width}} {use.epochs:6.2f}"
        lines.append(line + f" | {short(used):>8} {epochs:6.2f} {s.max_epochs:>5g}  {flags[s.name] or 'ok'}")
    return "\n".join([*lines, *(f"warning: {w}" for w in plan.warnings)])
