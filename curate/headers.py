"""Header fields of WARC records and HTTP messages: ordered, repeated, case-insensitive, read leniently."""

from __future__ import annotations

import re
from collections.abc import Iterator

BLANK_LINE = re.compile(rb"\n\r*\n")
"""End of a head. Line ends are LF with any number of CRs before it: `\\r\\r\\n` occurs in real archives."""


class Headers:
    """Name/value pairs in the order read. Lookups ignore case; `get` gives the first value."""

    __slots__ = ("items",)

    def __init__(self, items: list[tuple[str, str]] | None = None) -> None:
        self.items = items or []

    def get(self, name: str, default: str = "") -> str:
        low = name.lower()
        for key, value in self.items:
            if key.lower() == low:
                return value
        return default

    def get_all(self, name: str) -> list[str]:
        low = name.lower()
        return [value for key, value in self.items if key.lower() == low]

    def __contains__(self, name: str) -> bool:
        low = name.lower()
        return any(key.lower() == low for key, _ in self.items)

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


def parse_fields(lines: list[bytes]) -> Headers:
    """Fields from the lines of a head (without its first line). Folded lines join; lines without a colon are skipped."""
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
