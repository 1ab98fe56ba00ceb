"""Raw inputs as receipts of a pseudo-stage `input`: a name, a URL and a tag that changes when the file does."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from gristmill.core.errors import UsageError
from gristmill.core.manifest import write_atomic
from gristmill.core.stage import Receipt, Shard

if TYPE_CHECKING:
    from gristmill.core.imports import Import


class TagCache(MutableMapping[str, str]):
    """Digests of small local inputs by (path, size, mtime), kept in ROOT/cache/inputs.json so that `plan` reads no file twice."""

    def __init__(self, root: Path) -> None:
        self.path = root / "cache" / "inputs.json"
        try:
            data = orjson.loads(self.path.read_bytes())
        except (OSError, ValueError):
            data = {}
        self._data: dict[str, str] = data if isinstance(data, dict) else {}
        self._changed = False

    def __getitem__(self, key: str) -> str:
        return self._data[key]

    def __setitem__(self, key: str, value: str) -> None:
        self._changed = True
        self._data[key] = value

    def __delitem__(self, key: str) -> None:
        self._changed = True
        del self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def save(self) -> None:
        if self._changed:
            write_atomic(self.path, orjson.dumps(self._data))


def list_inputs(paths: list[str], root: Path) -> tuple[list[Receipt], TagCache]:
    """The input files of a recipe in name order, and the cache of their tags (not saved: the root may be another run's).

    Raises UsageError when there are none, two share a name, or a name is not UTF-8.
    """
    from gristmill.curate.warc import expand_inputs

    if not paths:
        raise UsageError("the recipe has no input", hint="""--set input.paths='["crawl/*.warc.gz"]'""")
    cache = TagCache(root)
    found = expand_inputs(paths, cache)
    for item in found:
        try:
            item.url.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the file name {item.url!r} is not UTF-8", hint="rename it") from error
    out = []
    for i, item in enumerate(found):
        shard = Shard(item.url, item.name, item.tag, item.bytes)
        out.append(Receipt("input", 1, "", item.name, {}, {}, {}, [shard], 0, 0, None, 0, {}, 0.0, "", "", ordinal=i))
    return out, cache


def list_imports(imports: Mapping[str, Import], folder: Path, cache: TagCache) -> list[Receipt]:
    """The files of a recipe's `imports`, as receipts of a pseudo-stage keyed NAME/file; `folder` is the recipe's.

    A token store is two shards, its index first. Relative globs are sought from the recipe's folder, then from the
    working directory. Raises UsageError when a glob matches nothing, a store's other half is gone, or files are no local ones.
    """
    from gristmill.curate.warc import expand_inputs

    out: list[Receipt] = []
    for name, spec in imports.items():
        pattern = spec.glob
        if "://" in pattern:
            raise UsageError(f"imports.{name}: {pattern} is a URL", hint="imports are local files")
        places = [place for place in (str(folder / pattern), pattern) if glob.glob(place, recursive=True)]
        if not places:
            raise UsageError(f"imports.{name}: no such file: {pattern}", hint=f"sought in {folder.absolute()}, too")
        for item in expand_inputs(places[:1], cache):
            key = f"{name}/{item.name}"
            shards = [Shard(item.url, key, item.tag, item.bytes)]
            if not spec.text:
                shards = _pair(name, spec.format, Path(item.url), key, cache)
            config = {"import": name, "format": spec.format}
            out.append(Receipt("imports", 1, "", key, config, {}, {}, shards, 0, 0, None, 0, {}, 0.0, "", "", len(out)))
    return out


def _pair(name: str, kind: str, path: Path, key: str, cache: TagCache) -> list[Shard]:
    """(index, data) of a token store, given either file of Megatron's or the .ds of datatrove's."""
    from gristmill.curate.warc import expand_inputs

    if kind == "megatron":
        if path.suffix not in (".idx", ".bin"):
            raise UsageError(
                f"imports.{name}: {path} is neither .idx nor .bin", hint=f"megatron: '{path.parent}/*.idx'"
            )
        files, key = (path.with_suffix(".idx"), path.with_suffix(".bin")), key[:-4] + ".bin"
    else:
        if path.suffix != ".ds":
            raise UsageError(f"imports.{name}: {path} is no .ds file", hint=f"datatrove: '{path.parent}/*.ds'")
        files = (Path(f"{path}.index"), path)
    shards = []
    for file, part in zip(files, (f"{key}.index", key), strict=True):
        if not file.is_file():
            raise UsageError(f"imports.{name}: {file} is not there", hint=f"it belongs to {path}")
        [item] = expand_inputs([str(file)], cache)
        shards.append(Shard(item.url, part, item.tag, item.bytes))
    return shards


def remember_inputs(root: Path, inputs: list[Receipt]) -> None:
    """Keep where each input was read from in ROOT/inputs.json: `trace` takes a document back to its file."""
    known = input_places(root)
    known.update({r.outputs[-1].name: r.outputs[-1].path for r in inputs})
    write_atomic(root / "inputs.json", orjson.dumps(known, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def input_places(root: Path) -> dict[str, str]:
    """Input-relative name -> path or URL, for every input that any run of this root read."""
    try:
        data = orjson.loads((root / "inputs.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in data.items()} if isinstance(data, dict) else {}
