"""Faster libraries behind `tokenizers`' ids: built from the same merges and regex, and given only what they agree on.

A backend encodes bytes; `tokenize.encoder` decides which documents it gets and checks what it gives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

from gristmill.core.errors import FormatError
from gristmill.tokenize.bytelevel import CHAR_OF, Parts
from gristmill.tokenize.split import PRESETS

NO_LIMIT = 1 << 62


class Backend(Protocol):
    """`groups`: digits are grouped after encoding, by `tokenize.kernels.regroup`, up to so many (0: not needed).
    `max_spaces`: longest run of white space it takes."""

    name: str
    groups: int
    max_spaces: int

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Per UTF-8 text its (tokens,) ids, any integer type."""
        ...


_SAME = {PRESETS["gpt2"]: r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"}
"""Regexes and the spelling in which gigatoken knows them. That they split alike is checked as everything else is."""


class Gigatoken:
    """gigatoken has its split rules compiled in, by regex; where only the digit rule is other, digits are grouped after.

    In qwen2's and qwen3.5's regex a digit is a pre-token of its own and no other pre-token holds one, so the ids of a
    text split with `\\p{N}{1,k}` are those with `\\p{N}`, each group of digits replaced by its own ids.
    """

    name = "gigatoken"
    max_spaces = NO_LIMIT

    def __init__(self, parts: Parts) -> None:
        """Raises FormatError when it knows no such regex."""
        from gigatoken.gigatoken_rs import load_hf_json

        self.groups = 0
        tries = [(parts.pattern, 0), *((same, 0) for ours, same in _SAME.items() if ours == parts.pattern)]
        grouped = re.search(r"\|\\p\{N\}\{1,([123])\}\|", parts.pattern)
        if grouped and parts.pattern.count(grouped[0]) == 1:
            tries.append((parts.pattern.replace(grouped[0], r"|\p{N}|"), int(grouped[1]) if grouped[1] != "1" else 0))
        for pattern, groups in tries:
            try:
                self._encode = load_hf_json(parts.json(pattern)).encode
            except RuntimeError as error:
                reason = str(error).split("\n")[0]
                continue
            self.groups = groups
            return
        raise FormatError(reason)

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return [self._encode(t) for t in texts]


class Tiktoken:
    """tiktoken merges by rank; ranks are given in the order of the merges and mapped to ids after."""

    name = "tiktoken"
    groups = 0
    max_spaces = 20_000
    """Its regex engine keeps a stack for `\\s+(?!\\S)`: 3,000,000 spaces overflow it (0.14), 100,000 do not."""

    def __init__(self, parts: Parts) -> None:
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(parts.ranked)}
        built: Any = tiktoken.Encoding("gristmill", pat_str=parts.pattern, mergeable_ranks=ranks, special_tokens={})
        self._encode = built.encode_ordinary
        self._ids = parts.ids

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return [self._ids[np.asarray(self._encode(t.decode()), np.intp)] for t in texts]


BACKENDS: dict[str, type[Gigatoken] | type[Tiktoken]] = {"gigatoken": Gigatoken, "tiktoken": Tiktoken}
"""Fastest first: on fresh web-like text about 30 and 5 times the speed of `tokenizers`, one thread each."""


def installed(name: str) -> str | None:
    """The version of a backend's package, None where it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def probe_parts(parts: Parts) -> Parts:
    """A tokenizer with the same regex whose ids show where it cuts: it merges across every edge between an ASCII
    anchor and another character, so two engines that class a character differently give different ids."""
    anchors, leads, tails = b"aA!1 '\n", range(0xC2, 0xF5), range(0x80, 0xC0)
    pairs = [(a, b) for a in anchors for b in leads] + [(a, b) for a in tails for b in anchors]
    merges = [(CHAR_OF[a], CHAR_OF[b]) for a, b in pairs]
    names = [*(CHAR_OF[b] for b in range(256)), *(a + b for a, b in merges)]
    ranked = [bytes([b]) for b in range(256)] + [bytes(p) for p in pairs]
    vocab = {name: i for i, name in enumerate(names)}
    return Parts(parts.pattern, merges, vocab, {}, ranked, np.arange(len(names)))


def probe_text(char: str, digits: bool) -> str:
    """A character beside a letter, a capital, punctuation, white space, an apostrophe, and (with `digits`) digits."""
    shown = [f"a{char}a", f"A{char}A", f"{char}Aa", f"!!{char}!", f" {char} ", f"  {char}x", f"'{char}a", f"{char}"]
    return "\n".join([*shown, f"1{char}1"] if digits else shown)
