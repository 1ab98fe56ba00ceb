"""Warnings of a plan, W201 to W206 and W210, each with its place in the YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from gristmill.core.settings import Loc
from gristmill.mixes.schema import Mixture

if TYPE_CHECKING:
    from gristmill.mixes.plan import Note, PhasePlan, Supply

WARN_EPOCHS = 4.0  # up to 4 epochs cost almost nothing (Muennighoff et al., arXiv 2305.16264)
WARN_ROUNDING = 0.01
FEW_ROWS = 100  # fewer than one row in so many batches


def notes(
    mixture: Mixture,
    supplies: Sequence[Supply],
    phases: Sequence[PhasePlan],
    cut: Sequence[tuple[int, str, float, float]],
    overlaps: Mapping[tuple[str, str], int],
    epochs: Callable[[str], float | None],
) -> list[Note]:
    """Every warning. `cut`: what on_short: rescale took; `epochs` by the end, of a source, child or "group NAME"."""
    from gristmill.mixes.plan import Note

    out = [*_unused(mixture), *_epochs(mixture, supplies, epochs)]
    numbers = {phase.name: i for i, phase in enumerate(mixture.stages)}
    seen: set[str] = set()
    for phase in phases:
        number = numbers[phase.name]
        if phase.pack == "bfd-truncate":
            loc: Loc = ("stages", number, "pack") if mixture.stages[number].pack else ("defaults", "pack")
            lost = 1 - sum(use.tokens for use in phase.uses) / sum(use.drawn for use in phase.uses)
            much = f", {lost:.1%} of the tokens drawn" if lost else ""
            text = (
                f"phase `{phase.name}`: bfd-truncate drops what documents have beyond {phase.seq_len + 1} tokens{much}"
            )
            out.append(Note("W206", text, loc))
        rescaled = {source: (asked, given) for n, source, asked, given in cut if n == number}
        for use in phase.uses:
            where = f"source `{use.source}` in phase `{phase.name}`"
            loc = place(mixture, number, use.source)
            if use.source in rescaled:
                asked, given = rescaled[use.source]
                limit = mixture.limit(use.source)
                text = f"{where} gets {given:.2%} of the rows for {asked:.2%}: its limit is {limit:g} epochs"
                out.append(Note("W205", text, loc))
            elif use.rows * FEW_ROWS < phase.batches:
                out.append(Note("W202", f"{where} has {use.rows} rows in {phase.batches} batches", loc))
            elif not rescaled and abs(use.rows / (use.share * phase.rows) - 1) > WARN_ROUNDING:
                text = f"{where} gets {use.rows} whole rows for {use.share * phase.rows:.2f}"
                out.append(Note("W205", text, loc))
            kin = {use.source, mixture.parent(use.source)}
            known = use.source in seen or (use.source in mixture.split and any(mixture.parent(s) in kin for s in seen))
            if number and phase.learning_rate == "decay" and not known:
                out.append(Note("W204", f"{where} is first seen while the learning rate decays", loc))
        for asked_for in rescaled.keys() - {use.source for use in phase.uses}:
            text = f"source `{asked_for}` in phase `{phase.name}` gets no row: its limit is reached"
            out.append(Note("W205", text, place(mixture, number, asked_for)))
        seen.update(use.source for use in phase.uses)
    used = {use.source for phase in phases for use in phase.uses}
    for (one, other), shared in overlaps.items():
        if one in used and other in used:
            text = f"sources `{one}` and `{other}` share {shared:,} documents: epochs understate repeats"
            out.append(Note("W210", text, ("sources", mixture.parent(other))))
    return out


def place(mixture: Mixture, number: int, source: str) -> Loc:
    """Where a phase names a source, or the parent it came in by."""
    mix = mixture.stages[number].mix
    return ("stages", number, "mix", source if source in mix else mixture.parent(source))


def _unused(mixture: Mixture) -> list[Note]:
    from gristmill.mixes.plan import Note

    used = {mixture.parent(name) for phase in mixture.stages for name in phase.mix}
    used |= {mixture.parent(name) for ablation in mixture.ablations for name in ablation.candidate}
    return [
        Note("W203", f"source `{name}` is in no phase", ("sources", name))
        for name in mixture.sources
        if name not in used
    ]


def _epochs(mixture: Mixture, supplies: Sequence[Supply], epochs: Callable[[str], float | None]) -> list[Note]:
    """W201 of every source; of a parent or a group only where its parts are not all counted."""
    from gristmill.mixes.plan import Note

    out = []
    counted = {s.name: s.tokens is not None for s in supplies}
    names: dict[str, list[str]] = {s.name: [s.name] for s in supplies}
    for s in supplies:
        parent = mixture.parent(s.name)
        group = mixture.sources[parent].group
        for above in [parent, *([f"group {group}"] if group else [])]:
            if s.name not in names.setdefault(above, []):
                names[above].append(s.name)
    told: set[str] = set()
    for name, members in names.items():
        alone = members == [name]
        if not alone and (all(counted[m] for m in members) or any(m in told for m in members)):
            continue
        found = epochs(name)
        limit = max(mixture.limit(m) for m in members)
        label = f"group `{name[6:]}`" if name.startswith("group ") else f"source `{name}`"
        source = mixture.parent(members[0])
        loc: Loc = ("sources", source)
        if found is None:
            continue
        if found > limit * 1.0001 and mixture.defaults.on_short == "repeat":
            out.append(Note("W201", f"{label} is seen {found:.2f} times, its limit is {limit:g}", loc))
        elif found > WARN_EPOCHS * 1.0001:
            out.append(Note("W201", f"{label} is seen {found:.2f} times; repeats lose value after 4", loc))
        else:
            continue
        told.update([name, *members])
    return out
