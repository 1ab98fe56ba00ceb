"""The stage `curate.contamination`: which benchmark items stand in the documents that deduplication left."""

from __future__ import annotations

import glob
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import TableWriter
from gristmill.core.errors import GristmillError, UsageError
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
from gristmill.curate.contamination import Index, Match
from gristmill.curate.final_text import (
    CLUSTERS,
    KEPT_FILES,
    RowReader,
    dedup_on,
    kept_documents,
    kept_files,
    per_file_tasks,
    same_ids,
)
from gristmill.curate.schema import Decontaminate
from gristmill.curate.url_lists import file_digest

CONTAMINATION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("rank", pa.int32()),  # 0 is the document's strongest match
        ("benchmark", pa.string()),
        ("item", pa.string()),
        ("field", pa.string()),  # of the item, as `question`
        ("matched", pa.int32()),  # distinct n-grams of that field that the document holds
        ("grams", pa.int32()),  # distinct n-grams of that field
        ("overlap", pa.float64()),  # matched / grams
        ("quote", pa.string()),  # words of the first n-gram matched
    ]
)
"""One row per document and item, in row order, strongest first: the outputs of `curate.contamination`."""

MAX_MATCHES = 1000
"""Items of one document that are recorded: a page that copies a whole benchmark is dropped for its first."""


class Contamination(Stage):
    """Config: `{"decontaminate": Decontaminate with paths that open from here, "dedup": block or bool (default on)}`.

    Paths and the action reach no task id, digests of the benchmark files do.
    """

    name: ClassVar[str] = "curate.contamination"
    version: ClassVar[int] = 1
    upstream: tuple[str, ...] = (*KEPT_FILES, CLUSTERS)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.settings = Decontaminate.model_validate(self.config["decontaminate"])
        clusters = (CLUSTERS,) if dedup_on(self.config.get("dedup", True)) else ()
        self.upstream = (*kept_files(self.config), *clusters)

    def uses(self) -> Mapping[str, str]:
        files = benchmark_files(self.settings)
        return {
            "unicode": unicodedata.unidata_version,  # decides what a word is
            **{f"benchmark.{name}": file_digest(path) for name, path in files},
        }

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        config = self.settings.model_dump(mode="json", exclude={"benchmarks", "action"})
        return per_file_tasks(self, config, inputs, kept_files(self.config))

    def run(self, task: Task, out: Outbox) -> Counters:
        for name, digest in self.uses().items():
            if task.uses.get(name, digest) != digest:
                raise GristmillError(f"{name} changed since this task was planned", hint="run the same command again")
        files = tuple(benchmark_files(self.settings))
        index = _index(files, tuple(file_digest(path) for _, path in files), self.settings.model_dump_json())
        clusters = RowReader(task.shard(CLUSTERS), ["id", "reason"]) if CLUSTERS in task.inputs else None
        counters = Counters(drops=None)
        with TableWriter(out.path("contamination.parquet"), CONTAMINATION_SCHEMA) as writer:
            for kept in kept_documents(task, ["id", "url"]):
                counters.rows_in += kept.num_rows
                cluster = clusters.take(kept.num_rows) if clusters is not None else None
                if clusters is not None and cluster is not None:
                    same_ids(clusters.shard, kept["id"], cluster["id"])
                    kept = kept.filter(pc.is_null(cluster["reason"]))
                matches = list(index.find(kept["text"].to_pylist(), self.settings.min_overlap))
                for found in filter(None, matches):
                    counters.notes[f"contamination.{found[0].benchmark}"] += 1
                writer.write(_rows(kept, matches))
        if clusters is not None:
            clusters.finish()
        counters.rows_out = writer.rows
        out.path("index.json").write_bytes(orjson.dumps(_describe(index), option=orjson.OPT_SORT_KEYS))
        return counters


def benchmark_files(settings: Decontaminate) -> list[tuple[str, Path]]:
    """(benchmark, file) in order of the recipe, each glob's in order of name.

    Raises UsageError where a path or glob names no file and where two files name one benchmark.
    """
    out: dict[str, Path] = {}
    for pattern in settings.benchmarks:
        found = [Path(p) for p in sorted(glob.glob(pattern, recursive=True)) if Path(p).is_file()]
        if not found:
            raise UsageError(
                f"no benchmark file {pattern}", hint="`curate.decontaminate.benchmarks` takes paths and globs"
            )
        for path in found:
            name = path.name.partition(".")[0]
            if out.setdefault(name, path) != path:
                raise UsageError(f"{path} and {out[name]} both name the benchmark {name!r}", hint="rename one of them")
    return list(out.items())


@lru_cache(maxsize=1)
def _index(files: tuple[tuple[str, Path], ...], digests: tuple[str, ...], settings: str) -> Index:
    """The index of a process: 2 s for ten public test sets, so it is kept from one task to the next."""
    return Index(files, Decontaminate.model_validate_json(settings))


def _rows(kept: pa.Table, matches: Sequence[Sequence[Match]]) -> pa.Table:
    rows = []
    for i, url, found in zip(kept["id"].to_pylist(), kept["url"].to_pylist(), matches, strict=True):
        for rank, match in enumerate(found[:MAX_MATCHES]):
            rows.append({"id": i, "url": url, "rank": rank, **match._asdict(), "overlap": match.overlap})
    return pa.Table.from_pylist(rows, CONTAMINATION_SCHEMA)


def _describe(index: Index) -> dict[str, Any]:
    """Per benchmark: segments that are looked for, and segments that were too short to be."""
    out = {name: {"segments": 0, "too_short": n} for name, n in index.skipped.items()}
    for segment in index.segments:
        out.setdefault(segment.benchmark, {"segments": 0, "too_short": 0})["segments"] += 1
    return out
