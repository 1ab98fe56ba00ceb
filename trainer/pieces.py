"""Losses per document: the pieces of packed rows with their loss sums, written when a guard acts and read by trace. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.docshards import write_table
from gristmill.core.errors import FormatError
from gristmill.core.tokshards import PackedDataset

FOLDER = "spikes"
DATASET_FILE = "dataset.json"  # in FOLDER: where the packed dataset of the reports was
NO_LOSS = -1.0  # in place of a token's loss where the label is ignored; a cross-entropy is never negative

REPORT_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("fired", pa.bool_()),  # the try of a step that the event is about; a deferred step is tried again
        ("accepted", pa.bool_()),  # the step's update was applied
        ("phase", pa.string()),
        ("row", pa.int64()),
        ("row_start", pa.int32()),
        ("length", pa.int32()),  # tokens of the piece
        ("id", pa.string()),  # document, 32 hex digits
        ("source", pa.string()),
        ("loss_sum", pa.float64()),  # nats
        ("tokens", pa.int32()),  # labels that loss_sum is over; pieces without any are left out
    ]
)


class Piece(NamedTuple):
    """A stretch of one document inside one row; start and length are in tokens."""

    phase: str
    row: int
    row_start: int
    length: int
    source: str
    id: str


class Pieces:
    """Pieces by row, from the provenance of a packed dataset; the shards last read stay in memory."""

    KEPT = 8  # rows of one batch are neighbours: few shards are in use at a time

    def __init__(self, dataset: PackedDataset) -> None:
        self.dataset = dataset
        self._tables: dict[tuple[str, int], tuple[pa.Table, np.ndarray]] = {}

    def of(self, phase: str, row: int) -> list[Piece]:
        """Pieces of one row in order, padding left out. Raises FormatError when there is no such row."""
        reader, _ = self.dataset.locate(phase, row)
        key = (phase, row // self.dataset.manifest.phase(phase).rows_per_shard)
        if key not in self._tables:
            if len(self._tables) >= self.KEPT:
                self._tables.pop(next(iter(self._tables)))
            table = reader.provenance().select(["row", "row_start", "length", "source", "id"])
            self._tables[key] = (table, table["row"].to_numpy())
        table, rows = self._tables[key]
        begin, end = np.searchsorted(rows, [row, row + 1])
        return [
            Piece(phase, r["row"], r["row_start"], r["length"], r["source"], r["id"].hex())
            for r in table.slice(begin, end - begin).to_pylist()
        ]

    def documents(self, rows: Sequence[tuple[str, int]]) -> list[str]:
        """Ids of the documents in (phase, row) pairs, sorted."""
        return sorted({piece.id for phase, row in rows for piece in self.of(phase, row)})


class StepLosses(NamedTuple):
    """One rank's loss per token of one try of a step: rows are the first len(rows) of losses_BT, NO_LOSS where ignored."""

    step: int
    fired: bool
    accepted: bool
    rows: list[tuple[str, int]]
    losses_BT: np.ndarray


def piece_losses(pieces: Pieces, steps: Sequence[StepLosses]) -> pa.Table:
    """A table of REPORT_SCHEMA: pieces in the order of steps, rows and starts.

    The loss at position t of a row is that of its token t+1, and belongs to the piece that holds t. Sums are in float64.
    """
    records = []
    for step in steps:
        for (phase, row), losses_T in zip(step.rows, step.losses_BT, strict=False):
            for piece in pieces.of(phase, row):
                part = losses_T[piece.row_start : piece.row_start + piece.length]
                valid = part[part != NO_LOSS].astype(np.float64)
                if len(valid):
                    records.append(
                        {
                            "step": step.step,
                            "fired": step.fired,
                            "accepted": step.accepted,
                            "phase": phase,
                            "row": row,
                            "row_start": piece.row_start,
                            "length": piece.length,
                            "id": piece.id,
                            "source": piece.source,
                            "loss_sum": float(valid.sum()),
                            "tokens": len(valid),
                        }
                    )
    return pa.Table.from_pylist(records, schema=REPORT_SCHEMA)


def report_name(event: int, step: int) -> str:
    """What the files of one event's report begin with, relative to the run's folder; `-RANK.parquet` follows."""
    return f"{FOLDER}/{step:08d}-{event:05d}"


def write_report(out: Path, name: str, rank: int, table: pa.Table, dataset: PackedDataset) -> None:
    """One data-parallel rank's part of a report. `out` is the run's folder."""
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    if rank == 0:
        where = {"dataset": str(dataset.folder.resolve()), "digest": dataset.manifest.digest}
        (out / FOLDER / DATASET_FILE).write_bytes(orjson.dumps(where))
    write_table(out / f"{name}-{rank}.parquet", table)


def read_report(out: Path, name: str) -> pa.Table:
    """All ranks' parts, in the order of ranks. Raises FormatError when there is none or one is damaged."""
    if name != f"{FOLDER}/{Path(name).name}":
        raise FormatError(f"{name!r} is no report of a run", hint=f"reports lie in {FOLDER}/")
    paths = sorted(out.glob(f"{name}-*.parquet"), key=lambda p: int(p.stem.rsplit("-", 1)[1]))
    if not paths:
        raise FormatError(f"the report {out / name}-*.parquet is gone")
    try:
        return pa.concat_tables([pq.read_table(path, schema=REPORT_SCHEMA) for path in paths])
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"the report {out / name}-*.parquet is damaged: {error}") from error


def remove_reports(out: Path, keep: int) -> None:
    """Remove the reports of events after the first `keep`: they belong to steps that are trained again."""
    for path in _reports(out):
        if int(path.stem.split("-")[1]) > keep:
            path.unlink()


def _reports(out: Path) -> Iterator[Path]:
    folder = out / FOLDER
    yield from sorted(folder.glob("*-*-*.parquet")) if folder.is_dir() else []
