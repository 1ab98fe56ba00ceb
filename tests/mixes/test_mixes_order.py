"""The order of rows as properties: even prefixes, exact counts, bijections, pinned values; compiled loops and their twins."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.core.hashing import hash64
from gristmill.mixes.catalogue import hash_texts, hex_ids, raw_ids
from gristmill.mixes.order import destinations, interleave, largest_remainder, permutation


def plain_interleave(counts: list[int]) -> list[int]:
    """Earliest deadline first with two heaps and whole products, as the paper has it."""
    total = sum(counts)
    out = []
    waiting = [(0, i, 0) for i, n in enumerate(counts) if n]  # (first slot, source, item)
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []  # (deadline, source, item)
    for slot in range(total):
        while waiting and waiting[0][0] <= slot:
            _, i, item = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(item + 1) * total // counts[i]), i, item))
        _, i, item = heapq.heappop(ready)
        out.append(i)
        if item + 1 < counts[i]:
            heapq.heappush(waiting, ((item + 1) * total // counts[i], i, item + 1))
    return out


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=45).filter(any))
@example([1] * 45)
@example([2, 3, 5, 7, 11, 13] * 7)
def test_the_compiled_schedule_is_the_plain_one(counts: list[int]) -> None:
    assert interleave(counts).tolist() == plain_interleave(counts)


def test_the_schedule_of_many_rows_keeps_every_prefix_even() -> None:
    """Published weights of many sources, over rows whose products would not fit 32 bits."""
    weights = np.random.default_rng(3).dirichlet(np.full(41, 0.3))
    counts = np.asarray(largest_remainder(weights.tolist(), 300_000))
    out = interleave(counts.tolist())
    for i in np.flatnonzero(counts):
        seen = np.cumsum(out == i)
        assert np.abs(seen * 300_000 - np.arange(1, 300_001) * counts[i]).max() < 300_000


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any))
@example([1, 1, 1, 997])
@example([0, 5])
def test_interleave_prefixes_are_even(counts: list[int]) -> None:
    out = interleave(counts)
    total = sum(counts)
    assert np.bincount(out, minlength=len(counts)).tolist() == counts
    for i, n in enumerate(counts):
        seen = np.cumsum(out == i)
        error = seen * total - np.arange(1, total + 1) * n  # in units of 1/total rows: integers, so < 1 is exact
        assert np.abs(error).max() < total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any), st.integers(0, 2**63 - 1))
def test_destinations_cover_every_row_once(counts: list[int], seed: int) -> None:
    names = [f"s{i}" for i in range(len(counts))]
    places = destinations(counts, names, seed, "warm")
    assert [len(p) for p in places] == counts
    assert sorted(np.concatenate(places).tolist()) == list(range(sum(counts)))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 8, 1000])
def test_permutation_is_a_bijection(n: int) -> None:
    assert sorted(permutation(n, 7, "warm", "web").tolist()) == list(range(n))


def test_permutation_moves_rows_far_and_by_name() -> None:
    p = permutation(5000, 7, "warm", "web")
    assert abs(np.corrcoef(np.arange(5000), p)[0, 1]) < 0.05
    assert (p != permutation(5000, 7, "anneal", "web")).mean() > 0.99
    assert (p != permutation(5000, 7, "warm", "books")).mean() > 0.99
    assert (p != permutation(5000, 8, "warm", "web")).mean() > 0.99
    assert p[:5].tolist() == [3390, 2472, 3551, 2232, 4607]  # pinned: a change moves every packed row


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20).filter(lambda w: sum(w) > 1e-3), st.integers(0, 10_000))
def test_largest_remainder(weights: list[float], total: int) -> None:
    counts = largest_remainder(weights, total)
    assert sum(counts) == total
    for n, w in zip(counts, weights, strict=True):
        assert abs(n - w / sum(weights) * total) < 1 + 1e-6


def test_hashes_and_raw_ids_of_documents() -> None:
    import pyarrow as pa

    from gristmill.core.errors import FormatError
    from gristmill.core.hashing import document_id

    ids = [document_id("a.warc.gz", i) for i in range(1000)]
    array = pa.array(ids, pa.string())
    assert hash_texts(array).tolist() == [hash64(i) for i in ids]
    assert hash_texts(array.slice(17, 40)).tolist() == [hash64(i) for i in ids[17:57]]
    assert hash_texts(pa.chunked_array([array[:3], array[3:9]])).tolist() == [hash64(i) for i in ids[:9]]
    assert hash_texts(pa.array(["short", "", "x" * 33])).tolist() == [hash64(t) for t in ("short", "", "x" * 33)]
    assert hash_texts(pa.array([], pa.string())).tolist() == []
    assert raw_ids(array.slice(5, 3)).tobytes() == bytes.fromhex("".join(ids[5:8]))
    assert hex_ids(raw_ids(array)) == ids
    for bad in (["f" * 31], ["g" * 32], ["F" * 32], [None], ["\u00e9" * 16]):
        with pytest.raises(FormatError, match="32 hex digits"):
            raw_ids(pa.array(bad, pa.string()))
