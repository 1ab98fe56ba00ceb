"""The `tokenizer:` block of a recipe: vocabulary size, split regex, training sample and report, with units."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gristmill.core.errors import UsageError
from gristmill.core.settings import Settings
from gristmill.core.vocabulary import SPECIALS
from gristmill.tokenize.gates import parse_gate

BYTES = 256
"""Byte level: every byte is a token of its own, so there is no unknown token."""

Preset = Literal["gpt2", "cl100k", "o200k", "qwen2", "qwen3.5"]


def parse_size(value: Any) -> Any:
    """`32k` or 32_768 -> 32768: k is 1,024 here, as in the sizes that matrix units like."""
    match = re.fullmatch(r"([0-9]{1,7})([kK]?)", value.replace("_", "").strip()) if isinstance(value, str) else None
    return int(match[1]) * (1024 if match[2] else 1) if match else value


_Number = Annotated[int, Field(ge=384, le=1 << 20)]
_Written = _Number | Annotated[str, Field(pattern="^[0-9_]+[kK]?$")]
Size = Annotated[_Number, BeforeValidator(parse_size, json_schema_input_type=_Written)]
"""Ids of a vocabulary, 384 to 1,048,576."""


class Sample(Settings):
    """Which documents train the tokenizer: per group, in the order of hash(id, seed), until a budget is full."""

    bytes: int = Field(default=2_000_000_000, ge=1)
    """UTF-8 bytes of text, after `doc_cap_chars`; each group may pass its share by one document."""
    doc_cap_chars: int = Field(default=10_000, ge=1)
    """Only this many leading characters of a document are used."""
    pretoken_cap: int = Field(default=64, ge=8)
    """Longer pre-tokens (base64, unspaced scripts) are cut into pieces of this many characters while training: unique
    long pre-tokens are what makes the trainer's memory explode. Encoding cuts nothing."""
    by: Literal["language", "source"] = "language"
    """The column whose values are the groups that the budget is divided between."""
    policy: Literal["natural", "temperature", "unimax"] = "natural"
    """How the budget is divided between groups: by their bytes, by bytes ** (1 / temperature), or evenly with at most
    `max_epochs` of each, smallest group first (UniMax, arXiv:2304.09151)."""
    temperature: float = Field(default=3.0, ge=1)
    """Used by `policy: temperature`; 1 is natural, large is even. No document is used twice."""
    max_epochs: float = Field(default=1.0, ge=1, le=100)
    """Used by `policy: unimax`: how often a small group's documents may be passed, those first in order once more where
    it is no whole number. Passing a group twice doubles its pair counts and shows the trainer nothing new."""


class Tokenizer(Settings):
    """Byte-level BPE, trained on a sample of the curated documents."""

    pad_to: int = Field(default=0, ge=0, le=4096)
    """Round sizes up to a multiple of this (128, say) with reserved ids that nothing is trained for; 0 does not."""
    vocab_size: Size | Annotated[list[Size], Field(min_length=1, max_length=16)] = 32_768
    """Ids in all, special and reserved ones included: the embedding has exactly this many rows. A list trains each size
    (`[16k, 32k, 64k]`; k is 1,024) and compares them in sweep.json; `use` names the one that goes on."""
    use: Size | None = None
    """Which of several sizes the run goes on with. Must be given with a list of more than one."""
    split: Preset = "qwen3.5"
    """Pre-tokenizer regex. qwen3.5 and o200k keep combining marks with their letters; the others cut Indic words."""
    digits: Literal["auto", "preset"] | int = "auto"
    """Most digits in one pre-token (1 to 3). `preset`: as the named regex has it. `auto`: with qwen3.5, 2 up to 65,536
    ids and 3 above; with any other regex, as it has it."""
    sample: Sample = Sample()
    reserved: int = Field(default=58, ge=0, le=10_000)
    """Ids kept free for later special tokens (58 and the 6 special ones make 64)."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair seen less often is never merged."""
    max_token_length: int = Field(default=64, ge=2, le=1024)
    """Bytes of the longest token."""
    fertility_docs: int = Field(default=200, ge=1, le=100_000)
    """Documents per language in the fertility table."""
    seed: int = 0
    """Which documents are sampled."""
    file: str | None = Field(default=None, min_length=1, exclude=True)
    """A tokenizer.json that there is already, sought from the recipe's folder and then from the working directory: nothing
    is trained, and the other settings have no say. Imported token stores want the one that made their ids."""
    gates: dict[str, float] = Field(default_factory=dict, exclude=True)
    """Limits that `tokenizer report --recipe` checks, such as `max_premium: 2.5` (docs/tokenizer-report.md). No part of
    the stage's config: a changed limit trains nothing again."""

    @field_validator("gates")
    @classmethod
    def _known_gates(cls, value: dict[str, float]) -> dict[str, float]:
        for name, limit in value.items():
            try:
                parse_gate(name, limit)
            except UsageError as error:
                raise ValueError(f"{error.message} hint: {error.hint or 'a number'}") from error
        return value

    @field_validator("vocab_size")
    @classmethod
    def _aligned(cls, value: int | list[int], info: ValidationInfo) -> int | list[int]:
        for size in value if isinstance(value, list) else [value]:
            if size % 64 and not info.data.get("pad_to"):
                up = -(-size // 128) * 128
                raise ValueError(
                    f"{size} is no multiple of 64 hint: use {up}, or pad_to: 128: matrix units work in tiles, and a "
                    "ragged vocabulary costs speed in the output layer"
                )
        return value

    @field_validator("use")
    @classmethod
    def _one_of_them(cls, value: int | None, info: ValidationInfo) -> int | None:
        given = info.data.get("vocab_size")
        sizes = given if isinstance(given, list) else [given]
        if value is not None and given is not None and value not in sizes:
            raise ValueError(f"{value} is none of vocab_size hint: one of {', '.join(map(str, sorted(sizes)))}")
        return value

    @field_validator("digits")
    @classmethod
    def _digits(cls, value: str | int) -> str | int:
        if isinstance(value, int) and not 1 <= value <= 3:
            raise ValueError(f"{value} is none of auto, preset, 1, 2, 3")
        return value

    @model_validator(mode="after")
    def _room(self) -> Tokenizer:
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("vocab_size names a size twice hint: list each once")
        if len(self.sizes) > 1 and self.use is None:
            text = (
                f"vocab_size lists {len(self.sizes)} sizes, and `use` says not which one the run goes on with hint: "
                f"add use: {self.sizes[-1]}"
            )
            kind = PydanticCustomError("sizes", "{message}", {"message": text})
            at = InitErrorDetails(type=kind, loc=("vocab_size",), input=self.vocab_size)
            raise ValidationError.from_exception_data("Tokenizer", [at])
        for size in self.sizes:
            if size < BYTES + len(SPECIALS) + self.reserved:
                raise ValueError(
                    f"vocab_size {size} is smaller than {BYTES} bytes + {len(SPECIALS)} special + "
                    f"{self.reserved} reserved ids hint: raise vocab_size or lower reserved"
                )
        return self

    @property
    def sizes(self) -> list[int]:
        """All sizes to train, ascending, before padding."""
        return sorted(self.vocab_size) if isinstance(self.vocab_size, list) else [self.vocab_size]

    @property
    def size(self) -> int:
        """The size that goes on, before padding."""
        return self.sizes[0] if self.use is None else self.use

    @property
    def padded(self) -> int:
        """Ids of the vocabulary that goes on: `size` rounded up to a multiple of `pad_to`."""
        return -(-self.size // self.pad_to) * self.pad_to if self.pad_to else self.size

    def of_size(self, size: int) -> Tokenizer:
        """The same settings for one size alone."""
        return self.model_copy(update={"vocab_size": size, "use": None})
