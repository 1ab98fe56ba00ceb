"""Tokenizers given as files: the three forms give the ids their own libraries give, damaged files a clear word."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from data_helper import shared_data

from gristmill.core.errors import GristmillError, InputError, UsageError
from gristmill.tokenize import files
from gristmill.tokenize.baselines import Baseline, open_tokenizer
from gristmill.tokenize.bytelevel import CHAR_OF, to_bytes
from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.split import PRESETS
from gristmill.tokenize.tiktoken_ranks import merges_of, oniguruma, read_ranks
from gristmill.tokenize.train import train_bpe
from gristmill.tokenize.vocabulary_report import PROBES, probes, unreachable, vocabulary

TEXT = "The théâtre's 12345 rows\r\n\tof  世界 👩‍👩‍👧 e\u0301 don't WON'T <|eos|> naïve\x00 " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trained vocabulary in every form: tok/tokenizer.json, r.tiktoken + r.meta.json, g/encoder.json + vocab.bpe."""
    here = tmp_path_factory.mktemp("forms")
    texts = [TEXT, "of the rows and the theatre of rows, 123 of 456 " * 4]
    built = train_bpe(texts, Tokenizer(vocab_size=512, reserved=0, split="gpt2"))
    raw = built.to_str().encode()
    (here / "tok").mkdir()
    (here / "tok" / "tokenizer.json").write_bytes(raw)
    model = json.loads(raw)["model"]
    pairs = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    pieces = [*(CHAR_OF[b] for b in range(256)), *dict.fromkeys(a + b for a, b in pairs)]
    (here / "r.tiktoken").write_bytes(
        b"".join(base64.b64encode(to_bytes(p)) + b" %d\n" % i for i, p in enumerate(pieces))
    )
    meta = {"x": {"pat_str": PRESETS["gpt2"], "special_tokens": {"<|eos|>": len(pieces) + 3}}}
    (here / "r.meta.json").write_text(json.dumps(meta))
    (here / "g").mkdir()
    (here / "g" / "encoder.json").write_text(json.dumps({p: i for i, p in enumerate([*pieces, "<|eos|>"])}))
    (here / "g" / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs))
    return here


def pieces(tokenizer: Baseline, text: str) -> list[bytes | None]:
    return [tokenizer.token_bytes(int(i)) for i in tokenizer.encode_batch([text])[0]]


def test_the_three_forms_agree(folder: Path) -> None:
    first = open_tokenizer(folder / "tok")
    ranks = open_tokenizer(folder / "r.tiktoken")
    pair = open_tokenizer(f"mine={folder / 'g' / 'encoder.json'}")
    assert (first.name, ranks.name, pair.name) == ("tok", "r", "mine")
    expected = pieces(first, TEXT)
    assert b"".join(p or b"" for p in expected) == TEXT.encode()
    assert pieces(ranks, TEXT) == expected
    assert pieces(pair, TEXT) == expected
    assert len(ranks.unassigned) == 3
    assert ranks.special_ids.tolist() == [ranks.vocab_size - 1]
    for tokenizer in (first, ranks, pair):
        assert tokenizer.kind == "byte-level"
        assert all(probes(tokenizer).values())
        (ids, spans), (again,) = tokenizer.encode_spans([TEXT])[0], tokenizer.encode_batch([TEXT])
        assert np.array_equal(ids, again)
        assert spans.max() == len(TEXT)


def test_tiktoken_itself_gives_the_same_ids(folder: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = read_ranks((folder / "r.tiktoken").read_bytes(), "r")
    truth = tiktoken.Encoding("x", pat_str=PRESETS["gpt2"], mergeable_ranks=ranks, special_tokens={})
    ours = open_tokenizer(folder / "r.tiktoken")
    for text in (TEXT, *PROBES.values(), "theatretheatre rowsrowsof"):
        assert ours.encode_batch([text])[0].tolist() == truth.encode_ordinary(text)


def test_every_split_is_a_merge() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"bc": 257, b"abc": 258}
    assert merges_of(ranks) == [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"ab", b"c")]


def test_possessive_repetitions_and_ends_are_taken_over() -> None:
    assert oniguruma(r"\p{N}{1,3}+| ?[^\s]++[\r\n]*+|\s++$|[$^]|\$") == (
        r"(?>\p{N}{1,3})| ?[^\s]++[\r\n]*+|\s++\z|[$^]|\$"
    )
    with pytest.raises(InputError, match="possessive"):
        oniguruma(r"(a|b){2}+")


def test_todays_cl100k_pattern_splits_as_tiktoken_does(folder: Path, tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    pattern = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    raw = (folder / "r.tiktoken").read_bytes()
    (tmp_path / "c.tiktoken.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "c.meta.json").write_text(json.dumps({"pat_str": pattern, "special_tokens": {}}))
    truth = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=read_ranks(raw, "r"), special_tokens={})
    ours = open_tokenizer(tmp_path / "c.tiktoken.gz")
    for text in (TEXT, "1234567 89  \n  \n", "a  \n b \n", *PROBES.values()):
        assert ours.encode_batch([text])[0].tolist() == truth.encode_ordinary(text)


def test_byte_fallback_with_a_prefix_space(tmp_path: Path) -> None:
    """A SentencePiece-like tokenizer.json: spans are of the text as given, unreachable ids are read behind a guard."""
    vocab = {
        "<unk>": 0,
        **{f"<0x{b:02X}>": b + 1 for b in range(256)},
        "▁": 257,
        "a": 258,
        "b": 259,
        "▁a": 260,
        "ab": 261,
    }
    rule = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}  # fmt: skip
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}  # fmt: skip
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocab,
        "merges": ["▁ a", "a b"],
    }
    unknown = {
        "id": 0,
        "content": "<unk>",
        "special": True,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    whole = {
        "version": "1.0",
        "added_tokens": [unknown],
        "normalizer": rule,
        "pre_tokenizer": None,
        "decoder": decoder,
        "model": model,
    }
    path = tmp_path / "sp.json"
    path.write_text(json.dumps(whole))
    found = open_tokenizer(path)
    assert (found.kind, found.prefix_space, found.normalizes) == ("byte-fallback", True, True)
    ids, spans = found.encode_spans(["a bé"])[0]
    assert [found.token_bytes(int(i)) for i in ids] == [b" a", b" ", b"b", b"\xc3", b"\xa9"]
    assert spans[-2:].tolist() == [[3, 4], [3, 4]]
    # <0x61> is the byte of "a", which has an id of its own: no text gives it; " b" is no token, so "b" stands after one
    texts = {i: t.decode() for i in range(1, 262) if (t := found.token_bytes(i)) is not None and t.isascii()}
    lost = unreachable(found, texts)
    assert 0x61 + 1 in lost
    assert {258, 259, 260, 261}.isdisjoint(lost)
    assert vocabulary(found)["not_utf8"] == 128


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.json", b"{"),
        ("a.json", b"[]"),
        ("a.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'),
        ("a.json", b'{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}'),
        ("a.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}'),
        ("a.json", b"\x1f\x8b broken"),
        ("a.json", b"\xff\xfe"),
        ("a.tiktoken", b"IQ== x\n"),
        ("a.tiktoken", b"IQ== 0\nIQ== 1\n"),
        ("a.tiktoken", b"IQ== 0\n"),
        ("a.tiktoken", b"IQ== 99999999999\n"),
        ("encoder.json", b'{"a": 0}'),
        ("encoder.json", b'["a"]'),
    ],
)
def test_damaged_files_are_refused_with_their_name(name: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    (tmp_path / "a.meta.json").write_text('{"pat_str": ".", "special_tokens": {}}')
    (tmp_path / "vocab.bpe").write_text("a b c\n")
    with pytest.raises(GristmillError):
        open_tokenizer(tmp_path / name)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.read_bounded, "__defaults__", (1 << 20,))
    path = tmp_path / "tokenizer.json.gz"
    path.write_bytes(gzip.compress(b" " * (3 << 20)))
    with pytest.raises(InputError, match="unpacks to more than 1,048,576"):
        open_tokenizer(path)


def test_a_missing_companion_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.tiktoken").write_bytes(b"IQ== 0\n")
    with pytest.raises(UsageError, match=r"needs b\.meta\.json beside it"):
        open_tokenizer(tmp_path / "b.tiktoken")
    with pytest.raises(UsageError, match="no such tokenizer file"):
        open_tokenizer(tmp_path / "none.json")
    with pytest.raises(UsageError, match="options go before `--`"):
        open_tokenizer("--docs")
    (tmp_path / "gpt2-vocab.bpe.gz").write_bytes(gzip.compress(b"#version: 0.2\na b\n"))
    with pytest.raises(UsageError, match=r"give encoder\.json"):
        open_tokenizer(tmp_path / "gpt2-vocab.bpe.gz")


@pytest.mark.slow
def test_o200k_as_tiktoken_encodes_it() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    path = shared_data("tokenizers/o200k_base.tiktoken.gz")
    meta = json.loads((path.parent / "o200k_base.meta.json").read_bytes())["o200k_base"]
    ours = open_tokenizer(path)
    ranks = read_ranks(gzip.decompress(path.read_bytes()), "o200k")
    truth = tiktoken.Encoding("x", pat_str=meta["pat_str"], mergeable_ranks=ranks, special_tokens={})
    paragraphs = gzip.decompress(shared_data("lid/udhr-paragraphs.jsonl.gz").read_bytes()).decode().splitlines()
    texts = [json.loads(line)["text"] for line in paragraphs]
    assert len(texts) > 3000
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids.tolist() == truth.encode_ordinary(text)
    assert unreachable(ours, {i: t.decode() for t, i in ranks.items() if _utf8(t)}) == [
        i for t, i in sorted(ranks.items(), key=lambda r: r[1]) if _utf8(t) and truth.encode_ordinary(t.decode()) != [i]
    ]


def _utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
