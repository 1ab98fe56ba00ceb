"""The language gate: is a page, by text that is cheap to get, surely in no wanted language?

Quick text is that of the page's `<p>` elements (lexbor through selectolax, 1.5 ms a page of 90 kB with parsing;
resiliparse's main text takes 3.0 and loses more), or of its body where paragraphs are few. A page is refused when the
likeliest language is not wanted and sure enough, and the wanted languages together are next to impossible, in the
paragraphs and in the whole body: cookie notices and navigation in another language do not refuse a page. Short quick
text and unsure pages pass; the stored label and score come from the extracted text.

2,468 pages in 40 languages (45 % English), wanted = label and score 0.65 of the text extracted with the gate off: of
1,101 English, 390 German and 108 Japanese ones none is lost, nor of 1,909 in ten languages; 45, 81, 93 and 12 % of the
pages are refused, and a page takes 1.45, 2.6, 3.7 and 1.02 times less CPU with trafilatura. The gate itself costs 2.2 to
3.0 ms a page there, so before an engine of 5 ms (resiliparse) it pays only where few pages are wanted: 0.89, 1.12, 1.29
and 0.72 times.
`benchmarks/language_gate.py` prints the table for any WARCs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from gristmill.curate.schema_language import Gate

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser

    from gristmill.curate.language import Identifier

PARAGRAPH_CHARS = 60
"""Shorter paragraphs are buttons, notices and captions."""
FEW_CHARS = 200
"""With less text than this in paragraphs the body is read."""
MAX_CHARS = 20_000
MAX_PARAGRAPHS = 1_000
"""Paragraphs looked at: one inside another is read twice, so that a page of nested ones could cost its square."""
MAX_OPEN = 8_000
"""A page with more start tags than this passes unread: lexbor's time through selectolax grows with the square of the
depth (4,000 `<div>`s inside one another 0.05 s, 20,000 1.6 s), and depth can't exceed the start tags, whatever end tags,
comments and attributes pretend."""
LEAST = 0.001
"""Probabilities below this are not asked for and count as 0."""
HIDDEN = ["script", "style", "noscript", "template", "svg"]


class LanguageGate:
    """Decides pages by their HTML. `wanted` are the model's labels of the languages to keep."""

    def __init__(self, settings: Gate, wanted: Collection[str], identifier: Identifier) -> None:
        self.settings = settings
        self.wanted = frozenset(wanted)
        self.identifier = identifier

    def refuses(self, html: str) -> tuple[str, float] | None:
        """(likeliest label, probability of all wanted languages) of a page that is surely unwanted, else None.

        A pure function of the decoded page. Raises what the parser raises, MemoryError among it.
        """
        from selectolax.lexbor import LexborHTMLParser

        if html.count("<") - html.count("</") > MAX_OPEN:  # each `<` but those of end tags
            return None
        try:
            tree = LexborHTMLParser(html)
        except UnicodeEncodeError:  # lone surrogates
            tree = LexborHTMLParser(html.encode("utf-8", "replace").decode())
        text = paragraphs(tree)
        if len(text) < FEW_CHARS:
            return self._judge(body_text(tree))
        return self._judge(text) and self._judge(body_text(tree))

    def _judge(self, text: str) -> tuple[str, float] | None:
        if len(text) < self.settings.min_chars:
            return None
        found = self.identifier.likely(text, LEAST)
        if not found or found[0][0] in self.wanted or found[0][1] < self.settings.min_score:
            return None
        wanted = sum(score for label, score in found if label in self.wanted)
        return (found[0][0], wanted) if wanted < self.settings.max_wanted else None


def paragraphs(tree: LexborHTMLParser) -> str:
    """The text of a page's longer paragraphs, spaces made one."""
    body = tree.body
    if body is None:
        return ""
    out: list[str] = []
    chars = 0
    for paragraph in body.css("p")[:MAX_PARAGRAPHS]:
        text = paragraph.text()
        if len(text) > PARAGRAPH_CHARS:
            out.append(text)
            chars += len(text)
            if chars >= MAX_CHARS:
                break
    return " ".join(" ".join(out).split())


def body_text(tree: LexborHTMLParser) -> str:
    """All visible text of a page, spaces made one. Takes scripts and styles out of the tree."""
    tree.strip_tags(HIDDEN)
    body = tree.body
    return "" if body is None else " ".join(body.text(separator=" ").split())
