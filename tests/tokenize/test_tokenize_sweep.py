"""Sweeps: a smaller vocabulary cut from a larger one is, byte for byte, the one trained apart; files, table, faults."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gristmill.core.vocabulary import tokenizer_facts
from gristmill.tokenize import split, sweep
from gristmill.tokenize.api import train_files, train_from_parquet
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.report import read_sweep
from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.sweep import cut_to, train_sizes
from gristmill.tokenize.train import train_bpe

WORDS = [
    "the",
    "mill",
    "miller",
    "milling",
    "grain",
    "Würde",
    "हिन्दी",
    "世界",
    "1234567",
    "99",
    "  ",
    "\n",
    "don't",
    "aaaaaaaa",
    "abab",
]


def corpus(seed: int, n: int = 200) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(WORDS, k=rng.randint(1, 40))) + rng.choice(WORDS) * rng.randint(0, 9) for _ in range(n)
    ]


def settings_of(**more: object) -> Tokenizer:
    return Tokenizer.model_validate({"vocab_size": 512, "reserved": 8, "min_frequency": 1, **more})


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["qwen3.5", "gpt2", "o200k"]),
    st.integers(1, 3),
    st.sampled_from([3, 16, 64]),
)
def test_a_cut_vocabulary_is_the_one_trained_apart(seed: int, name: str, frequency: int, longest: int) -> None:
    sizes = [384, 448, 512, 640]
    made = settings_of(vocab_size=sizes, use=384, split=name, min_frequency=frequency, max_token_length=longest)
    texts = corpus(seed)
    found = train_sizes(lambda regex: iter(texts), made)
    assert list(found) == sizes
    for size in sizes:
        apart = train_bpe(iter(texts), made.of_size(size))
        assert found[size].to_str() == apart.to_str()


def test_padded_and_short_vocabularies_are_cut_alike() -> None:
    texts = ["only a few words"] * 3  # far fewer merges than ids: reserved ones fill the rest
    made = settings_of(vocab_size=[390, 1000], use=390, pad_to=128)
    found = train_sizes(lambda regex: iter(texts), made)
    for size, padded in ((390, 512), (1000, 1024)):
        assert found[size].to_str() == train_bpe(iter(texts), made.of_size(size)).to_str()
        facts = tokenizer_facts(found[size].to_str().encode())
        assert facts.vocab_size == padded
        assert len(Codec(found[size].to_str().encode()).tokenizer.get_added_tokens_decoder()) >= padded - size


def test_sizes_with_other_digit_rules_are_trained_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "SMALL_VOCAB", 512)  # {1,2} up to 512 ids, {1,3} above
    texts = corpus(1)
    asked = []

    def given_for(regex: str) -> Iterator[str]:
        asked.append(regex)
        return iter(texts)

    made = settings_of(vocab_size=[448, 512, 576, 640], use=512)
    found = train_sizes(given_for, made)
    assert len(asked) == 2
    for size in made.sizes:
        assert found[size].to_str() == train_bpe(iter(texts), made.of_size(size)).to_str()
    crossed = cut_to(found[640].to_str().encode(), made.of_size(448)).to_str()
    assert crossed != found[448].to_str(), "which is why they are not shared"


def write(folder: Path) -> Path:
    texts = corpus(2)
    path = folder / "a.parquet"
    languages = ["en" if i % 3 else "de" for i in range(len(texts))]
    pq.write_table(
        pa.table({"id": [f"{i:032x}" for i in range(len(texts))], "text": texts, "language": languages}), path
    )
    return path


def test_files_of_a_sweep(tmp_path: Path) -> None:
    made = settings_of(vocab_size=["1k", 448, 384], use=448, fertility_docs=10)
    train_from_parquet([write(tmp_path)], made, tmp_path / "tok")
    names = sorted(str(p.relative_to(tmp_path / "tok")) for p in (tmp_path / "tok").rglob("*.json"))
    sizes = [f"sweep/{s}/{n}.json" for s in (1024, 384, 448) for n in ("fertility", "tokenizer")]
    assert names == sorted(["tokenizer.json", "tokenizer_config.json", "fertility.json", "sweep.json", *sizes])
    used = (tmp_path / "tok" / "tokenizer.json").read_bytes()
    assert used == (tmp_path / "tok" / "sweep" / "448" / "tokenizer.json").read_bytes()
    table = orjson.loads((tmp_path / "tok" / "sweep.json").read_bytes())
    assert table["use"] == 448
    assert [row["size"] for row in table["sweep"]] == [384, 448, 1024]
    for row in table["sweep"]:
        codec = Codec(tmp_path / "tok" / "sweep" / str(row["size"]) / "tokenizer.json")
        assert (codec.vocab_size, codec.sha256) == (row["vocab_size"], row["tokenizer_sha256"])
        assert sorted(row["languages"]) == ["de", "en"]
    rates = [row["metrics"]["bytes_per_token"] for row in table["sweep"]]
    assert rates == sorted(rates)
    assert [row["vocab_size"] for row in read_sweep(tmp_path / "tok" / "sweep.json")] == [384, 448, 1024]
    shown = sweep.render(table).splitlines()
    assert shown[0].split() == ["bytes/token", "384", "448*", "1,024"]
    assert [line.split()[0] for line in shown[1:]] == ["de", "en", "all"]


def test_one_size_of_a_list_is_no_sweep(tmp_path: Path) -> None:
    paths = [write(tmp_path)]
    one = train_files(paths, settings_of(vocab_size=[448], fertility_docs=5))
    assert one.files == train_files(paths, settings_of(vocab_size=448, fertility_docs=5)).files
    assert sorted(one.files) == ["fertility.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"vocab_size": ["16k", "32k"]}, "add use: 32768"),
        ({"vocab_size": ["16k", "32k"], "use": "64k"}, "one of 16384, 32768"),
        ({"vocab_size": [512, 512], "use": 512}, "twice"),
        ({"vocab_size": []}, "at least 1"),
        ({"vocab_size": ["16q"]}, "integer"),
        ({"vocab_size": [1024, 257 * 64 + 1], "use": 1024}, "no multiple of 64"),
        ({"vocab_size": [384, 1024], "use": 1024, "reserved": 200}, "vocab_size 384 is smaller"),
    ],
)
def test_faults(more: dict[str, object], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        settings_of(**more)
    assert settings_of(vocab_size=50_257, pad_to=128).padded == 50_304


def test_a_sweep_without_use_is_a_fault_of_the_sizes(tmp_path: Path) -> None:
    from gristmill.core.errors import ConfigError
    from gristmill.core.settings import load
    from gristmill.pipelines.cli.tokenizer import _settings

    with pytest.raises(ConfigError, match=r"^--set:1: error: vocab_size: vocab_size lists 2 sizes"):
        _settings(None, ["vocab_size=[512, 640]"])
    (tmp_path / "t.yaml").write_text("reserved: 8\nvocab_size: [512, 640]\n")
    with pytest.raises(ConfigError, match=r"t\.yaml:2:13: error: vocab_size: vocab_size lists 2 sizes"):
        load(tmp_path / "t.yaml", Tokenizer)
