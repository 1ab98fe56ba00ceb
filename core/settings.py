"""Frozen pydantic models filled from YAML files, with every fault reported at once as file:line:col and a hint."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gristmill.core.errors import ConfigError, Problem
from gristmill.core.hints import hint_for
from gristmill.core.yamldoc import MAX_DEPTH as MAX_DEPTH
from gristmill.core.yamldoc import Document as Document
from gristmill.core.yamldoc import Loc as Loc
from gristmill.core.yamldoc import Mark as Mark
from gristmill.core.yamldoc import apply_overrides as apply_overrides
from gristmill.core.yamldoc import dotted as dotted
from gristmill.core.yamldoc import parse as parse
from gristmill.core.yamldoc import parse_overrides as parse_overrides
from gristmill.core.yamldoc import read_yaml as read_yaml

M = TypeVar("M", bound="Settings")

MAX_PASSES = 8
"""Validations of one file: each takes out the faulty values that the last one found, to reach the checks behind them."""


_WRONG_FORM = ("_type", "_parsing", "literal_error")
"""Ends of the kinds of pydantic errors that say that a value is of another type than the setting."""


class Settings(BaseModel):
    """Base of every model that a YAML file fills: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, data: Any) -> Any:
        """Python counts true as 1; a file that says `true` for a number is mistaken, so it is judged as a word."""
        if not isinstance(data, Mapping) or not any(isinstance(v, bool) for v in data.values()):
            return data
        out = dict(data)
        for name, info in cls.model_fields.items():
            key = info.alias or name
            if isinstance(out.get(key), bool):
                kinds = [t if isinstance(t, type) else type(t) for t in _types_in(info.annotation)]
                if (int in kinds or float in kinds) and bool not in kinds:
                    out[key] = str(out[key]).lower()
        return out


def _types_in(annotation: Any) -> list[Any]:
    return [annotation, *(found for arg in get_args(annotation) for found in _types_in(arg))]


def validate(doc: Document, model: type[M]) -> tuple[M | None, list[Problem]]:
    """Check a parsed document against a model. Returns the model, or None and every problem found."""
    problems = list(doc.problems)
    data = doc.data
    if not isinstance(data, dict):
        if not problems or not doc.incomplete:
            hint = f"a file starts with lines like `{next(iter(model.model_fields), 'name')}: …`"
            problems.append(Problem(doc.name, 1, 1, "", "expected a mapping of settings", hint))
        return None, problems
    value: M | None = None
    removed: list[Loc] = []
    seen: set[tuple[Loc, str]] = set()
    for _ in range(MAX_PASSES):
        try:
            value = model.model_validate(data)
            break
        except ValidationError as error:
            faults = _faults(error, model, data)
        data = copy.deepcopy(data)
        changed = False
        earlier = list(removed)
        for loc, kind, message, hint in faults:
            unread = doc.incomplete and _may_be_unread(data, loc, kind)
            if not unread and (loc, message) not in seen and not any(_may_follow(loc, gone) for gone in earlier):
                seen.add((loc, message))
                problems.append(doc.problem(loc, message, hint or None, key=kind == "extra_forbidden"))
            changed |= _remove(data, loc, removed, keep_quiet=kind == "extra_forbidden")
        if not changed:
            break
    return (value if not problems else None), problems


def _faults(error: ValidationError, model: type[BaseModel], data: Any) -> list[tuple[Loc, str, str, str]]:
    """(path, kind, message, hint) of each fault. What the branches of a union say of one value is one fault."""
    found: dict[Loc, list[tuple[str, str, str]]] = {}
    for fault in error.errors(include_url=False, include_input=False):
        loc, kind = data_loc(fault["loc"], data), str(fault["type"])
        if kind.endswith(_WRONG_FORM) and loc and _at(data, loc) is _ABSENT:
            loc = loc[:-1]  # a mapping where no branch of a union takes one: the last part names a branch
        message, _, hint = str(fault["msg"]).removeprefix("Value error, ").partition(" hint: ")
        if kind == "extra_forbidden":
            message = "unknown setting"
        place = () if fault["loc"][-1:] == ("[key]",) else loc  # the value's limits do not hold for its key
        if not hint:
            hint = hint_for(model, place, kind, fault.get("ctx") or {})
        found.setdefault(loc, []).append((kind, message, hint))
    out: list[tuple[Loc, str, str, str]] = []
    for loc, faults in found.items():
        wrong_form = [f for f in faults if f[0].endswith(_WRONG_FORM)]
        if len(wrong_form) < len(faults):  # one branch took the form of the value: its own faults count
            out += [(loc, *f) for f in faults if f not in wrong_form]
        elif not any(len(other) > len(loc) and other[: len(loc)] == loc for other in found):
            messages = [m if i == 0 else m.removeprefix("Input should be ") for i, (_, m, _) in enumerate(faults)]
            hints = [h if i == 0 else h.removeprefix("expected ") for i, (_, _, h) in enumerate(faults)]
            out.append((loc, faults[0][0], " or ".join(dict.fromkeys(messages)), " or ".join(dict.fromkeys(hints))))
    return out


def _may_be_unread(data: object, loc: Loc, kind: str) -> bool:
    """Whether lines that a syntax fault kept from being read may be all that is wrong here."""
    at = _at(data, loc)
    if kind in ("missing", "too_short") or (at is None and kind != "extra_forbidden"):
        return True
    return isinstance(at, dict) and kind != "extra_forbidden" and not kind.endswith(_WRONG_FORM)


def _may_follow(loc: Loc, gone: Loc) -> bool:
    """Whether a fault may be our own doing: it is at or above a value that was taken out, or in the same block."""
    return gone[: len(loc)] == loc or (len(gone) > 1 and loc[: len(gone) - 1] == gone[:-1])


def _remove(data: object, loc: Loc, removed: list[Loc], *, keep_quiet: bool) -> bool:
    """Take one faulty value out, so that the next pass reaches checks that it kept from running. Blocks stay."""
    at = data
    for part in loc[:-1]:
        at = _child(at, part)
    if not loc or not isinstance(at, dict) or isinstance(at.get(loc[-1], {}), (dict, list)):
        return False
    del at[loc[-1]]
    if not keep_quiet:
        removed.append(loc)
    return True


def load(
    path: str | Path, model: type[M], *, overrides: Sequence[str] = (), name: str | None = None
) -> tuple[M, Document]:
    """Read, override and validate one YAML file. Raises ConfigError with all problems at once."""
    doc = read_yaml(path, name)
    apply_overrides(doc, parse_overrides(overrides, doc.problems))
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


def _at(data: object, loc: Loc) -> object:
    for part in loc:
        data = _child(data, part)
    return data


def _child(at: object, part: str | int) -> object:
    if isinstance(at, list):
        return at[part] if isinstance(part, int) and part < len(at) else _ABSENT
    if isinstance(at, Mapping):
        return at.get(part, _ABSENT)
    return _ABSENT


def flatten(value: Any, prefix: Loc = ()) -> dict[Loc, Any]:
    """A nested config as {path: leaf}, for naming what differs between two."""
    if isinstance(value, Mapping) and value:
        out: dict[Loc, Any] = {}
        for k, v in value.items():
            out.update(flatten(v, (*prefix, str(k))))
        return out
    return {prefix: value}
