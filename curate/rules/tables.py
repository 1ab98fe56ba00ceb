"""Tables of what differs by language, read from YAML, JSON or CSV with file, line and column of every fault.

YAML and JSON hold `gristmill: 1` and `languages:`, label -> LanguageRules (a block per rule set, with its settings).
CSV holds one language a row; the header names `language` and any of `language_score`, `stop_words` (separated by
spaces), `SET.SETTING` and, for n-gram tables, `SET.SETTING.N`. An empty cell changes nothing, `off` switches a rule off.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from gristmill.core.errors import ConfigError, Problem, UsageError
from gristmill.core.settings import Document, Settings, read_yaml, validate
from gristmill.core.yamldoc import MAX_YAML_BYTES, Loc, Mark
from gristmill.curate.schema_rules import LanguageTable

MAX_LANGUAGES = 10_000


class TableFile(Settings):
    """A table of rules by language, as a file."""

    gristmill: Literal[1]
    """Version of this file's format."""
    about: str = ""
    """Where the values come from."""
    languages: LanguageTable
    """Language label (fr or fra_Latn) -> what differs there."""


def load_table(path: Path, name: str) -> LanguageTable:
    """Read a table. Raises ConfigError with every problem, UsageError when the file cannot be read."""
    document = _read_csv(path, name) if path.suffix == ".csv" else read_yaml(path, name)
    table, problems = validate(document, TableFile)
    if table is None:
        raise ConfigError(problems)
    if len(table.languages) > MAX_LANGUAGES:
        raise UsageError(f"{name} has more than {MAX_LANGUAGES:,} languages")
    return table.languages


def _read_csv(path: Path, name: str) -> Document:
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UsageError(f"{name} is larger than {MAX_YAML_BYTES >> 20} MiB")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(name, 0, 0, "", f"not UTF-8: {error.reason}", "save the file as UTF-8")]) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    languages: dict[str, Any] = {}
    document = Document(name, {"gristmill": 1, "languages": languages}, lines=text.splitlines())
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        for row in reader:
            if not header:
                header = [cell.strip() for cell in row]
                document.problems += _header_faults(header, name)
            elif any(cell.strip() for cell in row):
                _add_row(document, languages, header, row, reader.line_num)
    except csv.Error as error:
        document.problems.append(Problem(name, reader.line_num, 1, "", f"bad CSV: {error}", "quote cells with commas"))
    if not header:
        document.problems.append(Problem(name, 1, 1, "", "the file is empty", "the first line names the columns"))
    return document


def _header_faults(header: list[str], name: str) -> list[Problem]:
    faults = []
    if "language" not in header:
        faults.append(Problem(name, 1, 1, "", "no column `language`", "the first line names the columns"))
    for column in sorted({c for c in header if header.count(c) > 1}):
        faults.append(Problem(name, 1, 1, column, "the column stands twice", "keep one of them"))
    return faults


def _add_row(document: Document, languages: dict[str, Any], header: list[str], row: list[str], line: int) -> None:
    cells = dict(zip(header, row, strict=False))
    label = cells.get("language", "").strip()
    if len(row) != len(header) or not label or label in languages:
        message = f"{len(row)} cells under {len(header)} columns" if len(row) != len(header) else "no language"
        message = f"`{label}` has a row already" if label in languages else message
        document.problems.append(Problem(document.name, line, 1, label, message, "one language a row"))
        return
    block: dict[str, Any] = {}
    column = 1
    for key, cell in zip(header, row, strict=True):
        text = cell.strip()
        if key != "language" and text:
            at: Any = block
            loc: Loc = ("languages", label)
            parts = key.split(".")
            for part in parts[:-1]:
                at = at.setdefault(part, {})
                loc = (*loc, part)
            at[parts[-1]] = text.split() if key == "stop_words" else _value(text)
            document.marks[(*loc, parts[-1])] = Mark(document.name, line, column)
        column += len(cell) + 1
    languages[label] = block
    document.marks["languages", label] = Mark(document.name, line, 1)


def _value(text: str) -> Any:
    words: Mapping[str, Any] = {"off": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
