"""Extraction engines behind one small interface, by name: those that come with the package, and a user's own.

An engine is a function of one page: `extract(html, *, tables, comments, favor) -> str | None`. Its text must depend on
its arguments alone, in any process and after any other pages. A user's own is a distribution's entry point in the group
`gristmill.extractors`; a recipe can name installed entry points only, never a module.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from gristmill.curate.engines.datatrove_blocks import PREFIX, block_engine, block_of, block_uses

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "gristmill.extractors"

Favor = Literal["balanced", "precision", "recall"]
Mode = Literal["fast", "full"]


class Engine(Protocol):
    """Main text of one decoded page, or None where it finds none. What it raises is that page's `extract.error`."""

    def __call__(self, html: str, *, tables: bool, comments: bool, favor: Favor) -> str | None: ...


class RefusedPage(Exception):
    """An engine leaves a page undone on purpose: the reason, the value measured (None: not counted out) and its limit."""

    def __init__(self, reason: str, value: float | None, threshold: float) -> None:
        super().__init__(reason, value, threshold)
        self.reason = reason
        self.value = value
        self.threshold = threshold


@dataclass(frozen=True)
class Builtin:
    """An engine of ours: its module, the distributions and the file beside it that decide its text; has it a `mode`?"""

    module: str
    libraries: tuple[str, ...]
    weights: str | None = None
    modes: bool = False


BUILTIN: Mapping[str, Builtin] = {
    "trafilatura": Builtin("gristmill.curate.engines.trafilatura", ("trafilatura", "lxml", "jusText"), modes=True),
    "resiliparse": Builtin("gristmill.curate.engines.resiliparse", ("resiliparse",)),
    "blocks": Builtin("gristmill.curate.engines.blocks", ("resiliparse",), "blocks.json"),
}
"""Each module has `extract` as above."""


def load_engine(name: str, mode: Mode = "fast") -> Engine:
    """The engine of that name. Raises ValueError with a hint when there is none, TypeError when it is no function."""
    if name.startswith(PREFIX):
        return block_engine(name)
    found = BUILTIN.get(name)
    if found is None:
        engine: Engine = _entry_point(name).load()
        if not callable(engine):
            raise TypeError(f"the entry point {name!r} of {GROUP} is no function")
        return engine
    extract = importlib.import_module(found.module).extract
    own: Engine = partial(extract, mode=mode) if found.modes else extract
    return own


def engine_uses(name: str) -> dict[str, str]:
    """What decides an engine's text: versions of its libraries, the digest of its weights, a user's own distribution."""
    import hashlib
    from importlib.metadata import version
    from importlib.resources import files

    if name.startswith(PREFIX):
        return block_uses(name)
    found = BUILTIN.get(name)
    if found is None:
        distribution = _entry_point(name).dist
        assert distribution is not None, "entry points of installed distributions know them"
        return {f"extractor.{name}": f"{distribution.name} {distribution.version}"}
    uses = {library: version(library) for library in found.libraries}
    if found.weights is not None:
        weights = files(__name__).joinpath(found.weights).read_bytes()
        uses[f"extractor.{name}"] = f"{found.weights} {hashlib.sha256(weights).hexdigest()}"
    return uses


def engine_name(name: str) -> str:
    """The name itself. Raises ValueError, with a hint, when no engine is called so or several distributions claim it."""
    if name.startswith(PREFIX):
        block_of(name)
    elif name not in BUILTIN:
        _entry_point(name)
    return name


def _entry_point(name: str) -> EntryPoint:
    from difflib import get_close_matches
    from importlib.metadata import entry_points

    installed = entry_points(group=GROUP)
    found = [point for point in installed if point.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        owners = sorted({point.dist.name for point in found if point.dist is not None})
        raise ValueError(f"several packages name an extractor `{name}` hint: keep one of {', '.join(owners)}")
    names = [*BUILTIN, *sorted(installed.names)]
    near = get_close_matches(name.lower(), names, 1, 0.6)
    near = near or [known for known in names if len(name) > 2 and known.startswith(name.lower())][:1]
    hint = f"did you mean `{near[0]}`?" if near else f"allowed: {', '.join(names)}, or an entry point of {GROUP}"
    raise ValueError(f"no extractor is called `{name[:40]}` hint: {hint}")
