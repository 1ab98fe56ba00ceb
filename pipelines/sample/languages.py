"""Pages in other languages: paragraphs written for this project, recombined so that no two pages share more than half."""

from __future__ import annotations

from functools import cache
from importlib import resources
from itertools import combinations

from gristmill.pipelines.sample.blocks import Block
from gristmill.pipelines.sample.draw import Draw

UTF8 = ("de", "fr", "es", "it", "nl", "pt", "pl")
"""Languages planted as UTF-8 pages."""
CHARSETS: tuple[tuple[str, str], ...] = (
    ("windows-1252", "de"),
    ("iso-8859-2", "pl"),
    ("windows-1251", "ru"),
    ("shift_jis", "ja"),
    ("gb18030", "zh"),
    ("windows-1252", "fr"),
    ("iso-8859-1", "es"),
)
"""Planted as (charset, language); every one can hold its language's texts."""


@cache
def paragraphs(language: str) -> tuple[str, ...]:
    """The language's paragraphs: eight, or six for those that are only planted in other charsets."""
    text = (
        resources.files("gristmill.pipelines.sample").joinpath("texts", f"{language}.txt").read_text(encoding="utf-8")
    )
    return tuple(text.strip().split("\n\n")[1:])


@cache
def combos(language: str) -> tuple[tuple[int, ...], ...]:
    """Sets of paragraphs of which any two share at most half (8 choose 4, two shared) or a third (6 choose 3, one).

    Greedy in lexicographic order, which for 8 choose 4 finds the 14 blocks of the Steiner system S(3, 4, 8): two
    pages then have a Jaccard similarity of about 1/3, below every near-duplicate threshold in use.
    """
    n = len(paragraphs(language))
    size, shared = (4, 2) if n == 8 else (3, 1)
    chosen: list[tuple[int, ...]] = []
    for combo in combinations(range(n), size):
        if all(len(set(combo) & set(c)) <= shared for c in chosen):
            chosen.append(combo)
    return tuple(chosen)


def page(language: str, i: int, draw: Draw) -> tuple[str, tuple[Block, ...]]:
    """Title and blocks of the language's page `i` (below `len(combos(language))`); the paragraph order is drawn."""
    texts = [paragraphs(language)[p] for p in draw.shuffled(combos(language)[i])]
    first = texts[0]
    words = first.split()
    title = " ".join(words[:5]).rstrip(",.") if len(words) > 8 else first[:12].rstrip("、。，")
    return title, tuple(Block("p", (t,)) for t in texts)
