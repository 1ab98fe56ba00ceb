"""The documents on which we differ from datatrove on purpose, each with its reason; checked to be exactly these."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parity.ask import Difference

FILE = Path(__file__).with_name("exceptions.json")


def explained(corpus: str, modes: Sequence[str], found: Sequence[Difference]) -> list[Difference]:
    """The differences that the committed file does not list. Raises AssertionError when it lists one that is not there.

    A row is {corpus, mode, id, what, ours, peer, why}; `corpus` is embedded or real, `modes` are those just compared.
    """
    rows = [row for row in json.loads(FILE.read_text("utf-8")) if row["corpus"] == corpus and row["mode"] in modes]
    assert all(row["why"] for row in rows)
    listed = [Difference(*(_plain(row[name]) for name in ("mode", "id", "what", "ours", "peer"))) for row in rows]
    gone = [difference for difference in listed if difference not in found]
    assert gone == [], f"listed, but equal now: {gone}"
    return [difference for difference in found if difference not in listed]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
