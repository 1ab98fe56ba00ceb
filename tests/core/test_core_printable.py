"""Control characters of the data never reach a terminal; letters, emoji and what `keep` names do."""

from __future__ import annotations

import sys

import pytest

from gristmill.core.printable import printable


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("http://a/\x1b[2J\x07\0", r"http://a/\x1b[2J\x07\x00"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x7f\x85\x9b31m", r"\x7f\x85\x9b31m"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("é क्‍ष 👩‍🚀 \u00a0", "é क्‍ष 👩‍🚀 \u00a0"),
    ],
)
def test_controls_are_written_out(text: str, want: str) -> None:
    assert printable(text) == want


def test_what_is_kept_and_nothing_else() -> None:
    assert printable("a\nb\tc\rd\x1b", "\n\t") == "a\nb\tc\\rd\\x1b"
    shown = printable("".join(map(chr, range(sys.maxunicode + 1))))
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
