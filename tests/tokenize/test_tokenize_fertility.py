"""Fertility: hand-computed numbers, n/a where words cannot be told, real text in many languages."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helper import shared_data

from gristmill.core.hashing import hash64
from gristmill.tokenize.api import report, train_from_parquet
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.fertility import measure, render, tokens_per_word
from gristmill.tokenize.schema import Sample, Tokenizer
from gristmill.tokenize.segment import runs
from gristmill.tokenize.train import train_bpe


@pytest.fixture(scope="module")
def codec() -> Codec:
    """Knows "ab" and " ab" as one token each; every other byte stands alone."""
    settings = Tokenizer(vocab_size=384, reserved=0, min_frequency=5)
    return Codec(train_bpe(["ab ab ab ab ab ab ab"] * 2, settings).to_str().encode())


def test_hand_computed(codec: Codec) -> None:
    # "ab ab cd!é": tokens ab| ab| |c|d|!|é(2 bytes) = 8. Words: ab (1), ab (1), cd (2), é (2): mean 6/4, PCW 2/4.
    assert [codec.decode([i]) for i in codec.encode("ab ab cd")] == ["ab", " ab", " ", "c", "d"]
    table = measure(codec, [("xx", "ab ab cd!é"), ("xx", "ab")])
    row = table["languages"]["xx"]
    assert row == {
        "docs": 2,
        "bytes": 13,
        "chars": 12,
        "words": 5,
        "tokens": 9,
        "fertility": 1.4,
        "pcw": 0.4,
        "bytes_per_token": round(13 / 9, 6),
        "chars_per_token": round(12 / 9, 6),
        "lossless": 1.0,
    }
    assert table["all"] == row
    # used: ab, " ab", " ", c, d, !, and the two bytes of é = 8 of 256 bytes + 2 merges
    assert table["unused"] == {"ids": 250, "of": 258, "share": round(250 / 258, 6), "free": 126}


def test_part_of_a_character_counts_for_its_word(codec: Codec) -> None:
    ids, spans = codec.encode_spans(["é"])[0]
    assert len(ids) == 2
    assert spans.tolist() == [[0, 1], [0, 1]]
    assert tokens_per_word(spans, np.array([0]), np.array([1])).tolist() == [2]


def test_tokens_per_word_by_intersection() -> None:
    spans = np.array([[0, 2], [2, 5], [5, 9], [9, 10]])
    starts, ends = np.array([1, 3, 6, 9]), np.array([2, 6, 7, 10])
    brute = [sum(1 for a, b in spans if a < e and b > s) for s, e in zip(starts, ends, strict=True)]
    assert brute == [1, 2, 1, 1]
    assert tokens_per_word(spans, starts, ends).tolist() == brute


def test_runs() -> None:
    starts, ends, skipped = runs("naïve e\u0301tude, x2 世界 ok")
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [(0, 5), (6, 12), (14, 16), (20, 22)]
    assert skipped == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("世界人权宣言 is text", False),
        ("มนุษย์ทั้งหลายเกิดมามีอิสระ", False),
        ("すべての人間は", False),
        ("모든 인간은 태어날 때부터", True),
        ("सभी मनुष्यों को", True),
        ("plain English with one 世界", True),
        ("...", False),
    ],
)
def test_unspaced_scripts_have_no_fertility(codec: Codec, text: str, told: bool) -> None:
    row = measure(codec, [("xx", text)])["languages"]["xx"]
    assert (row["fertility"] is not None) == told
    assert (row["pcw"] is not None) == told
    assert row["bytes_per_token"] > 0
    assert ("n/a" in render(measure(codec, [("xx", text)]))) != told


@pytest.mark.parametrize("language", ["ja", "zh-Hant", "zh_CN", "th"])
def test_unspaced_languages_have_no_fertility_even_in_latin_text(codec: Codec, language: str) -> None:
    table = measure(codec, [(language, "plain text"), ("en", "plain text")])
    assert table["languages"][language]["fertility"] is None
    assert table["languages"]["en"]["fertility"] == 4.5  # p l a i n, t e x t; the space is no part of a word
    assert table["all"]["words"] == 2


def test_empty_table_renders(codec: Codec) -> None:
    table = measure(codec, [])
    assert table["all"]["fertility"] is None
    assert "n/a" in render(table)


def test_per_language_table_on_real_text(tmp_path: Path) -> None:
    import zstandard

    path = shared_data("text/multi-docs.jsonl.zst")
    rows: list[tuple[str, str, str]] = []
    count: dict[str, int] = {}
    with open(path, "rb") as f:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(f), encoding="utf-8"):
            doc = json.loads(line)
            language = doc.get("lang") or doc["language"]
            count[language] = count.get(language, 0) + 1
            if count[language] <= 12:
                rows.append((f"{hash64(doc['id']):032x}", doc["text"], language))
    ids, text, language = zip(*rows, strict=True)
    pq.write_table(pa.table({"id": ids, "text": text, "language": language}), tmp_path / "d.parquet")
    settings = Tokenizer(vocab_size=4096, sample=Sample(bytes=1_000_000, policy="temperature"), fertility_docs=6)
    table = train_from_parquet([tmp_path / "d.parquet"], settings, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "fertility.json").read_bytes()) == table
    assert len(table["languages"]) >= 20
    for name, row in table["languages"].items():
        assert row["lossless"] == 1.0
        assert 1 <= row["docs"] <= 6
        assert (row["fertility"] is None) == (name in ("ja", "zh")), name
        if row["fertility"] is not None:
            assert 1.0 <= row["fertility"] < 12
            assert 0 <= row["pcw"] <= 1
    assert sum(x["bytes"] for x in table["sample"]["languages"].values()) >= 900_000
    again = report(tmp_path / "out" / "tokenizer.json", [tmp_path / "d.parquet"], docs_per_language=6)
    assert again == {k: v for k, v in table.items() if k != "sample"}
    assert len(render(again).splitlines()) == len(table["languages"]) + 4


def test_a_lossy_tokenizer_is_seen(codec: Codec) -> None:
    from tokenizers import Tokenizer as Built
    from tokenizers import normalizers

    lossy = Built.from_str(codec.tokenizer.to_str())
    lossy.normalizer = normalizers.NFC()
    table = measure(Codec(lossy.to_str().encode()), [("xx", "e\u0301"), ("xx", "\u00e9"), ("yy", "plain")])
    assert table["languages"]["xx"]["lossless"] == 0.5
    assert table["languages"]["yy"]["lossless"] == 1.0
