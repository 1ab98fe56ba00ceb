"""Parses a page (resiliparse over lexbor) and cuts it into text blocks with the elements around them.

The parsed page is written out again: in that canonical form every element is closed and `<`, `>` in text and attributes
are escaped, so one pass over its bytes (`blocks_scan`) finds everything. Nothing here recurses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from html import unescape

import numpy as np

from gristmill.curate.engines.blocks_hints import BIT, WORD_BITS

MAX_NODES = 300_000
"""Tags read of one page; what follows is left out. The largest of 2,287 real pages has 19,437 `<`."""

TAGS = (
    *("page", "p", "div", "li", "td", "th", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "article", "main"),
    *("section", "aside", "nav", "header", "footer", "form", "ul", "ol", "dl", "dt", "dd", "table", "tr", "figure"),
    *("figcaption", "address", "details", "summary", "fieldset", "custom", "tbody"),
)
"""Elements told apart; `page` is html and body, `custom` any unknown one, other block-level ones count as `div`."""
TAG_ID = {name: i for i, name in enumerate(TAGS)}
OTHER_BLOCKS = (
    *("center", "thead", "tfoot", "caption", "colgroup", "hgroup", "search", "dir", "menu", "dialog", "optgroup"),
    *("legend", "frameset", "listing", "plaintext", "picture"),
)
WITHOUT_TEXT = (
    *("script", "style", "noscript", "template", "svg", "iframe", "select", "head", "textarea", "object", "canvas"),
    *("video", "audio", "map", "datalist", "xmp", "noembed", "noframes"),
)
"""Elements whose content is no text of the page, or is written out unescaped."""
INLINE = (
    *("abbr", "acronym", "area", "b", "base", "basefont", "bdi", "bdo", "big", "blink", "cite", "code", "data", "del"),
    *("dfn", "em", "embed", "font", "frame", "i", "img", "input", "ins", "kbd", "label", "link", "mark", "math"),
    *("marquee", "meta", "mi", "mn", "mo", "mover", "mrow", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtd"),
    *("mtext", "mtr", "munder", "nobr", "output", "param", "q", "rb", "rp", "rt", "rtc", "ruby", "s", "samp", "slot"),
    *("small", "source", "span", "strike", "strong", "sub", "sup", "time", "track", "tt", "u", "var", "wbr", "button"),
)
_TITLE = re.compile(r"<title[^>]*+>([^<]*+)</title>")
_WIDE_RANGES = (
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7AF),
    (0xF900, 0xFAFF),
)
"""Kana, Han and Hangul: a token a character. Beyond the basic plane everything counts as such."""


@dataclass(frozen=True)
class Page:
    """A page's blocks, in order, and its block-level elements, in document order (element 0 is the page)."""

    title: bytes
    text: np.ndarray
    """UTF-8 bytes of all blocks, a newline after each."""
    blocks: np.ndarray
    """(BLOCK_FIELDS, blocks) int64"""
    nodes: np.ndarray
    """(NODE_FIELDS, elements) int64"""
    truncated: bool

    def block(self, i: int) -> str:
        """One block's text."""
        from gristmill.curate.engines.blocks_scan import END, START

        return self.text[self.blocks[START, i] : self.blocks[END, i]].tobytes().decode("utf-8", "replace")


def fnv(word: str) -> int:
    """FNV-1a, 64 bits, of a word's UTF-8 bytes."""
    value = 14695981039346656037
    for byte in word.encode():
        value = (value ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
    return value


@cache
def _tables() -> tuple[np.ndarray, ...]:
    """Sorted name hashes, kinds, element numbers; sorted word hashes, their bits; classes of characters."""
    from gristmill.curate.engines import blocks_scan as scan

    names = {name: (scan.BLOCK, number) for name, number in TAG_ID.items() if name not in ("page", "custom")}
    names |= {name: (scan.BLOCK, TAG_ID["div"]) for name in OTHER_BLOCKS}
    names |= {name: (scan.BLOCK, TAG_ID["page"]) for name in ("html", "body")}
    names |= {name: (scan.DROPPED, 0) for name in WITHOUT_TEXT} | {name: (scan.TEXT, 0) for name in INLINE}
    names |= {"a": (scan.LINK, 0), "br": (scan.BREAK, 0), "hr": (scan.BREAK, 0)}
    ordered = sorted((fnv(name), *what) for name, what in names.items())
    words = sorted((fnv(word), bits) for word, bits in WORD_BITS.items())
    classes = np.full(65_537, scan.RULE, dtype=np.uint8)
    for point in range(65_536):
        char = chr(point)
        if char.isspace():
            classes[point] = scan.SPACE
        elif char.isdigit():
            classes[point] = scan.DIGIT
        elif char.isalnum() or char == "_":
            classes[point] = scan.UPPER if char.isupper() else scan.LOWER if char.islower() else scan.WORD
    for low, high in _WIDE_RANGES:
        classes[low : high + 1] = scan.WIDE
    classes[0x0300:0x0370] = classes[0x0900:0x0DFF] = classes[0x0E00:0x0E80] = scan.WORD
    classes[65_536] = scan.WIDE
    marks = ((".!?。！？…।؟۔", scan.STOP), (",;:、，；：،؛", scan.COMMA), ("\"'“”‘’«»„「」『』", scan.QUOTE))
    for chars, kind in marks:
        classes[[ord(char) for char in chars]] = kind
    return (
        np.array([row[0] for row in ordered], dtype=np.uint64),
        np.array([row[1] for row in ordered], dtype=np.int64),
        np.array([row[2] for row in ordered] + [TAG_ID["custom"]], dtype=np.int64),
        np.array([row[0] for row in words], dtype=np.uint64),
        np.array([row[1] for row in words], dtype=np.int64),
        classes,
    )


def read_page(html: str) -> Page:
    """Parse and cut a page into blocks. Linear in its size once parsed; memory is bounded by its size."""
    from resiliparse.parse.html import HTMLTree

    from gristmill.curate.engines.blocks_scan import scan

    if "\x00" in html:
        html = html.replace("\x00", "")
    try:
        tree = HTMLTree.parse(html)
    except UnicodeEncodeError:  # lone surrogates
        tree = HTMLTree.parse(html.encode("utf-8", "replace").decode("utf-8"))
    whole = str(tree)
    title = _TITLE.search(whole, 0, 100_000)
    name = " ".join(unescape(title.group(1)).split()) if title else ""
    data = np.frombuffer(whole[max(0, whole.find("<body")) :].encode("utf-8", "replace"), dtype=np.uint8)
    keys, kinds, numbers, words, bits, classes = _tables()
    text, blocks, nodes, short = scan(
        data, keys, kinds, numbers, words, bits, BIT["hidden"], classes, TAG_ID["pre"], MAX_NODES
    )
    return Page(name.encode(), text, blocks, nodes, bool(short))
