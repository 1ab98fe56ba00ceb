"""Metrics of the tokenizer report against brute force, scipy and sums done by hand."""

from __future__ import annotations

import base64
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from gristmill.core.errors import InputError, UsageError
from gristmill.tokenize.aligned import premiums, read_aligned
from gristmill.tokenize.baselines import Baseline
from gristmill.tokenize.bytelevel import CHAR_OF
from gristmill.tokenize.fertility import tokens_per_word
from gristmill.tokenize.metrics import (
    OTHER,
    common_words,
    gini,
    measure,
    nsl,
    rank_frequency,
    renyi_efficiency,
    strr,
    tables,
)
from gristmill.tokenize.report_docs import Document
from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.segment import SEGMENTER
from gristmill.tokenize.segmenters import RUNS, Segmenter
from gristmill.tokenize.split import PRESETS
from gristmill.tokenize.tiktoken_ranks import from_tiktoken
from gristmill.tokenize.train import train_bpe


@pytest.fixture(scope="module")
def small() -> Baseline:
    """Knows "ab" and " ab"; every other byte stands alone."""
    settings = Tokenizer(vocab_size=384, reserved=0, min_frequency=5)
    return Baseline("small", train_bpe(["ab ab ab ab ab ab ab"] * 2, settings), "0" * 64)


def runs_only(language: str) -> Segmenter:
    return RUNS


def doc(text: str, language: str = "xx", source: str = "s", domain: str = "", part: int = 0) -> Document:
    return Document(language, source, domain, part, text)


def test_k_w_is_the_number_of_intersections_in_any_order() -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        starts = rng.integers(0, 40, 25)
        spans = np.stack([starts, starts + rng.integers(1, 6, 25)], 1)  # overlapping and unordered
        words = np.sort(rng.choice(45, 8, replace=False)).reshape(4, 2)
        brute = [sum(a < e and b > s for a, b in spans.tolist()) for s, e in words.tolist()]
        assert tokens_per_word(spans, words[:, 0], words[:, 1]).tolist() == brute


def test_in_context_and_alone_by_hand(small: Baseline) -> None:
    # In context "ab ab cd": ab| ab| |c|d, so 1, 1, 2. Alone: ab (1), ab (1), cd (2).
    measured = measure([("small", small)], [doc("ab ab cd"), doc("abab  ab")], runs_only)
    row = tables(measured, measured.subjects[0], 5)["languages"]["xx"]
    # "abab  ab": ab|ab| | ab -> abab 2, ab 1. Alone: abab 2, ab 1.
    assert (row["words"], row["tokens"], row["fertility"], row["pcw"]) == (5, 9, 1.4, 0.4)
    assert (row["fertility_iso"], row["pcw_iso"]) == (1.4, 0.4)
    assert row["segmenter"] == SEGMENTER


def test_alone_differs_from_context() -> None:
    """Of a vocabulary that merges " t", " th" and " the", "the" without its space is three bytes."""
    tokens = [*(bytes([b]) for b in range(256)), b" t", b" th", b" the"]
    ranks = b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))
    only_spaced = Baseline("x", from_tiktoken(ranks, PRESETS["gpt2"], {}, "x", CHAR_OF), "0" * 64)
    measured = measure([("x", only_spaced)], [doc("a the the")], runs_only)
    row = tables(measured, measured.subjects[0], 5)["languages"]["xx"]
    alone = [len(only_spaced.encode_batch([w])[0]) for w in ("a", "the", "the")]
    assert row["fertility"] == 1.0
    assert alone == [1, 3, 3]
    assert row["fertility_iso"] == pytest.approx(7 / 3, abs=1e-6)
    assert strr(only_spaced, ["the", "a", "zz"], True) == {"words": 3, "strr": round(1 / 3, 6)}
    # "the" is whole behind a space, "a" alone
    assert strr(only_spaced, ["the", "a", "zz"], False)["strr"] == round(1 / 3, 6)


def test_groups_and_curve(small: Baseline) -> None:
    seen = Segmenter("other-9", RUNS.split, True)
    documents = [
        doc("ab ab", "xx", "web", "a.com", 0),
        doc("cd cd cd", "yy", "web", "b.com", 3),
        doc("世界 ab", "zh", "wiki", "", 9),
        doc("ab", "xx", "wiki", "c.com", 9),
    ]
    measured = measure([("small", small)], documents, lambda language: seen if language == "yy" else RUNS)
    found = tables(measured, measured.subjects[0], 2)
    assert {name: row["segmenter"] for name, row in found["languages"].items()} == {
        "xx": SEGMENTER,
        "yy": "other-9",
        "zh": None,
    }
    assert found["languages"]["yy"]["fertility"] == 2.0
    assert found["languages"]["zh"]["fertility"] is found["languages"]["zh"]["fertility_iso"] is None
    # words of another segmenter, and of none, stay out of groups; their bytes and tokens stay in
    assert found["sources"]["web"]["words"] == 2
    assert found["sources"]["web"]["docs"] == 2
    assert found["all"]["words"] == 3
    assert found["all"]["tokens"] == int(measured.subjects[0].counts.sum())
    assert list(found["domains"]) == ["b.com", "a.com", OTHER]
    curve = found["sample_curve"]
    assert [row["docs"] for row in curve] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 4]
    assert curve[-1]["fertility"] == found["all"]["fertility"]
    assert nsl(found, found)["domains"] == dict.fromkeys(found["domains"], 1.0)


def test_gini_is_mean_difference_over_twice_the_mean() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 100):
        x = rng.exponential(size=n)
        brute = np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean())
        assert gini(x.tolist()) == pytest.approx(brute, abs=1e-6)
    assert gini([3, 3, 3]) == 0
    assert gini([0, 0, 0, 1]) == 0.75
    assert gini([]) is gini([0.0]) is None


def test_renyi_efficiency() -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = np.array([5, 3, 0, 2, 90])
    p = counts / counts.sum()
    by_hand = math.log2(sum(v**2.5 for v in p)) / (1 - 2.5) / math.log2(5)
    assert renyi_efficiency(counts, 5) == pytest.approx(by_hand, abs=1e-6)
    # towards a = 1 it is Shannon's entropy
    assert renyi_efficiency(counts, 5, 1 + 1e-9) == pytest.approx(stats.entropy(p, base=2) / math.log2(5), abs=1e-5)
    assert renyi_efficiency(np.full(8, 4), 8) == 1.0
    assert renyi_efficiency(np.zeros(8), 8) is None


def test_rank_frequency_ends_at_the_last_used_id() -> None:
    counts = np.concatenate([np.arange(1, 5001), np.zeros(300, np.int64)])
    points = rank_frequency(counts)
    assert points[0] == [1, 5000]
    assert points[-1] == [5000, 1]
    assert all(a[0] < b[0] and a[1] >= b[1] for a, b in itertools.pairwise(points))
    assert rank_frequency(np.zeros(4, np.int64)) == []


def test_common_words_break_ties_by_code_point() -> None:
    assert common_words({"b": 2, "a": 2, "c": 9}, 2) == ["c", "a"]


def test_premium_by_hand(small: Baseline, tmp_path: Path) -> None:
    rows = [("en", 0, "ab ab"), ("en", 1, "ab"), ("de", 0, "cccc"), ("de", 2, "not in en"), ("fr", "1", "abx")]
    path = tmp_path / "aligned.jsonl"
    path.write_text(
        "".join(json.dumps({"lang": a, "index": b, "text": c}) + "\n" for a, b, c in [*rows, ("q", 7, "x")])
    )
    found = premiums(small, read_aligned(path), "en")
    assert found["languages"]["de"] == {"lines": 1, "tokens": 4, "reference_tokens": 2, "premium": 2.0}
    assert found["languages"]["fr"]["premium"] == 2.0  # ab|x against ab
    assert found["languages"]["en"]["premium"] == 1.0
    assert found["worst"] == {"language": "fr", "premium": 2.0}
    assert found["mean"] == 2.0
    assert found["gini"] == gini([1, 2, 2])
    assert found["unaligned"] == ["q"]
    with pytest.raises(UsageError, match="no 'ja'"):
        premiums(small, read_aligned(path), "ja")


@pytest.mark.parametrize(
    "line", ['{"lang": "de", "index": 0}', "[1]", "{", '{"lang": "en", "index": "0", "text": "again"}']
)
def test_a_bad_line_of_aligned_text_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "aligned.jsonl"
    path.write_text('{"lang": "en", "index": 0, "text": "a"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"aligned\.jsonl:2"):
        read_aligned(path)
