"""Clustering without files: planted similarities, components, leaders, keep policy, and real licence texts."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data_helper import shared_data
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.curate.dedup.clustering import EXACT, KEPT, MINHASH, Clusters, Documents, find_clusters
from gristmill.curate.dedup.components import join
from gristmill.curate.dedup.exact import exact_groups
from gristmill.curate.dedup.groups import star_edges
from gristmill.curate.dedup.keep import UNKNOWN, date_numbers, keep_ranks
from gristmill.curate.dedup.leaders import elect
from gristmill.curate.dedup.signature import band_keys, minima, signatures, sketches, text_hash, words_of
from gristmill.curate.schema import Dedup, MinHash

SIZE = 120  # shingles of a synthetic document
RNG = np.random.default_rng


def fresh(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2**64, shape, np.uint64)


def corpus(shingles: np.ndarray, rng: np.random.Generator | None = None) -> tuple[Documents, Any]:
    """Documents of (D, SIZE) shingle hashes, and their sketch reader. Equal rows are exact copies."""
    n = len(shingles)
    signature = minima(shingles.ravel(), np.full(n, shingles.shape[1]), 112, 1)
    sketch = sketches(signature)
    hashes = np.array([np.frombuffer(text_hash(row.tobytes().hex()), "<u8") for row in shingles]).reshape(-1, 2)
    lengths = np.full(n, SIZE) if rng is None else rng.integers(1, 50, n)
    documents = Documents(hashes, band_keys(signature, 14), np.full(n, SIZE), lengths, np.full(n, UNKNOWN))
    return documents, lambda at: sketch[at]


def jaccards(shingles: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    shared = np.array([len(np.intersect1d(shingles[i], shingles[j])) for i, j in zip(left, right, strict=True)])
    return np.asarray(shared / (2 * SIZE - shared))


def check(found: Clusters) -> None:
    """What every clustering must satisfy."""
    own = np.arange(len(found.keeper))
    stays = found.reason == KEPT
    assert np.array_equal(stays, found.keeper == own)
    assert stays[found.keeper].all(), "a keeper was removed"
    assert found.cluster_size[stays].sum() == len(own)
    assert (found.component_size >= found.cluster_size).all()
    assert (found.cluster_size >= found.exact_copies).all()


def pairs(rng: np.random.Generator, n: int, shared: int) -> np.ndarray:
    """(2n, SIZE): rows 2i and 2i+1 share `shared` shingles."""
    base = fresh(rng, n, SIZE)
    other = fresh(rng, n, SIZE)
    other[:, :shared] = base[:, :shared]
    return np.stack([base, other], 1).reshape(-1, SIZE)


@pytest.mark.parametrize("shared", [80, 92, 99, 103, 107])  # J = .5 .622 .702 .752 .805
def test_planted_pairs_meet_the_s_curve(shared: int) -> None:
    n = 2000
    documents, read = corpus(pairs(RNG(shared), n, shared))
    found = find_clusters(documents, Dedup(minhash=MinHash(verify=None)), read)
    check(found)
    linked = np.mean(found.keeper[::2] == found.keeper[1::2])
    similarity = shared / (2 * SIZE - shared)
    expected = 1 - (1 - similarity**8) ** 14
    assert abs(linked - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
    verified = find_clusters(documents, Dedup(), read)
    check(verified)
    assert (verified.estimate[verified.reason == MINHASH] >= 0.7).all()
    together = verified.keeper[::2] == verified.keeper[1::2]
    assert not (together & (found.keeper[::2] != found.keeper[1::2])).any(), "verification adds no pair"
    if similarity == 0.5:
        assert together.sum() == 0
    if similarity > 0.8:
        assert together.mean() > linked - 0.01


def test_templates_stay_and_transitive_closure_eats_them() -> None:
    rng = RNG(1)
    shingles = np.repeat(fresh(rng, 10, SIZE), 100, 0)
    shingles[:, 75:] = fresh(rng, len(shingles), SIZE - 75)  # all pairs of a template at J = 75/165 = .455
    documents, read = corpus(shingles)
    verified = find_clusters(documents, Dedup(), read)
    check(verified)
    assert (verified.reason == KEPT).all()
    assert verified.component_size.max() > 1
    closed = find_clusters(documents, Dedup(minhash=MinHash(verify=None)), read)
    check(closed)
    assert (closed.reason != KEPT).sum() > 100


def test_drift_chains_are_bounded() -> None:
    rng = RNG(2)
    chains, links = 40, 20
    shingles = np.repeat(fresh(rng, chains, SIZE), links, 0)
    for j in range(1, links):  # each step keeps 110 of 120: J = .846 to its neighbour
        shingles[j::links] = shingles[j - 1 :: links]
        shingles[j::links, rng.permutation(SIZE)[110:]] = fresh(rng, chains, 10)
    documents, read = corpus(shingles)
    found = find_clusters(documents, Dedup(), read)
    check(found)
    gone = np.flatnonzero(found.reason != KEPT)
    truth = jaccards(shingles, gone, found.keeper[gone])
    assert len(gone) > chains * links / 3
    assert truth.min() > 0.5
    assert (truth < 0.6).mean() < 0.01
    closed = find_clusters(documents, Dedup(minhash=MinHash(verify=None)), read)
    worst = np.flatnonzero(closed.reason != KEPT)
    assert jaccards(shingles, worst, closed.keeper[worst]).min() < 0.3


def test_a_bucket_of_ten_thousand_copies_is_linear() -> None:
    members, roots = star_edges(np.full(10_000, 7, np.uint64), np.arange(5, 10_005))
    assert len(members) == 9_999
    assert set(roots.tolist()) == {5}
    shingles = np.repeat(fresh(RNG(3), 1, SIZE), 10_000, 0)
    documents, read = corpus(shingles[:1])
    many = Documents(*(np.repeat(getattr(documents, f), 10_000, 0) for f in documents.__dataclass_fields__))
    for exact in (True, False):
        found = find_clusters(many, Dedup(exact=exact), lambda at: read(np.zeros(len(at), np.int64)))
        check(found)
        assert (found.reason == KEPT).sum() == 1
        assert found.keeper.max() == 0
        assert found.reason[1] == (EXACT if exact else MINHASH)
        assert {int(x[0]) for x in (found.cluster_size, found.exact_copies, found.component_size)} == {10_000}


def test_all_unique_and_empty_corpora() -> None:
    documents, read = corpus(fresh(RNG(4), 300, SIZE))
    found = find_clusters(documents, Dedup(), read)
    check(found)
    assert (found.reason == KEPT).all()
    assert found.component_size.max() == 1
    documents, read = corpus(fresh(RNG(4), 0, SIZE))
    assert len(find_clusters(documents, Dedup(), read).keeper) == 0


def test_wordless_documents_pair_by_exact_hash_only() -> None:
    documents, read = corpus(fresh(RNG(5), 4, SIZE))
    hashes = documents.hashes.copy()
    hashes[1] = hashes[0]
    same = Documents(hashes, np.zeros((4, 14), np.uint64), np.zeros(4, np.int64), documents.lengths, documents.dates)
    found = find_clusters(same, Dedup(), read)
    assert found.keeper.tolist() == [0, 0, 2, 3]
    assert found.reason.tolist() == [KEPT, EXACT, KEPT, KEPT]


def test_dedup_kinds_can_be_switched_off() -> None:
    rng = RNG(6)
    shingles = fresh(rng, 3, SIZE)
    shingles[1] = shingles[0]
    shingles[2, :118] = shingles[0, :118]
    documents, read = corpus(shingles)
    off = find_clusters(documents, Dedup(minhash=None), read)
    assert off.reason.tolist() == [KEPT, EXACT, KEPT]
    near = find_clusters(documents, Dedup(exact=False), read)
    assert near.reason.tolist() == [KEPT, MINHASH, MINHASH]
    assert near.exact_copies.tolist() == [2, 2, 1]
    both = find_clusters(documents, Dedup(), read)
    assert both.reason.tolist() == [KEPT, EXACT, MINHASH]
    assert both.cluster_size.tolist() == both.component_size.tolist() == [3, 3, 3]


def mixed(rng: np.random.Generator) -> np.ndarray:
    """Clusters of ten around a base, pairs at several similarities, exact copies and single documents."""
    around = np.repeat(fresh(rng, 12, SIZE), 10, 0)
    for row in around:
        row[rng.permutation(SIZE)[110:]] = fresh(rng, 10)
    parts = [
        around,
        pairs(rng, 40, 99),
        pairs(rng, 40, 112),
        np.repeat(fresh(rng, 10, SIZE), 5, 0),
        fresh(rng, 100, SIZE),
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("verify", [None, 0.7])
def test_a_second_pass_over_survivors_removes_nothing(verify: float | None) -> None:
    rng = RNG(7)
    shingles = mixed(rng)
    documents, read = corpus(shingles, rng)
    config = Dedup(minhash=MinHash(verify=verify))
    first = find_clusters(documents, config, read)
    check(first)
    stays = np.flatnonzero(first.reason == KEPT)
    assert 0 < len(stays) < len(shingles)
    left = Documents(*(getattr(documents, f)[stays] for f in documents.__dataclass_fields__))
    again = find_clusters(left, config, lambda at: read(stays[at]))
    assert (again.reason == KEPT).all()


def test_the_keeper_comes_first_by_policy() -> None:
    rng = RNG(8)
    documents, read = corpus(mixed(rng), rng)
    for keep, better in (("longest", np.greater_equal), ("shortest", np.less_equal)):
        found = find_clusters(documents, Dedup.model_validate({"keep": [keep]}), read)
        check(found)
        assert better(documents.lengths[found.keeper], documents.lengths).all()


def test_ranks() -> None:
    lengths = np.array([5, 9, 9, 1])
    dates = np.array([30, 20, 10, UNKNOWN])
    order = {
        ("longest",): [1, 2, 0, 3],
        ("longest", "earliest"): [2, 1, 0, 3],
        ("shortest",): [3, 0, 1, 2],
        ("earliest",): [2, 1, 0, 3],
        ("latest",): [0, 1, 2, 3],
        (): [0, 1, 2, 3],
    }
    for keep, expected in order.items():
        assert np.argsort(keep_ranks(keep, lengths, dates)).tolist() == expected


def test_dates() -> None:
    texts = ["2024-03-01T12:00:00Z", "2024-03-01", "20240301120000", "2024-03-01T12:00:00.5Z", None, "", "soon", "2024"]
    assert date_numbers(pa.array(texts)).tolist() == [
        20240301120000000,
        20240301000000000,
        20240301120000000,
        20240301120000500,
        UNKNOWN,
        UNKNOWN,
        UNKNOWN,
        20240000000000000,
    ]
    assert date_numbers(pa.array([None, None], pa.string())).tolist() == [UNKNOWN] * 2


def test_exact_groups_take_the_copy_of_lowest_rank() -> None:
    hashes = np.array([[1, 1], [2, 1], [1, 1], [1, 2], [1, 1]], np.uint64)
    representative, copies = exact_groups(hashes, np.array([4, 0, 1, 2, 3]))
    assert representative.tolist() == [2, 1, 2, 3, 2]
    assert copies.tolist() == [3, 1, 3, 1, 3]


def union_find(n: int, edges: list[tuple[int, int]]) -> list[int]:
    parent = list(range(n))

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in edges:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(x) for x in range(n)]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2), max_size=60))
    )
)
def test_components_equal_union_find(graph: tuple[int, list[tuple[int, int]]]) -> None:
    n, edges = graph
    array = np.array(edges, np.int64).reshape(-1, 2)
    labels = np.arange(n)
    whole = join(labels, array[:, 0], array[:, 1])
    assert labels.tolist() == list(range(n)), "the argument is left alone"
    assert whole.tolist() == union_find(n, edges)
    half = len(edges) // 2
    parts = join(join(labels, array[:half, 0], array[:half, 1]), array[half:, 1], array[half:, 0])
    assert np.array_equal(parts, whole)


def test_long_paths() -> None:
    n = 20_000
    shuffled = RNG(9).permutation(n)
    for path in (np.arange(n), shuffled):
        assert not join(np.arange(n), path[1:], path[:-1]).any()


def test_leader_cap_still_finds_copies_over_shared_keys() -> None:
    rng = RNG(10)
    base = fresh(rng, 30, SIZE)
    shingles = np.concatenate([base, base])
    signature = minima(shingles.ravel(), np.full(60, SIZE), 112, 1)
    keys, sketch = band_keys(signature, 14), sketches(signature)
    for cap in (1, 8, 64):
        leader, value = elect(sketch, keys, 0.7, cap)
        assert leader.tolist() == [*range(30), *range(30)]
        assert (value == 1).all()


# Real near duplicates


def test_licences_against_exact_jaccard() -> None:
    with gzip.open(shared_data("dedup/spdx-licenses.jsonl.gz"), "rt", encoding="utf-8") as f:
        rows = sorted((json.loads(line) for line in f), key=lambda r: r["id"])
    with gzip.open(shared_data("dedup/spdx-licenses-pairs.jsonl.gz"), "rt", encoding="utf-8") as f:
        known = [json.loads(line) for line in f]
    texts = [r["text"] for r in rows]
    place = {r["id"]: i for i, r in enumerate(rows)}
    signature, counts = signatures(texts, MinHash())
    sketch = sketches(signature)
    documents = Documents(
        np.array([np.frombuffer(text_hash(t), "<u8") for t in texts]),
        band_keys(signature, 14),
        counts,
        np.array([len(t) for t in texts]),
        np.full(len(texts), UNKNOWN),
    )
    linked = find_clusters(documents, Dedup(minhash=MinHash(verify=None)), lambda at: sketch[at])
    found = find_clusters(documents, Dedup(), lambda at: sketch[at])
    check(linked)
    check(found)
    high = [(place[p["a"]], place[p["b"]]) for p in known if p["jaccard"] >= 0.85]
    assert len(high) > 200
    recall = np.mean([linked.keeper[a] == linked.keeper[b] for a, b in high])
    both_kept = np.mean([found.reason[a] == KEPT and found.reason[b] == KEPT for a, b in high])
    assert recall > 0.98  # 1 - (1 - .85^8)^14 = .988 for the least of them
    assert both_kept < 0.03
    shingles = [{tuple(w[i : i + 5]) for i in range(max(len(w) - 4, 1))} for w in map(words_of, texts)]
    gone = np.flatnonzero(found.reason != KEPT)
    truth = [
        len(shingles[i] & shingles[k]) / len(shingles[i] | shingles[k])
        for i, k in zip(gone, found.keeper[gone], strict=True)
    ]
    assert len(gone) > 100
    assert min(truth) >= 0.5
