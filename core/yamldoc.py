"""One YAML file as plain data with the place of every value, and `--set` overrides merged into it.

The parser is ruamel.yaml in YAML 1.2 (so `no` is a word and `3e-4` a number); a tag is a fault, never code.
`--set a.b=c` overrides are merged before validation and are located as `--set:N`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gristmill.core.errors import ConfigError, Problem, UsageError
from gristmill.core.yamlsyntax import MAX_DEPTH as MAX_DEPTH
from gristmill.core.yamlsyntax import compose

MAX_YAML_BYTES = 4 << 20  # settings are written by hand; a bigger file is a mistake or an attack
MAX_NODES = 200_000  # also bounds what anchors and aliases can blow up to

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Mark:
    """Where a value stands: line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass
class Document:
    """One parsed YAML file: plain data, where each path stands, and the source lines."""

    name: str
    data: Any
    marks: dict[Loc, Mark] = field(default_factory=dict)
    key_marks: dict[Loc, Mark] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    incomplete: bool = False
    """A syntax fault kept some lines from being read: what seems to be missing may be there."""
    broken: bool = False
    """There was a syntax fault, mended or not."""
    aliases: dict[Loc, Loc] = field(default_factory=dict)
    """{path of the data in use: path in the file} where the two differ; what is below moves along."""

    def path(self, loc: Sequence[str | int]) -> str:
        """The path in the file, as messages name it."""
        path = tuple(loc)
        for n in range(len(path), 0, -1):
            if path[:n] in self.aliases:
                return dotted((*self.aliases[path[:n]], *path[n:]))
        return dotted(path)

    def mark(self, loc: Sequence[str | int], key: bool = False) -> Mark:
        """The mark of a path, or of its nearest parent that has one."""
        path = tuple(loc)
        while True:
            for table in (self.key_marks, self.marks) if key else (self.marks, self.key_marks):
                if path in table:
                    return table[path]
            if not path:
                return Mark(self.name, 1, 1)
            path = path[:-1]

    def problem(self, loc: Sequence[str | int], message: str, hint: str | None = None, key: bool = False) -> Problem:
        mark = self.mark(loc, key)
        own = mark.file == self.name and 0 < mark.line <= len(self.lines)
        source = self.lines[mark.line - 1] if own else None
        return Problem(mark.file, mark.line, mark.column, self.path(loc), message, hint, source)


def dotted(loc: Sequence[str | int]) -> str:
    """A path for people: `stages[0].min_words`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def parse(text: str, name: str) -> Document:
    """Parse YAML text. Faults of syntax, duplicate keys and tags are collected in `problems`."""
    doc = Document(name, None, lines=text.splitlines())
    if len(text) > MAX_YAML_BYTES:
        hint = "settings are written by hand: is this a data file?"
        doc.problems.append(Problem(name, 1, 1, "", f"file is larger than {MAX_YAML_BYTES} bytes", hint))
        doc.incomplete = True
        return doc
    composed = compose(text, name)
    doc.problems += composed.problems
    doc.incomplete, doc.broken = composed.blanked, bool(composed.problems)
    if composed.node is not None:
        doc.data = _plain(doc, composed.node, (), 0, [MAX_NODES])
    elif not composed.problems:
        doc.data = {}
    return doc


_KNOWN_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "merge", "null", "bool", "int", "float", "str", "timestamp")
}


def _plain(doc: Document, node: Node, loc: Loc, depth: int, budget: list[int]) -> Any:
    mark = Mark(doc.name, node.start_mark.line + 1, node.start_mark.column + 1)
    doc.marks[loc] = mark
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        if budget[0] > -2:
            message = f"nested deeper than {MAX_DEPTH} levels or larger than {MAX_NODES} values"
            doc.problems.append(doc.problem(loc, message, "settings need fewer than 8 levels"))
        budget[0] = -10
        doc.incomplete = True
        return None
    tag = str(node.tag) if node.tag is not None else ""
    if tag and tag not in _KNOWN_TAGS:  # the value below it is read as if it had none, so its own faults show too
        doc.problems.append(doc.problem(loc, f"unknown tag `{tag}`", "write plain values; tags run no code here"))
    if isinstance(node, MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_loc = (*loc, str(getattr(key_node, "value", "?")))
            at = Mark(doc.name, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, ScalarNode):
                path, hint = dotted(loc), "put a text that starts with a bracket in quotes"
                doc.problems.append(Problem(doc.name, at.line, at.column, path, "a key must be a single word", hint))
                continue
            key = str(key_node.value)
            if key in out:
                first = doc.marks[key_loc].line
                doc.key_marks[key_loc] = at
                hint = f"keep one of the two; the first is at line {first}"
                doc.problems.append(doc.problem(key_loc, "duplicate key", hint, key=True))
                continue
            doc.key_marks[key_loc] = at
            out[key] = _plain(doc, value_node, key_loc, depth + 1, budget)
        return out
    if isinstance(node, SequenceNode):
        return [_plain(doc, child, (*loc, i), depth + 1, budget) for i, child in enumerate(node.value)]
    assert isinstance(node, ScalarNode)
    return _scalar(node)


def _scalar(node: ScalarNode) -> Any:
    """Resolve a plain scalar by YAML 1.2's core schema; quoted ones, dates and what is not finite stay text."""
    if node.style in ("'", '"', "|", ">"):
        return str(node.value)
    text = str(node.value)
    lowered = text.lower()
    if lowered in ("", "~", "null"):
        return None
    if lowered in ("true", "false"):
        return lowered == "true"
    number = text.replace("_", "")
    if number[:1] not in tuple("+-.0123456789"):
        return text
    for kind in (int, float):
        try:
            value = kind(number)
        except ValueError:
            continue
        return value if isinstance(value, int) or math.isfinite(value) else text
    return text


_SET_HINT = "write --set curate.dedup.minhash.bands=20"


def parse_overrides(assignments: Sequence[str], problems: list[Problem] | None = None) -> list[tuple[Loc, Any, str]]:
    """`a.b=c` strings -> (path, value, place). The value is YAML.

    Every faulty one is appended to `problems`; without that list they are raised together as one ConfigError. A value
    with nothing worse than a tag is returned all the same, so that its other faults are found too.
    """
    out: list[tuple[Loc, Any, str]] = []
    faults: list[Problem] = []
    for i, text in enumerate(assignments, 1):
        place = f"--set:{i}"
        key, eq, value = text.partition("=")
        parts = key.strip().replace("[", ".").replace("]", "").split(".")
        if not eq or not all(parts):
            faults.append(Problem(place, 0, 0, "", f"{text!r} is not KEY=VALUE", _SET_HINT))
            continue
        path = tuple(int(p) if p.isascii() and p.isdigit() else p for p in parts)
        parsed = parse(value, place)
        faults += [Problem(place, p.line, p.column, dotted(path), p.message, p.hint, p.source) for p in parsed.problems]
        if not parsed.incomplete and not parsed.broken:
            out.append((path, parsed.data if value.strip() else None, place))
    if problems is not None:
        problems += faults
    elif faults:
        raise ConfigError(faults)
    return out


def apply_overrides(doc: Document, overrides: Sequence[tuple[Loc, Any, str]]) -> None:
    """Merge overrides into a parsed document, in order; each keeps its own place for error messages.

    One whose path does not exist becomes a problem of the document.
    """
    if doc.data is None:
        doc.data = {}
    for path, value, place in overrides:
        at: Any = doc.data
        real: Loc = ()  # the path as the data has it: `2` is a key in a mapping and a position in a list
        fault = None
        for i, part in enumerate(path):
            last = i == len(path) - 1
            if isinstance(at, list):
                if not isinstance(part, int) or part > len(at) - (not last):
                    name = f"`{dotted(real)}`" if real else "the file"
                    fault = f"{name} is a list of {len(at)}: no place `{part}` in it"
                    break
                if last:
                    at[part : part + 1] = [value]
                real, at = (*real, part), at[part]
                continue
            key = str(part)
            real = (*real, key)
            if last:
                at[key] = value
            elif not isinstance(at.get(key), (dict, list)):
                at[key] = [] if path[i + 1] == 0 else {}
            at = at[key]
        if fault is not None:
            hint = "places in a list count from 0; the one after the last appends"
            doc.problems.append(Problem(place, 0, 0, dotted(path), fault, hint))
            continue
        for table in (doc.marks, doc.key_marks):
            for loc in [loc for loc in table if loc[: len(real)] == real]:
                del table[loc]
        doc.marks[real] = doc.key_marks[real] = Mark(place, 0, 0)


def read_yaml(path: str | Path, name: str | None = None) -> Document:
    """Parse a YAML file. Raises UsageError when it cannot be read."""
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message = f"not UTF-8: {error.reason} at byte {error.start}"
        raise ConfigError([Problem(name or str(path), line, 1, "", message, "save the file as UTF-8")]) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return parse(text, name or str(path))
