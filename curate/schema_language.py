"""The `curate.language` block: which languages stay, by which model and score."""

from __future__ import annotations

import difflib
import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from gristmill.core.settings import Settings
from gristmill.curate.schema_types import Fraction

_LID_176 = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da "
    "de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id "
    "ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml "
    "mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru "
    "rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls "
    "vo wa war wuu xal xmf yi yo yue zh"
)
LID_LABELS = frozenset(_LID_176.split())
"""The 176 labels of fastText's lid.176, as the model file lists them."""

_NAMES = {
    "english": "en", "german": "de", "deutsch": "de", "french": "fr", "spanish": "es", "italian": "it", "dutch": "nl",
    "portuguese": "pt", "polish": "pl", "russian": "ru", "chinese": "zh", "japanese": "ja", "korean": "ko",
    "arabic": "ar", "hindi": "hi", "turkish": "tr", "czech": "cs", "swedish": "sv", "danish": "da", "norwegian": "no",
    "finnish": "fi", "greek": "el", "ukrainian": "uk", "hungarian": "hu", "romanian": "ro", "hebrew": "he",
    "nb": "no", "iw": "he", "in": "id", "jp": "ja", "cn": "zh", "cz": "cs", "dk": "da", "gr": "el", "kr": "ko",
}  # fmt: skip
"""Common names and wrong codes, for hints."""


def language_label(label: str) -> str:
    """The label itself. Raises ValueError, with a hint, when it is none of lid.176's.

    Where $GRISTMILL_LID_MODEL names another fastText model its labels are not known here: any word goes.
    """
    if label in LID_LABELS or (os.environ.get("GRISTMILL_LID_MODEL") and re.fullmatch(r"[A-Za-z_-]{2,20}", label)):
        return label
    lowered = label.lower()
    start = re.split(r"[-_]", lowered)[0]
    near = _NAMES.get(lowered) or next((word for word in (lowered, start) if word in LID_LABELS), None)
    if near is None and re.fullmatch(r"[a-z]{2,3}", lowered):
        near = "` or `".join(difflib.get_close_matches(lowered, sorted(LID_LABELS), 3, 0.6)) or None
    hint = f"did you mean `{near}`?" if near else "use fastText's labels, ISO 639 codes of 2 or 3 letters: en, de, ceb"
    raise ValueError(f"`{label[:40]}` is no label of the language model lid.176 hint: {hint}")


def _some(labels: list[str]) -> list[str]:
    if not labels:
        raise ValueError("no language is kept hint: name some, for example [en, de], or write all")
    return labels


Label = Annotated[str, AfterValidator(language_label)]


class Language(Settings):
    """fastText lid.176 on the first `chars` characters of the extracted text."""

    keep: Annotated[list[Label], AfterValidator(_some)] | Literal["all"] = "all"
    """Languages to keep, as fastText labels (ISO 639-1 mostly), or all."""
    min_score: Fraction = 0.65
    """Keep a document when its score is greater than this (FineWeb's 0.65 is exclusive)."""
    min_scores: dict[Label, Fraction] = {}
    """Per-language thresholds that replace `min_score`."""
