"""The plan of a mixture: rows, tokens and epochs of every source in every phase, refused or warned about.

Two units meet here. A phase's budget counts positions trained on, seq_len per row. What a source gives counts stored
tokens, seq_len + 1 per row; epochs are stored tokens over the source's available ones. Rows that packing cannot fill
to the last token make the true epochs a little smaller, never larger.

A source with children (`split_by`) is drawn from through them; where nobody has counted them yet, as one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gristmill.core.errors import ConfigError, UsageError
from gristmill.core.settings import Document, Loc
from gristmill.core.tokshards import token_dtype
from gristmill.mixes.order import largest_remainder
from gristmill.mixes.plan_limits import Short, too_often, too_small
from gristmill.mixes.plan_shares import Want, divide, rescale, wanted_rows
from gristmill.mixes.schema import MAX_EPOCHS, Mixture, Phase


class Counted(Protocol):
    """What a source or a child has, as `mixes.sources` counts it: documents and tokens to draw from, and those held out."""

    @property
    def name(self) -> str: ...
    @property
    def documents(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def heldout(self) -> int: ...
    @property
    def heldout_tokens(self) -> int: ...
    @property
    def beyond(self) -> Mapping[int, int]: ...


@dataclass(frozen=True)
class Supply:
    """What a source, or a child of one, has; None where nobody has counted."""

    name: str
    documents: int | None
    tokens: int | None
    heldout_documents: int | None
    heldout_tokens: int | None
    max_epochs: float


@dataclass(frozen=True)
class Use:
    """What one phase takes of one source. `epochs` is cumulative over the phases up to this one; None where unknown."""

    source: str
    rows: int
    tokens: int  # stored: rows x (seq_len + 1)
    share: float  # of the phase's rows, before rounding to whole rows
    epochs: float | None
    drawn: int = 0  # tokens of the source's documents; more than `tokens` where documents are truncated


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
    pack: str = "bfd"
    until_rows: int | None = None  # rows trained on, where not all


@dataclass(frozen=True)
class Note:
    """A warning: its code, what it says, and the place in the YAML it is about."""

    code: str
    text: str
    loc: Loc

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


@dataclass(frozen=True)
class Plan:
    """A mixture with the token counts of its sources filled in."""

    seed: int
    vocab_size: int | None
    dtype: str
    supplies: list[Supply]
    phases: list[PhasePlan]
    notes: list[Note]
    totals: dict[str, int | None] = field(default_factory=dict)
    """Tokens of sources with children and of groups ("group NAME"), where they are known."""
    unsized: dict[str, list[str]] = field(default_factory=dict)
    """{phase: sources} of phases whose size follows from sources that nobody has counted; they are not in `phases`."""
    lost: list[str] = field(default_factory=list)
    """What such phases draw from: sources, children and groups whose epochs therefore nobody knows."""

    @property
    def warnings(self) -> list[str]:
        """The notes as text, without places: those change with the file's layout."""
        return [str(note) for note in self.notes]


def make_plan(
    mixture: Mixture,
    stock: Sequence[Counted],
    vocab_size: int,
    document: Document | None = None,
    overlaps: Mapping[tuple[str, str], int] | None = None,
) -> Plan:
    """Rows per source and phase, over counted sources. `overlaps`: documents that pairs share (`membership.Overlaps`).

    Raises UsageError with every E102, E103, E104 and E109 of the mixture at once; with `document`, the YAML, as a
    ConfigError that has their places.
    """
    supplies = [
        Supply(s.name, s.documents, s.tokens, s.heldout, s.heldout_tokens, mixture.limit(s.name)) for s in stock
    ]
    totals = _totals(mixture, supplies)
    beyond = {s.name: s.beyond for s in stock}
    return plan_supplies(mixture, supplies, totals, vocab_size, document, overlaps, beyond)


def plan_supplies(
    mixture: Mixture,
    supplies: Sequence[Supply],
    totals: Mapping[str, int | None],
    vocab_size: int | None,
    document: Document | None = None,
    overlaps: Mapping[tuple[str, str], int] | None = None,
    beyond: Mapping[str, Mapping[int, int]] | None = None,
) -> Plan:
    """`make_plan` over supplies that may be unknown. `totals` as in Plan; `beyond`: source -> {width of a row: tokens of an
    epoch that truncating documents to it drops}. Raises what it raises."""
    from gristmill.mixes.plan_notes import notes

    planner = _Planner(mixture, list(supplies), totals, beyond or {})
    phases = [p for i, phase in enumerate(mixture.stages) if (p := planner.phase(i, phase, vocab_size)) is not None]
    if planner.faults:
        raise_at(planner.faults, document)
    found = notes(mixture, supplies, phases, planner.cut, overlaps or {}, planner.epochs)
    dtype = token_dtype(vocab_size if vocab_size is not None else 1 << 17).str
    return Plan(
        mixture.seed,
        vocab_size,
        dtype,
        list(supplies),
        phases,
        found,
        dict(totals),
        planner.unsized,
        sorted(planner.lost),
    )


def raise_at(faults: Sequence[tuple[Loc, str, str]], document: Document | None) -> None:
    """Raise (place, message, hint) faults: at their places in the YAML, else as one UsageError."""
    if document is not None:
        raise ConfigError([document.problem(loc, message, hint) for loc, message, hint in faults])
    hints = "; ".join(dict.fromkeys(hint for _, _, hint in faults))
    raise UsageError("\n".join(message for _, message, _ in faults), hint=hints)


def _totals(mixture: Mixture, supplies: Iterable[Supply]) -> dict[str, int | None]:
    out: Counter[str] = Counter()
    for supply in supplies:
        parent = mixture.parent(supply.name)
        group = mixture.sources[parent].group
        if parent != supply.name:
            out[parent] += supply.tokens or 0
        if group is not None:
            out[f"group {group}"] += supply.tokens or 0
    return dict(out)


class _Planner:
    """Goes through the phases in order and remembers what was used. `faults` are (place, message, hint)."""

    def __init__(
        self,
        mixture: Mixture,
        supplies: list[Supply],
        totals: Mapping[str, int | None],
        beyond: Mapping[str, Mapping[int, int]],
    ) -> None:
        self.mixture, self.supplies, self.beyond = mixture, {s.name: s for s in supplies}, beyond
        self.tokens: dict[str, int | None] = {**totals, **{s.name: s.tokens for s in supplies}}
        self.used: Counter[str] = Counter()  # tokens drawn, by source, child and "group NAME"
        self.lost: set[str] = set()  # those that a phase of unknown size used
        self.exhausted: set[str] = set()
        self.short: list[Short] = []  # those of the phase that is being planned
        self.faults: list[tuple[Loc, str, str]] = []
        self.unsized: dict[str, list[str]] = {}
        self.cut: list[
            tuple[int, str, float, float]
        ] = []  # (phase, source, share wanted, share given) of on_short: rescale

    def above(self, name: str) -> list[str]:
        """A drawable source and what its tokens count to: its parent, its group."""
        parent = self.mixture.parent(name)
        group = self.mixture.sources[parent].group
        return [*dict.fromkeys((name, parent)), *([f"group {group}"] if group else [])]

    def epochs(self, name: str) -> float | None:
        """Passes so far over a source, a child or "group NAME"."""
        tokens = self.tokens.get(name)
        return None if not tokens or name in self.lost else self.used[name] / tokens

    def kept(self, source: str, phase: Phase) -> float:
        """Part of a source's tokens that a phase's rows take; below 1 where it truncates documents, and is known to."""
        tokens = self.tokens.get(source)
        if not tokens or self.mixture.packing(phase) != "bfd-truncate":
            return 1.0
        return 1.0 - self.beyond.get(source, {}).get(phase.seq_len + 1, 0) / tokens

    def phase(self, number: int, phase: Phase, vocab_size: int | None) -> PhasePlan | None:
        divided = self._divided(number, phase)
        if divided is None:
            return None
        found = wanted_rows(phase, divided, self.tokens, lambda source: self.kept(source, phase))
        if isinstance(found, list):
            self.unsized[phase.name] = found
            self.lost.update(n for parts in divided.values() for source, _ in parts for n in self.above(source))
            return None
        total = sum(found.rows.values())
        where: Loc = ("stages", number)
        if min(found.rows.values()) <= 0:
            short = next(s for s, rows in found.rows.items() if rows <= 0)
            text = f"E109 phase `{phase.name}`: nothing is left for the rest, `{short}`"
            self.faults.append(((*where, "mix", found.keys[short]), text, "raise its tokens"))
            return None
        batches = int((total + 1e-9) // phase.batch_rows)
        if batches < 1:
            self.faults.append(((*where, "tokens" if phase.tokens else "mix"), *too_small(number, phase, total)))
            return None
        rows = batches * phase.batch_rows
        counts = self._counts(number, phase, found, rows)
        before = self.used.copy()
        width = phase.seq_len + 1
        drawn = {source: round(n * width / self.kept(source, phase)) for source, n in counts.items()}
        for source, tokens in drawn.items():
            for name in self.above(source):
                self.used[name] += tokens
        for name in dict.fromkeys(name for source in counts for name in self.above(source)):
            self._limit(number, phase, name, found, before[name], counts)
        self._report(number, phase)
        uses = [
            Use(source, n, n * width, found.rows[source] / total, self.epochs(source), drawn[source])
            for source, n in counts.items()
        ]
        size = rows * width * token_dtype(vocab_size if vocab_size is not None else 1 << 17).itemsize
        until = None if phase.until is None else min(phase.until // phase.global_batch, batches) * phase.batch_rows
        return PhasePlan(
            phase.name, phase.seq_len, phase.batch_rows, batches, rows, rows * phase.seq_len, size, phase.lr.phase, uses,
            self.mixture.packing(phase), until if until != rows else None,
        )  # fmt: skip

    def _divided(self, number: int, phase: Phase) -> dict[str, list[tuple[str, float]]] | None:
        """Each name of the mix as drawable sources and their parts of it; None when one has no document."""
        out: dict[str, list[tuple[str, float]]] = {}
        faulty = False
        for name in phase.mix:
            loc: Loc = ("stages", number, "mix", name)
            parts = divide(self.mixture, name, self.tokens, self.supplies)
            if not parts:
                known = [s for s in self.supplies if self.mixture.parent(s) == self.mixture.parent(name) != s]
                text = f"E102 unknown child `{name}`"
                hint = f"children: {', '.join(known[:20])}{', …' if len(known) > 20 else ''}"
                if not known:
                    text, hint = f"E103 source `{name}` has no documents", "`mix plan --root` counts them"
                self.faults.append((loc, text, hint))
            elif any(self.tokens[source] == 0 for source, _ in parts):
                self.faults.append(
                    (loc, f"E103 source `{name}` has no documents", "look at its filter and path, or leave it out")
                )
                parts = []
            faulty |= not parts
            out[name] = parts
        return None if faulty else out

    def _counts(self, number: int, phase: Phase, want: Want, rows: int) -> dict[str, int]:
        """Whole rows of each source."""
        if self.mixture.defaults.on_short != "rescale":
            return dict(zip(want.rows, largest_remainder(list(want.rows.values()), rows), strict=True))
        room: dict[str, float] = {}
        for source in want.rows:
            tokens = self.tokens[source]
            limit = self.mixture.limit(source)
            left = math.inf if tokens is None else limit * tokens - self.used[source]
            room[source] = max(left * self.kept(source, phase) // (phase.seq_len + 1), 0)
        counts, capped = rescale(want.rows, rows, room)
        if counts is None:
            # every source is at its limit: E104 names each
            return dict(zip(want.rows, largest_remainder(list(want.rows.values()), rows), strict=True))
        total = sum(want.rows.values())
        self.cut += [(number, s, want.rows[s] / total, counts[s] / rows) for s in capped]
        return {source: n for source, n in counts.items() if n} if not all(counts.values()) else counts

    def _limit(self, number: int, phase: Phase, name: str, want: Want, before: int, counts: Mapping[str, int]) -> None:
        """E104 for a source, or for a parent or group that is counted where its parts are not."""
        tokens = self.tokens.get(name)
        if tokens is None or name in self.exhausted or name in self.lost:
            return
        members = [s for s in self.supplies if name in self.above(s)]
        if members != [name] and all(self.tokens[s] is not None for s in members):
            return  # each of them is looked at
        most = max(self.mixture.limit(s) for s in members)
        on_short = self.mixture.defaults.on_short
        # rounding to whole rows may add one row a phase and source
        slack = (number + 1) * (phase.seq_len + 1) * len(members)
        if self.used[name] <= (MAX_EPOCHS if on_short == "repeat" else most) * tokens + slack:
            return
        inside = [s for s in want.rows if name in self.above(s)]
        if all(not self.exhausted.isdisjoint(itertools.takewhile(name.__ne__, self.above(s))) for s in inside):
            return  # a parent or group all of whose sources here have said so
        self.exhausted.add(name)
        key = want.keys[inside[0]]
        total = sum(want.rows.values())
        share = sum(want.rows[s] for s in inside) / total
        whole = sum(n for s, n in want.rows.items() if want.keys[s] == key) / total
        taken = sum(counts.get(s, 0) for s in inside) * (phase.seq_len + 1)
        self.short.append(
            Short(name, key, tokens, most, before, self.used[name], taken, sum(counts.values()), share, whole)
        )

    def _report(self, number: int, phase: Phase) -> None:
        """E104 of a phase; of the children that one name of its mix brought in, the worst speaks for all."""
        by_key: dict[tuple[str, str], list[Short]] = {}
        for short in self.short:
            child = short.name != short.key and not short.name.startswith("group ")
            by_key.setdefault((short.key, "" if child else short.name), []).append(short)
        self.short = []
        for (key, _), found in by_key.items():
            worst = max(found, key=lambda s: s.after / s.tokens)
            parent = "" if worst.name.startswith("group ") else self.mixture.parent(worst.name)
            message, hint = too_often(phase, worst, parent)
            if len(found) > 1:
                message += f"; so would {len(found) - 1} more children of `{key}`, less often"
            self.faults.append((("stages", number, "mix", key), message, hint))
