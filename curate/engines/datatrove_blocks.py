"""datatrove's extractors as engines: the block's own `extract`, without its process and its wall-clock limit.

A recipe writes `engine: {datatrove: {block: extractors.Trafilatura, args: {…}}}`; the engine's name is that block in one
string, so that it passes wherever a name does. `favor`, `tables` and `comments` don't reach a block: its arguments do.
trafilatura's process-wide duplicate cache, which `deduplicate` fills, is emptied before each page: in datatrove's own
runs a page's text depends on the pages before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from gristmill.curate.engines import Engine, Favor
    from gristmill.curate.schema_steps import Extractor

PREFIX = "datatrove:"
_LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "Trafilatura": ("trafilatura", "lxml", "jusText"),
    "ReadabilityInscriptis": ("inscriptis", "readability-lxml", "lxml"),
}


def engine_setting(value: Any) -> Any:
    """The setting as an engine's name where it names a block; anything else as it is. Raises ValueError on a bad block."""
    if not isinstance(value, Mapping):
        return value
    from pydantic import ValidationError

    from gristmill.curate.schema_steps import Extractor

    if list(value) != ["datatrove"]:
        raise ValueError("an engine is a name or a block hint: {datatrove: {block: extractors.Trafilatura, args: {…}}}")
    try:
        block = Extractor.model_validate(value["datatrove"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}") from None
    return PREFIX + orjson.dumps(block.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS).decode()


def block_of(name: str) -> Extractor:
    """The block in an engine's name. Raises ValueError when it is none."""
    from pydantic import ValidationError

    from gristmill.curate.schema_steps import Extractor

    try:
        return Extractor.model_validate_json(name.removeprefix(PREFIX))
    except ValidationError:
        hint = "engine: {datatrove: {block: extractors.Trafilatura, args: {…}}}"
        raise ValueError(f"no extractor is called `{name[:60]}` hint: {hint}") from None


def block_uses(name: str) -> dict[str, str]:
    """Versions that decide what a block extracts."""
    from importlib.metadata import PackageNotFoundError, version

    out = {"datatrove": version("datatrove")}
    for library in _LIBRARIES.get(block_of(name).block.rpartition(".")[2], ()):
        try:
            out[library] = version(library)
        except PackageNotFoundError:
            out[library] = "absent"
    return out


@lru_cache(maxsize=2)
def block_engine(name: str) -> Engine:
    """The engine of that name, built once per process. Raises UsageError when its packages are absent."""
    from gristmill.curate.blocks import build

    block = build(block_of(name))

    def extract(html: str, *, tables: bool, comments: bool, favor: Favor) -> str | None:
        _forget()
        found = block.extract(html)
        return found if isinstance(found, str) else None

    return extract


def _forget() -> None:
    from trafilatura.deduplication import LRU_TEST

    LRU_TEST.clear()
