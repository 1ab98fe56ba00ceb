"""The stage `curate.clusters`: one task that groups the whole corpus and says for each document who stays for it.

Memory, single machine: per document 36 bytes of id, 8 of row order, 16 of text hash, 8 per band key (112 for 14) and
some 20 columns of 8 bytes while clustering; measured 350 bytes (1.6 M documents, a quarter of them in pairs, peak at
0.70 GB), so 10 M documents in 3.6 GB. Sketches (112 bytes) are read only for documents that share a band key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gristmill.core.docshards import TableWriter, read_batches
from gristmill.core.errors import FormatError
from gristmill.core.stage import Counters, Outbox, Receipt, Shard, Stage, Task
from gristmill.curate.final_text import CLUSTERS, cluster_file
from gristmill.curate.schema import Dedup

CLUSTER_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("keeper", pa.string()),  # the id that stays for this document; its own when it stays
        ("reason", pa.string()),  # null = stays; "dedup.exact", "dedup.minhash"
        ("estimate", pa.float64()),  # estimated Jaccard to the keeper, where verification made one
        ("cluster_size", pa.int32()),  # documents with this keeper
        ("exact_copies", pa.int32()),  # documents with this (whitespace-collapsed) text
        ("component_size", pa.int32()),  # documents reachable over shared band keys, before verification
    ]
)
"""One row per document of an input file, in the row order of its `signatures.parquet`."""

READ_ROWS = 16_384
SIGNATURES = "curate.signatures"


class Clusters(Stage):
    """Exact copies and near duplicates over all input files. Config: `{"dedup": Dedup as a dict}`."""

    name: ClassVar[str] = CLUSTERS
    version: ClassVar[int] = 1
    upstream: tuple[str, ...] = (SIGNATURES,)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.settings = Dedup.model_validate(self.config["dedup"])

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        """One task; its config carries the input files' names (sorted, as its shards are), since a shard has none."""
        receipts = sorted(inputs[SIGNATURES], key=lambda r: r.key)
        keys = [r.key for r in receipts]
        assert len({cluster_file(key) for key in keys}) == len(keys), "input names repeat"
        config = {"dedup": self.settings.model_dump(), "keys": keys}
        shards = tuple(r.output("signatures.parquet") for r in receipts)
        return [Task(self.name, self.version, "all", 0, config, dict(self.uses()), {SIGNATURES: shards})]

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.curate.dedup.clustering import find_clusters

        shards = task.inputs[SIGNATURES]
        keys = task.config["keys"]
        corpus = _Corpus(shards, self.settings)
        found = find_clusters(corpus.documents(), self.settings, corpus.sketches)
        for key, ordinals in zip(keys, corpus.ordinals, strict=True):
            with TableWriter(out.path(cluster_file(key)), CLUSTER_SCHEMA) as writer:
                for i in range(0, len(ordinals), READ_ROWS):
                    writer.write(_rows(found, corpus.ids, ordinals[i : i + READ_ROWS]))
        counters = Counters(rows_in=len(corpus.ids), rows_out=len(corpus.ids), drops=None)
        counters.notes["clusters"] = int(np.count_nonzero(found.reason == 0))
        return counters


def _rows(found: Any, ids: pa.Array, ordinals: NDArray[np.int64]) -> pa.Table:
    from gristmill.curate.dedup.clustering import REASONS

    estimate = found.estimate[ordinals]
    return pa.table(
        {
            "id": ids.take(pa.array(ordinals)),
            "keeper": ids.take(pa.array(found.keeper[ordinals])),
            "reason": pa.array(REASONS, pa.string()).take(pa.array(found.reason[ordinals])),
            "estimate": pa.array(estimate, mask=np.isnan(estimate)),
            "cluster_size": found.cluster_size[ordinals].astype(np.int32),
            "exact_copies": found.exact_copies[ordinals].astype(np.int32),
            "component_size": found.component_size[ordinals].astype(np.int32),
        }
    )


class _Corpus:
    """The documents of all signature files, by ordinal in id order; raises FormatError when two share an id."""

    def __init__(self, shards: Sequence[Shard], settings: Dedup) -> None:
        self.shards = shards
        self.bands = settings.minhash.bands if settings.minhash else 0
        self.width = settings.minhash.bands * settings.minhash.rows if settings.minhash else 0
        parts: list[pa.Array] = []
        sizes = []
        for shard in shards:
            batches = [batch["id"].cast(pa.large_string()) for batch in read_batches(shard, ["id"], READ_ROWS)]
            sizes.append(sum(map(len, batches)))
            parts += batches
        ids = pa.concat_arrays(parts) if parts else pa.array([], pa.large_string())
        order = pc.sort_indices(ids)
        self.ids = ids.take(order)
        repeated = pc.equal(self.ids[1:], self.ids[:-1]) if len(self.ids) else pa.array([], pa.bool_())
        if pc.any(repeated, min_count=0).as_py():
            twice = self.ids[1:].filter(repeated)[0].as_py()
            raise FormatError(f"two documents have the id {twice}", hint="is one input file listed twice?")
        ordinals = np.empty(len(ids), np.int64)
        ordinals[order.to_numpy()] = np.arange(len(ids))
        self.ordinals = np.split(ordinals, np.cumsum(sizes)[:-1]) if shards else []

    def documents(self) -> Any:
        from gristmill.curate.dedup.clustering import Documents
        from gristmill.curate.dedup.keep import date_numbers

        n = len(self.ids)
        found = Documents(
            hashes=np.zeros((n, 2), np.uint64),
            keys=np.zeros((n, self.bands), np.uint64),
            shingles=np.zeros(n, np.int64),
            lengths=np.zeros(n, np.int64),
            dates=np.zeros(n, np.int64),
        )
        columns = ["hash128", "length", "date", *(["keys", "shingles"] if self.bands else [])]
        for batch, at in self._batches(columns):
            found.hashes[at] = _fixed_bytes(batch["hash128"], 16).view("<u8")
            found.lengths[at] = batch["length"].to_numpy()
            found.dates[at] = date_numbers(batch["date"])
            if self.bands:
                found.keys[at] = batch["keys"].flatten().to_numpy().reshape(-1, self.bands)
                found.shingles[at] = batch["shingles"].to_numpy()
        return found

    def sketches(self, documents: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Sketches (M, K) of some documents, given as ascending ordinals, in one more pass over the files."""
        out = np.zeros((len(documents), self.width), np.uint8)
        for batch, at in self._batches(["sketch"]):
            place = np.minimum(np.searchsorted(documents, at), len(documents) - 1)
            wanted = np.flatnonzero(documents[place] == at)
            out[place[wanted]] = _fixed_bytes(batch["sketch"], self.width)[wanted]
        return out

    def _batches(self, columns: Sequence[str]) -> Any:
        for shard, ordinals in zip(self.shards, self.ordinals, strict=True):
            at = 0
            for batch in read_batches(shard, columns, READ_ROWS):
                yield batch, ordinals[at : at + batch.num_rows]
                at += batch.num_rows


def _fixed_bytes(column: pa.Array, width: int) -> NDArray[np.uint8]:
    """A fixed-size binary column without nulls as (rows, width) uint8."""
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)
