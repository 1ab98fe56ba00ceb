"""What to do about a faulty setting: its allowed values, range, form or names, read from the pydantic model."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_FORMS = {
    "int": "expected a whole number, for example 5",
    "float": "expected a number, for example 0.5",
    "finite": "expected a finite number, for example 0.5",
    "bool": "expected true or false",
    "string": 'expected a text, for example web (in quotes where it looks like a number: "2024")',
    "list": "expected a list, for example [en, de]",
    "tuple": "expected a list, for example [0.9, 0.95]",
    "dict": "expected a block of settings, for example {en: 0.5}",
}


def hint_for(model: type[BaseModel], loc: Sequence[str | int], kind: str, ctx: Mapping[str, Any]) -> str:
    """The hint for a pydantic error of this kind at this path of the data; never empty."""
    if kind == "extra_forbidden":
        return _unknown(str(loc[-1]) if loc else "", list(fields_at(model, loc[:-1])))
    info = field_at(model, loc)
    about = _about(info)
    if kind == "missing":
        name = str(loc[-1]) if loc else ""
        return f"add `{name}: {_example(info)}`{about}"
    if kind == "literal_error":
        if str(loc[-1] if loc else "").startswith("gristmill"):
            return f"write `{loc[-1]}: {ctx.get('expected')}`: the version of the file format that this release reads"
        return f"allowed: {ctx.get('expected')}"
    bounds = {k: ctx[k] for k in ("gt", "ge", "lt", "le") if k in ctx}
    if bounds:
        return f"allowed: {_range({**_bounds(info), **bounds})}{about}"
    if kind.startswith("model"):
        return f"expected a block of settings: {_names(list(fields_at(model, loc)))}"
    form = _FORMS.get(kind.split("_")[0]) if kind.endswith(("_type", "_parsing", "_from_float", "_number")) else None
    if form:
        bounds = _bounds(info)
        return form + (f", {_range(bounds)}" if bounds and "number" in form else "")
    if kind == "string_pattern_mismatch":
        return f"it must match {ctx.get('pattern')}"
    if kind in ("too_short", "string_too_short"):
        return f"give at least {ctx.get('min_length', 1)}{about}"
    if kind in ("too_long", "string_too_long"):
        return f"give at most {ctx.get('max_length')}{about}"
    names = list(fields_at(model, loc))
    return about.strip(" ()") or (f"settings here: {_names(names)}" if names else "see `gristmill schema`")


def _about(info: FieldInfo | None) -> str:
    """The setting's docstring in parentheses, or nothing."""
    return f" ({' '.join(info.description.split())})" if info is not None and info.description else ""


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def _unknown(key: str, names: list[str]) -> str:
    if key == "<<":
        return "merge keys are not supported: write the settings out"
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(key.lower(), list(lowered), 1, 0.6)
    if not close and len(key) >= 2:
        close = [name for name in lowered if name.startswith(key.lower()) or key.lower().startswith(name)][:1]
    if close:
        return f"did you mean `{lowered[close[0]]}`?"
    return f"allowed here: {_names(names)}" if names else "nothing can be set here"


def _range(bounds: Mapping[str, Any]) -> str:
    bounds = {k: int(v) if v == int(v) else v for k, v in bounds.items()}
    low, high = bounds.get("ge"), bounds.get("le")
    if low is not None and high is not None and "gt" not in bounds and "lt" not in bounds:
        return f"{low} to {high}"
    words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    return " and ".join(f"{word} {bounds[k]}" for k, word in words.items() if k in bounds)


def _bounds(info: FieldInfo | None) -> dict[str, Any]:
    """Limits of a number, from the field or from an `Annotated` part of its type."""
    out: dict[str, Any] = {}
    if info is None:
        return out
    todo: list[Any] = [*info.metadata, info.annotation]
    while todo:
        item = todo.pop(0)
        if isinstance(item, FieldInfo):
            todo += item.metadata
        for name in ("gt", "ge", "lt", "le"):
            value = getattr(item, name, None)
            if isinstance(value, (int, float)):
                out.setdefault(name, value)
        todo += [*getattr(item, "__metadata__", ()), *get_args(item)]
    return out


def _example(info: FieldInfo | None) -> str:
    """A value for a hint: the field's own example, else one of its type."""
    if info is not None and info.examples:
        return str(info.examples[0])
    annotation: Any = info.annotation if info is not None else None
    if get_origin(annotation) is Literal:
        return str(get_args(annotation)[0])
    if next(_models_in(annotation), None) is not None and get_origin(annotation) is None:
        return "{…}"
    return {int: "1", float: "0.5", str: "NAME", bool: "true"}.get(annotation, "…")


def fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> dict[str, FieldInfo]:
    """The settings allowed at a path (all branches of a union), by their names in YAML."""
    models: list[type[BaseModel]] = [model]
    leaf = False
    for part in loc:
        following: list[type[BaseModel]] = []
        known = False
        for m in models:
            info = _named(m).get(part) if isinstance(part, str) else None
            if info is not None:
                known = True
                following += _models_in(info.annotation)
        leaf = known and not following
        models = following or models
    return {} if leaf else {name: info for m in models for name, info in _named(m).items()}


def field_at(model: type[BaseModel], loc: Sequence[str | int]) -> FieldInfo | None:
    """The setting at a path; for an item of a list or mapping, the setting that holds it."""
    for n in range(len(loc), 0, -1):
        found = fields_at(model, loc[: n - 1]).get(str(loc[n - 1]))
        if found is not None:
            return found
    return None


def _named(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for arg in get_args(annotation):
        yield from _models_in(arg)
