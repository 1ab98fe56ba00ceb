"""The mixture YAML: which documents are sources, what is held out, and how much of each source every phase takes.

A curriculum stage (`stages:`) is called a phase everywhere in code and output. Amounts are tokens, written as a number
or with a decimal suffix: 20M, 2.5B (K, M, B, T = 1e3, 1e6, 1e9, 1e12). Faults carry the codes E101 … E110; those that
need the token counts (E103, E104, E106, E108, parts of E102 and E109) are found by `mixes.plan` and what it reads.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gristmill.core.settings import Settings
from gristmill.mixes.schema_amounts import MAX_EPOCHS as MAX_EPOCHS
from gristmill.mixes.schema_amounts import UNITS as UNITS
from gristmill.mixes.schema_amounts import EpochsPart as EpochsPart
from gristmill.mixes.schema_amounts import Fault, Name, Packing
from gristmill.mixes.schema_amounts import Part as Part
from gristmill.mixes.schema_amounts import TokensPart as TokensPart
from gristmill.mixes.schema_amounts import parse_tokens as parse_tokens
from gristmill.mixes.schema_sources import HeldOut as HeldOut
from gristmill.mixes.schema_sources import Source as Source
from gristmill.mixes.schema_sources import filter_schema as filter_schema
from gristmill.mixes.schema_stages import Ablation as Ablation
from gristmill.mixes.schema_stages import LearningRate as LearningRate
from gristmill.mixes.schema_stages import Phase as Phase
from gristmill.mixes.schema_stages import known_source, lr_faults


class Defaults(Settings):
    """What holds for every source and phase that says nothing else."""

    max_epochs: float = Field(4.0, gt=0, le=MAX_EPOCHS, allow_inf_nan=False)
    """Times a document may be seen over all phases. Up to 4 cost almost nothing (Muennighoff et al., arXiv 2305.16264)."""
    on_short: Literal["error", "repeat", "rescale"] = "error"
    """When a source has too few tokens for its limit: stop with E104; repeat it beyond the limit (warned as W201); or take
    what the limit allows and give the rest to the phase's other sources, in proportion (warned as W205)."""
    pack: Packing = "bfd"
    """`bfd` cuts only documents longer than a row (best fit decreasing); `concat` cuts wherever a row ends; `bfd-truncate`
    drops what a document has beyond one row (W206)."""
    max_docs_per_row: int = Field(512, ge=1)
    """Pieces of documents in one row, at most; keeps best-fit rows of crumbs from growing without bound."""
    doc_mask: Literal[True] = True
    """Attention stays inside a document: the one way that rows are trained here."""

    @field_validator("doc_mask", mode="before")
    @classmethod
    def _always(cls, value: Any) -> Any:
        if value is False:
            raise ValueError("E107 attention never leaves a document here hint: leave doc_mask out")
        return value


class Mixture(Settings):
    """One mixture file: sources, held-out share and the phases in curriculum order."""

    gristmill_mix: Literal[1]
    """Version of this file's format."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Decides the order of documents and rows, and what is held out."""
    tokenizer: str | None = Field(None, min_length=1, max_length=1000)
    """The tokenizer.json (or its folder, or its sha256) that the documents must be encoded with: E106 with another."""
    defaults: Defaults = Defaults()
    sources: dict[Name, Source] = Field(min_length=1)
    heldout: HeldOut | None = None
    stages: list[Phase] = Field(min_length=1)
    ablations: list[Ablation] = []
    """Annealing branches; `branch` builds one."""
    branch: str | None = None
    """Build this ablation: the stages up to its place, then the branch (--set mixture.branch=NAME)."""

    def limit(self, source: str) -> float:
        """Epochs that a source, or a child of one, may reach over all phases."""
        own = self.sources[self.parent(source)].max_epochs
        return self.defaults.max_epochs if own is None else own

    def parent(self, name: str) -> str:
        """The source of this mixture that a name in a mix means: itself, or the one it is a child of."""
        if name in self.sources:
            return name
        return max((s for s in self.split if name.startswith(f"{s}.")), key=len)

    @property
    def split(self) -> list[str]:
        """Sources with children."""
        return [name for name, source in self.sources.items() if source.split_by]

    def packing(self, phase: Phase) -> Packing:
        """How this phase's documents become rows."""
        return phase.pack or self.defaults.pack

    @model_validator(mode="after")
    def _phases_fit_sources(self) -> Mixture:
        faults: list[Fault] = []
        seen: set[str] = set()
        for i, phase in enumerate(self.stages):
            faults += [(("stages", i, *loc), text) for loc, text in phase.faults()]
            faults += [(("stages", i, "mix", name), text) for name, text in self._unknown(phase.mix)]
            if phase.name in seen:
                faults.append((("stages", i, "name"), f"E107 a second phase named `{phase.name}`"))
            seen.add(phase.name)
        faults += lr_faults(self.stages)
        for i, ablation in enumerate(self.ablations):
            faults += [(("ablations", i, *loc), text) for loc, text in ablation.faults(self.stages)]
            faults += [(("ablations", i, "candidate", name), text) for name, text in self._unknown(ablation.candidate)]
            if ablation.name in [a.name for a in self.ablations[:i]]:
                faults.append((("ablations", i, "name"), f"E107 a second ablation named `{ablation.name}`"))
        if self.branch is not None and self.branch not in [a.name for a in self.ablations]:
            known = ", ".join(a.name for a in self.ablations) or "none"
            faults.append((("branch",), f"E102 no ablation named `{self.branch}` hint: ablations: {known}"))
        for name, source in self.sources.items():
            if source.group in self.sources and (source.group != name or self._alone(name)):
                faults.append(
                    (("sources", name, "group"), f"E107 group `{source.group}` is the name of a source hint: rename it")
                )
        raise_faults("Mixture", faults, self)
        return self

    def _alone(self, name: str) -> bool:
        """Whether the group of this source's own name has other sources too."""
        return any(s.group == name for other, s in self.sources.items() if other != name)

    def _unknown(self, names: Any) -> list[tuple[str, str]]:
        out = []
        for name in names:
            if not known_source(self.sources, self.split, name):
                parent = next((s for s in self.sources if name.startswith(f"{s}.")), None)
                remedy = f"give sources.{parent} a split_by" if parent else f"sources: {', '.join(self.sources)}"
                out.append((name, f"E102 unknown source `{name}` hint: {remedy}"))
        return out


def raise_faults(title: str, faults: list[Fault], value: Any) -> None:
    """Raise faults below a model so that each keeps its own place in the YAML. Nothing happens when there are none."""
    if faults:
        details = [
            InitErrorDetails(type=PydanticCustomError("mixture", "{message}", {"message": text}), loc=loc, input=value)
            for loc, text in faults
        ]
        raise ValidationError.from_exception_data(title, details)
