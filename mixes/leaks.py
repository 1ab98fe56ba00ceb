"""Near duplicates of held-out documents among those that are trained on (E108): only where ids, not clusters, are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.core.settings import Document
from gristmill.mixes.catalogue import hash_texts, raw_ids
from gristmill.mixes.membership import memberships
from gristmill.mixes.plan import raise_at
from gristmill.mixes.schema import Mixture

Tables = Callable[[Path], Iterator[pa.Table]]


def check_leaks(
    mixture: Mixture, paths: Sequence[Path], tables: Tables, heldout: np.ndarray, document: Document | None = None
) -> None:
    """Raises UsageError (E108) when a document of any source shares the near-duplicate cluster of a held-out one.

    tables: a docs.parquet in batches, with id, dup_cluster and what memberships need. heldout: (H,) V16 raw ids. Reads the
    tables twice; with `key: dup_cluster` there is nothing to look for, and nothing is read.
    """
    if mixture.heldout is None or mixture.heldout.key != "id" or not len(heldout):
        return
    ids = np.sort(heldout.view("S16"))  # V16 has no order of its own
    clusters = np.unique(np.concatenate([_clusters(t)[_is_in(t, ids)] for path in paths for t in tables(path)]))
    leaked = 0
    for path in paths:
        for table in tables(path):
            trained = np.logical_or.reduce(list(memberships(mixture, table).values()))
            leaked += int((trained & ~_is_in(table, ids) & np.isin(_clusters(table), clusters)).sum())
    if leaked:
        text = (
            f"E108 {leaked:,} documents that are trained on are near duplicates of held-out ones: their loss says little "
            "of unseen text"
        )
        raise_at([(("heldout", "key"), text, "hold out whole clusters: key: dup_cluster")], document)


def _clusters(table: pa.Table) -> np.ndarray:
    """(D,) uint64; a document without a cluster is one of its own."""
    keys, ids = table["dup_cluster"].to_pylist(), table["id"].to_pylist()
    return hash_texts(pa.array([key or id_ for key, id_ in zip(keys, ids, strict=True)], pa.string()))


def _is_in(table: pa.Table, ids: np.ndarray) -> np.ndarray:
    own = raw_ids(table["id"]).view("S16")
    at = np.minimum(np.searchsorted(ids, own), len(ids) - 1)
    return np.asarray(ids[at] == own)
