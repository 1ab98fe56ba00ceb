"""What is measured of each text block of a page: small whole numbers only, so that every machine scores alike."""

from __future__ import annotations

from functools import cache

import numpy as np

from gristmill.curate.engines.blocks_dom import TAG_ID, TAGS, Page
from gristmill.curate.engines.blocks_hints import GROUPS
from gristmill.curate.engines.blocks_scan import HEAD

EDGES = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 24, 30, 40, 55, 75, 100, 140, 200, 300, 450, 700, 1000, 1500, 2500, 4000),
    *(8000, 16000, 40000),
)
"""Counts become their place among these: about logarithmic."""
PHRASES = (
    ("cookie",),
    ("©", "copyright", "rights reserved", "(c)"),
    ("facebook", "twitter", "instagram", "whatsapp", "linkedin", "pinterest"),
    ("newsletter", "subscri", "sign up", "abonn", "log in", "login"),
    ("javascript", "browser", "adblock"),
    ("http://", "https://", "www.", "@"),
    ("getty", "reuters", "photo", "foto", "image", "video"),
    ("read more", "related", "see also", "click here", "more:", "share"),
    ("privacy", "terms of", "policy"),
    ("comment", "reply", "kommentar", "coment"),
)
"""Words that boilerplate of many languages has; each tuple is one yes or no."""
ABOVE = (
    *("p", "li", "td", "blockquote", "pre", "article", "main", "section", "aside", "nav", "header", "footer", "form"),
    *("ul", "ol", "dl", "table", "figure", "figcaption", "address", "details", "custom", "h1", "h2", "h3"),
)
"""Elements that count anywhere around a block."""
WIDTH = 22 + len(PHRASES) + 3 + 12 + 36 + 38 + 3 * len(TAGS) + len(ABOVE) + 2 * len(GROUPS)
"""Features of a block."""


@cache
def _tables() -> tuple[np.ndarray, ...]:
    """Bins of counts up to 40,000; phrases by first byte: bytes, starts, the tuple each is of, first of each byte."""
    bins = np.searchsorted(np.array(EDGES), np.arange(EDGES[-1] + 1), side="right").astype(np.int8)
    phrases = sorted((phrase.encode(), i) for i, group in enumerate(PHRASES) for phrase in group)
    starts = np.cumsum([0, *(len(phrase) for phrase, _ in phrases)])
    letters = np.frombuffer(b"".join(phrase for phrase, _ in phrases), dtype=np.uint8)
    firsts = np.searchsorted(np.array([phrase[0] for phrase, _ in phrases]), np.arange(257))
    above = np.array([TAG_ID[name] for name in ABOVE])
    return bins, letters, starts, np.array([i for _, i in phrases]), firsts, above


def measure(page: Page) -> np.ndarray:
    """Features of a page's blocks (at least one): (WIDTH, blocks), int8."""
    from gristmill.curate.engines.blocks_fill import fill

    bins, letters, starts, groups, firsts, above = _tables()
    _, place, times = np.unique(page.blocks[HEAD], return_inverse=True, return_counts=True)
    rows = np.zeros((WIDTH, page.blocks.shape[1]), dtype=np.int8)
    heads = (TAG_ID["h1"], TAG_ID["h6"], TAG_ID["p"])
    title = np.frombuffer(page.title, dtype=np.uint8)
    used = fill(
        rows, page.text, page.blocks, page.nodes, times[place], title, bins, letters, starts, groups, firsts,
        len(PHRASES), above, heads, len(TAGS), len(GROUPS),
    )  # fmt: skip
    assert used == WIDTH, (used, WIDTH)
    return rows
