"""datatrove's blocks by name: found only under `datatrove.pipeline`, their arguments checked, built anew for every file."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from gristmill.core.errors import UsageError

if TYPE_CHECKING:
    from gristmill.curate.schema_steps import Named

PACKAGE = "datatrove.pipeline"
OURS = {
    "exclusion_writer": "what a block drops enters the ledger",
    "data_folder": "`input.paths` names the files",
    **dict.fromkeys(("paths_file", "glob_pattern", "recursive", "shuffle_files"), "`input.paths` names the files"),
    **dict.fromkeys(("file_progress", "doc_progress"), "a run shows its own progress"),
    "timeout": "`extract.cpu_seconds` bounds a page",
    "adapter": "it is a Python function, which no recipe can name",
}
"""Arguments that a recipe can't give, each with the reason."""
Fault = tuple[tuple[str, ...], str, str]
"""(path inside the block's settings, message, hint)."""


def faults(name: str, args: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with a block's name or arguments; nothing is built."""
    try:
        found = find(name)
    except UsageError as error:
        return [(("block",), error.message, error.hint or "")]
    out: list[Fault] = []
    known = parameters(found)
    for key, value in args.items():
        if key in OURS:
            out.append((("args", key), f"{key} can't be given", OURS[key]))
        elif key not in known:
            hint = f"arguments: {', '.join(k for k in known if k not in OURS)}"
            out.append((("args", key), f"{name} has no argument {key!r}", hint))
        else:
            try:
                _converted(found, known[key], value)
            except ValueError as error:
                out.append((("args", key), str(error), f"see {found.__module__}.{found.__name__}"))
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in args and key not in OURS:
            needs = "a Python function, which no recipe can name" if "Callable" in str(parameter.annotation) else key
            out.append((("args",), f"{name} needs {needs}", f"give `args: {{{key}: …}}`, or use another block"))
    return out


def find(name: str) -> type[Any]:
    """The class behind `filters.GopherQualityFilter`. Raises UsageError unless it is a step that can be built."""
    from datatrove.pipeline.base import PipelineStep

    path, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(f"{PACKAGE}.{path}")
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("datatrove"):
            raise UsageError(f"{name} needs the package {error.name}", hint=f"pip install {error.name}") from error
        raise UsageError(f"datatrove has no module {path}", hint="for example filters.GopherQualityFilter") from error
    found = getattr(module, attribute, None)
    if not (inspect.isclass(found) and issubclass(found, PipelineStep) and found.__module__.startswith(PACKAGE + ".")):
        known = [n for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, PipelineStep)]
        hint = f"blocks there: {', '.join(sorted(n for n in known if not n.startswith('Base')))}"
        raise UsageError(f"datatrove {version('datatrove')} has no block {name}", hint=hint)
    if inspect.isabstract(found):
        raise UsageError(f"{name} is the base of blocks, no block", hint="name one of its subclasses")
    if path.startswith("readers"):
        from datatrove.pipeline.readers.base import BaseDiskReader

        if not issubclass(found, BaseDiskReader) or attribute == "WarcReader":
            hint = "WARC files need no reader; JsonlReader, ParquetReader, CSVReader and IpcReader read files"
            raise UsageError(f"{name} can't read the files of `input.paths`", hint=hint)
    return found


def build(block: Named, **ours: Any) -> Any:
    """A fresh instance. Raises UsageError when its packages are absent or its constructor refuses the arguments."""
    found = find(block.block)
    known = parameters(found)
    try:
        return found(**{key: _converted(found, known[key], value) for key, value in block.args.items()}, **ours)
    except ImportError as error:
        raise UsageError(f"{block.block}: {error}", hint="install what the block needs") from error
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UsageError(f"{block.block} refuses its arguments: {error}") from error


def hidden_state(block: Named) -> str | None:
    """Why the same document may fare differently elsewhere in this block, or None as far as is known.

    A block that draws numbers or goes round a list depends on the documents before it; without a seed, on nothing at all.
    """
    name = block.block.rpartition(".")[2]
    given = {key: p.default for key, p in parameters(find(block.block)).items()} | block.args
    if name == "PIIFormatter":
        return "its stand-ins go in rotation over the file"
    if name == "SamplerFilter" or (name == "C4BadWordsFilter" and given.get("keep_fraction")):
        seeded = given.get("seed") is not None
        return "it draws a number a document" + ("" if seeded else ", without a seed")
    return None


def parameters(found: type[Any]) -> dict[str, inspect.Parameter]:
    """Named parameters of a class's constructor."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signature = inspect.signature(found.__init__)
    return {n: p for n, p in signature.parameters.items() if n != "self" and p.kind not in kinds}


def _converted(found: type[Any], parameter: inspect.Parameter, value: Any) -> Any:
    """The value in the type that the constructor is annotated with. Raises ValueError where it is of another."""
    hint = typing.get_type_hints(found.__init__).get(parameter.name, Any)
    if value is None and parameter.default is None:
        return None
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{parameter.name}: {first['msg']}") from error
    except PydanticUserError:  # a type that has no form in a file, such as a writer
        raise ValueError(f"{parameter.name} can't be written in a recipe") from None
