"""Available tokens from a JSON file, so that a mixture can be planned before anything is downloaded or encoded.

`{"fineweb_edu": "1.3T", "fw2.fra": 60000000000, "english": "5.1T", "# source": "a remark"}`: keys are sources, children
(NAME.VALUE) or groups; values are stored tokens; keys that begin with # are remarks. What is not listed, or null, is
unknown. A source whose children are listed has those and no others, unless it is listed itself with more; where it is
not listed at all, the plan says so (W211).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import ConfigError, Problem, UsageError
from gristmill.mixes.plan import Note, Supply
from gristmill.mixes.schema import Mixture, parse_tokens

MAX_BYTES = 4 << 20


def read_available(path_or_name: str, mixture: Mixture) -> tuple[list[Supply], dict[str, int | None], list[Note]]:
    """What `plan.plan_supplies` takes, and W211 for sources known by some children. A packaged file's name (`smollm3`) or a path.

    Raises UsageError when there is no such file, ConfigError with every fault: E102 for names that the mixture does not
    have, E107 for values that are no number of tokens, for a name that is there twice and for what is no JSON.
    """
    path = _find(path_or_name)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES} bytes", hint="one number per source")
        text = path.read_text(encoding="utf-8")
        data = orjson.loads(text)
        pairs = json.loads(text, object_pairs_hook=list)
    except orjson.JSONDecodeError as error:
        lines = text.splitlines()
        source = lines[error.lineno - 1] if error.lineno <= len(lines) else None
        message, hint = f"E107 this is no JSON: {error.msg}", 'write {"NAME": "5.1T", "OTHER": 60000000000}'
        raise ConfigError([Problem(str(path), error.lineno, error.colno, "", message, hint, source)]) from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deep", hint="one number per source") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no JSON file: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds no mapping", hint='{"NAME": "5.1T"}')
    groups = {s.group for s in mixture.sources.values() if s.group is not None}
    problems: list[Problem] = []
    tokens: dict[str, int | None] = {}
    times = Counter(key for key, _ in pairs)
    for key, value in data.items():
        if key.startswith("#"):
            continue
        if times[key] > 1:
            problems.append(_problem(path, text, key, f"E107 `{key}` is there {times[key]} times", "list it once", 2))
            continue
        if key not in groups and not _known(mixture, key):
            known = ", ".join([*mixture.sources, *sorted(groups - mixture.sources.keys())])
            problems.append(_problem(path, text, key, f"E102 the mixture has no source, child or group `{key}`", known))
            continue
        try:
            tokens[key] = None if value is None else parse_tokens(value)
        except ValueError as error:
            message, _, hint = str(error).partition(" hint: ")
            problems.append(_problem(path, text, key, message, hint))
    if problems:
        raise ConfigError(problems)
    supplies = _supplies(mixture, tokens)
    return supplies, _totals(mixture, tokens), _partial(mixture, tokens, supplies)


def _supplies(mixture: Mixture, tokens: dict[str, int | None]) -> list[Supply]:
    """Sources and children that phases can draw from: a split source itself where its children are not all counted."""
    named = dict.fromkeys(name for phase in mixture.stages for name in phase.mix)
    out: list[Supply] = []
    for name in mixture.sources:
        children = [c for c in [*tokens, *named] if c != name and _known(mixture, c) and mixture.parent(c) == name]
        children = list(dict.fromkeys(children))
        sizes = [tokens.get(c) for c in children]
        counted = bool(children) and None not in sizes and tokens.get(name) in (None, sum(n or 0 for n in sizes))
        own = [] if counted or (children and name not in named) else [name]
        for key in [*children, *own]:
            out.append(Supply(key, None, tokens.get(key), None, None, mixture.limit(key)))
    return out


def _totals(mixture: Mixture, tokens: dict[str, int | None]) -> dict[str, int | None]:
    """Sources with children, and groups: as listed, else the sum of what is in them where all of it is listed."""
    supplies = _supplies(mixture, tokens)
    out: dict[str, int | None] = {}
    for name in mixture.split:
        sizes = [s.tokens for s in supplies if mixture.parent(s.name) == name and s.name != name]
        out[name] = tokens.get(name)
        if out[name] is None and sizes and None not in sizes and name not in {s.name for s in supplies}:
            out[name] = sum(n or 0 for n in sizes)
    for group in dict.fromkeys(s.group for s in mixture.sources.values() if s.group is not None):
        sizes = [out.get(n, tokens.get(n)) for n, s in mixture.sources.items() if s.group == group]
        listed = tokens.get(group) if group not in mixture.sources else None
        out[f"group {group}"] = listed if listed is not None else None if None in sizes else sum(n or 0 for n in sizes)
    return out


def _partial(mixture: Mixture, tokens: dict[str, int | None], supplies: list[Supply]) -> list[Note]:
    """W211: sources that a stage names and whose listed children are taken to be all."""
    named = {name for phase in mixture.stages for name in phase.mix}
    out = []
    for name in mixture.split:
        children = [s.name for s in supplies if s.name != name and mixture.parent(s.name) == name]
        if name in named and children and tokens.get(name) is None and name not in {s.name for s in supplies}:
            shown = ", ".join(children[:10]) + (", …" if len(children) > 10 else "")
            text = (
                f"source `{name}` is planned as {shown} alone: what other children it has is unknown, "
                f"as the table has no tokens of `{name}` itself"
            )
            out.append(Note("W211", text, ("sources", name)))
    return out


def _known(mixture: Mixture, name: str) -> bool:
    return name in mixture.sources or any(name.startswith(f"{s}.") and len(name) > len(s) + 1 for s in mixture.split)


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    folder = resources.files("gristmill.mixes").joinpath("recipes", "available")
    known = sorted(i.name.removesuffix(".json") for i in folder.iterdir()) if folder.is_dir() else []
    if name in known:
        with resources.as_file(folder.joinpath(f"{name}.json")) as found:
            return Path(found)
    raise UsageError(f"no such file: {name}", hint=f"or a packaged one: {', '.join(known)}")


def _problem(path: Path, text: str, key: str, message: str, hint: str, time: int = 1) -> Problem:
    """At the key's place in the text, or where it is there again."""
    places = [found.start() for found in re.finditer(re.escape(orjson.dumps(key).decode()) + r"\s*:", text)]
    at = places[min(time, len(places)) - 1] if places else 0
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return Problem(str(path), line, column, key, message, hint or None, text.splitlines()[line - 1])


def recipe_files() -> dict[str, Any]:
    """Packaged files by name."""
    folder = resources.files("gristmill.mixes").joinpath("recipes", "available")
    return {i.name.removesuffix(".json"): i for i in folder.iterdir()} if folder.is_dir() else {}
