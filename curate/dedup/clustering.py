"""Duplicate clusters of a whole corpus on one machine: exact groups, bands, components, leaders, one keeper each.

Documents are rows 0..D-1 in ascending order of id, so nothing here depends on the order or the split of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gristmill.curate.dedup.components import join
from gristmill.curate.dedup.exact import exact_groups
from gristmill.curate.dedup.groups import star_edges
from gristmill.curate.dedup.keep import keep_ranks
from gristmill.curate.dedup.leaders import elect
from gristmill.curate.schema import Dedup

Int64s = NDArray[np.int64]
KEPT, EXACT, MINHASH = 0, 1, 2
REASONS = (None, "dedup.exact", "dedup.minhash")
"""Names of the reason codes above."""

SketchReader = Callable[[Int64s], NDArray[np.uint8]]
"""Reads the sketches of some documents, given as ascending ordinals: (M, K) uint8."""


@dataclass(frozen=True)
class Documents:
    """What clustering reads of D documents, in id order. Bytes a document: 16 + 8 * bands + 8 * 3."""

    hashes: NDArray[np.uint64]  # (D, 2) text hash
    keys: NDArray[np.uint64]  # (D, bands) band keys; (D, 0) without MinHash
    shingles: Int64s  # (D,) 0 for documents without words
    lengths: Int64s  # (D,) characters
    dates: Int64s  # (D,) see keep.date_numbers

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Clusters:
    """For each of D documents: who stays for it, why it goes, and how large its groups are."""

    keeper: Int64s  # ordinal; the document itself when it stays
    reason: NDArray[np.int8]  # KEPT, EXACT or MINHASH
    estimate: NDArray[np.float64]  # estimated Jaccard to the keeper; NaN unless removed by verified MinHash
    cluster_size: Int64s  # documents that share its keeper, exact copies included
    exact_copies: Int64s  # documents with its text hash, itself included
    component_size: Int64s  # documents reachable over shared band keys, before verification, exact copies included


def find_clusters(documents: Documents, settings: Dedup, read_sketches: SketchReader) -> Clusters:
    """Cluster a corpus. Deterministic in the documents alone.

    With `exact` off, copies go through the bands like any other pair. With `verify` null, each component is one
    cluster (transitive closure) and sketches are not read.
    """
    n = len(documents)
    ranks = keep_ranks(settings.keep, documents.lengths, documents.dates)
    representative, copies = exact_groups(documents.hashes, ranks)
    own = np.arange(n)
    if not settings.exact:
        representative = own
    single = representative == own  # the documents that MinHash compares
    weight = np.bincount(representative, minlength=n)
    labels = own
    if settings.minhash is not None:
        compared = np.flatnonzero(single & (documents.shingles > 0))
        for band in range(documents.keys.shape[1]):
            labels = join(labels, *star_edges(documents.keys[compared, band], compared))
    component_weight = np.bincount(labels, weights=weight, minlength=n).astype(np.int64)
    leader, estimate = _lead(documents, settings, labels, ranks, single, read_sketches)
    keeper = leader[representative]
    reason = np.where(keeper == own, KEPT, np.where(single, MINHASH, EXACT)).astype(np.int8)
    return Clusters(
        keeper=keeper,
        reason=reason,
        estimate=np.where(reason == MINHASH, estimate, np.nan),
        cluster_size=np.bincount(keeper, minlength=n)[keeper],
        exact_copies=copies,
        component_size=component_weight[labels[representative]],
    )


def _lead(
    documents: Documents,
    settings: Dedup,
    labels: Int64s,
    ranks: Int64s,
    single: NDArray[np.bool_],
    read_sketches: SketchReader,
) -> tuple[Int64s, NDArray[np.float64]]:
    """(D,) leader of every representative and (D,) estimate to it (NaN where none was made)."""
    n = len(labels)
    leader, estimate = np.arange(n), np.full(n, np.nan)
    sizes = np.bincount(labels[single], minlength=n)
    members = np.flatnonzero(single & (sizes[labels] > 1))
    if not len(members):
        return leader, estimate
    verify = settings.minhash.verify if settings.minhash is not None else None
    order = np.lexsort((ranks[members], labels[members]))
    starts = np.flatnonzero(np.diff(labels[members[order]], prepend=-1))
    ends = np.append(starts[1:], len(order))
    if verify is None:
        leader[members[order]] = np.repeat(members[order[starts]], ends - starts)
        return leader, estimate
    sketch = read_sketches(members)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        part = order[start:end]
        at, value = elect(sketch[part], documents.keys[members[part]], verify)
        leader[members[part]] = members[part[at]]
        estimate[members[part]] = value
    return leader, estimate
