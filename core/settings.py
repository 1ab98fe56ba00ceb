"""YAML in, frozen pydantic models out, with every fault reported at once as file:line:col.

The parser is ruamel.yaml in YAML 1.2 (so `no` is a word and `3e-4` a number); a tag is a fault, never code.
`--set a.b=c` overrides are merged before validation and are located as `--set:N`.
"""

from __future__ import annotations

import difflib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gristmill.core.errors import ConfigError, Problem, UsageError

MAX_YAML_BYTES = 4 << 20  # settings are written by hand; a bigger file is a mistake or an attack
MAX_DEPTH = 64
MAX_NODES = 200_000  # also bounds what anchors and aliases can blow up to

Loc = tuple[str | int, ...]
M = TypeVar("M", bound="Settings")


class Settings(BaseModel):
    """Base of every model that a YAML file fills: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False)


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
        return Problem(mark.file, mark.line, mark.column, dotted(loc), message, hint, source)


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
        doc.problems.append(Problem(name, 1, 1, "", f"file is larger than {MAX_YAML_BYTES} bytes"))
        return doc
    yaml = YAML(typ="rt", pure=True)
    yaml.allow_duplicate_keys = True  # found below, with the place of the second one
    try:
        node = yaml.compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        source = doc.lines[line - 1] if 0 < line <= len(doc.lines) else None
        hint = "a merge conflict marker" if source and source.startswith(("<<<<<<<", ">>>>>>>", "=======")) else None
        doc.problems.append(Problem(name, line, column, "", str(error.problem or error.context), hint, source))
        return doc
    except YAMLError as error:
        doc.problems.append(Problem(name, 1, 1, "", str(error)))
        return doc
    budget = [MAX_NODES]
    doc.data = _plain(doc, node, (), 0, budget) if node is not None else {}
    return doc


_KNOWN_TAGS = {
    "tag:yaml.org,2002:map",
    "tag:yaml.org,2002:seq",
    "tag:yaml.org,2002:merge",
    "tag:yaml.org,2002:null",
    "tag:yaml.org,2002:bool",
    "tag:yaml.org,2002:int",
    "tag:yaml.org,2002:float",
    "tag:yaml.org,2002:str",
    "tag:yaml.org,2002:timestamp",
}


def _plain(doc: Document, node: Node, loc: Loc, depth: int, budget: list[int]) -> Any:
    mark = Mark(doc.name, node.start_mark.line + 1, node.start_mark.column + 1)
    doc.marks[loc] = mark
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        if budget[0] > -2:
            doc.problems.append(
                doc.problem(loc, f"nested deeper than {MAX_DEPTH} levels or larger than {MAX_NODES} values")
            )
        budget[0] = -10
        return None
    tag = str(node.tag) if node.tag is not None else ""
    explicit = bool(tag) and tag not in _KNOWN_TAGS
    if explicit:
        doc.problems.append(doc.problem(loc, f"unknown tag `{tag}`", "write plain values; tags run no code here"))
    if isinstance(node, MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_loc = (*loc, str(getattr(key_node, "value", "?")))
            at = Mark(doc.name, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, ScalarNode):
                doc.problems.append(Problem(doc.name, at.line, at.column, dotted(loc), "a key must be a single word"))
                continue
            key = str(key_node.value)
            if key in out:
                doc.key_marks[key_loc] = at
                doc.problems.append(
                    doc.problem(key_loc, "duplicate key", f"first at line {doc.marks[key_loc].line}", key=True)
                )
                continue
            doc.key_marks[key_loc] = at
            out[key] = _plain(doc, value_node, key_loc, depth + 1, budget)
        return out
    if isinstance(node, SequenceNode):
        return [_plain(doc, child, (*loc, i), depth + 1, budget) for i, child in enumerate(node.value)]
    assert isinstance(node, ScalarNode)
    return _scalar(node) if not explicit else str(node.value)


def _scalar(node: ScalarNode) -> Any:
    """Resolve a plain scalar by YAML 1.2's core schema; a quoted one is text; a date stays text."""
    if node.style in ("'", '"', "|", ">"):
        return str(node.value)
    text = str(node.value)
    lowered = text.lower()
    if lowered in ("", "~", "null"):
        return None
    if lowered in ("true", "false"):
        return lowered == "true"
    number = text.replace("_", "")
    for kind in (int, float):
        try:
            return kind(number) if number[:1] in "+-.0123456789" and lowered not in ("infinity", "nan") else text
        except ValueError:
            continue
    return text


def parse_overrides(assignments: Sequence[str]) -> list[tuple[Loc, Any, str]]:
    """`a.b=c` strings -> (path, value, place). The value is YAML. Raises UsageError on a malformed one."""
    out: list[tuple[Loc, Any, str]] = []
    for i, text in enumerate(assignments, 1):
        key, eq, value = text.partition("=")
        if not eq or not key.strip():
            raise UsageError(f"--set {text!r} is not KEY=VALUE", hint="write --set curate.dedup.threshold=0.8")
        parsed = parse(value, f"--set:{i}")
        if parsed.problems:
            raise ConfigError(parsed.problems)
        data = parsed.data if value.strip() else None
        path: list[str | int] = [
            int(p) if p.isdigit() else p for p in key.strip().replace("[", ".").replace("]", "").split(".")
        ]
        out.append((tuple(path), data, f"--set:{i}"))
    return out


def apply_overrides(doc: Document, overrides: Sequence[tuple[Loc, Any, str]]) -> None:
    """Merge overrides into a parsed document, in order; each keeps its own place for error messages."""
    for i, (path, value, place) in enumerate(overrides, 1):
        at: Any = doc.data if isinstance(doc.data, dict) else {}
        doc.data = at
        for part, following in itertools.pairwise(path):
            if isinstance(at, list) and isinstance(part, int) and part < len(at):
                at = at[part]
            elif isinstance(at, dict):
                child = at.get(str(part))
                if not isinstance(child, (dict, list)):
                    child = [] if isinstance(following, int) else {}
                    at[str(part)] = child
                at = child
            else:
                raise UsageError(f"{place}: no such path {dotted(path)}")
        last = path[-1]
        if isinstance(at, list) and isinstance(last, int) and last <= len(at):
            at[last : last + 1] = [value]
        elif isinstance(at, dict):
            at[str(last)] = value
        else:
            raise UsageError(f"{place}: no such path {dotted(path)}")
        for table in (doc.marks, doc.key_marks):
            for loc in [loc for loc in table if loc[: len(path)] == path]:
                del table[loc]
        doc.marks[path] = doc.key_marks[path] = Mark(f"--set:{i}", 0, 0)


def read_yaml(path: str | Path, name: str | None = None) -> Document:
    """Parse a YAML file. Raises UsageError when it cannot be read."""
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            [Problem(name or str(path), 1, 1, "", f"not UTF-8: {error.reason} at byte {error.start}")]
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return parse(text, name or str(path))


def validate(doc: Document, model: type[M]) -> tuple[M | None, list[Problem]]:
    """Check a parsed document against a model. Returns the model, or None and every problem found."""
    problems = list(doc.problems)
    data = doc.data
    if not isinstance(data, dict):
        if not problems:
            problems.append(Problem(doc.name, 1, 1, "", "expected a mapping of settings"))
        return None, problems
    try:
        value = model.model_validate(data)
    except ValidationError as error:
        flagged = {p.path for p in problems}
        for fault in error.errors(include_url=False, include_input=False):
            loc = data_loc(fault["loc"], data)
            if dotted(loc) in flagged:
                continue  # e.g. a tagged value: its tag is already reported
            key = fault["type"] == "extra_forbidden"
            message = str(fault["msg"]).removeprefix("Value error, ")
            hint = None
            if key:
                message = "unknown setting"
                close = difflib.get_close_matches(str(loc[-1]), list(_fields_at(model, loc[:-1])), 1, 0.6)
                hint = f"did you mean `{close[0]}`?" if close else None
            if " hint: " in message:
                message, _, hint = message.partition(" hint: ")
            problems.append(doc.problem(loc, message, hint, key))
        return None, problems
    return (value if not problems else None), problems


def load(
    path: str | Path, model: type[M], *, overrides: Sequence[str] = (), name: str | None = None
) -> tuple[M, Document]:
    """Read, override and validate one YAML file. Raises ConfigError with all problems at once."""
    doc = read_yaml(path, name)
    if not (doc.problems and doc.data is None):
        apply_overrides(doc, parse_overrides(overrides))
    value, problems = validate(doc, model)
    if value is None:
        raise ConfigError(problems)
    return value, doc


_ABSENT = object()


def data_loc(loc: Sequence[str | int], data: object) -> Loc:
    """A pydantic error path without the parts that name union members rather than data."""
    out: list[str | int] = []
    at = data
    for i, part in enumerate(loc):
        child = _child(at, part)
        if child is not _ABSENT:
            out.append(part)
            at = child
        elif i == len(loc) - 1 and isinstance(at, Mapping):
            out.append(part)  # a missing or misplaced key
    return tuple(out)


def _child(at: object, part: str | int) -> object:
    if isinstance(at, list):
        return at[part] if isinstance(part, int) and part < len(at) else _ABSENT
    if isinstance(at, Mapping):
        return at.get(part, _ABSENT)
    return _ABSENT


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> Iterator[str]:
    """Names of the settings allowed at a path (all branches of a union)."""
    models: list[Any] = [model]
    for part in loc:
        following: list[Any] = []
        for m in models:
            named = {(f.alias or n): f for n, f in m.model_fields.items()}
            info = named.get(part) if isinstance(part, str) else None
            if info is not None:
                following += list(_models_in(info.annotation))
            elif not isinstance(part, str):
                following.append(m)
        models = following or models
    for m in models:
        for name, info in m.model_fields.items():
            yield info.alias or name


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for arg in get_args(annotation):
        yield from _models_in(arg)


def flatten(value: Any, prefix: Loc = ()) -> dict[Loc, Any]:
    """A nested config as {path: leaf}, for naming what differs between two."""
    if isinstance(value, Mapping) and value:
        out: dict[Loc, Any] = {}
        for k, v in value.items():
            out.update(flatten(v, (*prefix, str(k))))
        return out
    return {prefix: value}
