"""The `curate:` block of a recipe: what is extracted, measured, decided, deduplicated and scored, with units."""

from __future__ import annotations

import difflib
import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gristmill.core.settings import Settings

Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
"""A share of a document's words, lines or characters, or a probability."""
Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Average = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
"""An average that may exceed 1: characters a word, newlines a word."""

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


def _ordered(value: Settings, *pairs: tuple[str, str]) -> None:
    """Raise where a lower limit is above its upper one; the fault stands at the upper one."""
    faults: list[InitErrorDetails] = []
    for low, high in pairs:
        a, b = getattr(value, low), getattr(value, high)
        if a is not None and b is not None and a > b:
            text = f"{high} {b} is less than {low} {a} hint: it would drop every document; swap them or raise {high}"
            kind = PydanticCustomError("curate", "{message}", {"message": text})
            faults.append(InitErrorDetails(type=kind, loc=(high,), input=b))
    if faults:
        raise ValidationError.from_exception_data(type(value).__name__, faults)


class Extract(Settings):
    """HTML to main text."""

    engine: Literal["trafilatura"] = "trafilatura"
    """trafilatura 2.3 `fast`, without its process-wide duplicate cache and wall-clock limit."""
    favor: Literal["balanced", "precision", "recall"] = "balanced"
    tables: bool = True
    comments: bool = False
    max_html_bytes: int = Field(20_000_000, ge=1, strict=True)
    """Larger decoded payloads are dropped as `extract.too_large` (bytes)."""
    max_nodes: int = Field(400_000, ge=1, strict=True)
    """Pages with more `<` characters than this are dropped as `extract.too_many_nodes`."""
    min_chars: int = Field(1, ge=0, strict=True)
    """Shorter texts are dropped as `extract.no_text` (characters)."""
    cpu_seconds: int = Field(60, ge=1, strict=True)
    """A page that burns more CPU than this in two fresh processes is quarantined as hung: a backstop, far above the tail (p99 0.3 s)."""
    memory_mb: int = Field(3000, ge=512, strict=True)
    """Address space of one extraction process (MiB)."""
    recycle_pages: int = Field(2000, ge=1, strict=True)
    """An extraction process is replaced after this many pages (trafilatura leaks)."""


class Urls(Settings):
    """URL rules with datatrove's lists (its package data, read at run time)."""

    lists: Literal["datatrove", "off"] = "datatrove"
    soft_words: int = Field(2, ge=1, strict=True)
    """Drop a URL with at least this many distinct-position soft words (datatrove's `soft_word_threshold`)."""


class Language(Settings):
    """fastText lid.176 on the first `chars` characters of the extracted text."""

    keep: Annotated[list[Label], AfterValidator(_some)] | Literal["all"] = "all"
    """Languages to keep, as fastText labels (ISO 639-1 mostly), or all."""
    min_score: Fraction = 0.65
    """Keep a document when its score is greater than this (FineWeb's 0.65 is exclusive)."""
    min_scores: dict[Label, Fraction] = {}
    """Per-language thresholds that replace `min_score`."""


class C4Rewrite(Settings):
    """Line rules of C4 that rewrite the text (datatrove's C4QualityFilter); measured beside the raw text as `c4.*`."""

    min_words_per_line: Count = 3
    max_word_chars: Positive = 1000
    terminal_punctuation: bool = False
    """Drop lines without terminal punctuation (FineWeb: off)."""
    drop_javascript: bool = True
    drop_policy: bool = True
    remove_citations: bool = True


def _measured(n: int, low: int, high: int) -> int:
    if not low <= n <= high:
        raise ValueError(f"n-grams of {n} words are not measured hint: use {low} to {high}")
    return n


def _top_size(n: int) -> int:
    return _measured(n, 2, 4)


def _dup_size(n: int) -> int:
    return _measured(n, 5, 10)


class Gopher(Settings):
    """Gopher quality and repetition rules, datatrove's semantics. `null` switches a rule off."""

    min_words: Count | None = 50
    max_words: Count | None = 100_000
    min_avg_word_length: Average | None = 3
    max_avg_word_length: Average | None = 10
    max_hash_ratio: Fraction | None = 0.1
    max_ellipsis_ratio: Fraction | None = 0.1
    max_bullet_lines: Fraction | None = 0.9
    max_ellipsis_lines: Fraction | None = 0.3
    min_alpha_words: Fraction | None = 0.8
    min_stop_words: Annotated[int, Field(strict=True, ge=0, le=8)] | None = 2
    """Of Gopher's eight: the, be, to, of, and, that, have, with."""
    max_dup_lines: Fraction | None = 0.30
    max_dup_paragraphs: Fraction | None = 0.30
    max_dup_line_chars: Fraction | None = 0.20
    max_dup_paragraph_chars: Fraction | None = 0.20
    max_top_ngram_chars: dict[Annotated[int, AfterValidator(_top_size)], Fraction] = {2: 0.20, 3: 0.18, 4: 0.16}
    """By n: 2, 3 and 4 are measured."""
    max_dup_ngram_chars: dict[Annotated[int, AfterValidator(_dup_size)], Fraction] = {
        5: 0.15,
        6: 0.14,
        7: 0.13,
        8: 0.12,
        9: 0.11,
        10: 0.10,
    }
    """By n: 5 to 10 are measured."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> Gopher:
        _ordered(self, ("min_words", "max_words"), ("min_avg_word_length", "max_avg_word_length"))
        return self


class C4(Settings):
    """C4 document rules after its line rules, datatrove's semantics."""

    min_sentences: Count | None = 5
    drop_lorem_ipsum: bool = True
    drop_curly_bracket: bool = True


class FineWeb(Settings):
    """FineWeb's own rules, datatrove's semantics; on the C4-rewritten text where C4 applies."""

    min_line_punctuation: Fraction | None = 0.12
    max_short_lines: Fraction | None = 0.67
    short_line_chars: Positive = 30
    """Belongs to measuring: lines of at most this many characters are short."""
    max_dup_line_chars: Fraction | None = 0.01
    max_newlines_per_word: Average | None = 0.3
    """Newlines / words; may exceed 1."""


class Rules(Settings):
    """Rule sets, each named by whose semantics it follows. `null` switches a set off."""

    gopher: Gopher | None = Field(None, alias="gopher@datatrove")
    c4: C4 | None = Field(None, alias="c4@datatrove")
    fineweb: FineWeb | None = Field(None, alias="fineweb@datatrove")


class MinHash(Settings):
    """Near-duplicate detection: word n-grams, datasketch's affine32 scheme."""

    bands: int = Field(14, ge=1, le=256, strict=True)
    rows: int = Field(8, ge=1, le=64, strict=True)
    ngram: int = Field(5, ge=1, le=50, strict=True)
    seed: int = Field(1, ge=0, lt=1 << 32, strict=True)
    verify: Fraction | None = 0.70
    """A document is removed only if its own estimated Jaccard to the kept one reaches this; null = whole component."""


class Dedup(Settings):
    """Exact, then near duplicates."""

    exact: bool = True
    minhash: MinHash | None = MinHash()
    keep: list[Literal["longest", "shortest", "earliest", "latest"]] = ["longest"]
    """Which member of a cluster stays, in order of priority; ties go to the smallest id."""


class Quality(Settings):
    """A fastText quality model, trained by `gristmill quality train`; it enters a run by its digest."""

    model: str = Field(min_length=1)
    """Path of the .ftz/.bin file: absolute, or relative to the recipe or else to the working directory."""
    label: str = Field("hq", min_length=1)
    min_score: Fraction = 0.0
    """Documents whose probability of `label` is below this are dropped as `quality.low_score`."""


class Curate(Settings):
    """From WARC records to curated Parquet."""

    extract: Extract = Extract()
    urls: Urls = Urls()
    language: Language = Language()
    c4: C4Rewrite = C4Rewrite()
    rules: Rules = Rules()
    dedup: Dedup = Dedup()
    quality: Quality | None = None
