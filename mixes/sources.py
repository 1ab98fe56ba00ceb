"""Which documents each source of a mixture draws from: filters over the token stores' tables, minus what is held out.

Only lengths, ids and the columns that filters name are read, never a token.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.expression import compile_expression
from gristmill.core.hashing import hash64, mix64, seed_of
from gristmill.mixes.schema import HeldOut, Mixture, filter_schema


@dataclass(frozen=True)
class Documents:
    """The documents of all stores side by side, in (store, doc) order: parallel arrays of D.

    store, doc: int64, the store's ordinal and the row in its docs.parquet. lengths: int64 tokens. hashes: uint64 of ids.
    columns: what filters and held-out keys need.
    """

    store: np.ndarray
    doc: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    columns: pa.Table


@dataclass(frozen=True)
class Stock:
    """One source: the documents it may draw from and those held out of it, as ascending positions in `Documents`."""

    name: str
    documents: np.ndarray
    heldout: np.ndarray
    tokens: int
    heldout_tokens: int


def read_documents(paths: Sequence[Path], mixture: Mixture) -> Documents:
    """The documents of the stores whose docs.parquet are given, in order. Raises FormatError on a damaged file."""
    schema = filter_schema()
    names = {"id", "length"}
    for source in mixture.sources.values():
        names.update(compile_expression(source.filter, schema).columns if source.filter else ())
        names.update(["warc_file"] if source.path else ())
    if mixture.heldout:
        names.add(mixture.heldout.key)
    wanted = [n for n in schema.names if n in names]
    tables = []
    for path in paths:
        try:
            tables.append(pq.read_table(path, columns=wanted).cast(pa.schema([schema.field(n) for n in wanted])))
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            raise FormatError(f"{path} is no document table of a token store: {error}") from error
    columns = pa.concat_tables(tables) if tables else pa.schema([schema.field(n) for n in wanted]).empty_table()
    sizes = [t.num_rows for t in tables]
    ids = columns["id"].to_pylist()
    return Documents(
        store=np.repeat(np.arange(len(sizes)), sizes),
        doc=np.concatenate([np.empty(0, np.int64), *(np.arange(n) for n in sizes)]),
        lengths=columns["length"].to_numpy().astype(np.int64),
        hashes=np.fromiter((hash64(i) for i in ids), np.uint64, len(ids)),
        columns=columns,
    )


def stocks(mixture: Mixture, documents: Documents) -> list[Stock]:
    """Every source's documents, in the mixture's order. Raises UsageError (E103) for sources that have none."""
    members = {name: _members(mixture, name, documents) for name in mixture.sources}
    held = held_out(mixture.heldout, mixture.seed, documents, members)
    out = []
    faults = []
    for name, member in members.items():
        kept, out_of = np.flatnonzero(member & ~held), np.flatnonzero(member & held)
        tokens, lost = int(documents.lengths[kept].sum()), int(documents.lengths[out_of].sum())
        out.append(Stock(name, kept, out_of, tokens, lost))
        if not len(kept) and any(name in phase.mix for phase in mixture.stages):
            source = mixture.sources[name]
            what = " and ".join(f"{k} {v!r}" for k, v in (("filter", source.filter), ("path", source.path)) if v)
            why = f" once {len(out_of)} are held out" if len(out_of) else f": {what or 'no stores'} selects none"
            faults.append(f"E103 source `{name}` has no documents{why}, of {len(documents.lengths):,} encoded")
    if faults:
        raise UsageError("\n".join(faults), hint="`gristmill mix plan` counts documents without packing them")
    return out


def _members(mixture: Mixture, name: str, documents: Documents) -> np.ndarray:
    source = mixture.sources[name]
    keep = documents.lengths > 0
    if source.filter:
        expression = compile_expression(source.filter, filter_schema())
        keep &= expression.mask(documents.columns).to_numpy(zero_copy_only=False)
    if source.path:
        files = documents.columns["warc_file"].combine_chunks().dictionary_encode()
        names = files.dictionary.to_pylist()
        good = np.array([n is not None and fnmatch.fnmatchcase(n, source.path) for n in names] + [False])
        keep &= good[files.indices.fill_null(len(names)).to_numpy()]
    return keep


def held_out(spec: HeldOut | None, seed: int, documents: Documents, members: dict[str, np.ndarray]) -> np.ndarray:
    """(D,) bool: documents of held-out clusters.

    A cluster's rank is its key's hash under the seed. The clusters whose rank lies in the lowest `docs` part of 2^64
    are held out of every source, lowest first; with `max_tokens` only those that keep each of their sources within it.
    """
    held = np.zeros(len(documents.lengths), bool)
    if spec is None or not spec.per_source.docs or not len(held):
        return held
    ids = documents.columns["id"].to_pylist()
    keys = documents.columns[spec.key].to_pylist()
    hashed = np.fromiter((hash64(k or i) for k, i in zip(keys, ids, strict=True)), np.uint64, len(ids))
    rank = mix64(hashed, seed_of(seed, "heldout"))
    candidate = np.flatnonzero(rank < np.uint64(int(spec.per_source.docs * 2**64)))
    clusters, which = np.unique(rank[candidate], return_inverse=True)
    most = spec.per_source.max_tokens
    if most is not None:
        tokens = np.zeros((len(clusters), len(members)), np.int64)
        for column, member in enumerate(members.values()):
            np.add.at(tokens[:, column], which, np.where(member, documents.lengths, 0)[candidate])
        used = np.zeros(len(members), np.int64)
        fits = np.zeros(len(clusters), bool)
        for i, amount in enumerate(tokens):
            fits[i] = (used + amount <= most).all()
            used += amount * fits[i]
        clusters = clusters[fits]
    return np.isin(rank, clusters)
