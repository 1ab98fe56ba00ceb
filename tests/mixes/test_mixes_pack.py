"""Packing, drawing and ordering as properties: nothing lost, nothing twice, even prefixes, bijections, cursors that go on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.mixes import pack as packing
from gristmill.mixes.draw import Cursor, Draws
from gristmill.mixes.order import destinations, interleave, largest_remainder, permutation
from gristmill.mixes.pack import best_fit_decreasing, pack

lengths_lists = st.lists(st.integers(1, 90), min_size=1, max_size=40)


def draws_of(lengths: list[int], seed: int = 1) -> Draws:
    hashes = np.arange(len(lengths), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return Draws(hashes, np.asarray(lengths, np.int64), seed, "web")


def read_order(draws: Draws, tokens: int) -> list[tuple[int, int, int]]:
    """The (epoch, document, token) stream of a source, one by one: what packing may take, in the order of documents."""
    out: list[tuple[int, int, int]] = []
    epoch = 0
    while len(out) < tokens:
        for document in draws.order(epoch).tolist():
            out += [(epoch, document, i) for i in range(int(draws.lengths[document]))]
        epoch += 1
    return out


def plain_bfd(lengths: list[int], capacity: int) -> list[int]:
    """Best fit decreasing one piece at a time: sorted fill levels of the rows."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [f for f in free if f >= length]
        if fitting:
            free.remove(min(fitting))
            free.append(min(fitting) - length)
        else:
            free.append(capacity - length)
    return sorted(free)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 64))
def test_batched_bfd_is_bfd(lengths: list[int], capacity: int) -> None:
    row_of, rows = best_fit_decreasing(np.asarray(lengths, np.int64), capacity, 1000)
    filled = np.bincount(row_of, weights=lengths, minlength=rows) if lengths else np.zeros(0)
    assert sorted((capacity - filled).astype(int).tolist()) == plain_bfd(lengths, capacity)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(1, 5))
def test_bfd_keeps_the_piece_limit(lengths: list[int], most: int) -> None:
    row_of, rows = best_fit_decreasing(np.asarray(lengths, np.int64), 40, most)
    assert np.bincount(row_of, minlength=rows).max() <= most
    assert np.bincount(row_of, weights=lengths, minlength=rows).max() <= 40
    assert set(row_of.tolist()) == set(range(rows))


@settings(max_examples=200, deadline=None)
@given(
    lengths_lists,
    st.integers(3, 33),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sampled_from(["bfd", "concat"]),
    st.integers(1, 6) | st.just(512),
    st.sampled_from([3, 65_536]),
)
@example([90] * 3, 7, [1, 2, 30], "bfd", 512, 65_536)
@example([1, 90], 5, [1, 1, 1], "concat", 2, 65_536)
def test_packing_loses_and_repeats_nothing(
    lengths: list[int], capacity: int, calls: list[int], method: str, most: int, window: int
) -> None:
    """Several phases over one source: the tokens placed are exactly a prefix of its stream, each once, each row sound."""
    draws = draws_of(lengths)
    cursor = Cursor()
    placed: Counter[tuple[int, int, int]] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW", window)
        for rows in calls:
            pieces, cursor = pack(draws, cursor, rows, capacity, method, most)
            assert set(pieces.row.tolist()) == set(range(rows))
            assert np.bincount(pieces.row).max() <= most
            order = np.lexsort((pieces.row_start, pieces.row))
            assert (order == np.arange(len(pieces))).all()
            ends = pieces.row_start + pieces.length
            assert ends.max() <= capacity
            first = np.r_[True, pieces.row[1:] != pieces.row[:-1]]
            assert (pieces.row_start[first] == 0).all()
            assert (pieces.row_start[~first] == ends[:-1][~first[1:]]).all()  # back to back: no gap, no overlap
            for d, e, s, n in zip(
                pieces.document.tolist(),
                pieces.epoch.tolist(),
                pieces.doc_start.tolist(),
                pieces.length.tolist(),
                strict=True,
            ):
                placed.update((e, d, i) for i in range(s, s + n))
    total = sum(placed.values())
    stream = read_order(draws, total + 1)
    assert placed == Counter(stream[:total])
    before = Counter((e, d) for e, d, _ in stream[:total])  # the cursor names the first token not placed
    epoch, nth = divmod(cursor.documents, len(lengths))
    assert (epoch, int(draws.order(epoch)[nth]), cursor.tokens) == stream[total]
    assert cursor.documents == sum(n == lengths[d] for (_, d), n in before.items())


@settings(max_examples=100, deadline=None)
@given(lengths_lists, st.integers(3, 33), st.integers(1, 30))
def test_bfd_cuts_only_documents_longer_than_a_row(lengths: list[int], capacity: int, rows: int) -> None:
    pieces, cursor = pack(draws_of(lengths), Cursor(), rows, capacity, "bfd", 512)
    whole = Counter((int(e), int(d)) for e, d in zip(pieces.epoch, pieces.document, strict=True))
    for (_, document), n in whole.items():
        assert n == 1 or lengths[document] > capacity
    assert cursor.tokens == 0 or cursor.tokens % capacity == 0  # a phase edge cuts at a row's end


def test_concat_fills_every_row() -> None:
    pieces, _ = pack(draws_of([5, 9, 14]), Cursor(), 11, 8, "concat", 512)
    assert int(pieces.length.sum()) == 11 * 8


@pytest.mark.parametrize("method", ["bfd", "concat"])
def test_a_source_that_rounds_to_no_rows_packs_nothing_and_moves_no_cursor(method: str) -> None:
    pieces, cursor = pack(draws_of([5, 9, 3]), Cursor(1, 4), 0, 8, method, 512)
    assert len(pieces.row) == 0
    assert cursor == Cursor(1, 4)


def test_bfd_pads_little() -> None:
    """Log-normal lengths like the web's at rows of 1,025 tokens, with a phase edge in the middle of a window."""
    spread = np.clip(np.random.default_rng(0).lognormal(6.332, 1.1, 20_000), 16, 2**20).astype(np.int64)
    rows = int(spread.sum() // 1025) - 5
    pieces, _ = pack(draws_of(spread.tolist()), Cursor(), rows, 1025, "bfd", 512)
    assert len(np.unique(pieces.row)) == rows
    assert 1 - pieces.length.sum() / (rows * 1025) < 0.0005


def test_epochs_are_rekeyed_and_complete() -> None:
    draws = draws_of([3] * 200)
    first, second = draws.order(0).tolist(), draws.order(1).tolist()
    assert sorted(first) == sorted(second) == list(range(200))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10  # about 1 by chance
    other = Draws(draws.hashes, draws.lengths, draws.seed, "books")
    assert other.order(0).tolist() != first
    assert draws_of([3] * 200, seed=2).order(0).tolist() != first


def test_order_does_not_depend_on_how_documents_are_listed() -> None:
    draws = draws_of(list(range(1, 101)))
    shuffled = permutation(100, 5, "x", "y")
    again = Draws(draws.hashes[shuffled], draws.lengths[shuffled], draws.seed, draws.source)
    assert (again.hashes[again.order(3)] == draws.hashes[draws.order(3)]).all()


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
