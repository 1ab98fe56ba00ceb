"""The `curate.language` block: which languages stay, by which model and score, and what is decided before extraction."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from gristmill.core.settings import Settings
from gristmill.curate.identify import LID_CHARS, LID_SLICES
from gristmill.curate.labels import LID_LABELS, label_hint
from gristmill.curate.schema_types import Fraction, Positive

LID_VARIABLE = "GRISTMILL_LID_MODEL"
"""Names the language model where the recipe does not."""


def language_label(label: str) -> str:
    """The label itself. Raises ValueError, with a hint, when it is none of lid.176's.

    Where $GRISTMILL_LID_MODEL names another fastText model its labels are not known here: any word goes.
    """
    if label in LID_LABELS or (os.environ.get(LID_VARIABLE) and re.fullmatch(r"[A-Za-z0-9_-]{2,40}", label)):
        return label
    hint = label_hint(label, LID_LABELS) or "use fastText's labels, ISO 639 codes of 2 or 3 letters: en, de, ceb"
    raise ValueError(f"`{label[:40]}` is no label of the language model lid.176 hint: {hint}")


def _some(labels: list[str]) -> list[str]:
    if not labels:
        raise ValueError("no language is kept hint: name some, for example [en, de], or write all")
    return labels


def _known(label: str, info: ValidationInfo) -> str:
    """Judged where the block says by which model: its own labels are checked against its file when a recipe is built."""
    return label if info.data.get("model", "") is not None else language_label(label)


Label = Annotated[str, AfterValidator(_known)]


class Wanted(Settings):
    """Which languages stay, by the stored label and score: what `curate.decide` needs."""

    keep: Annotated[list[Label], AfterValidator(_some)] | Literal["all"] = "all"
    """Languages to keep, as the model's labels (lid.176: ISO 639-1 mostly), or all."""
    min_score: Fraction = 0.65
    """Keep a document when its score is greater than this (FineWeb's 0.65 is exclusive)."""
    min_scores: dict[Label, Fraction] = {}
    """Per-language thresholds that replace `min_score`."""


class Reading(Settings):
    """How a text's label and score are found: what `curate.pages` needs."""

    model: Annotated[str, Field(min_length=1)] | None = None
    """A fastText model file of your own (GlotLID's, say), by path; `keep` and `min_scores` then use its labels. null:
    $GRISTMILL_LID_MODEL, else lid.176."""
    chars: Positive | None = LID_CHARS
    """Characters read of a text; null: all of them, as datatrove does."""
    slices: int = Field(LID_SLICES, ge=1, le=256, strict=True)
    """A text longer than `chars` is read in this many equal slices, from its first to its last; 1: its beginning."""


class Gate(Settings):
    """Pages that are surely in no wanted language are dropped as `language.gate` before the extraction engine is called.

    Judged by the text of the page's paragraphs; before a drop also by its whole body, unless the `<html>` tag names the
    language of long paragraphs. It costs some 0.4 ms a page and saves what extraction of the refused pages would take.
    """

    min_chars: Positive = 100
    """A page with less quick text passes."""
    min_score: Fraction = 0.3
    """A page whose likeliest language is less likely than this passes."""
    max_wanted: Fraction = 0.03
    """A page passes when the probabilities of the languages to keep add up to this or more."""


class Language(Wanted, Reading):
    """Which languages stay, how they are told, and the gate before extraction."""

    gate: Gate | None = Gate()
    """null: every page is extracted. It belongs to `curate.pages`: while it is on, a change of `keep` extracts again."""

    def labels(self) -> list[tuple[tuple[str | int, ...], str]]:
        """(place in this block, label) of every label that it names."""
        named: list[tuple[tuple[str | int, ...], str]] = [(("min_scores", label), label) for label in self.min_scores]
        return [*((("keep", i), label) for i, label in enumerate(self.keep) if self.keep != "all"), *named]

    def for_pages(self) -> dict[str, Any]:
        """What of this block `curate.pages` is configured with: `language`, and `gate` and `wanted` while the gate acts."""
        block = self.model_dump(mode="json")
        out: dict[str, Any] = {"language": {name: block[name] for name in Reading.model_fields}}
        if self.gate is not None and self.keep != "all":
            out |= {"gate": block["gate"], "wanted": sorted(set(self.keep))}
        return out
