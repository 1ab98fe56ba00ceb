"""Signatures against datasketch itself, and the word and shingle rules they are built on."""

from __future__ import annotations

import itertools
import random

import datasketch
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.curate.dedup.signature import (
    BLOCK,
    band_keys,
    estimates,
    minima,
    shingle_hashes,
    signatures,
    sketches,
    text_hash,
    words_of,
)
from gristmill.curate.schema import MinHash

GOLDEN_MINIMA = [209587868, 340186095, 398629558, 414628933]
GOLDEN_KEYS = [263389272484937192, 905852471015378201]


def datasketch_minima(hashes: np.ndarray, count: int, seed: int) -> np.ndarray:
    peer = datasketch.MinHash(num_perm=count, seed=seed, scheme="affine32", hashfunc=lambda h: h)
    peer.update_batch([int(h) & 0xFFFFFFFF for h in hashes])
    return np.asarray(peer.hashvalues)


@pytest.mark.parametrize(("count", "seed"), [(112, 1), (112, 7), (20, 1)])
def test_minima_equal_datasketch_bit_for_bit(count: int, seed: int) -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([1, 3, 0, 700, 0, BLOCK + 5, 2, 50, 0])  # one document larger than a block, empty ones between
    hashes = rng.integers(0, 2**64, sizes.sum(), np.uint64)
    ours = minima(hashes, sizes, count, seed)
    assert ours.dtype == np.uint32
    assert ours.shape == (len(sizes), count)
    at = 0
    for row, size in zip(ours, sizes, strict=True):
        assert np.array_equal(row, datasketch_minima(hashes[at : at + size], count, seed))
        at += size


def test_whole_texts_equal_datasketch() -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choice("abcdefghijkl") for _ in range(rng.randrange(0, 60))) for _ in range(40)]
    config = MinHash()
    ours, counts = signatures(texts, config)
    for text, row, count in zip(texts, ours, counts, strict=True):
        hashes, (n,) = shingle_hashes([words_of(text)], config.ngram)
        assert n == count == len(hashes)
        assert np.array_equal(row, datasketch_minima(hashes, 112, 1))


def test_golden_values() -> None:
    """Another platform, Python or numpy must give these very bits, or its runs cannot be joined with ours."""
    ours, _ = signatures(["The quick brown fox jumps over the lazy dog, 12 times."], MinHash())
    assert ours[0, :4].tolist() == GOLDEN_MINIMA
    assert band_keys(ours, 14)[0, :2].tolist() == GOLDEN_KEYS


def test_batching_changes_nothing() -> None:
    rng = random.Random(2)
    texts = [" ".join(rng.choice("abcdefghijkl") for _ in range(rng.randrange(0, 30))) for _ in range(30)]
    whole, counts = signatures(texts, MinHash())
    for text, row, count in zip(texts, whole, counts, strict=True):
        alone, (n,) = signatures([text], MinHash())
        assert n == count
        assert np.array_equal(alone[0], row)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World! 3.14", ["hello", "world", "0", "00"]),
        ("Café CAFÉ cafe\u0301", ["cafe"] * 3),
        ("soft\u00adhyphen zero\u200bwidth", ["softhyphen", "zerowidth"]),
        ("a\tb\u00a0c\r\nd", ["a", "b", "c", "d"]),
        ("漢字とkana", ["漢", "字", "と", "kana"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("١٢ ৩", ["00", "0"]),
        ("€ — … 😀 §", []),
        ("", []),
        ("I'm x_y", ["i", "m", "x", "y"]),
        ("ΑΘΉΝΑ αθηνα", ["αθηνα"] * 2),
        ("bad\ud800surrogate", ["bad", "surrogate"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=9), max_size=6), st.integers(1, 6))
def test_shingles_are_exactly_the_word_ngrams(documents: list[list[str]], n: int) -> None:
    hashes, counts = shingle_hashes(documents, n)
    grams: dict[tuple[str, ...], int] = {}
    at = 0
    for words, count in zip(documents, counts.tolist(), strict=True):
        expected = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)] or ([tuple(words)] if words else [])
        assert count == len(expected)
        for gram, value in zip(expected, hashes[at : at + count].tolist(), strict=True):
            assert grams.setdefault(gram, value) == value
        at += count
    assert at == len(hashes)
    assert len(set(grams.values())) == len(grams)


def test_short_documents_pair_only_when_their_words_are_equal() -> None:
    ours, counts = signatures(["one two", "One, two!", "one two three", "two one", "", "!!!"], MinHash())
    assert counts.tolist() == [1, 1, 1, 1, 0, 0]
    equal = {(i, j) for i, j in itertools.combinations(range(4), 2) if np.array_equal(ours[i], ours[j])}
    assert equal == {(0, 1)}


def test_estimates_follow_the_true_jaccard() -> None:
    rng = np.random.default_rng(3)
    n, pairs = 120, 400
    for shared in (60, 90, 110):
        left = rng.integers(0, 2**64, (pairs, n), np.uint64)
        right = rng.integers(0, 2**64, (pairs, n), np.uint64)
        right[:, :shared] = left[:, :shared]
        sizes = np.full(pairs, n)
        a, b = (sketches(minima(x.ravel(), sizes, 112, 1)) for x in (left, right))
        values = np.array([estimates(x, y[None])[0] for x, y in zip(a, b, strict=True)])
        truth = shared / (2 * n - shared)
        spread = np.sqrt(truth * (1 - truth) / 112)
        assert abs(values.mean() - truth) < 4 * spread / np.sqrt(pairs)
        assert 0.8 * spread < values.std() < 1.25 * spread


def test_text_hash_sees_words_not_spaces() -> None:
    assert text_hash("a  b\n\nc ") == text_hash("a b c")
    assert text_hash("a b c") != text_hash("a b C")
    assert len(text_hash("")) == 16
    assert len(text_hash("\ud800")) == 16


def test_band_keys_differ_between_bands_for_equal_minima() -> None:
    keys = band_keys(np.full((2, 112), 5, np.uint32), 14)
    assert keys.shape == (2, 14)
    assert len(set(keys[0].tolist())) == 14
    assert np.array_equal(keys[0], keys[1])
