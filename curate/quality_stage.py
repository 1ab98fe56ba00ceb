"""The stage `curate.quality`: a fastText score of the final text of every document that deduplication left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import TableWriter
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

QUALITY_SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float32())])
"""One row per surviving document, in row order: the outputs of `curate.quality`."""


class QualityScores(Stage):
    """Config: `{"quality": {"model": path, "label": …, "sha256": …}, "dedup": block or bool (default on)}`.

    `model` is opened as given, so a relative path must be resolved before; without `sha256` the file is digested
    here. Only label and digest reach the task id: another threshold or another place of the file scores nothing anew.
    """

    name: ClassVar[str] = "curate.quality"
    version: ClassVar[int] = 1
    upstream: tuple[str, ...] = (*KEPT_FILES, CLUSTERS)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        clusters = (CLUSTERS,) if dedup_on(self.config.get("dedup", True)) else ()
        self.upstream = (*kept_files(self.config), *clusters)

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        from gristmill.curate.quality import model_digest

        quality = self.config["quality"]
        sha256 = quality.get("sha256") or model_digest(quality["model"])
        config = {"label": quality.get("label", "hq"), "sha256": sha256}
        return per_file_tasks(self, config, inputs, kept_files(self.config))

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.curate.quality import Scorer

        scorer = Scorer(self.config["quality"]["model"], task.config["label"], sha256=task.config["sha256"])
        clusters = RowReader(task.shard(CLUSTERS), ["id", "reason"]) if CLUSTERS in task.inputs else None
        counters = Counters(drops=None)
        with TableWriter(out.path("quality.parquet"), QUALITY_SCHEMA) as writer:
            for kept in kept_documents(task):
                counters.rows_in += kept.num_rows
                cluster = clusters.take(kept.num_rows) if clusters is not None else None
                if clusters is not None and cluster is not None:
                    same_ids(clusters.shard, kept["id"], cluster["id"])
                    kept = kept.filter(pc.is_null(cluster["reason"]))
                scores = pa.array(scorer.score(kept["text"].to_pylist()))
                writer.write(pa.table({"id": kept["id"], "score": scores}))
        if clusters is not None:
            clusters.finish()
        counters.rows_out = writer.rows
        return counters
