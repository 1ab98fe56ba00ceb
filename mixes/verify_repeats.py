"""Find tokens that one epoch of a source holds twice, over all shards and phases, in bounded memory.

Pieces are written to buckets by the leading bits of their document's id, then each bucket is sorted: of one document in
one epoch of a source no stretch may overlap another, or as many as the source draws a document in an epoch.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
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
    """Collects the pieces of a dataset. Use as a context manager: beyond one bucket they lie in a temporary folder.

    `draws`: source -> times that a document may be drawn in one epoch.
    """

    def __init__(self, dataset: PackedDataset, draws: Callable[[str], int]) -> None:
        self._draws = draws
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
        """(PHASE:ROW, what) of stretches that are there too often: the first of each bucket, at most SHOWN in all."""
        shown = 0
        for pieces in self._each():
            for at, times in self._repeats(pieces):
                source = list(self._sources)[int(pieces["draw"][at]) >> 16]
                document = f"{int(pieces['high'][at]):016x}{int(pieces['low'][at]):016x}"
                where = f"{self._phases[pieces['phase'][at]]}:{int(pieces['row'][at])}"
                yield (
                    where,
                    f"tokens {int(pieces['start'][at])}.. of {document} are here more than {times} times in epoch "
                    f"{int(pieces['draw'][at]) & 0xFFFF} of {source}",
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

    def _repeats(self, pieces: np.ndarray) -> Iterator[tuple[int, int]]:
        """(piece, allowed times): the i-th start of a draw is one too many if the (i - allowed)-th end lies behind it."""
        if not len(pieces):
            return
        keys = (pieces["draw"], pieces["low"], pieces["high"])
        by_start = np.lexsort((pieces["row"], pieces["phase"], pieces["start"], *keys))
        by_end = np.lexsort((pieces["end"], *keys))
        ordered = pieces[by_start]
        same = (np.diff(ordered["high"]) == 0) & (np.diff(ordered["low"]) == 0) & (np.diff(ordered["draw"]) == 0)
        new = np.concatenate([[True], ~same])
        group = np.flatnonzero(new)[np.cumsum(new) - 1]  # index of the first piece of the same draw
        allowed = np.array([self._draws(name) for name in self._sources] or [1], np.int64)
        times = allowed[ordered["draw"] >> 16]
        behind = np.arange(len(ordered)) - times
        bad = (behind >= group) & (pieces["end"][by_end][np.maximum(behind, 0)] > ordered["start"])
        for at in np.flatnonzero(bad)[:SHOWN].tolist():
            yield int(by_start[at]), int(times[at])
