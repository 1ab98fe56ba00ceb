"""Which documents each source of a mixture draws from: filters over the token stores' tables, minus what is held out.

Only lengths, ids and the columns that filters name are read, never a token, and one batch of documents at a time: what
a source has is counted, and spooled to disk in (store, doc) order where it will be drawn from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError
from gristmill.core.hashing import mix64, seed_of
from gristmill.core.settings import Document, Loc
from gristmill.mixes.buckets import Buckets
from gristmill.mixes.catalogue import DOCUMENT, hash_texts, hex_ids, raw_ids
from gristmill.mixes.leaks import check_leaks
from gristmill.mixes.membership import (
    Nones,
    Overlaps,
    check_columns,
    columns_of,
    draw_weights,
    memberships,
    store_schema,
)
from gristmill.mixes.plan import raise_at
from gristmill.mixes.schema import HeldOut, Mixture

BATCH = 32_768
"""Documents whose columns are held at a time: some 15 MB with ids and clusters."""


@dataclass(frozen=True)
class Stock:
    """One source: how many documents it may draw from, and how many are held out of it.

    tokens: of one epoch, a document of weight w counted w times, as it is drawn.
    """

    name: str
    documents: int
    draws: int
    tokens: int
    heldout: int
    heldout_tokens: int
    beyond: dict[int, int] = field(default_factory=dict)
    """{width of a row: tokens of one epoch behind a document's first so many}, for stages that truncate."""


@dataclass(frozen=True)
class Catalogue:
    """All sources in the mixture's order, what is held out, and what every store has.

    heldout: (H,) DOCUMENT and its source by `heldout_of`, by source and then in (store, doc) order. stores: documents
    and tokens of each. number: the bucket of each source in the spool. shared: documents that two sources share (W210).
    """

    stock: list[Stock]
    heldout: np.ndarray
    heldout_of: list[str]
    stores: list[tuple[int, int]]
    number: dict[str, int]
    shared: dict[tuple[str, str], int]
    of_stores: dict[str, list[int]]

    def __getitem__(self, name: str) -> Stock:
        return next(s for s in self.stock if s.name == name)

    def heldout_table(self) -> pa.Table:
        """(id, source, store, doc, length) of the held-out documents."""
        columns = {
            "id": pa.array(hex_ids(self.heldout["id"]), pa.string()),
            "source": pa.array(self.heldout_of, pa.string()),
            **{n: pa.array(self.heldout[n], pa.int32()) for n in ("store", "doc", "length")},
        }
        return pa.table(columns)


class _Tally:
    """What a source has so far."""

    def __init__(self, widths: Sequence[int] = ()) -> None:
        self.documents = self.draws = self.tokens = 0
        self.beyond = dict.fromkeys(widths, 0)
        self.stores: list[int] = []  # it has documents in, ascending
        self.candidates: list[tuple[np.ndarray, np.ndarray]] = []  # documents that may be held out, and their ranks

    def add(self, documents: np.ndarray) -> np.ndarray:
        """Count (n,) documents and return one record per draw."""
        weight = documents["weight"].astype(np.int64)
        self.documents += len(documents)
        self.draws += int(weight.sum())
        self.tokens += int((weight * documents["length"]).sum())
        for width in self.beyond:
            self.beyond[width] += int((weight * np.maximum(documents["length"].astype(np.int64) - width, 0)).sum())
        if (weight == 1).all():
            return documents
        drawn = np.repeat(documents, weight)
        drawn["copy"] = np.arange(len(drawn)) - np.repeat(np.cumsum(weight) - weight, weight)
        return drawn


def scan(
    paths: Sequence[Path], mixture: Mixture, spool: Buckets | None = None, document: Document | None = None
) -> Catalogue:
    """Count the documents of the stores whose docs.parquet are given, in order; with `spool`, keep those to draw from.

    Raises FormatError on a damaged file and UsageError (E102, E103, E108) for columns that no store has, for sources in use
    that have no documents, and for held-out documents whose copies are trained on; with `document`, the YAML, at their places.
    """
    tallies: dict[str, _Tally] = {}
    overlaps, nones = Overlaps(), Nones()
    stores = []
    schema = store_schema(paths)
    check_columns(mixture, schema, document)
    threshold = mixture.heldout.per_source.docs if mixture.heldout else 0.0
    number: dict[str, int] = {}
    widths = sorted({p.seq_len + 1 for p in mixture.stages if mixture.packing(p) == "bfd-truncate"})

    def keep(name: str, documents: np.ndarray) -> None:
        if len(documents):
            drawn = tallies[name].add(documents)
            if spool is not None:
                spool.add(drawn, number[name])

    for store, path in enumerate(paths):
        count = tokens = 0
        for table in _tables(path, mixture, schema):
            records, members, rank = _records(path, table, mixture, store, count, tokens)
            count += len(records)
            tokens += int(records["length"].sum(dtype=np.int64))
            overlaps.add(members, records["hash"])
            nones.add(mixture, table, members)
            maybe = rank < np.uint64(int(threshold * 2**64)) if threshold else None
            for name, member in members.items():
                if name not in tallies:
                    number[name] = len(number)
                    tallies[name] = _Tally(widths)
                if not member.any():
                    continue
                if store not in tallies[name].stores[-1:]:
                    tallies[name].stores.append(store)
                mine = records[member]
                mine["weight"] = draw_weights(mixture, name, table)[member]
                if maybe is not None and (aside := maybe[member]).any():
                    tallies[name].candidates.append((mine[aside], rank[member][aside]))
                    mine = mine[~aside]
                keep(name, mine)
        stores.append((count, tokens))
    if clashes := nones.faults(mixture):
        raise_at(clashes, document)
    names = sorted(tallies, key=lambda n: (list(mixture.sources).index(mixture.parent(n)), n))
    candidates = {n: _joined(tallies[n].candidates) for n in names}
    clusters = _held_clusters(mixture.heldout, candidates)
    held: dict[str, np.ndarray] = {}
    for name, (documents, rank) in candidates.items():
        out = np.isin(rank, clusters)
        held[name] = documents[out]
        keep(name, documents[~out])  # behind the others, but the order of drawing is by hash
    stock = [
        Stock(
            name=n,
            documents=tallies[n].documents,
            draws=tallies[n].draws,
            tokens=tallies[n].tokens,
            heldout=len(held[n]),
            heldout_tokens=int(held[n]["length"].sum(dtype=np.int64)),
            beyond=tallies[n].beyond,
        )
        for n in names
    ]
    _refuse_empty(mixture, stock, sum(n for n, _ in stores), document)
    everything = np.concatenate([np.empty(0, DOCUMENT), *held.values()])
    heldout_of = [n for n in names for _ in range(len(held[n]))]
    check_leaks(mixture, paths, lambda path: _tables(path, mixture, schema), everything["id"], document)
    of_stores = {n: tallies[n].stores for n in names}
    return Catalogue(stock, everything, heldout_of, stores, number, overlaps.found(), of_stores)


def _tables(path: Path, mixture: Mixture, schema: pa.Schema) -> Iterator[pa.Table]:
    """A docs.parquet in batches, with the columns that the mixture reads; null where this store lacks one."""
    wanted = {"id", "length", "offset", *columns_of(mixture)}
    if mixture.heldout:
        wanted |= {mixture.heldout.key, "dup_cluster"}
    try:
        with pq.ParquetFile(path) as file:
            names = [n for n in file.schema_arrow.names if n in wanted]
            for batch in file.iter_batches(batch_size=BATCH, columns=names, use_threads=False):
                table = pa.Table.from_batches([batch])
                for name in sorted(wanted - set(names)):
                    table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
                yield table
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise FormatError(f"{path} is no document table of a token store: {error}") from error


def _records(
    path: Path, table: pa.Table, mixture: Mixture, store: int, first: int, begin: int
) -> tuple[np.ndarray, Mapping[str, np.ndarray], np.ndarray]:
    """The batch's (D,) DOCUMENT records, each source's membership, and (D,) ranks for holding out."""
    records = np.zeros(table.num_rows, DOCUMENT)
    try:
        lengths = table["length"].to_numpy().astype(np.int64)
        records["offset"] = table["offset"].to_numpy()
        records["id"] = raw_ids(table["id"])
        records["hash"] = hash_texts(table["id"])
    except (KeyError, pa.ArrowException, ValueError, FormatError) as error:
        raise FormatError(f"{path} is no document table of a token store: {error}") from error
    records["length"], records["store"] = lengths, store
    records["doc"] = np.arange(first, first + len(records))
    if (lengths < 0).any() or (records["offset"] != begin + np.cumsum(lengths) - lengths).any():
        raise FormatError(f"{path}: documents do not stand back to back")
    rank = records["hash"]
    if mixture.heldout:
        keys = table[mixture.heldout.key]
        keys = pc.if_else(pc.equal(pc.fill_null(keys, ""), ""), table["id"], keys)
        rank = mix64(hash_texts(keys), seed_of(mixture.seed, "heldout"))
    return records, memberships(mixture, table), rank


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    documents = np.concatenate([np.empty(0, DOCUMENT), *(d for d, _ in parts)])
    return documents, np.concatenate([np.empty(0, np.uint64), *(r for _, r in parts)])


def _held_clusters(spec: HeldOut | None, candidates: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The ranks of the clusters that are held out, ascending.

    A cluster's rank is its key's hash under the seed. The clusters whose rank lies in the lowest `docs` part of 2^64,
    the candidates, are held out of every source, lowest first; with `max_tokens` only those that keep each of their
    sources within it.
    """
    clusters = np.unique(np.concatenate([np.empty(0, np.uint64), *(r for _, r in candidates.values())]))
    most = spec.per_source.max_tokens if spec else None
    if most is None:
        return clusters
    # (cluster, source) pairs that there are, not a table of all: sources can be thousands of children
    places = [np.searchsorted(clusters, r) * len(candidates) + i for i, (_, r) in enumerate(candidates.values())]
    pairs, of_pair = np.unique(np.concatenate([np.empty(0, np.int64), *places]), return_inverse=True)
    tokens = np.zeros(len(pairs), np.int64)
    np.add.at(tokens, of_pair, np.concatenate([np.empty(0, np.int64), *(d["length"] for d, _ in candidates.values())]))
    cluster, source = np.divmod(pairs, max(len(candidates), 1))
    edges = np.searchsorted(cluster, np.arange(len(clusters) + 1))
    used = np.zeros(len(candidates), np.int64)
    fits = np.zeros(len(clusters), bool)
    for i, (begin, end) in enumerate(itertools.pairwise(edges.tolist())):
        after = used[source[begin:end]] + tokens[begin:end]
        fits[i] = (after <= most).all()
        if fits[i]:
            used[source[begin:end]] = after
    return clusters[fits]


def _refuse_empty(mixture: Mixture, stock: Sequence[Stock], total: int, document: Document | None) -> None:
    """Raise E103 for every source in use that has no documents. A child that there is not is the plan's E102."""
    has = {s.name for s in stock if s.documents} | {mixture.parent(s.name) for s in stock if s.documents}
    heldout = {s.name: s.heldout for s in stock}
    faults = []
    for name in dict.fromkeys([*mixture.sources, *(n for phase in mixture.stages for n in phase.mix)]):
        using = [i for i, phase in enumerate(mixture.stages) if name in phase.mix]
        if name in has or mixture.parent(name) in has or not using:
            continue
        source = mixture.sources[mixture.parent(name)]
        what = " and ".join(f"{k} {v!r}" for k, v in (("filter", source.filter), ("path", source.path)) if v)
        lost = heldout.get(name, 0)
        why = f" once {lost} are held out" if lost else f": {what or 'no stores'} selects none"
        loc: Loc = ("stages", using[0], "mix", name)
        if source.filter or source.path:
            loc = ("sources", mixture.parent(name), "filter" if source.filter else "path")
        text = f"E103 source `{name}` has no documents{why}, of {total:,} encoded"
        hint = "lower heldout.per_source.docs" if lost else "look at its filter and path"
        faults.append((loc, text, f"{hint}, or leave it out of the stages"))
    if faults:
        raise_at(faults, document)
