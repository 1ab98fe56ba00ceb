"""Special tokens, and what a tokenizer.json says of its ids: read without `tokenizers`, numpy or pyarrow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_bytes

SPECIALS = {
    "bos": "<|bos|>",
    "eos": "<|eos|>",
    "pad": "<|pad|>",
    "fim_prefix": "<|fim_prefix|>",
    "fim_middle": "<|fim_middle|>",
    "fim_suffix": "<|fim_suffix|>",
}
"""Role -> text of the special tokens, in id order from 0. In a corpus these texts are plain text, never these ids."""


@dataclass(frozen=True)
class TokenizerFacts:
    """What packing and training need to know of a tokenizer.json, read without the `tokenizers` library."""

    vocab_size: int
    special_ids: dict[str, int]  # role -> id; the roles of SPECIALS that the file has
    sha256: str  # of the file


def tokenizer_facts(source: str | Path | bytes) -> TokenizerFacts:
    """Facts of a tokenizer.json, given as a path or as its bytes. Raises FormatError when it is none."""
    try:
        raw = source if isinstance(source, bytes) else Path(source).read_bytes()
        data = orjson.loads(raw)
        ids = [int(i) for i in data["model"]["vocab"].values()]
        added = {str(t["content"]): int(t["id"]) for t in data["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        name = "the tokenizer" if isinstance(source, bytes) else source
        raise FormatError(f"{name} is no BPE tokenizer.json: {error}") from error
    special = {role: added[text] for role, text in SPECIALS.items() if text in added}
    return TokenizerFacts(max([*ids, *added.values()], default=-1) + 1, special, sha256_bytes(raw))
