"""What is in a vocabulary: ids no text reaches, partial characters, scripts, the longest and the suspicious tokens.

- special, unassigned: ids that no text gives.
- not_utf8: ids whose bytes alone are no UTF-8 (single bytes and parts of characters; some are needed, many are waste).
- unreachable: of the others, encode(decode([id])) != [id]. A tokenizer that puts a space before every text cannot give
  an id that starts none, so there the token is read behind a guillemet, as Land and Bartolo do (arXiv:2405.05417).
- unused, under-trained: ids with 0 and with fewer than 100 occurrences on the model mix: they get no or hardly any
  gradient, and are what glitch tokens are made of.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from gristmill.tokenize.baselines import Baseline
from gristmill.tokenize.fertility import ratio

if TYPE_CHECKING:
    import regex

UNDER_TRAINED = 100
"""Fewer occurrences than this on the model mix."""
SHOWN = 40
"""Tokens in each list."""
_GUARD = "«"

SCRIPTS = [
    "Latin",
    "Cyrillic",
    "Greek",
    "Han",
    "Hiragana",
    "Katakana",
    "Hangul",
    "Arabic",
    "Hebrew",
    "Devanagari",
    "Bengali",
    "Gurmukhi",
    "Gujarati",
    "Oriya",
    "Tamil",
    "Telugu",
    "Kannada",
    "Malayalam",
    "Sinhala",
    "Thai",
    "Lao",
    "Khmer",
    "Myanmar",
    "Tibetan",
    "Georgian",
    "Armenian",
    "Ethiopic",
    "Mongolian",
    "Cherokee",
]

SUSPICIOUS = {
    "url": r"(?i)https?:|www\.|://|\.(?:com|org|net|html?|php)\b",
    "e-mail": r"(?i)[\w.+-]+@[\w-]+|@\w+\.(?:com|org|net)",
    "repeated": r"(.)\1{7,}|(..)\2{4,}|(...)\3{3,}",
    "hex": r"(?i)^\s*(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{12,}$",
    "base64": r"^\s*(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])(?=[^0-9]*[0-9])[A-Za-z0-9+/]{12,}=*$",
    "control": r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd\ufeff]",
}
"""Kind -> regex over a token's text; the first that matches is the kind. Single control characters are bytes every
byte-level vocabulary has, so `control` asks for two bytes."""


def shown(raw: bytes) -> str:
    """A token's bytes as text, with what is no UTF-8 or not printable escaped. Untrusted: a page must escape it."""
    text = raw.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def vocabulary(encoder: Baseline) -> dict[str, Any]:
    """The counts and lists above as plain JSON; tokens as {"id", "text", "bytes"}, suspicious ones with their "kind"."""
    raw = [encoder.token_bytes(i) for i in range(encoder.vocab_size)]
    texts: dict[int, str] = {}
    not_utf8 = []
    for index, data in enumerate(raw):
        if data is None:
            continue
        try:
            texts[index] = data.decode()
        except UnicodeDecodeError:
            not_utf8.append(index)
    lost = unreachable(encoder, texts)
    sizes = [(-len(data), i) for i, data in enumerate(raw) if data and data.strip()]  # blanks are code
    suspects = []
    for index, text in texts.items():
        kind = suspicion(text)
        if kind:
            suspects.append((kind, index))
    kinds = Counter(kind for kind, _ in suspects)
    scripts = Counter(script(text) for text in texts.values())
    scripts["not UTF-8"] = len(not_utf8)
    scripts["special or unassigned"] = len(encoder.free_ids)
    return {
        "ids": encoder.vocab_size,
        "special": len(encoder.special_ids),
        "unassigned": len(encoder.unassigned),
        "not_utf8": len(not_utf8),
        "unreachable": len(lost),
        "unreachable_tokens": [_token(encoder, i) for i in lost[:SHOWN]],
        "scripts": dict(sorted(((k, n) for k, n in scripts.items() if n), key=lambda item: (-item[1], item[0]))),
        "longest": [_token(encoder, i) for _, i in sorted(sizes)[:SHOWN]],
        "suspicious": dict(sorted(kinds.items())),
        "suspicious_tokens": [{"kind": k, **_token(encoder, i)} for k, i in _spread(suspects, raw)],
    }


def _spread(suspects: list[tuple[str, int]], raw: list[bytes | None]) -> list[tuple[str, int]]:
    """The longest of each kind, at most SHOWN / kinds of one."""
    out = []
    for kind in SUSPICIOUS:
        mine = sorted((-len(raw[i] or b""), i) for k, i in suspects if k == kind)
        out += [(kind, i) for _, i in mine[: SHOWN // len(SUSPICIOUS) + 4]]
    return out


def _token(encoder: Baseline, index: int) -> dict[str, Any]:
    data = encoder.token_bytes(index) or b""
    return {"id": index, "text": shown(data), "bytes": len(data)}


def unreachable(encoder: Baseline, texts: dict[int, str]) -> list[int]:
    """Ids among `texts` (id -> its text) that encoding their own text does not give back."""
    ids = list(texts)
    if encoder.prefix_space:
        lead = encoder.encode_batch([_GUARD])[0].tolist()
        found = encoder.encode_batch([_GUARD + texts[i] for i in ids])
        return [i for i, got in zip(ids, found, strict=True) if got.tolist() != [*lead, i]]
    found = encoder.encode_batch(encoder.decode_batch([[i] for i in ids]))
    return [i for i, got in zip(ids, found, strict=True) if got.tolist() != [i]]


@lru_cache(maxsize=1)
def _suspicions() -> list[tuple[str, regex.Pattern[str]]]:
    import regex

    return [(kind, regex.compile(pattern)) for kind, pattern in SUSPICIOUS.items()]


def suspicion(text: str) -> str | None:
    """The kind of a token that looks like boilerplate rather than language; None for most. Runs of blanks are code."""
    if len(text.encode()) < 2 or not text.strip():
        return None
    for kind, pattern in _suspicions():
        if pattern.search(text):
            return kind
    return None


@lru_cache(maxsize=1)
def _script_pattern() -> regex.Pattern[str]:
    import regex

    return regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in SCRIPTS))


def script(text: str) -> str:
    """The script most of a token's letters have, the first of equals; else what else it is made of."""
    found = Counter(str(m.lastgroup) for m in _script_pattern().finditer(text))
    if found:
        return found.most_common(1)[0][0]
    stripped = text.strip()
    if not stripped:
        return "white space"
    if any(c.isalpha() for c in stripped):
        return "other scripts"
    return "digits" if any(c.isdecimal() for c in stripped) else "punctuation and symbols"


def usage(encoder: Baseline, counts: np.ndarray, over: str) -> dict[str, Any]:
    """Unused and under-trained ids by `counts` (vocab_size,) on what `over` names. Special and unassigned ids are not
    among them. `examples` are the lowest unused ids of two bytes or more that are text: early merges, which were frequent
    where the tokenizer learned."""
    can = np.ones(encoder.vocab_size, bool)
    can[encoder.free_ids] = False
    unused = np.flatnonzero(can & (counts == 0))
    rare = can & (counts > 0) & (counts < UNDER_TRAINED)
    total = int(can.sum())
    under = len(unused) + int(rare.sum())
    telling = (int(i) for i in unused if _whole(encoder.token_bytes(int(i)) or b""))
    return {
        "over": over,
        "tokens": int(counts[can].sum()),
        "of": total,
        "unused": len(unused),
        "unused_share": ratio(len(unused), total),
        "under_trained": under,
        "under_trained_share": ratio(under, total),
        "threshold": UNDER_TRAINED,
        "examples": [_token(encoder, i) for i in islice(telling, SHOWN)],
    }


def _whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return len(data) > 1


PROBES = {
    "NUL": "a\x00b",
    "byte order mark": "\ufeffa\ufeff",
    "emoji joined by ZWJ": "👩‍👩‍👧‍👦🏳️‍🌈",
    "CR LF": "a\r\nb\r\n\r\n",
    "NFD": "e\u0301 A\u030a \u1112\u1161\u11ab",
    "trailing and leading spaces": "  a  b \n\n\t ",
    "spelt special token": "<|endoftext|> <|eos|> </s> [MASK]",
    "private use, unassigned": "\ue000\U000e0080\u0378",
    "right to left marks": "\u202eabc\u202c \u200fא",
}
"""Texts that a lossy step damages first."""


def probes(encoder: Baseline) -> dict[str, bool]:
    """Probe -> whether decode(encode(text)) == text."""
    texts = list(PROBES.values())
    return {
        name: back == text
        for name, text, back in zip(PROBES, texts, encoder.decode_batch(encoder.encode_batch(texts)), strict=True)
    }
