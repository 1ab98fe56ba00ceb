"""Header fields of WARC records and HTTP messages: ordered, repeated, case-insensitive, read leniently."""

from __future__ import annotations

import re
from collections.abc import Iterator

BLANK_LINE = re.compile(rb"\n\r*\n")
"""End of a head. Line ends are LF with any number of CRs before it: `\\r\\r\\n` occurs in real archives."""


class Headers:
    """Name/value pairs in the order read. Lookups ignore case; `get` gives the first value."""

    __slots__ = ("_first", "_items", "_text")

    def __init__(self, items: list[tuple[str, str]] | None = None) -> None:
        self._text = ""
        self._items = items or []
        self._first = {name.lower(): value for name, value in reversed(self._items)}

    @classmethod
    def unfolded(cls, text: str) -> Headers:
        """The fields of a head without folded lines. The pairs are made when asked for: most heads need five lookups."""
        headers = cls.__new__(cls)
        headers._text, headers._items = text, []
        headers._first = first = {}
        for line in text.split("\n"):
            name, colon, value = line.partition(":")
            if colon and (name := name.strip().lower()) and name not in first:
                first[name] = value.strip()
        return headers

    @property
    def items(self) -> list[tuple[str, str]]:
        if not self._items and self._first:
            fields = [line.partition(":") for line in self._text.split("\n")]
            self._items = [(name.strip(), value.strip()) for name, colon, value in fields if colon and name.strip()]
        return self._items

    def get(self, name: str, default: str = "") -> str:
        return self._first.get(name.lower(), default)

    def get_all(self, name: str) -> list[str]:
        low = name.lower()
        return [value for key, value in self.items if key.lower() == low] if low in self._first else []

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._first

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"Headers({self.items!r})"


def to_text(raw: bytes) -> str:
    """Header bytes as text without lone surrogates: UTF-8, else Latin-1 (old archives hold raw GBK or binary URLs)."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def parse_fields(head: bytes) -> Headers:
    """Fields from a head (without its first line). Folded lines join; lines without a colon are skipped."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return _parse_lines(head.split(b"\n"))
    if "\n " in text or "\n\t" in text or text[:1] in (" ", "\t"):
        return _parse_lines(head.split(b"\n"))
    return Headers.unfolded(text)


def _parse_lines(lines: list[bytes]) -> Headers:
    """As `parse_fields`, where lines fold or are in several encodings."""
    items: list[tuple[str, str]] = []
    for line in lines:
        text = to_text(line.rstrip(b"\r"))
        if text[:1] in (" ", "\t"):
            if items and text.strip():
                name, value = items[-1]
                items[-1] = (name, f"{value} {text.strip()}".strip())
            continue
        name, colon, value = text.partition(":")
        if colon and name.strip():
            items.append((name.strip(), value.strip()))
    return Headers(items)
