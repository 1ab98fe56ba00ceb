"""The language gate: is a page, by text that is cheap to get, surely in no wanted language?

Quick text (curate.quick_text, 0.1 to 0.3 ms a page of 65 kB) is that of the page's `<p>` elements, or of its body where
paragraphs are few. A page is refused when the likeliest language is not wanted and sure enough, and the wanted languages
together are next to impossible, in the paragraphs and in the whole body: cookie notices and navigation in another language
do not refuse a page. The body is not asked where long paragraphs are in the language that the page's `<html>` tag names.
Short quick text and unsure pages pass; the stored label and score come from the extracted text.

2,287 pages in 40 languages, wanted = label and score 0.65 of the text extracted with the gate off, by any of the engines
`trafilatura`, `resiliparse` and `blocks`: of 990 English, 393 German, 82 Japanese ones and 1,796 in ten languages none is
lost, nor with any one of 21 other languages wanted; 46, 80, 94 and 13 % of the pages are refused. On 2,468
pages CPU falls by 1.51, 3.95, 8.9 and 1.06 times with `trafilatura`, by 1.26, 2.23, 3.7 and 0.98 times with `resiliparse`,
which loses 1 of 111 Japanese pages. The gate takes 0.3 to 0.6 ms a page, a parser's text took twice that.
`benchmarks/language_gate.py` prints the table for any WARCs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from gristmill.curate.identify import sampled
from gristmill.curate.quick_text import body_start, body_text, html_lang, paragraphs

if TYPE_CHECKING:
    from gristmill.curate.identify import Identifier
    from gristmill.curate.schema_language import Gate

Found = Sequence[tuple[str, float]]
"""(label, probability), the likeliest first."""
FEW_CHARS = 200
"""With less text than this in paragraphs the body is read."""
LEAST = 0.001
"""Probabilities below this are not asked for and count as 0."""
GLANCE_CHARS, GLANCE_SLICES = 192, 4
"""Characters of the paragraphs that are read first: identifying takes 0.15 to 0.35 us a character."""
SURE, SLIGHT = 0.7, 0.01
"""A glance suffices that finds a wanted language likeliest; or the one that the page's `<html>` tag names at least so
likely, and all wanted ones together less."""
MANY_CHARS = 1_000
"""With so much text in paragraphs in the language that the `<html>` tag names, the body is not read: notices are shorter."""


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
        if len(text) >= FEW_CHARS:
            named = html_lang(html)
            found = self.identifier.likely(sampled(text, GLANCE_CHARS, GLANCE_SLICES), LEAST)
            if not self._suffices(found, named):
                found = self.identifier.likely(text, LEAST)
            refused = self._refused(text, found)
            if refused is None or (len(text) >= MANY_CHARS and refused[0] == named):
                return refused
        text = body_text(html, start)
        return self._refused(text, self.identifier.likely(text, LEAST))

    def _suffices(self, found: Found, named: str | None) -> bool:
        if not found or found[0][0] in self.wanted:
            return True
        label, score = found[0]
        return label == named and score >= max(SURE, self.settings.min_score) and self._wanted(found) < SLIGHT

    def _wanted(self, found: Found) -> float:
        return sum(score for label, score in found if label in self.wanted)

    def _refused(self, text: str, found: Found) -> tuple[str, float] | None:
        if len(text) < self.settings.min_chars or not found:
            return None
        label, score = found[0]
        if label in self.wanted or score < self.settings.min_score:
            return None
        wanted = self._wanted(found)
        return (label, wanted) if wanted < self.settings.max_wanted else None
