"""E-mail addresses and public IP addresses in a document's final text, replaced by published stand-ins.

What is an address, and what replaces it, is datatrove's (its `PIIFormatter`'s patterns and tuples, read at run time), as
FineWeb was made. Two things differ. The stand-in is picked by a hash of (seed, document id, address), where datatrove
takes them in rotation, so the same document gets the same text in any order and process, and one address in it stays one.
And addresses are looked for around each `@`, in linear time: the pattern alone takes quadratic time on a long run of
letters and signs without one.
"""

from __future__ import annotations

import platform
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from gristmill.core.hashing import hash64

_LOCAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+/=?^_`{|}~-.")
"""Characters that may stand before the `@`, the dot between atoms included (RFC 5322 atext)."""
_START = re.compile(r"\b[^.]")


@dataclass(frozen=True)
class Cleaned:
    """A text and how many addresses were replaced in it."""

    text: str
    emails: int = 0
    ips: int = 0


@dataclass(frozen=True)
class _Kind:
    pattern: re.Pattern[str]
    stand_ins: tuple[str, ...]
    valid: Callable[[str], bool] | None


@lru_cache(maxsize=1)
def _kinds() -> tuple[_Kind, _Kind]:
    """datatrove's e-mail and IP replacers as they come by default: public IPs only."""
    from datatrove.pipeline.formatters.pii import PIIFormatter

    theirs: Any = PIIFormatter()
    emails, ips = theirs.emails_replacer, theirs.ip_replacer
    return (
        _Kind(emails.regex, emails.replacements, emails.validator),
        _Kind(ips.regex, ips.replacements, ips.validator),
    )


def uses() -> dict[str, str]:
    """What decides a cleaned text: datatrove's patterns, Python's table of public networks, Unicode's letters."""
    return {
        "datatrove": version("datatrove"),
        "ipaddress": f"python {platform.python_version()}",
        "unicode": unicodedata.unidata_version,
    }


def clean(text: str, document: str, *, emails: bool = True, ips: bool = True, seed: int = 0) -> Cleaned:
    """Replace addresses in the final text of a document: e-mail addresses first, as datatrove does."""
    mail, network = _kinds()
    found_emails = found_ips = 0
    if emails and "@" in text:
        text, found_emails = _replace(text, email_spans(text, mail.pattern), mail, document, seed)
    if ips:
        spans = [m.span() for m in network.pattern.finditer(text) if network.valid is None or network.valid(m[0])]
        text, found_ips = _replace(text, spans, network, document, seed)
    return Cleaned(text, found_emails, found_ips)


def email_spans(text: str, pattern: re.Pattern[str]) -> list[tuple[int, int]]:
    """What `pattern.finditer` gives, for a pattern whose part before the `@` is dot-separated atoms after a word boundary.

    The leftmost start of a match is found by hand: behind the last dot that may not stand in front of the `@`, at the
    first word boundary. Only there is the pattern tried; its part after the `@` does not depend on the start.
    """
    out: list[tuple[int, int]] = []
    end = 0
    at = text.find("@")
    while at >= 0:
        begin = at
        while begin > end and text[begin - 1] in _LOCAL:
            begin -= 1
        twice = text.rfind("..", begin, at)
        if twice >= 0:
            begin = twice + 2
        start = _START.search(text, begin, at)
        match = pattern.match(text, start.start()) if start else None
        if match is not None:
            out.append(match.span())
            end = match.end()
        at = text.find("@", max(at + 1, end))
    return out


def _replace(text: str, spans: list[tuple[int, int]], kind: _Kind, document: str, seed: int) -> tuple[str, int]:
    parts, at = [], 0
    for begin, end in spans:
        pick = hash64(f"{document}\0{text[begin:end]}", seed) % len(kind.stand_ins)
        parts += [text[at:begin], kind.stand_ins[pick]]
        at = end
    return "".join([*parts, text[at:]]), len(spans)
