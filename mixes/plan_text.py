"""The plan as a table and as JSON: groups, sources and children by row, phases by column.

Tokens are positions trained on. `ep` is cumulative: stored tokens (one more per row) drawn by the end of the phase over
available ones; `?` where nobody has counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gristmill.core.settings import Document, dotted
from gristmill.mixes.plan import Plan
from gristmill.mixes.schema import Mixture

PLAN_FORMAT = "gristmill-mix-plan-1"
PACK_TOKENS_PER_SECOND = 10e6
"""Stored tokens that one process plans, packs, shuffles, writes and checks in a second, rounded down: 11.5 to 16.4 million
measured, gather and buckets, 72M uint16 tokens in rows of 4096, on a machine at a load of 5 on 2 cores."""


@dataclass(frozen=True)
class Cell:
    """What one phase takes of a line: positions trained on, share of the phase's rows, cumulative epochs."""

    phase: str
    tokens: int
    share: float
    epochs: float | None


@dataclass(frozen=True)
class Line:
    """A group, a source, or a child of one. `available` None: not counted. `flags`: warning codes."""

    name: str
    kind: str  # "group", "source", "child"
    documents: int | None
    available: int | None
    heldout_tokens: int | None
    limit: float
    phases: list[Cell]
    tokens: int
    epochs: float | None
    flags: list[str]


def lines(plan: Plan, mixture: Mixture) -> list[Line]:
    """Groups in order of appearance, then every source, followed by its children that phases name or that are counted."""
    members: dict[tuple[str, str], list[str]] = {}
    for supply in plan.supplies:
        parent = mixture.parent(supply.name)
        group = mixture.sources[parent].group
        if group is not None:
            members.setdefault(("group", group), []).append(supply.name)
    for name in mixture.sources:
        own = [s.name for s in plan.supplies if mixture.parent(s.name) == name]
        members["source", name] = own
        members |= {("child", child): [child] for child in own if child != name}
    return [_line(plan, mixture, kind, name, own) for (kind, name), own in members.items()]


def _line(plan: Plan, mixture: Mixture, kind: str, name: str, members: list[str]) -> Line:
    supplies = [s for s in plan.supplies if s.name in members]
    key = f"group {name}" if kind == "group" else name
    available = plan.totals.get(key)
    if available is None and supplies and all(s.tokens is not None for s in supplies):
        available = sum(s.tokens or 0 for s in supplies)
    lost = key in plan.lost
    cells = []
    used = 0
    for phase in plan.phases:
        uses = [u for u in phase.uses if u.source in members]
        if not uses:
            continue
        rows = sum(u.rows for u in uses)
        used += sum(u.drawn for u in uses)
        epochs = used / available if available and not lost else None
        cells.append(Cell(phase.name, rows * phase.seq_len, rows / phase.rows, epochs))
    limit = max([mixture.limit(m) for m in members], default=mixture.limit(name) if kind != "group" else 0.0)
    ticks = {f"group `{name}`"} if kind == "group" else {f"`{m}`" for m in [name, *members]}
    flags = dict.fromkeys(n.code for n in plan.notes if any(tick in n.text for tick in ticks))
    if kind == "group":  # what is said of its sources is said of it, so far as it is about epochs
        names = {*members, *(mixture.parent(m) for m in members)}
        flags |= dict.fromkeys(
            n.code for n in plan.notes if n.code == "W201" and any(f"`{m}`" in n.text for m in names)
        )
    counted = all(s.documents is not None for s in supplies) and bool(supplies)
    return Line(
        name,
        kind,
        sum(s.documents or 0 for s in supplies) if counted else None,
        available,
        sum(s.heldout_tokens or 0 for s in supplies) if counted else None,
        limit,
        cells,
        sum(cell.tokens for cell in cells),
        used / available if available and not lost else None,
        list(flags),
    )


def as_json(plan: Plan, mixture: Mixture, document: Document | None = None) -> dict[str, Any]:
    """The plan as plain data. Warnings have their place in the YAML."""
    table = [asdict(line) for line in lines(plan, mixture)]
    phases = []
    for phase in plan.phases:
        phases.append({**asdict(phase), "pack_hours_per_core": _hours(phase.rows * (phase.seq_len + 1))})
    warnings = []
    for note in plan.notes:
        mark = document.mark(note.loc, key=True) if document is not None else None
        place = {"file": mark.file, "line": mark.line, "column": mark.column} if mark is not None else {}
        path = document.path(note.loc) if document is not None else dotted(note.loc)
        warnings.append({"code": note.code, "message": note.text, "path": path, **place})
    return {
        "format": PLAN_FORMAT,
        "seed": plan.seed,
        "vocab_size": plan.vocab_size,
        "dtype": plan.dtype,
        "tokens": sum(p.tokens for p in plan.phases),
        "batches": sum(p.batches for p in plan.phases),
        "rows": sum(p.rows for p in plan.phases),
        "bytes": sum(p.bytes for p in plan.phases),
        "pack_hours_per_core": sum(p["pack_hours_per_core"] for p in phases),
        "pack_tokens_per_second": PACK_TOKENS_PER_SECOND,
        "groups": [line for line in table if line["kind"] == "group"],
        "sources": [line for line in table if line["kind"] != "group"],
        "supplies": [asdict(s) for s in plan.supplies],
        "phases": phases,
        "unsized": plan.unsized,
        "ablations": [
            {
                "name": a.name,
                "from": {"stage": a.from_.stage, "at": a.from_.at},
                "tokens": a.tokens,
                "base": a.base,
                "candidate": a.candidate,
                "lr": a.lr.model_dump(mode="json", exclude_none=True),
            }
            for a in mixture.ablations
        ],
        "warnings": warnings,
    }


def _hours(tokens: int) -> float:
    return tokens / PACK_TOKENS_PER_SECOND / 3600


def short(n: float | None) -> str:
    """A count for people: 5.10T, 1.20M, 812; `?` for None."""
    if n is None:
        return "?"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= size * 0.9995:
            return f"{n / size:.2f}{unit}"
    return f"{n:.0f}"


def render(plan: Plan, mixture: Mixture, document: Document | None = None) -> str:
    """The plan for people. Warnings come with their lines where the YAML is given."""
    width = f"uint{16 if plan.dtype.endswith('2') else 32}"
    known = f"vocabulary {plan.vocab_size:,}" if plan.vocab_size is not None else "vocabulary unknown"
    stored = sum(p.rows * (p.seq_len + 1) for p in plan.phases)
    out = [
        f"{short(sum(p.tokens for p in plan.phases))} tokens in {sum(p.batches for p in plan.phases):,} global batches, "
        f"{sum(p.rows for p in plan.phases):,} rows, {short(sum(p.bytes for p in plan.phases))} bytes of {width}, {known}; "
        f"packing about {_hours(stored):,.1f} core hours (estimate at {PACK_TOKENS_PER_SECOND / 1e6:g}M tokens/s/core)"
    ]
    for p in plan.phases:
        part = f", trained up to row {p.until_rows:,}" if p.until_rows is not None else ""
        out.append(
            f"  {p.name}: {p.batches:,} batches of {p.batch_rows} rows of {p.seq_len} tokens, {p.rows:,} rows, "
            f"{short(p.bytes)} bytes, {p.pack}, learning rate {p.learning_rate}{part}"
        )
    for name, missing in plan.unsized.items():
        out.append(f"  {name}: size unknown, it is in epochs of {', '.join(missing)}, whose tokens are unknown")
    table = lines(plan, mixture)
    for title, kinds in (("group", ["group"]), ("source", ["source", "child"])):
        rows = [line for line in table if line.kind in kinds]
        if rows:
            out += ["", *_table(plan, title, rows)]
    for a in mixture.ablations:
        what = ", ".join(f"{name} {share:.1%}" for name, share in a.candidate.items())
        out.append(
            f"ablation {a.name}: {short(a.tokens)} tokens from {short(a.from_.at)} of `{a.from_.stage}` on, its mix "
            f"{a.base:.1%}, {what}, learning rate {a.lr.phase} (--ablation {a.name} plans it)"
        )
    for note in plan.notes:
        mark = document.mark(note.loc, key=True) if document is not None else None
        place = f"{mark.file}:{mark.line}:{mark.column}: " if mark is not None else ""
        out.append(f"{place}warning: {note}")
    return "\n".join(out)


def _table(plan: Plan, title: str, rows: Sequence[Line]) -> list[str]:
    counted = any(line.documents is not None for line in rows)
    heads = [f"{p.name} {short(p.tokens)}" for p in plan.phases]
    widths = [max(len(h), 15) for h in heads]
    names = [f"  {line.name}" if line.kind == "child" else line.name for line in rows]
    name_width = max([len(title), *map(len, names)])
    head = f"{title:<{name_width}}" + (f" {'documents':>9}" if counted else "") + f" {'available':>9}"
    head += f" {'held out':>8}" if counted else ""
    for text, width in zip(heads, widths, strict=True):
        head += f" | {text:>{width}} {'ep':>6}"
    out = [head + f" | {'total':>8} {'epochs':>6} {'limit':>5}"]
    for text, line in zip(names, rows, strict=True):
        row = f"{text:<{name_width}}"
        if counted:
            row += f" {line.documents:>9,}" if line.documents is not None else f" {'?':>9}"
        row += f" {short(line.available):>9}" + (f" {short(line.heldout_tokens):>8}" if counted else "")
        cells = {cell.phase: cell for cell in line.phases}
        for p, width in zip(plan.phases, widths, strict=True):
            cell = cells.get(p.name)
            row += (
                f" | {f'{_amount(cell.tokens)} {cell.share:6.1%}':>{width}} {_ep(cell.epochs):>6}"
                if cell
                else f" | {'':>{width}} {'':>6}"
            )
        ok = "ok" if line.epochs is not None or not line.tokens else "unknown"
        out.append(
            row + f" | {_amount(line.tokens):>8} {_ep(line.epochs):>6} {line.limit:>5g}  {' '.join(line.flags) or ok}"
        )
    return out


def _amount(tokens: int) -> str:
    """As `short`, with one digit more below a trillion's tenth: 0.564T reads beside 5.824T."""
    return f"{tokens / 1e12:.3f}T" if tokens >= 1e11 else short(tokens)


def _ep(epochs: float | None) -> str:
    return "?" if epochs is None else f"{epochs:.2f}"
