"""The stage `curate`: apply clusters and the quality threshold, write the curated Parquet and the ledger of drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import TableWriter
from gristmill.core.document import CURATED_SCHEMA, DROP_SCHEMA, PAGE_SCHEMA
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
from gristmill.curate.final_text import (
    CLUSTERS,
    KEPT_FILES,
    RowReader,
    dedup_on,
    kept_documents,
    per_file_tasks,
    same_ids,
)

QUALITY = "curate.quality"
_CLUSTER_COLUMNS = ["id", "keeper", "reason", "estimate", "cluster_size", "exact_copies"]
_PLACE = ["id", "url", "warc_file", "warc_offset", "warc_length"]


class Curated(Stage):
    """One `documents.parquet` and one `drops.parquet` per input file.

    Config: `{"dedup": block or bool, "quality": {"min_score": …} or None}`. Without a `dedup` that asks for anything
    there are no clusters upstream, without `quality` no scores. Duplicates go first, then low scores; a keeper that
    goes for its score takes its cluster with it.
    """

    name: ClassVar[str] = "curate"
    version: ClassVar[int] = 1
    upstream: tuple[str, ...] = (*KEPT_FILES, CLUSTERS)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        dedup = self.config.get("dedup", True)
        quality = self.config.get("quality")
        clusters = (CLUSTERS,) if dedup_on(dedup) else ()
        scores = (QUALITY,) if quality is not None else ()
        self.upstream = (*KEPT_FILES, *clusters, *scores)
        self.min_score = float(quality["min_score"]) if quality is not None else None
        minhash = dedup.get("minhash") if isinstance(dedup, Mapping) else None
        self.verify = minhash.get("verify") if minhash is not None else None

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        files = dict(KEPT_FILES)
        if QUALITY in self.upstream:
            files[QUALITY] = "quality.parquet"
        return per_file_tasks(self, {"min_score": self.min_score, "verify": self.verify}, inputs, files)

    def run(self, task: Task, out: Outbox) -> Counters:
        clusters = RowReader(task.shard(CLUSTERS), _CLUSTER_COLUMNS) if CLUSTERS in task.inputs else None
        scores = RowReader(task.shard(QUALITY), ["id", "score"]) if QUALITY in task.inputs else None
        counters = Counters()
        with (
            TableWriter(out.path("documents.parquet"), CURATED_SCHEMA) as documents,
            TableWriter(out.path("drops.parquet"), DROP_SCHEMA) as drops,
        ):
            for kept in kept_documents(task, PAGE_SCHEMA.names):
                counters.rows_in += kept.num_rows
                judged = _with_clusters(kept, clusters)
                judged = _with_scores(judged, scores, self.min_score)
                stays = pc.is_null(judged["reason"])
                documents.write(judged.filter(stays))
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
        null = pa.scalar(None, pa.float64())
        value = pc.if_else(low, gone["quality"].cast(pa.float64()), gone["estimate"])
        threshold = pc.if_else(
            low,
            pa.scalar(self.min_score, pa.float64()),
            pc.if_else(minhash, pa.scalar(self.verify, pa.float64()), null),
        )
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
