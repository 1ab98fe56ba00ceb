"""Turns one page's bytes into its main text: decode, bound, extract with trafilatura, normalise.

The text is a function of (bytes, content type, settings) alone: without links the page's URL has no part in it.
trafilatura 2.3's own caches either hold pure functions of one string (`trim`, `line_processing`) or are reached only
with deduplication (`LRU_TEST`) or metadata (htmldate's), which are off; there is no clock and no wall-time limit. The
tests permute pages, processes and hash seeds.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from gristmill.curate.normalise import normalise
from gristmill.curate.schema import Extract

RECURSION_LIMIT = 10_000
"""libxml2 cuts trees at 256 levels and trafilatura recurses a few Python frames a level: at the default limit of 1,000
the depth of the caller could decide a text. Here it cannot."""


@dataclass(frozen=True)
class PageText:
    """What became of one page: a text, or the reason why there is none with the value measured and its limit."""

    text: str = ""
    charset: str = ""
    reason: str | None = None
    value: float | None = None
    threshold: float | None = None
    notes: Mapping[str, int] = field(default_factory=dict)


def page_text(body: bytes, content_type: str, settings: Extract) -> PageText:
    """The main text of an HTML payload (content decoded: no gzip, no chunks), or the reason to drop the page.

    Reasons: `extract.too_large` (bytes), `extract.too_many_nodes` (`<` characters), `extract.error` (trafilatura
    raised), `extract.no_text` (characters). Raises MemoryError only.
    """
    from gristmill.curate.charset import decode_html

    if len(body) > settings.max_html_bytes:
        return _drop("extract.too_large", len(body), settings.max_html_bytes)
    charset = ""
    try:
        html, charset = decode_html(body, content_type)
        nodes = html.count("<")
        if nodes > settings.max_nodes:
            return _drop("extract.too_many_nodes", nodes, settings.max_nodes, charset)
        found = extract_text(html, settings)
    except MemoryError:
        raise
    except Exception:  # any fault inside a codec, lxml or trafilatura is this page's own
        return PageText(charset=charset, reason="extract.error")
    text, notes = normalise(found or "")
    if len(text) < max(1, settings.min_chars):
        return _drop("extract.no_text", len(text), max(1, settings.min_chars), charset)
    return PageText(text, charset, notes=notes)


def extract_text(html: str, settings: Extract) -> str | None:
    """trafilatura's main text of a decoded page, or None when it finds none. Raises what trafilatura raises.

    `fast` mode, without links, images, metadata or duplicate removal: F1 .962 on article-extraction-benchmark (balanced) at 26 ms a page.
    """
    from trafilatura import extract

    _quiet()
    if sys.getrecursionlimit() < RECURSION_LIMIT:
        sys.setrecursionlimit(RECURSION_LIMIT)
    return extract(
        html,
        fast=True,
        favor_precision=settings.favor == "precision",
        favor_recall=settings.favor == "recall",
        include_comments=settings.comments,
        include_tables=settings.tables,
        include_formatting=False,
        include_links=False,
        include_images=False,
        deduplicate=False,
        with_metadata=False,
        output_format="txt",
    )


def _drop(reason: str, value: int, threshold: int, charset: str = "") -> PageText:
    return PageText(charset=charset, reason=reason, value=float(value), threshold=float(threshold))


def _quiet() -> None:
    """trafilatura logs every page without text as a warning: that is a counted drop here."""
    for name in ("trafilatura", "courlan", "htmldate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
