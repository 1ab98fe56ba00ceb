"""The files that a recipe's `curate` block names, found beside the recipe or from the working directory."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gristmill.core.errors import ConfigError, Problem
from gristmill.core.settings import Document, Loc

PLACES: tuple[tuple[str, ...], ...] = (
    ("urls", "own", "*", "domains"),
    ("urls", "own", "*", "urls"),
    ("urls", "own", "*", "words"),
    ("urls", "ut1", "folder"),
    ("takedown",),
    ("language", "model"),
    ("optout", "robots"),
    ("decontaminate", "benchmarks", "*"),
)
"""Where paths stand in the block; `*` stands for every entry of a list."""


CHECKED_LATER = ("language", "model")
"""It has a search path of its own."""


def resolved(curate: dict[str, Any], beside: Path, document: Document) -> dict[str, Any]:
    """The block with absolute paths. A relative one is looked for in the folder `beside`, then in the working directory.

    Raises ConfigError with the places in the recipe (`document`) of all paths and globs that name nothing.
    """
    problems: list[Problem] = []

    def find(path: str, loc: Loc) -> str:
        for candidate in (beside / path, Path(path)):
            if candidate.exists() or any(glob.iglob(str(candidate), recursive=True)):
                return str(candidate.absolute())
        if loc != CHECKED_LATER:
            hint = f"looked in {beside.absolute()} and the working directory"
            problems.append(document.problem(("curate", *loc), f"no such file: {path}", hint))
        return str(Path(path).absolute())

    for place in PLACES:
        curate = _change(curate, place, find, ())
    if problems:
        raise ConfigError(problems)
    return curate


def _change(at: Any, place: tuple[str, ...], change: Callable[[str, Loc], str], loc: Loc) -> Any:
    if not place:
        return change(at, loc) if isinstance(at, str) else at
    head, rest = place[0], place[1:]
    if head == "*":
        return [_change(item, rest, change, (*loc, i)) for i, item in enumerate(at)]
    if not isinstance(at, dict) or at.get(head) is None:
        return at
    return {**at, head: _change(at[head], rest, change, (*loc, head))}
