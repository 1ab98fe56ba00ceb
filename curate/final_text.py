"""Kept documents with their final text, in batches: pages, measures and verdicts read side by side, row by row.

Also the small conventions that the stages after `curate.decide` share: which files a task reads, and how the one
clustering task names its output for each input file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import read_batches
from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_bytes
from gristmill.core.stage import Receipt, Shard, Stage, Task

KEPT_FILES = {
    "curate.pages": "pages.parquet",
    "curate.measure": "measures.parquet",
    "curate.decide": "verdicts.parquet",
}
"""The stages and files that together say what is kept and what its text is. Equal row order in all three."""

STEPS = "curate.steps"
"""The stage that stands for `curate.pages` to all stages after it, where the recipe has steps (their config says so)."""

REWRITTEN = {"c4": "c4.text", "refinedweb": "refinedweb.text"}
"""Text versions of `curate.decide` -> the measured column that holds them."""

CLUSTERS = "curate.clusters"
BATCH_ROWS = 256  # mean 5 kB of text a page: about 1.3 MB a batch


def kept_files(config: Mapping[str, Any]) -> dict[str, str]:
    """KEPT_FILES of a recipe: pages come from `curate.steps` where a stage's config says `"steps": true`."""
    if not config.get("steps"):
        return dict(KEPT_FILES)
    return {STEPS if name == "curate.pages" else name: file for name, file in KEPT_FILES.items()}


def pages_shard(task: Task) -> Shard:
    """The pages that a task reads: those that the steps left, where there are steps."""
    return task.shard(STEPS if STEPS in task.inputs else "curate.pages", "pages.parquet")


def cluster_file(key: str) -> str:
    """The name of the clusters file of an input file's documents (keys may hold any character)."""
    return sha256_bytes(key.encode("utf-8", "surrogatepass"))[:16] + ".parquet"


def dedup_on(dedup: Mapping[str, Any] | bool | None) -> bool:
    """Whether a recipe's `dedup` block asks for anything (then `curate.clusters` is in the graph)."""
    if isinstance(dedup, Mapping):
        return bool(dedup.get("exact")) or dedup.get("minhash") is not None
    return bool(dedup)


def per_file_tasks(
    stage: Stage, config: Mapping[str, Any], inputs: Mapping[str, Sequence[Receipt]], files: Mapping[str, str]
) -> list[Task]:
    """One task per input file with just the named upstream files, and that file's own clusters where stage wants them.

    A key that an upstream stage lacks (its task failed and the run goes on) gets no task.
    """
    uses = dict(stage.uses())
    by_key = {name: {r.key: r for r in inputs[name]} for name in files}
    clusters = None
    if CLUSTERS in stage.upstream:
        clusters = {s.name: s for r in inputs[CLUSTERS] for s in r.outputs}
    tasks: list[Task] = []
    for receipt in inputs[next(iter(files))]:
        if any(receipt.key not in by_key[name] for name in files):
            continue
        joined = {name: (by_key[name][receipt.key].output(file),) for name, file in files.items()}
        if clusters is not None:
            shard = clusters.get(cluster_file(receipt.key))
            if shard is None:
                continue
            joined[CLUSTERS] = (shard,)
        tasks.append(Task(stage.name, stage.version, receipt.key, len(tasks), config, uses, joined))
    return tasks


class RowReader:
    """Reads a shard's rows in order, any number at a time. Raises FormatError when the shard has too few or too many."""

    def __init__(self, shard: Shard, columns: Sequence[str], rows: int = BATCH_ROWS) -> None:
        self.shard = shard
        self._columns = list(columns)
        self._batches = read_batches(shard, columns, rows)
        self._held: list[pa.RecordBatch] = []

    def take(self, n: int) -> pa.Table | None:
        """The next n rows; None when n is 0."""
        parts: list[pa.RecordBatch] = []
        while n:
            batch = self._held.pop() if self._held else next(self._batches, None)
            if batch is None:
                raise FormatError(f"{self.shard.path} has fewer rows than the file it belongs to")
            if batch.num_rows > n:
                self._held.append(batch.slice(n))
                batch = batch.slice(0, n)
            n -= batch.num_rows
            parts.append(batch)
        return pa.Table.from_batches(parts).select(self._columns).combine_chunks() if parts else None

    def finish(self) -> None:
        """Raises FormatError when rows are left."""
        if self._held or any(batch.num_rows for batch in self._batches):
            raise FormatError(f"{self.shard.path} has more rows than the file it belongs to")


def same_ids(shard: Shard, ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> None:
    """Raises FormatError unless two id columns are equal."""
    if len(ours) != len(theirs) or not pc.all(pc.equal(ours, theirs), min_count=0).as_py():
        raise FormatError(f"{shard.path} is not in the row order of its pages", hint="delete it and run again")


def kept_documents(task: Task, columns: Sequence[str] = ("id",), rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """Tables of at most `rows` kept documents: page columns `columns`, final `text` and `text_version`, in row order.

    The final text is the page's own, or the one that the verdict's `text_version` names. Tables are never empty.
    """
    names = list(dict.fromkeys(["id", *columns, "text"]))
    pages = read_batches(pages_shard(task), names, rows)
    measures = RowReader(task.shard("curate.measure", KEPT_FILES["curate.measure"]), ["id", *REWRITTEN.values()], rows)
    verdicts = RowReader(
        task.shard("curate.decide", KEPT_FILES["curate.decide"]), ["id", "reason", "text_version"], rows
    )
    for batch in pages:
        page = pa.Table.from_batches([batch]).select(names)
        measure, verdict = measures.take(page.num_rows), verdicts.take(page.num_rows)
        if measure is None or verdict is None:
            continue
        same_ids(measures.shard, page["id"], measure["id"])
        same_ids(verdicts.shard, page["id"], verdict["id"])
        kept = pc.is_null(verdict["reason"])
        page, version = page.filter(kept), verdict["text_version"].filter(kept)
        if not page.num_rows:
            continue
        text = page["text"].cast(pa.string())
        for name, column in REWRITTEN.items():
            text = pc.if_else(pc.equal(version, name), measure[column].filter(kept).cast(pa.string()), text)
        if text.null_count:
            raise FormatError(f"{measures.shard.path}: a document judged by its rewritten text has none")
        page = page.set_column(page.schema.get_field_index("text"), "text", text)
        yield page.append_column("text_version", version.cast(pa.string()))
    measures.finish()
    verdicts.finish()
