"""Text from data made safe for a terminal: control characters are written out, so that no URL moves the cursor or rings."""

from __future__ import annotations

import re

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""C0, DEL and C1 controls, line separators, and the bidirectional overrides that show text in another order."""


def printable(text: str, keep: str = "") -> str:
    """`text` with each control character that is not in `keep` as Python writes it in a string: ESC becomes `\\x1b`."""
    return _CONTROLS.sub(lambda c: c[0] if c[0] in keep else c[0].encode("unicode_escape").decode(), text)
