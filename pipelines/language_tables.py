"""Finds the table of rules by language that a recipe names: packaged, beside the recipe, or from the working directory."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from gristmill.core.errors import ConfigError, Problem, UsageError
from gristmill.core.settings import Document
from gristmill.curate.rules.tables import load_table
from gristmill.curate.schema_rules import LanguageTable

KINDS = (".yaml", ".yml", ".json", ".csv")
LOC = ("curate", "rules", "per_language")


def packaged() -> dict[str, Path]:
    """The tables that ship with gristmill, by name."""
    folder = resources.files("gristmill.pipelines").joinpath("recipes", "tables")
    found = {}
    for item in sorted(folder.iterdir(), key=lambda i: i.name) if folder.is_dir() else []:
        if item.name.endswith(KINDS):
            with resources.as_file(item) as path:
                found[item.name.rsplit(".", 1)[0]] = Path(path)
    return found


def find_table(name: str, beside: Path) -> Path:
    """The path of a table. Raises UsageError when there is none."""
    if not name.endswith(KINDS):
        if name in (known := packaged()):
            return known[name]
        raise UsageError(f"no table named {name!r}", hint=f"packaged: {', '.join(known)}; or give {', '.join(KINDS)}")
    for candidate in (beside / name, Path(name)):
        if candidate.is_file():
            return candidate
    raise UsageError(f"no such file: {name}", hint="relative to the recipe, or else to the working directory")


def named_table(document: Document, beside: Path) -> tuple[LanguageTable | None, list[Problem]]:
    """The table that a recipe names by a path, or None, and every problem of it."""
    at: Any = document.data
    for part in LOC:
        at = at.get(part) if isinstance(at, dict) else None
    if not isinstance(at, str):
        return None, []
    try:
        path = find_table(at, beside)
        shown = os.path.relpath(path)
        return load_table(path, str(path) if shown.startswith("..") else shown), []
    except ConfigError as error:
        return None, error.problems
    except UsageError as error:
        return None, [document.problem(LOC, error.message, error.hint)]
