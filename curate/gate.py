"""The language gate: is a page, by text that is cheap to get, surely in no wanted language?

Quick text (curate.quick_text, 0.1 to 0.3 ms a page of 65 kB) is that of the page's `<p>` elements, or of its body where
paragraphs are few. A page is refused when the likeliest language is not wanted and sure enough, and the wanted languages
together are next to impossible, in the paragraphs and in the whole body: cookie notices and navigation in another language
do not refuse a page. Short quick text and unsure pages pass; the stored label and score come from the extracted text.

2,287 pages in 40 languages, wanted = label and score 0.65 of the text extracted with the gate off, by any of the engines
`trafilatura`, `resiliparse` and `blocks`: of 990 English, 393 German, 82 Japanese ones and 1,796 in ten languages none is
lost; 46, 80, 94 and 13 % of the pages are refused. On 2,468 pages CPU falls by 1.48, 3.96, 8.07 and 1.06 times with
`trafilatura`, by 1.13, 1.83, 2.64 and 0.95 times with `resiliparse`, which loses 1 of 111 Japanese pages. The gate takes
0.3 to 0.7 ms a page, a parser's text took twice that.
`benchmarks/language_gate.py` prints the table for any WARCs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from gristmill.curate.quick_text import body_start, body_text, paragraphs
from gristmill.curate.schema_language import Gate

if TYPE_CHECKING:
    from gristmill.curate.language import Identifier

FEW_CHARS = 200
"""With less text than this in paragraphs the body is read."""
LEAST = 0.001
"""Probabilities below this are not asked for and count as 0."""


class LanguageGate:
    """Decides pages by their HTML. `wanted` are the model's labels of the languages to keep."""

    def __init__(self, settings: Gate, wanted: Collection[str], identifier: Identifier) -> None:
        self.settings = settings
        self.wanted = frozenset(wanted)
        self.identifier = identifier

    def refuses(self, html: str) -> tuple[str, float] | None:
        """(likeliest label, probability of all wanted languages) of a page that is surely unwanted, else None.

        A pure function of the decoded page.
        """
        start = body_start(html)
        text = paragraphs(html, start)
        if len(text) >= FEW_CHARS and self._judge(text) is None:
            return None
        return self._judge(body_text(html, start))

    def _judge(self, text: str) -> tuple[str, float] | None:
        if len(text) < self.settings.min_chars:
            return None
        found = self.identifier.likely(text, LEAST)
        if not found or found[0][0] in self.wanted or found[0][1] < self.settings.min_score:
            return None
        wanted = sum(score for label, score in found if label in self.wanted)
        return (found[0][0], wanted) if wanted < self.settings.max_wanted else None
