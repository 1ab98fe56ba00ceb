"""Scores of extracted text against known main text, as the project's notes on its data define them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def bag(text: str) -> Counter[str]:
    """Tokens of a text with their counts: `\\w+` in lower case, kana, Han and hangul by character."""
    return Counter(_TOKEN.findall(text.lower()))


def f1(found: Counter[str], gold: Counter[str]) -> tuple[float, float, float]:
    """(F1, precision, recall) of two bags by their overlap; zeros where nothing is shared."""
    shared = sum((found & gold).values())
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / found.total(), shared / gold.total()
    return 2 * precision * recall / (precision + recall), precision, recall


def scores(texts: Sequence[str], gold: Sequence[Counter[str]], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Means over pages of f1, precision and recall; the same by the groups that each mapping puts the pages into."""
    pages = [f1(bag(text), known) for text, known in zip(texts, gold, strict=True)]
    out: dict[str, Any] = _means(pages)
    for kind, names in groups.items():
        members: dict[str, list[tuple[float, float, float]]] = {}
        for name, page in zip(names, pages, strict=True):
            members.setdefault(name, []).append(page)
        out[kind] = {name: {**_means(part), "pages": len(part)} for name, part in sorted(members.items())}
    return out


def _means(pages: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    names = ("f1", "precision", "recall")
    return {name: round(sum(page[i] for page in pages) / len(pages), 4) for i, name in enumerate(names)}


def snippet_scores(texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Over all strings, white space collapsed: recall = share of the wanted that appear; precision = wanted of all that appear."""
    right = wrong = wanted = 0
    for text, row in zip(texts, rows, strict=True):
        line = " ".join(text.split())
        right += sum(" ".join(s.split()) in line for s in row.get("with", []))
        wanted += len(row.get("with", []))
        wrong += sum(" ".join(s.split()) in line for s in row.get("without", []))
    return {"precision": round(right / max(1, right + wrong), 4), "recall": round(right / max(1, wanted), 4)}


def half_of(url: str) -> str:
    """`fit` or `test`: a page's half by its registered domain, so that no site is in both; `blocks` was fitted on `fit`."""
    domain = _split()(url).top_domain_under_public_suffix or url
    return ("fit", "test")[hashlib.blake2b(b"gold:" + domain.encode(), digest_size=8).digest()[0] & 1]


@cache
def _split() -> Any:
    from tldextract import TLDExtract

    return TLDExtract(cache_dir=None, suffix_list_urls=())
