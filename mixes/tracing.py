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
from gristmill.core.tokshards import PROVENANCE_SCHEMA, PackedDataset
from gristmill.mixes.index import NAMED, open_index

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
    """Every place of a document in the dataset, by id (32 hex digits), URL or the id that it was imported with: what `trace_rows` gives, in row order.

    Empty when it is in no row. Answered from the find index, which is built on first use where the dataset has none.
    """
    stores, rows, index = _Stores(dataset, root), _Rows(dataset), open_index(dataset, root)
    if is_id(id_or_url):
        ids = {id_or_url}
    else:
        ids = {i for i in (stores.id_of(*place, id_or_url) for place in index.documents(id_or_url)) if i is not None}
        if not ids and stores.moved:
            ids = set(stores.ids_of(id_or_url))
    places = sorted({place for document in ids for place in index.rows(document)})
    phases = dataset.manifest.phases
    found = (piece for i, row in places if i < len(phases) for piece in rows.pieces(phases[i].name, row))
    return [_traced(piece, stores) for piece in found if piece.id in ids]


def heldout_documents(dataset: PackedDataset, id_or_url: str, root: Path) -> list[dict[str, Any]]:
    """The held-out documents of an id, URL or imported id, with COLUMNS, null where their store is gone.

    Raises FormatError when heldout.parquet is damaged.
    """
    path = dataset.folder / "heldout.parquet"
    if not path.exists():
        return []
    try:
        table = pq.read_table(path, columns=["id", "store", "doc"])
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    stores = _Stores(dataset, root)
    if is_id(id_or_url):
        ids = [id_or_url]
    else:
        places = open_index(dataset, root).documents(id_or_url)
        ids = [i for i in (stores.id_of(*place, id_or_url) for place in places) if i is not None]
        if not ids and stores.moved:
            ids = stores.ids_of(id_or_url)
    found = table.filter(pc.is_in(table["id"], value_set=pa.array(ids, pa.string()))).to_pylist()
    out = []
    for place in found:
        row = stores.row(place["store"], place["doc"]) or {}
        facts = row if row.get("id") == place["id"] else {}
        out.append({**{name: facts.get(name) for name in COLUMNS}, "id": place["id"]})
    return out


def is_id(text: str) -> bool:
    """Whether a text is a document's id, not a URL."""
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


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
    """Provenance by row; what is read of a shard is one row group, where its file has several."""

    def __init__(self, dataset: PackedDataset) -> None:
        self.dataset = dataset
        self._groups: dict[tuple[str, int, int], tuple[pa.Table, np.ndarray]] = {}

    def table(self, phase: str, shard: int) -> pa.Table:
        """A whole shard's provenance."""
        reader, _ = self.dataset.locate(phase, shard * self.dataset.manifest.phase(phase).rows_per_shard)
        return reader.provenance()

    def pieces(self, phase: str, row: int) -> list[Piece]:
        reader, _ = self.dataset.locate(phase, row)
        shard = row // self.dataset.manifest.phase(phase).rows_per_shard
        path = f"{reader.base}.prov.parquet"
        out: list[Piece] = []
        for group in _groups_of(path, row):
            key = (phase, shard, group)
            if key not in self._groups:
                if len(self._groups) >= 8:  # rows of one batch are neighbours: few groups are in use at a time
                    self._groups.pop(next(iter(self._groups)))
                with pq.ParquetFile(path) as file:
                    table = file.read_row_group(group).select(PROVENANCE_SCHEMA.names).cast(PROVENANCE_SCHEMA)
                self._groups[key] = (table, table["row"].to_numpy())
            table, rows = self._groups[key]
            begin, end = np.searchsorted(rows, [row, row + 1])
            out += _pieces(phase, table.slice(begin, end - begin))
        return out


def _groups_of(path: str, row: int) -> list[int]:
    """The row groups of a provenance file that may hold a row, by the statistics of its first column."""
    meta = pq.read_metadata(path)
    column = PROVENANCE_SCHEMA.names.index("row")
    out = []
    for i in range(meta.num_row_groups):
        statistics = meta.row_group(i).column(column).statistics
        if statistics is None or not statistics.has_min_max or statistics.min <= row <= statistics.max:
            out.append(i)
    return out


class _Stores:
    """Documents of the token stores by (store, doc); a store that moved is searched for by document id."""

    def __init__(self, dataset: PackedDataset, root: Path) -> None:
        self.paths = [Path(root) / s["path"] for s in dataset.manifest.stores]
        self.root = Path(root)
        self._ends: dict[Path, np.ndarray | None] = {}
        self._groups: dict[tuple[Path, int], pa.Table] = {}

    @property
    def moved(self) -> bool:
        return not all(path.exists() for path in self.paths)

    def table(self, path: Path) -> pa.Table | None:
        """A whole document table (COLUMNS); None where it cannot be read."""
        try:
            return pq.read_table(path, columns=COLUMNS)
        except (OSError, pa.ArrowException):
            return None

    def row(self, store: int, doc: int) -> dict[str, Any] | None:
        """One document of a store, read with its row group; None where there is none."""
        if store >= len(self.paths):
            return None
        path = self.paths[store]
        if path not in self._ends:
            try:
                meta = pq.read_metadata(path)
                self._ends[path] = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)])
            except (OSError, pa.ArrowException):
                self._ends[path] = None
        ends = self._ends[path]
        if ends is None or not len(ends) or not 0 <= doc < ends[-1]:
            return None
        group = int(np.searchsorted(ends, doc, "right"))
        if (path, group) not in self._groups:
            if len(self._groups) >= 64:
                self._groups.pop(next(iter(self._groups)))
            with pq.ParquetFile(path) as file:
                own = [name for name in NAMED if name in file.schema_arrow.names and name not in COLUMNS]
                self._groups[path, group] = file.read_row_group(group, columns=[*COLUMNS, *own])
        first = int(ends[group - 1]) if group else 0
        return dict(self._groups[path, group].slice(doc - first, 1).to_pylist()[0])

    def id_of(self, store: int, doc: int, name: str) -> str | None:
        """The id of a document, if it has this URL or came with this id."""
        row = self.row(store, doc)
        return str(row["id"]) if row is not None and name in (row[n] for n in NAMED if n in row) else None

    def all_paths(self) -> list[Path]:
        return sorted(self.root.glob("stages/*tokens/*/docs.parquet"))

    def _elsewhere(self) -> Iterator[pa.Table]:
        for path in self.all_paths():
            table = self.table(path)
            if table is not None:
                yield table

    def document(self, piece: Piece) -> dict[str, Any]:
        """The document's row of docs.parquet. Raises FormatError when no store under the root has it."""
        row = self.row(piece.store, piece.doc)
        if row is not None and row["id"] == piece.id:
            return row
        for table in self._elsewhere():
            found = table.filter(pc.equal(table["id"], piece.id))
            if found.num_rows:
                return dict(found.slice(0, 1).to_pylist()[0])
        raise FormatError(
            f"no token store under {self.root} has document {piece.id}",
            hint="the tokens stage's outputs were removed; run the same command again",
        )

    def ids_of(self, url: str) -> list[str]:
        """Ids of the documents with this URL in any store under the root: reads them all."""
        found = {i for t in self._elsewhere() for i in t.filter(pc.equal(t["url"], url))["id"].to_pylist()}
        return sorted(found)
