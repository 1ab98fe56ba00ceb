"""From a packed row or a single token to the documents it came from, and from a document to the rows that hold it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.tokshards import PackedDataset

COLUMNS = ["id", "url", "date", "warc_file", "warc_offset", "warc_length", "language"]


@dataclass(frozen=True)
class Piece:
    """A stretch of one document inside one row; starts and lengths are in tokens."""

    phase: str
    row: int
    row_start: int
    length: int
    source: str
    id: str
    doc_start: int
    store: int
    doc: int
    epoch: int


def pieces_of(dataset: PackedDataset, phase: str, row: int) -> list[Piece]:
    """The pieces of one row in order, padding left out. Raises FormatError when the row does not exist."""
    return _Rows(dataset).pieces(phase, row)


def trace_rows(dataset: PackedDataset, root: Path, rows: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Every piece of (phase, row) pairs, in that order, with its document's URL and place in the WARC files.

    Keys: source, id, url, warc_file (input-relative), warc_offset, warc_length, phase, row, row_start, doc_start,
    length, epoch, language, date. `root` is the run's folder, where the token stores are. Raises FormatError when a
    row or a document is gone.
    """
    reader, stores = _Rows(dataset), _Stores(dataset, root)
    return [_traced(piece, stores) for phase, row in rows for piece in reader.pieces(phase, row)]


def trace_token(dataset: PackedDataset, root: Path, phase: str, row: int, pos: int) -> dict[str, Any]:
    """The piece that holds token `pos` (0..L) of a row, with `token`, its id, and `document_position`, its place.

    The document's own tokens are counted from 0. Raises UsageError when `pos` is padding or outside the row.
    """
    tokens, _ = dataset.row(phase, row)
    if not 0 <= pos < len(tokens):
        raise UsageError(f"row {phase}:{row} has positions 0..{len(tokens) - 1}, not {pos}")
    pieces = pieces_of(dataset, phase, row)
    for piece in pieces:
        if piece.row_start <= pos < piece.row_start + piece.length:
            place = piece.doc_start + pos - piece.row_start
            return {**_traced(piece, _Stores(dataset, root)), "token": int(tokens[pos]), "document_position": place}
    raise UsageError(
        f"position {pos} of row {phase}:{row} is padding", hint=f"its documents end at {sum(p.length for p in pieces)}"
    )


def find_document(dataset: PackedDataset, id_or_url: str, root: Path) -> list[dict[str, Any]]:
    """Every place of a document in the dataset, by id (32 hex digits) or URL: what `trace_rows` gives, in row order.

    Empty when it is in no row. Reads the provenance of every shard.
    """
    is_id = len(id_or_url) == 32 and set(id_or_url) <= set("0123456789abcdef")
    return find_documents(dataset, [id_or_url] if is_id else _Stores(dataset, root).ids_of(id_or_url), root)


def find_documents(dataset: PackedDataset, ids: Collection[str], root: Path) -> list[dict[str, Any]]:
    """Every place of many documents, given by id, in row order: what `trace_rows` gives. One pass over the provenance."""
    wanted = pa.array([bytes.fromhex(i) for i in ids], pa.binary(16))
    stores, rows = _Stores(dataset, root), _Rows(dataset)
    out = []
    for phase in dataset.manifest.phases:
        for shard in range(len(phase.shards)):
            table = rows.table(phase.name, shard)
            out += [
                _traced(p, stores) for p in _pieces(phase.name, table.filter(pc.is_in(table["id"], value_set=wanted)))
            ]
    return out


def stored_documents(dataset: PackedDataset, root: Path) -> Iterator[tuple[Path, pa.Table]]:
    """(docs.parquet, its table of COLUMNS) of each token store that the dataset was packed from.

    Where one has moved, of every store under the root.
    """
    stores = _Stores(dataset, root)
    paths = stores.paths if all(path.exists() for path in stores.paths) else stores.all_paths()
    for path in paths:
        table = stores.table(path)
        if table is not None:
            yield path, table


def _traced(piece: Piece, stores: _Stores) -> dict[str, Any]:
    document = stores.document(piece)
    return {
        "source": piece.source,
        "id": piece.id,
        **{n: document[n] for n in ("url", "warc_file", "warc_offset", "warc_length")},
        "phase": piece.phase,
        "row": piece.row,
        "row_start": piece.row_start,
        "doc_start": piece.doc_start,
        "length": piece.length,
        "epoch": piece.epoch,
        "language": document["language"],
        "date": document["date"],
    }


def _pieces(phase: str, table: pa.Table) -> Iterator[Piece]:
    for r in table.to_pylist():
        r["id"] = r["id"].hex()
        yield Piece(phase=phase, **r)


class _Rows:
    """Provenance by row; each shard's table is read once."""

    def __init__(self, dataset: PackedDataset) -> None:
        self.dataset = dataset
        self._tables: dict[tuple[str, int], tuple[pa.Table, np.ndarray]] = {}

    def table(self, phase: str, shard: int) -> pa.Table:
        return self._load(phase, shard)[0]

    def _load(self, phase: str, shard: int) -> tuple[pa.Table, np.ndarray]:
        if (phase, shard) not in self._tables:
            reader, _ = self.dataset.locate(phase, shard * self.dataset.manifest.phase(phase).rows_per_shard)
            table = reader.provenance()
            if len(self._tables) >= 8:  # rows of one batch are neighbours: few shards are in use at a time
                self._tables.pop(next(iter(self._tables)))
            self._tables[phase, shard] = (table, table["row"].to_numpy())
        return self._tables[phase, shard]

    def pieces(self, phase: str, row: int) -> list[Piece]:
        self.dataset.locate(phase, row)
        table, rows = self._load(phase, row // self.dataset.manifest.phase(phase).rows_per_shard)
        begin, end = np.searchsorted(rows, [row, row + 1])
        return list(_pieces(phase, table.slice(begin, end - begin)))


class _Stores:
    """Documents of the token stores by (store, doc); a store that moved is searched for by document id."""

    def __init__(self, dataset: PackedDataset, root: Path) -> None:
        self.paths = [Path(root) / s["path"] for s in dataset.manifest.stores]
        self.root = Path(root)
        self._tables: dict[Path, pa.Table] = {}

    def table(self, path: Path) -> pa.Table | None:
        if path not in self._tables:
            try:
                self._tables[path] = pq.read_table(path, columns=COLUMNS)
            except (OSError, pa.ArrowException):
                return None
        return self._tables[path]

    def all_paths(self) -> list[Path]:
        return sorted(self.root.glob("stages/tokens/*/docs.parquet"))

    def _elsewhere(self) -> Iterator[pa.Table]:
        for path in self.all_paths():
            table = self.table(path)
            if table is not None:
                yield table

    def document(self, piece: Piece) -> dict[str, Any]:
        """The document's row of docs.parquet. Raises FormatError when no store under the root has it."""
        table = self.table(self.paths[piece.store]) if piece.store < len(self.paths) else None
        if table is not None and piece.doc < table.num_rows and table["id"][piece.doc].as_py() == piece.id:
            return dict(table.slice(piece.doc, 1).to_pylist()[0])
        for table in self._elsewhere():
            found = table.filter(pc.equal(table["id"], piece.id))
            if found.num_rows:
                return dict(found.slice(0, 1).to_pylist()[0])
        raise FormatError(
            f"no token store under {self.root} has document {piece.id}",
            hint="the tokens stage's outputs were removed; run the same command again",
        )

    def ids_of(self, url: str) -> list[str]:
        """Ids of the documents with this URL, in the dataset's stores or, where those are gone, any under the root."""
        tables = [t for t in map(self.table, self.paths) if t is not None] or list(self._elsewhere())
        found = {i for t in tables for i in t.filter(pc.equal(t["url"], url))["id"].to_pylist()}
        return sorted(found)
