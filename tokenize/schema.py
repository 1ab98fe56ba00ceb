"""The `tokenizer:` block of a recipe: vocabulary size, split regex, training sample and report, with units."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from gristmill.core.settings import Settings
from gristmill.core.vocabulary import SPECIALS

BYTES = 256
"""Byte level: every byte is a token of its own, so there is no unknown token."""

Preset = Literal["gpt2", "cl100k", "o200k", "qwen2", "qwen3.5"]


class Sample(Settings):
    """Which documents train the tokenizer: per language, in the order of hash(id, seed), until a budget is full."""

    bytes: int = Field(default=2_000_000_000, ge=1)
    """UTF-8 bytes of text, after `doc_cap_chars`; each language may pass its share by one document."""
    doc_cap_chars: int = Field(default=10_000, ge=1)
    """Only this many leading characters of a document are used."""
    pretoken_cap: int = Field(default=64, ge=8)
    """Longer pre-tokens (base64, unspaced scripts) are cut into pieces of this many characters while training: unique
    long pre-tokens are what makes the trainer's memory explode. Encoding cuts nothing."""
    policy: Literal["natural", "temperature"] = "natural"
    """How the budget is divided between languages: by their bytes, or by bytes ** (1 / temperature)."""
    temperature: float = Field(default=3.0, ge=1)
    """Used by `policy: temperature`; 1 is natural, large is even. No document is used twice."""


class Tokenizer(Settings):
    """Byte-level BPE, trained on a sample of the curated documents."""

    vocab_size: int = Field(default=32_768, ge=384, le=1 << 20)
    """Ids in all, special and reserved ones included: the embedding has exactly this many rows."""
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

    @field_validator("vocab_size")
    @classmethod
    def _aligned(cls, value: int) -> int:
        if value % 64:
            up = -(-value // 128) * 128
            raise ValueError(
                f"{value} is no multiple of 64 hint: use {up}: matrix units work in tiles, and a ragged vocabulary "
                "costs speed in the output layer"
            )
        return value

    @field_validator("digits")
    @classmethod
    def _digits(cls, value: str | int) -> str | int:
        if isinstance(value, int) and not 1 <= value <= 3:
            raise ValueError(f"{value} is none of auto, preset, 1, 2, 3")
        return value

    @model_validator(mode="after")
    def _room(self) -> Tokenizer:
        fixed = BYTES + len(SPECIALS) + self.reserved
        if self.vocab_size < fixed:
            raise ValueError(
                f"vocab_size {self.vocab_size} is smaller than {BYTES} bytes + {len(SPECIALS)} special + "
                f"{self.reserved} reserved ids hint: raise vocab_size or lower reserved"
            )
        return self
