"""The main text of a page by learned scores of its text blocks: `extract(html)`."""

from __future__ import annotations

from functools import cache

import numpy as np

from gristmill.curate.engines import Favor, RefusedPage
from gristmill.curate.engines.blocks_dom import MAX_NODES, TAG_ID, Page, read_page
from gristmill.curate.engines.blocks_features import WIDTH, measure
from gristmill.curate.engines.blocks_hints import BIT
from gristmill.curate.engines.blocks_model import best_cut, code_of, own_forest
from gristmill.curate.engines.blocks_scan import (
    ABOVE_HINTS,
    ABOVE_TAGS,
    END,
    LINK_TOKENS,
    NODE,
    PARENT,
    START,
    TAG,
    TOKENS,
)
from gristmill.curate.light_imports import light_numba

RECALL_WEIGHTS: dict[str, float] = {"precision": 0.25, "balanced": 1.0, "recall": 4.0}
"""Squares of F's beta: F0.5, F1, F2."""
_CLIMB = 12
"""Levels looked up from a block for its table row."""


def extract(html: str, *, tables: bool = True, comments: bool = False, favor: Favor = "balanced") -> str | None:
    """A page's main text, one paragraph, heading or list item a line, cells of a row with ` | ` between; or None.

    `tables`: False leaves tables out that hold less than half of the text. `comments`: True keeps readers' comments
    as well. `favor`: the cut lies where the page's expected token F is highest, with the beta of `RECALL_WEIGHTS`.
    Raises KeyError for any other `favor`, RefusedPage for a page of more than MAX_NODES tags.
    """
    recall_weight = RECALL_WEIGHTS[favor]
    _load()
    page = read_page(html)
    if page.truncated:
        raise RefusedPage("extract.too_many_nodes", None, MAX_NODES)
    if not page.blocks.shape[1]:
        return None
    codes = code_of(own_forest(WIDTH).score(measure(page)))
    kept = codes >= max(1, best_cut(codes, page.blocks[TOKENS], recall_weight))
    said = _in_comments(page)
    if comments:
        kept |= said
    elif 2 * page.blocks[TOKENS][kept & said].sum() < page.blocks[TOKENS][kept].sum():
        kept &= ~said  # more than that, and the name is no sign: the page itself is a discussion
    kept &= page.blocks[TOKENS] > 0
    keep = np.flatnonzero(kept).tolist()
    if not tables:
        keep = _without_tables(page, keep)
    return _join(page, keep) or None


@cache
def _load() -> None:
    """Load the kernels once."""
    with light_numba():
        own_forest(WIDTH).score(measure(read_page("<p>A first page.</p>")))


def _in_comments(page: Page) -> np.ndarray:
    """Blocks under an element named for comments that are sentences rather than links or buttons."""
    tokens, links = page.blocks[TOKENS], page.blocks[LINK_TOKENS]
    named: np.ndarray = (page.nodes[ABOVE_HINTS, page.blocks[NODE]] & BIT["comment"]) != 0
    return named & (tokens >= 4) & (3 * links <= tokens)


def _above(page: Page, node: int, wanted: int) -> int:
    """The nearest element of a kind at or above `node`, at most `_CLIMB` levels up; -1 when there is none."""
    if not int(page.nodes[ABOVE_TAGS, node]) >> wanted & 1:
        return -1
    for _ in range(_CLIMB):
        if node < 0 or page.nodes[TAG, node] == wanted:
            return node
        node = int(page.nodes[PARENT, node])
    return -1


def _without_tables(page: Page, keep: list[int]) -> list[int]:
    """What stays without tables; a table with half of the kept text or more is the page's layout, not data."""
    table_of = {i: _above(page, int(page.blocks[NODE, i]), TAG_ID["table"]) for i in keep}
    inside: dict[int, int] = {}
    for i, table in table_of.items():
        inside[table] = inside.get(table, 0) + int(page.blocks[TOKENS, i])
    total = sum(inside.values())
    return [i for i in keep if table_of[i] < 0 or 2 * inside[table_of[i]] >= total]


def _join(page: Page, keep: list[int]) -> str:
    data = page.text.tobytes()
    nodes = page.blocks[NODE, keep]
    spans = page.blocks[[START, END]][:, keep].T.tolist()
    in_row = (page.nodes[ABOVE_TAGS, nodes] >> TAG_ID["tr"] & 1).tolist()
    lines: list[str] = []
    row = -1
    for (low, high), node, inside in zip(spans, nodes.tolist(), in_row, strict=True):
        text = data[low:high].decode("utf-8", "replace")
        this = _above(page, node, TAG_ID["tr"]) if inside else -1
        if this >= 0 and this == row:
            lines[-1] += " | " + text
        else:
            lines.append(text)
        row = this
    return "\n".join(lines)
