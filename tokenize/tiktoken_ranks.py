"""tiktoken's rank files as a `tokenizers` BPE that gives the same ids.

tiktoken merges whichever neighbouring pair forms the token of lowest rank, however that token was first made; so every
split of a token into two tokens becomes a merge, in the order of the ranks. A pre-token that is a token by itself is
taken whole in both (`ignore_merges`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from gristmill.core.errors import InputError
from gristmill.tokenize.files import MOST_IDS

MOST_TOKEN_BYTES = 1024
"""Of one token; o200k's longest has 128. Splits are quadratic in it."""


def read_ranks(raw: bytes, name: str) -> dict[bytes, int]:
    """token -> rank of "base64 rank" lines. Raises InputError with the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            coded, rank = line.split()
            token, index = base64.b64decode(coded, validate=True), int(rank)
        except (ValueError, binascii.Error) as error:
            raise InputError(f"{name}:{number}: {line[:40]!r} is no base64 token and rank") from error
        if not 0 < len(token) <= MOST_TOKEN_BYTES or not 0 <= index < MOST_IDS or token in ranks:
            raise InputError(f"{name}:{number}: a token of {len(token)} bytes with rank {index}, or one named twice")
        ranks[token] = index
    lacking = [b for b in range(256) if bytes([b]) not in ranks]
    if lacking:
        raise InputError(f"{name} lacks {len(lacking)} single bytes, the first {lacking[0]:#04x}")
    return ranks


def oniguruma(pattern: str) -> str:
    r"""A tiktoken pattern in the syntax of `tokenizers`: `X{n,m}+` is possessive there, a second repetition here; `$`
    and `^` are the ends of the text there, of a line here."""
    atom = r"((?:\\[pP]\{[^}]*\}|\[(?:\\.|[^\]\\])*\]|\\.|[^\\()\[\]|]))"
    out = re.sub(atom + r"(\{\d+,?\d*\})\+", r"(?>\1\2)", pattern)
    if re.search(r"\{\d+,?\d*\}\+", out):
        raise InputError(f"the pattern {pattern!r} holds a possessive repetition that cannot be taken over")
    return re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]|[$^]", lambda m: {"$": r"\z", "^": r"\A"}.get(m[0], m[0]), out, flags=re.S)


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens whose concatenation is a token, by the rank of that token, then of the two."""
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = ranks.get(token[:cut]), ranks.get(token[cut:])
            if left is not None and right is not None:
                found.append((rank, left, right, token[:cut], token[cut:]))
    found.sort()
    return [(left, right) for *_, left, right in found]


def from_tiktoken(raw: bytes, pattern: str, specials: Mapping[str, Any], name: str, letters: Mapping[int, str]) -> Any:
    """A `tokenizers.Tokenizer` of a rank file. `letters`: byte -> letter of the byte-level alphabet."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    ranks = read_ranks(raw, name)

    def spelt(token: bytes) -> str:
        return "".join(map(letters.__getitem__, token))

    vocabulary = {spelt(token): rank for token, rank in ranks.items()}
    taken = set(ranks.values())
    for text, index in specials.items():
        if not isinstance(text, str) or not isinstance(index, int) or not 0 <= index < MOST_IDS or index in taken:
            raise InputError(f"{name}: the special token {text!r} has no id of its own: {index!r}")
        vocabulary[text] = index
    merges = [(spelt(left), spelt(right)) for left, right in merges_of(ranks)]
    built: Any = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(oniguruma(pattern)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return built
