"""Metrics: kernels equal their twins and datatrove's own functions; odd texts measure without a crash."""

from __future__ import annotations

import random
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.curate import kernels as K
from gristmill.curate import metrics
from gristmill.curate.measure import METRIC_SCHEMA, measure_batch
from gristmill.curate.metrics import layout_metrics, line_metrics
from gristmill.curate.metrics_c4 import POLICY_PHRASES
from gristmill.curate.schema import C4Rewrite
from gristmill.curate.words import STOP_WORDS, word_hash

WORDS = ["a", "b", "ab", "c", "bc", "abc", "é", "\x00", "word", "中"]


def columns(words: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([word_hash(w) for w in words], np.uint64),
        np.array([pow(K.BASE, len(w), K.PRIME) for w in words], np.uint64),
        np.cumsum(np.array([len(w) for w in words], np.int64)),
    )


def by_datatrove(words: list[str]) -> list[int]:
    from datatrove.pipeline.filters import gopher_repetition_filter as peer

    grams = [peer.get_n_grams(words, n) for n in K.TOP_SIZES]
    top = [peer.find_top_duplicate(g) if g else -1 for g in grams]
    return top + [peer.find_all_duplicate(words, n) for n in K.DUP_SIZES]


def test_numba_is_used_here() -> None:
    pytest.importorskip("numba")
    assert K.kernels().compiled


def test_without_numba_the_twins_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "gristmill.curate.kernels_numba", raising=False)
    monkeypatch.delattr("gristmill.curate.kernels_numba", raising=False)
    assert K.kernels.__wrapped__() is K.TWINS


def test_without_a_cache_folder_kernels_still_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    njit = numba.njit

    def refuse(*args: object, cache: bool = False, **kwargs: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **kwargs)

    monkeypatch.setattr(numba, "njit", refuse)
    kernels = K.kernels.__wrapped__()
    assert kernels.compiled
    assert kernels.ngrams(*columns(["a", "b"])).tolist() == by_datatrove(["a", "b"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=80), st.integers(1, 6))
def test_ngram_kernel_equals_twin_and_datatrove(words: list[str], repeat: int) -> None:
    words = words * repeat
    args = columns(words)
    kernel = K.kernels().ngrams(*args)
    assert kernel.dtype == np.int64
    assert kernel.tolist() == K.TWINS.ngrams(*args).tolist() == by_datatrove(words)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(range(6)), max_size=8), max_size=12))
def test_sentence_kernel_equals_twin(lines: list[list[int]]) -> None:
    kinds = np.array([[0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 1, 0], [2, 3, 1, 1], [1, 1, 0, 1]])
    rows = np.array([kind for line in lines for kind in line], np.int64)
    b0, b1 = (np.ascontiguousarray(kinds[:, i]).astype(np.int32) for i in (0, 1))
    s0, s1 = (np.ascontiguousarray(kinds[:, i]).astype(np.uint8) for i in (2, 3))
    ends = np.cumsum(np.array([len(line) for line in lines], np.int64)).astype(np.int64)
    assert K.kernels().sentences(rows, b0, b1, s0, s1, ends) == K.TWINS.sentences(rows, b0, b1, s0, s1, ends)


@given(st.lists(st.integers(0, 3), max_size=20))
def test_gather_kernel_equals_twin(rows: list[int]) -> None:
    words = [
        np.arange(6),
        np.arange(6, dtype=np.uint64) << 60,
        np.arange(6, dtype=np.uint64),
        np.arange(6, dtype=np.uint8),
    ]
    chunks = [np.array(rows, np.int64), np.array([0, 0, 1, 3]), np.array([0, 1, 2, 3])]
    kernel, twin = K.kernels().gather(*chunks, *words), K.TWINS.gather(*chunks, *words)
    assert [column.tolist() for column in kernel] == [column.tolist() for column in twin]
    assert [column.dtype for column in kernel] == [column.dtype for column in twin]


@given(st.lists(st.text(max_size=9), max_size=9))
def test_hash_kernel_equals_twin(words: list[str]) -> None:
    words = [word.encode("utf-8", "replace").decode() for word in words]
    codes = np.frombuffer(bytearray("".join(words), "utf-32-le"), np.uint32)
    lengths = np.array([len(word) for word in words], np.int64)
    kernel, twin = K.kernels().hashes(codes, lengths), K.TWINS.hashes(codes, lengths)
    assert kernel[0].tolist() == twin[0].tolist() == [word_hash(word) for word in words]
    assert kernel[1].tolist() == twin[1].tolist()


@given(st.lists(st.tuples(st.integers(0, K.PRIME - 1), st.integers(0, K.PRIME - 1)), min_size=1, max_size=20))
def test_mulmod(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(side, np.uint64) for side in zip(*pairs, strict=True))
    assert K.mulmod(a, b).tolist() == [x * y % K.PRIME for x, y in pairs]
    assert K.addmod(a, b).tolist() == [(x + y) % K.PRIME for x, y in pairs]


def test_hash_of_a_concatenation_follows_from_the_parts() -> None:
    for left, right in (("", "a"), ("ab", "c"), ("a", "bc"), ("\x00", "\x00\x00"), ("日本", "語")):
        shifted = word_hash(left) * pow(K.BASE, len(right), K.PRIME)
        assert (shifted + word_hash(right)) % K.PRIME == word_hash(left + right)


def test_four_meanings_of_one_threshold() -> None:
    """The vectors that tell datatrove's semantics from other tools'."""
    lines = "\n".join("AABBCDEFGH")
    assert line_metrics(lines, 10, lines.splitlines()).dup_lines == 0.2  # later copies only
    text = "a b c d e a b c d e"
    row = measure_batch([text], ["en"], None, 30).to_pylist()[0]
    assert row["raw.dup_5gram_chars"] == 5 / 19  # one copy, without its spaces, over all characters
    assert row["raw.top_2gram_chars"] == 6 / 19  # with its spaces


def test_tables_are_datatroves() -> None:
    from datatrove.pipeline.filters import c4_filters, gopher_quality_filter

    assert list(STOP_WORDS) == gopher_quality_filter.STOP_WORDS
    assert list(POLICY_PHRASES) == c4_filters.POLICY_SUBSTRINGS


ODD = [
    *(
        "",
        " ",
        "\n",
        "\n\n\n",
        "\x00",
        "\x00" * 300,
        "\ud800",
        "a\udfffb {",
        "\u2028",
        "\x85\x1c",
        "…",
        "...",
        "-",
        "{",
    ),
    *(
        "[1]",
        "[1] [2] [3]",
        "lorem ipsum",
        "\ufeff",
        "x" * 3000,
        "x " * 2000,
        "( " * 500,
        ":(" * 500,
        "é" * 2000,
        "\r\n" * 9,
    ),
]


@pytest.mark.parametrize("language", ["en", "de", "zh", "und", None])
def test_odd_texts(language: str | None) -> None:
    for min_words in (0, 3):
        c4 = C4Rewrite(min_words_per_line=min_words)
        table = measure_batch([*ODD, None], [language] * (len(ODD) + 1), c4, 30)
        assert table.schema == METRIC_SCHEMA
        assert table.num_rows == len(ODD) + 1
        for name in table.schema.names:
            if name.split(".")[1] in ("bullet_lines", "alpha_words", "dup_lines", "line_punctuation", "short_lines"):
                assert all(v is None or 0 <= v <= 1 for v in table.column(name).to_pylist())
        assert (table.column("c4.text").null_count == 0) == (language == "en")
        assert (table.column("raw.words").null_count == 0) == (language != "zh")
        assert (table.column("raw.stop_words").null_count == 0) == (language == "en")


def test_a_row_does_not_depend_on_its_batch() -> None:
    rng = random.Random(3)
    texts = ["\n".join(" ".join(rng.choices(WORDS, k=9)) + "." for _ in range(rng.randrange(12))) for _ in range(40)]
    languages = [rng.choice(["en", "de", "ja", "ru"]) for _ in texts]
    whole = measure_batch(texts, languages, C4Rewrite(), 30)
    alone = [measure_batch([t], [x], C4Rewrite(), 30).to_pylist()[0] for t, x in zip(texts, languages, strict=True)]
    assert whole.to_pylist() == alone


def test_twin_measures_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    texts = ["\n".join(" ".join(rng.choices(WORDS, k=30)) + "." for _ in range(6)) for _ in range(20)]
    compiled = measure_batch(texts, ["en"] * 20, C4Rewrite(), 30)
    import gristmill.curate.metrics as metrics
    from gristmill.curate import chunks, measure, segmenter, words

    for module in (metrics, words, segmenter):
        monkeypatch.setattr(module, "kernels", lambda: K.TWINS)
    monkeypatch.setattr(words, "chunk_table", chunks.ChunksTwin)
    monkeypatch.setattr(measure, "LEXICONS", words.Lexicons())
    assert measure_batch(texts, ["en"] * 20, C4Rewrite(), 30).equals(compiled)


def test_short_line_length_is_a_setting() -> None:
    text = "twelve chars\nthis one has more than twelve of them"
    assert layout_metrics(text, 10, 12).short_lines == 0.5
    assert layout_metrics(text, 10, 11).short_lines == 0.0


@pytest.mark.slow
def test_ten_megabytes_on_one_line() -> None:
    for text in ("a" * 10_000_000, "word " * 2_000_000, "\n" * 10_000_000, "\x00" * 10_000_000):
        row = measure_batch([text], ["en"], C4Rewrite(), 30).to_pylist()[0]
        assert row["raw.chars"] == len(text)


@given(st.text("ab\n\r ", max_size=12))
def test_parts_are_those_of_the_regular_expressions(text: str) -> None:
    assert metrics._runs_of_lines(text) == re.split(r"\n+", text)
    assert metrics._paragraphs(text) == re.split(r"\n{2,}", text)
