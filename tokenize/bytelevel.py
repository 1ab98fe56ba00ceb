"""A tokenizer.json of byte-level BPE taken apart: the bytes of each token, the merges and the split regex.

Byte level writes each byte as one printable character: 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF as themselves, the other 68 in
ascending order as U+0100 to U+0143 (GPT-2's `bytes_to_unicode`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from gristmill.core.errors import FormatError

_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHER = [b for b in range(256) if b not in set(_PLAIN)]
CHAR_OF = {b: chr(b) for b in _PLAIN} | {b: chr(256 + i) for i, b in enumerate(_OTHER)}
"""Byte -> the character that stands for it in a vocabulary."""
BYTE_OF = {char: byte for byte, char in CHAR_OF.items()}


@dataclass(frozen=True)
class Parts:
    """One byte-level BPE. `ranked` are the tokens that merging can give, single bytes first, then merges in order."""

    pattern: str
    merges: list[tuple[str, str]]
    vocab: dict[str, int]
    added: dict[str, int]  # special tokens: text -> id
    ranked: list[bytes]
    ids: np.ndarray  # (len(ranked),) int64 id of each

    @property
    def size(self) -> int:
        return max([*self.vocab.values(), *self.added.values()]) + 1

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """(bytes,) uint8 of all tokens in id order, and (size + 1,) int64 offsets; special ids have no bytes."""
        by_id = dict(zip(self.ids.tolist(), self.ranked, strict=True))
        pieces = [by_id.get(i, b"") for i in range(self.size)]
        offsets = np.zeros(self.size + 1, np.int64)
        np.cumsum([len(p) for p in pieces], out=offsets[1:])
        return np.frombuffer(b"".join(pieces), np.uint8), offsets

    def spelt(self) -> list[str]:
        """Tokens that are text by themselves, in the order of merging."""
        return [t.decode() for t in self.ranked if "\ufffd" not in t.decode(errors="replace")]

    def json(self, pattern: str | None = None) -> bytes:
        """The tokenizer.json of these parts without special tokens, so that their text is text in any reader."""
        return orjson.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {
                            "type": "Split",
                            "pattern": {"Regex": pattern or self.pattern},
                            "behavior": "Isolated",
                            "invert": False,
                        },
                        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                    ],
                },
                "post_processor": None,
                "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "fuse_unk": False,
                    "byte_fallback": False,
                    "ignore_merges": False,
                    "vocab": self.vocab,
                    "merges": [list(m) for m in self.merges],
                },
            }
        )


def to_bytes(token: str) -> bytes:
    """The bytes of a byte-level token. Raises KeyError on a character that stands for no byte."""
    return bytes(BYTE_OF[c] for c in token)


def take_apart(raw: bytes) -> Parts:
    """Raises FormatError with the reason when the file is no plain byte-level BPE. Those that `tokenizer train` writes
    are, and others with one Split regex, no normaliser and no rule beside the merges."""
    data: Any = orjson.loads(raw)
    model = data["model"]
    if model.get("type", "BPE") != "BPE" or any(
        model.get(k)
        for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    ):
        raise FormatError("the model is no plain byte-level BPE")
    if data.get("normalizer") or data.get("truncation") or data.get("padding"):
        raise FormatError("it normalises, truncates or pads")
    pre: Any = data.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    if [s.get("type") for s in steps] != ["Split", "ByteLevel"]:
        raise FormatError("it does not split by one regex and bytes")
    split, level = steps
    if split.get("behavior") != "Isolated" or split.get("invert") or "Regex" not in split.get("pattern", {}):
        raise FormatError("its Split is not one isolated regex")
    if level.get("add_prefix_space") or level.get("use_regex"):
        raise FormatError("its ByteLevel adds a space or splits again")
    if any(not t.get("special") for t in data["added_tokens"]):
        raise FormatError("it has added tokens that are not special")
    vocab: dict[str, int] = model["vocab"]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    merges = [(str(a), str(b)) for a, b in pairs]
    names = list(dict.fromkeys([*(CHAR_OF[b] for b in range(256)), *(a + b for a, b in merges)]))
    try:
        ids = np.asarray([vocab[n] for n in names], np.int64)
        ranked = [to_bytes(n) for n in names]
    except KeyError as error:
        raise FormatError(f"its vocabulary lacks {error}: not every byte is a token") from error
    added = {str(t["content"]): int(t["id"]) for t in data["added_tokens"]}
    return Parts(str(split["pattern"]["Regex"]), merges, vocab, added, ranked, ids)
