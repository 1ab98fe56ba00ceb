"""The stage `curate`: apply clusters and the quality threshold, write the curated Parquet and the ledger of drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import TableWriter, read_table
from gristmill.core.document import CURATED_SCHEMA, DROP_SCHEMA, PAGE_SCHEMA
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
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
from gristmill.curate.schema import Pii

QUALITY = "curate.quality"
CONTAMINATION = "curate.contamination"
_CLUSTER_COLUMNS = ["id", "keeper", "reason", "estimate", "cluster_size", "exact_copies"]
_ITEM_COLUMNS = ["id", "rank", "benchmark", "overlap"]
_PLACE = ["id", "url", "warc_file", "warc_offset", "warc_length"]


class Curated(Stage):
    """One `documents.parquet` and one `drops.parquet` per input file.

    Config: `{"dedup": block or bool, "quality": {"min_score": …} or None}`. Without a `dedup` that asks for anything
    there are no clusters upstream, without `quality` no scores. Duplicates go first, then documents that hold a benchmark
    item (`"decontaminate": {"action", "min_overlap"}`), then low scores; a keeper that goes so takes its cluster with it.
    With `"pii"` (schema.Pii) addresses in the texts that stay are replaced.
    """

    name: ClassVar[str] = "curate"
    version: ClassVar[int] = 2
    upstream: tuple[str, ...] = (*KEPT_FILES, CLUSTERS)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        dedup = self.config.get("dedup", True)
        quality = self.config.get("quality")
        clusters = (CLUSTERS,) if dedup_on(dedup) else ()
        scores = (QUALITY,) if quality is not None else ()
        self.decontaminate = self.config.get("decontaminate")
        found = (CONTAMINATION,) if self.decontaminate is not None else ()
        self.upstream = (*kept_files(self.config), *clusters, *found, *scores)
        pii = self.config.get("pii")
        self.pii = Pii.model_validate(pii) if pii is not None else None
        self.min_score = float(quality["min_score"]) if quality is not None else None
        minhash = dedup.get("minhash") if isinstance(dedup, Mapping) else None
        self.verify = minhash.get("verify") if minhash is not None else None

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        files = kept_files(self.config)
        if QUALITY in self.upstream:
            files[QUALITY] = "quality.parquet"
        if CONTAMINATION in self.upstream:
            files[CONTAMINATION] = "contamination.parquet"
        config = {"min_score": self.min_score, "verify": self.verify}
        config |= {name: self.config[name] for name in ("decontaminate", "pii") if self.config.get(name) is not None}
        return per_file_tasks(self, config, inputs, files)

    def uses(self) -> Mapping[str, str]:
        from gristmill.curate import pii

        return pii.uses() if self.pii is not None else {}

    def run(self, task: Task, out: Outbox) -> Counters:
        clusters = RowReader(task.shard(CLUSTERS), _CLUSTER_COLUMNS) if CLUSTERS in task.inputs else None
        scores = RowReader(task.shard(QUALITY), ["id", "score"]) if QUALITY in task.inputs else None
        items = read_table(task.shard(CONTAMINATION), _ITEM_COLUMNS) if CONTAMINATION in task.inputs else None
        counters = Counters()
        with (
            TableWriter(out.path("documents.parquet"), CURATED_SCHEMA) as documents,
            TableWriter(out.path("drops.parquet"), DROP_SCHEMA) as drops,
        ):
            for kept in kept_documents(task, PAGE_SCHEMA.names):
                counters.rows_in += kept.num_rows
                judged = _with_clusters(kept, clusters)
                judged = _with_items(judged, items, self.decontaminate)
                judged = _with_scores(judged, scores, self.min_score)
                stays = pc.is_null(judged["reason"])
                documents.write(_without_addresses(judged.filter(stays), self.pii))
                gone = judged.filter(pc.invert(stays))
                for reason in gone["reason"].to_pylist():
                    counters.drop(reason)
                drops.write(self._drop_rows(gone))
        for reader in (clusters, scores):
            if reader is not None:
                reader.finish()
        counters.rows_out = documents.rows
        return counters

    def _drop_rows(self, gone: pa.Table) -> pa.Table:
        minhash = pc.equal(gone["reason"], "dedup.minhash")
        low = pc.equal(gone["reason"], "quality.low_score")
        item = pc.starts_with(gone["reason"], "decontaminate.")
        least = (self.decontaminate or {}).get("min_overlap")
        null = pa.scalar(None, pa.float64())
        value = pc.if_else(low, gone["quality"].cast(pa.float64()), gone["estimate"])
        threshold = pc.if_else(
            low,
            pa.scalar(self.min_score, pa.float64()),
            pc.if_else(minhash, pa.scalar(self.verify, pa.float64()), null),
        )
        value = pc.if_else(item, gone["overlap"], value)
        threshold = pc.if_else(item, pa.scalar(least, pa.float64()), threshold)
        return gone.select([*_PLACE, "reason"]).append_column("value", value).append_column("threshold", threshold)


def _with_clusters(kept: pa.Table, clusters: RowReader | None) -> pa.Table:
    """`kept` with reason, estimate and the dup_* columns; alone in its cluster where deduplication is off."""
    n = kept.num_rows
    found = clusters.take(n) if clusters is not None else None
    if clusters is None or found is None:
        ones = pa.array(np.ones(n, np.int32))
        columns = {
            "reason": pa.nulls(n, pa.string()),
            "estimate": pa.nulls(n, pa.float64()),
            "dup_cluster": kept["id"],
            "dup_cluster_size": ones,
            "dup_exact_copies": ones,
        }
    else:
        same_ids(clusters.shard, kept["id"], found["id"])
        columns = {
            "reason": found["reason"],
            "estimate": found["estimate"],
            "dup_cluster": found["keeper"],
            "dup_cluster_size": found["cluster_size"],
            "dup_exact_copies": found["exact_copies"],
        }
    for name, column in columns.items():
        kept = kept.append_column(name, column)
    return kept


def _with_items(judged: pa.Table, items: pa.Table | None, settings: Mapping[str, Any] | None) -> pa.Table:
    """`judged` with `overlap`, and the reason `decontaminate.BENCHMARK` where a survivor holds an item and the action is drop."""
    n = judged.num_rows
    if items is None or settings is None or settings["action"] != "drop":
        return judged.append_column("overlap", pa.nulls(n, pa.float64()))
    strongest = items.filter(pc.equal(items["rank"], 0)).combine_chunks()
    at = pc.index_in(judged["id"], value_set=strongest["id"].combine_chunks()).combine_chunks()
    found = pc.binary_join_element_wise("decontaminate", strongest["benchmark"].take(at), ".")
    reason = pc.coalesce(judged["reason"], found.cast(pa.string()))
    judged = judged.set_column(judged.schema.get_field_index("reason"), "reason", reason)
    return judged.append_column("overlap", strongest["overlap"].take(at))


def _without_addresses(stays: pa.Table, settings: Pii | None) -> pa.Table:
    """The rows with `pii_emails` and `pii_ips`, null where nothing looked for them, and the text without those addresses."""
    n = stays.num_rows
    if settings is None:
        nothing = pa.nulls(n, pa.int32())
        return stays.append_column("pii_emails", nothing).append_column("pii_ips", nothing)
    from gristmill.curate.pii import clean

    rows = zip(stays["text"].to_pylist(), stays["id"].to_pylist(), strict=True)
    done = [clean(text, i, emails=settings.emails, ips=settings.ips, seed=settings.seed) for text, i in rows]
    stays = stays.set_column(
        stays.schema.get_field_index("text"), "text", pa.array([d.text for d in done], pa.string())
    )
    for name, on, counts in (
        ("pii_emails", settings.emails, [d.emails for d in done]),
        ("pii_ips", settings.ips, [d.ips for d in done]),
    ):
        stays = stays.append_column(name, pa.array(counts, pa.int32()) if on else pa.nulls(n, pa.int32()))
    return stays


def _with_scores(judged: pa.Table, scores: RowReader | None, min_score: float | None) -> pa.Table:
    """`judged` with a quality column, and the reason `quality.low_score` where a survivor scores too low."""
    quality = np.full(judged.num_rows, np.nan, np.float32)
    if scores is not None:
        stays = np.flatnonzero(pc.is_null(judged["reason"]).to_numpy())
        found = scores.take(len(stays))
        if found is not None:
            same_ids(scores.shard, judged["id"].take(pa.array(stays)), found["id"])
            quality[stays] = found["score"].to_numpy()
    column = pa.array(quality, mask=np.isnan(quality))
    if min_score is not None:
        # Compared as float32, so that a score of float32(0.3), whichever way it rounds, meets a threshold of 0.3.
        low = pc.fill_null(pc.less(column, pa.scalar(np.float32(min_score))), False)
        reason = pc.if_else(low, pa.scalar("quality.low_score"), judged["reason"])
        judged = judged.set_column(judged.schema.get_field_index("reason"), "reason", reason)
    return judged.append_column("quality", column)
