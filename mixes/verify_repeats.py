"""Find tokens that one epoch of a source holds twice, over all shards and phases, in bounded memory.

Pieces are written to buckets by the leading bits of their document's id, then each bucket is sorted: of one document in
one epoch of a source no stretch may overlap another. `epoch` counts a document's uses: one of weight w has w in each
epoch of its source, each with a number of its own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.tokshards import PackedDataset

BUCKET_PIECES = 1 << 21
"""Pieces sorted at once: some 250 MB with the sort's own arrays."""
MOST_BUCKETS = 4096
SHOWN = 20

RECORD = np.dtype(
    [
        ("high", "<u8"),  # the document's id in two halves
        ("low", "<u8"),
        ("draw", "<i4"),  # source << 16 | epoch
        ("start", "<i4"),  # first token inside the document
        ("end", "<i4"),
        ("phase", "<i4"),
        ("row", "<i8"),
    ]
)


class Repeats:
    """Collects the pieces of a dataset. Use as a context manager: beyond one bucket they lie in a temporary folder."""

    def __init__(self, dataset: PackedDataset) -> None:
        self._sources: dict[str, int] = {}
        self._phases: list[str] = []
        pieces = 0
        for phase in dataset.manifest.phases:
            for shard in phase.shards:
                try:
                    pieces += pq.read_metadata(
                        dataset.folder / f"{shard.file.removesuffix('.bin')}.prov.parquet"
                    ).num_rows
                except (OSError, pa.ArrowException):
                    continue  # named as missing by the check of its shard
        self._buckets = min(-(-pieces // BUCKET_PIECES) or 1, MOST_BUCKETS)
        self._held: list[np.ndarray] = []
        self._folder: Path | None = None

    def __enter__(self) -> Repeats:
        if self._buckets > 1:
            self._folder = Path(tempfile.mkdtemp(prefix="gristmill-verify-"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, phase: str, table: pa.Table) -> None:
        """The pieces of one shard (PROVENANCE_SCHEMA)."""
        if phase not in self._phases:
            self._phases.append(phase)
        names = table["source"].combine_chunks()
        codes = [self._sources.setdefault(name, len(self._sources)) for name in names.dictionary.to_pylist()]
        out = np.empty(table.num_rows, RECORD)
        raw = table["id"].combine_chunks()
        halves = np.frombuffer(raw.buffers()[1] or b"", ">u8")[2 * raw.offset : 2 * (raw.offset + len(raw))]
        out["high"], out["low"] = halves[0::2], halves[1::2]
        out["draw"] = np.array([*codes, 0], np.int32)[names.indices.to_numpy()] << 16
        out["draw"] |= table["epoch"].to_numpy().astype(np.int32)
        out["start"] = table["doc_start"].to_numpy()
        out["end"] = out["start"] + table["length"].to_numpy()
        out["phase"] = self._phases.index(phase)
        out["row"] = table["row"].to_numpy()
        if self._folder is None:
            self._held.append(out)
            return
        bucket = (out["high"] >> np.uint64(52)).astype(np.int64) * self._buckets >> 12
        order = np.argsort(bucket, kind="stable")
        cuts = np.searchsorted(bucket[order], np.arange(self._buckets + 1))
        for i in np.flatnonzero(np.diff(cuts)).tolist():
            with open(self._folder / f"{i:04d}", "ab") as file:
                out[order[cuts[i] : cuts[i + 1]]].tofile(file)

    def found(self) -> Iterator[tuple[str, str]]:
        """(PHASE:ROW, what) of stretches that are there a second time, at most SHOWN."""
        shown = 0
        for pieces in self._each():
            for at in repeats(pieces)[: SHOWN - shown].tolist():
                source = list(self._sources)[int(pieces["draw"][at]) >> 16]
                document = f"{int(pieces['high'][at]):016x}{int(pieces['low'][at]):016x}"
                where = f"{self._phases[pieces['phase'][at]]}:{int(pieces['row'][at])}"
                epoch = int(pieces["draw"][at]) & 0xFFFF
                yield (
                    where,
                    f"tokens {int(pieces['start'][at])}.. of {document} are in epoch {epoch} of {source} already",
                )
                shown += 1
            if shown == SHOWN:
                return

    def _each(self) -> Iterator[np.ndarray]:
        if self._folder is None:
            yield np.concatenate(self._held) if self._held else np.empty(0, RECORD)
            return
        for path in sorted(self._folder.iterdir()):
            yield np.fromfile(path, RECORD)


def repeats(pieces: np.ndarray) -> np.ndarray:
    """Indices of the pieces (RECORD) that begin before an earlier one of the same document, source and epoch has ended."""
    order = np.lexsort((pieces["row"], pieces["phase"], pieces["start"], pieces["draw"], pieces["low"], pieces["high"]))
    ordered = pieces[order]
    same = np.ones(max(len(ordered) - 1, 0), bool)
    for name in ("high", "low", "draw"):
        same &= ordered[name][1:] == ordered[name][:-1]
    return np.asarray(order[1:][same & (ordered["start"][1:] < ordered["end"][:-1])])
