"""The default engine: trafilatura 2.3, `fast` or `full`, without what makes its text depend on other pages.

trafilatura's own caches either hold pure functions of one string (`trim`, `line_processing`) or are reached only with
deduplication (`LRU_TEST`) or metadata (htmldate's), which are off; there is no clock and no wall-time limit.
Token F1 on 452 pages with known main text: balanced `fast` .908, `full` .907, precision `full` .915.
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import Any

from gristmill.curate.engines import Favor, Mode

RECURSION_LIMIT = 10_000
"""libxml2 cuts trees at 256 levels and trafilatura recurses a few Python frames a level: at the default limit of 1,000
the depth of the caller could decide a text. Here it cannot."""


def extract(html: str, *, tables: bool, comments: bool, favor: Favor, mode: Mode = "fast") -> str | None:
    """trafilatura's main text of a decoded page, or None when it finds none. Raises what trafilatura raises.

    `full` also runs its copies of readability and jusText and takes theirs where its own looks bad. Links, images and
    metadata are left out.
    """
    import trafilatura

    from gristmill.curate.engines import trafilatura_fast

    trafilatura_fast.install()
    _quiet()
    if sys.getrecursionlimit() < RECURSION_LIMIT:
        sys.setrecursionlimit(RECURSION_LIMIT)
    return trafilatura.extract(html, options=_options(tables, comments, favor, mode))


@cache
def _options(tables: bool, comments: bool, favor: Favor, mode: Mode) -> Any:
    """Read from trafilatura's settings file and today's date once, not for each page. A page does not change them."""
    from trafilatura.settings import Extractor

    return Extractor(
        output_format="txt",
        fast=mode == "fast",
        precision=favor == "precision",
        recall=favor == "recall",
        comments=comments,
        tables=tables,
        formatting=False,
        links=False,
        images=False,
        dedup=False,
        with_metadata=False,
    )


def _quiet() -> None:
    """trafilatura logs every page without text as a warning: that is a counted drop here."""
    for name in ("trafilatura", "courlan", "htmldate"):
        logger = logging.getLogger(name)
        if logger.level != logging.CRITICAL:  # setting it empties the caches of all loggers
            logger.setLevel(logging.CRITICAL)
