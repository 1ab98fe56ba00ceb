"""Makes extracted text storable, once: lone surrogates, NULs and line ends; nothing else is touched."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_NUL = "\0"


def normalise(text: str) -> tuple[str, dict[str, int]]:
    """The text with lone surrogates as U+FFFD, without NULs, with CRLF and CR as LF.

    Returns it with the counts of what was replaced, by kind (`text.nul`, `text.surrogate`; a kind that did not occur
    is absent). A Python string holds no surrogate pairs, so every surrogate in it is a lone one. NULs go first, so
    that a CR, NUL, LF ends one line and the result is stable: normalising it again changes nothing.
    """
    notes: dict[str, int] = {}
    if nuls := text.count(_NUL):
        notes["text.nul"] = nuls
        text = text.replace(_NUL, "")
    if not text.isascii():
        text, surrogates = _SURROGATE.subn("\ufffd", text)
        if surrogates:
            notes["text.surrogate"] = surrogates
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text, notes
