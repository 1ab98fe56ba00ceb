"""Packing and drawing as properties: nothing lost, nothing twice, cursors that go on, epochs re-keyed and complete."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.mixes import draw
from gristmill.mixes.buckets import Buckets
from gristmill.mixes.catalogue import DOCUMENT
from gristmill.mixes.draw import Cursor, Draws
from gristmill.mixes.order import permutation
from gristmill.mixes.pack import WINDOW, best_fit_decreasing, pack

lengths_lists = st.lists(st.integers(1, 90), min_size=1, max_size=40)
METHODS = ["bfd", "bfd-truncate", "concat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


def records(lengths: list[int], weights: list[int] | None = None) -> np.ndarray:
    """Documents numbered by `doc`, one record per draw."""
    out = np.zeros(len(lengths), DOCUMENT)
    out["length"], out["doc"] = lengths, np.arange(len(lengths))
    out["hash"] = np.arange(len(lengths), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    out["weight"] = 1 if weights is None else weights
    drawn = np.repeat(out, out["weight"])
    drawn["copy"] = [c for w in out["weight"] for c in range(w)]
    return drawn


def draws_of(folder: Path, documents: list[int] | np.ndarray, seed: int = 1, source: str = "web") -> Draws:
    spool = Buckets(folder / "documents", DOCUMENT)
    spool.add(records(documents) if isinstance(documents, list) else documents, 0)
    return Draws(spool, 0, seed, source, folder)


def order(draws: Draws, epoch: int) -> np.ndarray:
    """The documents of one epoch."""
    return draws.ahead(Cursor(epoch * draws.total), draws.total, 1 << 60)[0]


def packed(draws: Draws, cursor: Cursor, rows: int, *args: Any) -> tuple[np.ndarray, Cursor, int]:
    """(n, 6) row, row_start, document, doc_start, length, use of the pieces in order; the cursor; tokens truncated."""
    parts: list[np.ndarray] = [np.empty((0, 6), np.int64)]
    truncated = 0
    for window in pack(draws, cursor, rows, *args):
        p = window.pieces
        columns = (
            p.row,
            p.row_start,
            window.documents["doc"][p.document],
            p.doc_start,
            p.length,
            window.uses[p.document],
        )
        parts.append(np.stack([np.asarray(c, np.int64) for c in columns], axis=1))
        cursor = window.cursor
        truncated += window.truncated
    found = np.concatenate(parts)
    return found[np.lexsort((found[:, 1], found[:, 0]))], cursor, truncated


def read_order(draws: Draws, tokens: int, most: int = 1 << 60) -> list[tuple[int, int, int]]:
    """The (use, document, token) stream of a source, one by one: what packing may take, in the order of documents."""
    out: list[tuple[int, int, int]] = []
    epoch = 0
    while len(out) < tokens:
        for document in order(draws, epoch):
            use = epoch * int(document["weight"]) + int(document["copy"])
            out += [(use, int(document["doc"]), i) for i in range(min(int(document["length"]), most))]
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
    st.sampled_from(METHODS),
    st.integers(1, 6) | st.just(512),
    st.sampled_from([3, WINDOW]),
    st.lists(st.integers(1, 3), min_size=40, max_size=40) | st.none(),
)
@example([90] * 3, 7, [1, 2, 30], "bfd", 512, WINDOW, None)
@example([1, 90], 5, [1, 1, 1], "concat", 2, WINDOW, None)
def test_packing_loses_and_repeats_nothing(
    folder: Path,
    lengths: list[int],
    capacity: int,
    calls: list[int],
    method: str,
    most: int,
    window: int,
    weights: list[int] | None,
) -> None:
    """Several phases over one source: the tokens placed are exactly a prefix of its stream, each once, each row sound."""
    documents = records(lengths, weights[: len(lengths)] if weights else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "PART", 5)  # so that a source has several parts on disk
        draws = draws_of(folder, documents)
        cursor = Cursor()
        placed: Counter[tuple[int, int, int]] = Counter()
        for rows in calls:
            pieces, cursor, _ = packed(draws, cursor, rows, capacity, method, most, window)
            row, start, _, _, length, _ = pieces.T
            assert set(row.tolist()) == set(range(rows))
            assert np.bincount(row).max() <= most
            ends = start + length
            assert ends.max() <= capacity
            first = np.r_[True, row[1:] != row[:-1]]
            assert (start[first] == 0).all()
            assert (start[~first] == ends[:-1][~first[1:]]).all()  # back to back: no gap, no overlap
            for _, _, d, s, n, e in pieces.tolist():
                placed.update((e, d, i) for i in range(s, s + n))
        total = sum(placed.values())
        stream = read_order(draws, total + 1, capacity if method == "bfd-truncate" else 1 << 60)
        assert placed == Counter(stream[:total])
        # the cursor names the first token not placed
        epoch, nth = divmod(cursor.documents, draws.total)
        following = order(draws, epoch)[nth]
        use = epoch * int(following["weight"]) + int(following["copy"])
        assert (use, int(following["doc"]), cursor.tokens) == stream[total]
        draws.close()


@settings(max_examples=100, deadline=None)
@given(lengths_lists, st.integers(3, 33), st.integers(1, 30))
def test_bfd_cuts_only_documents_longer_than_a_row(folder: Path, lengths: list[int], capacity: int, rows: int) -> None:
    pieces, cursor, _ = packed(draws_of(folder, lengths), Cursor(), rows, capacity, "bfd", 512)
    whole = Counter((e, d) for _, _, d, _, _, e in pieces.tolist())
    for (_, document), n in whole.items():
        assert n == 1 or lengths[document] > capacity
    assert cursor.tokens == 0 or cursor.tokens % capacity == 0  # a phase edge cuts at a row's end


def test_truncation_counts_what_it_drops(folder: Path) -> None:
    lengths = [5, 40, 8, 90, 3]
    pieces, cursor, truncated = packed(draws_of(folder, lengths), Cursor(), 3, 8, "bfd-truncate", 512)
    gone = sum(max(lengths[d] - 8, 0) for d in pieces[:, 2].tolist())
    assert truncated == gone > 0
    assert len(pieces) == cursor.documents == len(set(pieces[:, 2].tolist()))
    # a phase that cut a document hands its rest to one that truncates: the rest is what is cut short then
    draws = draws_of(folder, [100])
    _, cursor, _ = packed(draws, Cursor(), 2, 8, "bfd", 512)
    pieces, cursor, truncated = packed(draws, cursor, 1, 8, "bfd-truncate", 512)
    assert (pieces.tolist(), cursor, truncated) == ([[0, 0, 0, 16, 8, 0]], Cursor(1, 0), 100 - 24)


def test_concat_fills_every_row(folder: Path) -> None:
    pieces, _, _ = packed(draws_of(folder, [5, 9, 14]), Cursor(), 11, 8, "concat", 512)
    assert int(pieces[:, 4].sum()) == 11 * 8


@pytest.mark.parametrize("method", METHODS)
def test_a_source_that_rounds_to_no_rows_packs_nothing(method: str, folder: Path) -> None:
    assert list(pack(draws_of(folder, [5, 9, 3]), Cursor(1, 4), 0, 8, method, 512)) == []


def test_bfd_pads_little(folder: Path) -> None:
    """Log-normal lengths like the web's at rows of 1,025 tokens, with a phase edge in the middle of a window."""
    spread = np.clip(np.random.default_rng(0).lognormal(6.332, 1.1, 20_000), 16, 2**20).astype(np.int64)
    rows = int(spread.sum() // 1025) - 5
    pieces, _, _ = packed(draws_of(folder, spread.tolist()), Cursor(), rows, 1025, "bfd", 512)
    assert len(np.unique(pieces[:, 0])) == rows
    assert 1 - pieces[:, 4].sum() / (rows * 1025) < 0.0005


def test_epochs_are_rekeyed_and_complete(folder: Path) -> None:
    draws = draws_of(folder, [3] * 200)
    first, second = order(draws, 0)["doc"].tolist(), order(draws, 1)["doc"].tolist()
    assert sorted(first) == sorted(second) == list(range(200))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10  # about 1 by chance
    assert order(draws_of(folder, [3] * 200, source="books"), 0)["doc"].tolist() != first
    assert order(draws_of(folder, [3] * 200, seed=2), 0)["doc"].tolist() != first


def test_a_document_of_weight_three_is_drawn_three_times_an_epoch_apart(folder: Path) -> None:
    draws = draws_of(folder, records([4] * 300, [3 if i % 10 == 0 else 1 for i in range(300)]))
    found = order(draws, 1)["doc"]
    assert np.bincount(found).tolist() == [3 if i % 10 == 0 else 1 for i in range(300)]
    gaps = np.diff(np.flatnonzero(found == 0))
    assert gaps.min() > 1
    uses = draws.ahead(Cursor(draws.total), draws.total, 1 << 60)[1]
    assert sorted(uses[found == 0].tolist()) == [3, 4, 5]  # earlier uses: three in epoch 0


def test_order_does_not_depend_on_listing_or_on_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = records(list(range(1, 1001)))
    want = order(draws_of(folder, documents), 3)["doc"].tolist()
    shuffled = documents[permutation(1000, 5, "x", "y")]
    assert order(draws_of(folder, shuffled), 3)["doc"].tolist() == want
    monkeypatch.setattr(draw, "PART", 10)
    spread = draws_of(folder, shuffled)
    assert order(spread, 3)["doc"].tolist() == want
    some, _ = spread.ahead(Cursor(3700), 250, 1 << 60)
    assert some["doc"].tolist() == want[700:950]  # resumes at any document


def test_more_uses_than_the_provenance_can_say_are_refused(folder: Path) -> None:
    from gristmill.core.errors import UsageError
    from gristmill.mixes.assign import MOST_USES, _pieces

    draws = draws_of(folder, records([8], [40]))
    for epoch, fits in ((MOST_USES // 40 - 1, True), (MOST_USES // 40 + 1, False)):
        [window] = pack(draws, Cursor(epoch * draws.total), 40, 8, "bfd", 512)
        if fits:
            assert _pieces(window, np.arange(40), 0)["epoch"].max() == epoch * 40 + 39
        else:
            with pytest.raises(UsageError, match="E104 a document would be used more than 32,767 times"):
                _pieces(window, np.arange(40), 0)
