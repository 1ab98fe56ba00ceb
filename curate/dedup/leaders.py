"""Leader verification: inside a component, a document is removed only for its own similarity to the one that stays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gristmill.curate.dedup.signature import estimates

Int64s = NDArray[np.int64]
LEADER_CAP = 64
"""Leaders that are compared with all remaining members of a component; bounds the work at 64 sketches a document."""


def elect(
    sketch: NDArray[np.uint8], keys: NDArray[np.uint64], verify: float, cap: int = LEADER_CAP
) -> tuple[Int64s, NDArray[np.float64]]:
    """Leaders of one component whose members are given in keep order: (M,) leader positions and (M,) estimates.

    The first member leads and takes every member whose estimated Jaccard to it reaches `verify`; the rest repeat. A
    leader has itself as leader and estimate 1. After `cap` leaders (a component of many unlike documents) each
    remaining member looks only at the first leader that holds each of its band keys and joins the earliest leader
    that verifies, else leads itself: at most `bands` comparisons a document.
    """
    n = len(sketch)
    leader, value = np.arange(n), np.ones(n)
    rest = np.arange(n)
    leaders: list[int] = []
    while len(rest) and len(leaders) < cap:
        head, tail = int(rest[0]), rest[1:]
        leaders.append(head)
        similarity = estimates(sketch[head], sketch[tail])
        taken = similarity >= verify
        leader[tail[taken]] = head
        value[tail[taken]] = similarity[taken]
        rest = tail[~taken]
    holders: dict[tuple[int, int], int] = {}
    for head in leaders if len(rest) else ():
        for key in enumerate(keys[head].tolist()):
            holders.setdefault(key, head)
    for member in rest.tolist():
        own = list(enumerate(keys[member].tolist()))
        candidates = np.array(sorted({holders[key] for key in own if key in holders}), np.int64)
        similarity = estimates(sketch[member], sketch[candidates])
        passing = np.flatnonzero(similarity >= verify)
        if len(passing):
            leader[member] = candidates[passing[0]]
            value[member] = similarity[passing[0]]
        else:
            for key in own:
                holders.setdefault(key, member)
    return leader, value
