"""What became of every record that was a page: one table per input file, read stage by stage from a root's outputs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import read_batches, read_table
from gristmill.core.stage import Receipt, Shard
from gristmill.pipelines.views import manifests

FATE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("language", pa.string()),  # null where the page was dropped before its language was known
        ("chars", pa.int64()),  # of the extracted text; null where there is none
        ("kept_chars", pa.int64()),  # of the final text; null where dropped, or where `curate` has not run
        ("stage", pa.string()),  # that dropped it; null: kept by every stage that has run
        ("reason", pa.string()),
        ("value", pa.float64()),  # the measured value that failed, where the reason has one
        ("threshold", pa.float64()),
    ]
)
"""One row per document, in the order of the input file: records that are no documents (no URL) have none."""

PAGES = "curate.pages"
VERDICT_FILES = ("verdicts.parquet", "drops.parquet")
_JUDGED = ["id", "reason", "value", "threshold"]


class Fates:
    """A root's documents by input file. Memory: one file's columns, without texts.

    Raises UsageError where the root has no finished stage, FormatError where an output differs from its receipt.
    """

    def __init__(self, root: Path) -> None:
        known = manifests(root)
        self.pages = {r.key: r for r in known[PAGES].receipts} if PAGES in known else {}
        self.final = {r.key: r for r in known["curate"].receipts} if "curate" in known else {}
        names = [n for n in known if n != PAGES and (n == "curate" or n.startswith("curate."))]
        self.judges = [
            (name, {r.key: r for r in known[name].receipts})
            for name in names
            if known[name].receipts and verdict_file(known[name].receipts[0]) is not None
        ]
        """The later stages that drop documents, in the order of the line, with their receipts by file."""

    def files(self) -> list[str]:
        return list(self.pages)

    def table(self, file: str) -> pa.Table:
        """FATE_SCHEMA of one input file."""
        table = _pages(self.pages[file])
        for stage, receipts in self.judges:
            if file in receipts:
                table = _judge(table, stage, _verdicts(receipts[file]))
        return _with_final(table, self.final.get(file))


def verdict_file(receipt: Receipt) -> Shard | None:
    """The output that says whom a task dropped; a null reason in it means kept."""
    found = {s.name: s for s in receipt.outputs if s.name in VERDICT_FILES}
    return found.get("verdicts.parquet") or found.get("drops.parquet")


def _verdicts(receipt: Receipt) -> pa.Table:
    shard = verdict_file(receipt)
    assert shard is not None, receipt.stage
    table = read_table(shard, _JUDGED)
    return table.filter(pc.is_valid(table["reason"]))


def _pages(receipt: Receipt) -> pa.Table:
    """Pages with a text, and after them the documents that gave none."""
    parts = []
    for batch in read_batches(receipt.output("pages.parquet"), ["id", "url", "language", "text"]):
        n = batch.num_rows
        parts.append(
            {
                "id": batch["id"],
                "url": batch["url"],
                "language": batch["language"],
                "chars": pc.utf8_length(batch["text"]).cast(pa.int64()),
                **{name: pa.nulls(n, FATE_SCHEMA.field(name).type) for name in FATE_SCHEMA.names[4:]},
            }
        )
    drops = read_table(receipt.output("drops.parquet"), ["url", *_JUDGED])
    n = drops.num_rows
    nothing = {name: pa.nulls(n, FATE_SCHEMA.field(name).type) for name in ("language", "chars", "kept_chars")}
    parts.append({**{name: drops[name] for name in ("url", *_JUDGED)}, **nothing, "stage": pa.array([PAGES] * n)})
    tables = [pa.table({name: part[name] for name in FATE_SCHEMA.names}).cast(FATE_SCHEMA) for part in parts]
    return pa.concat_tables(tables).combine_chunks()


def _judge(table: pa.Table, stage: str, verdicts: pa.Table) -> pa.Table:
    """`table` with what a stage's verdicts say of the documents still kept."""
    if not verdicts.num_rows:
        return table
    at = pc.index_in(table["id"], value_set=verdicts["id"].combine_chunks())
    hit = pc.and_(pc.is_valid(at), pc.is_null(table["reason"]))
    for name in _JUDGED[1:]:
        table = _set(table, name, pc.if_else(hit, verdicts[name].combine_chunks().take(at), table[name]))
    return _set(table, "stage", pc.if_else(hit, pa.scalar(stage), table["stage"]))


def _with_final(table: pa.Table, receipt: Receipt | None) -> pa.Table:
    if receipt is None:
        return table
    ids, chars = [], []
    for batch in read_batches(receipt.output("documents.parquet"), ["id", "text"]):
        ids.append(batch["id"])
        chars.append(pc.utf8_length(batch["text"]).cast(pa.int64()))
    if not ids:
        return table
    at = pc.index_in(table["id"], value_set=pa.chunked_array(ids).combine_chunks())
    return _set(table, "kept_chars", pa.chunked_array(chars).combine_chunks().take(at))


def _set(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), FATE_SCHEMA.field(name), column)
