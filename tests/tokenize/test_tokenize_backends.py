"""Backends: ids as `tokenizers` gives them on everything, refusal of one that differs, and bytes that never depend on it."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.core.errors import FormatError, InputError, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.stage import Shard
from gristmill.core.vocabulary import SPECIALS
from gristmill.tokenize import backends, encode, encoder, kernels
from gristmill.tokenize.adversarial import adversarial
from gristmill.tokenize.bytelevel import BYTE_OF, CHAR_OF, take_apart
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.encoder import Differs, Encoder, encoder_of, pack, wanted
from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.train import train_bpe

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and it doesn't mind; 1234567 times in 2024, 12.50 each.",
    "Die Würde des Menschen ist unantastbar. हिन्दी शब्द कोश में १२३ शब्द हैं। 日本語テキスト 2024年12月",
    "def f(x):\n    return x + 1  # <|eos|>\n\n\treturn 100000\r\n",
    "m² ½ ٣٤٥ 'tis I'LL we've 😀😀 \u00a0\u3000 XMLHttpRequest",
] * 3
_MADE: dict[str, Codec] = {}


def codec(split: str = "qwen3.5", **more: Any) -> Codec:
    key = f"{split}{more}"
    if key not in _MADE:
        made = Tokenizer.model_validate({"vocab_size": 1024, "reserved": 8, "split": split, **more})
        _MADE[key] = Codec(train_bpe(CORPUS, made).to_str().encode())
    return _MADE[key]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No agreement or refusal from one test reaches another."""
    monkeypatch.delenv(encoder.ENCODERS, raising=False)
    encoder._HERE.known.clear()
    encoder._HERE.encoders.clear()
    yield
    encoder._HERE.known.clear()
    encoder._HERE.encoders.clear()


def split_up(flat: np.ndarray, ends: np.ndarray) -> list[list[int]]:
    return [flat[a:b].tolist() for a, b in zip(ends[:-1], ends[1:], strict=True)]  # noqa: RUF007


def truth(c: Codec, texts: Sequence[str]) -> list[list[int]]:
    return [ids.tolist() for ids in c.encode_batch(texts)]


class Exact:
    """A stand-in that is `tokenizers` itself, for tests that plant faults."""

    name, groups, max_spaces = "gigatoken", 0, 1 << 62

    def __init__(self, parts: Any) -> None:
        self.codec = Codec(parts.json())

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return self.codec.encode_batch([t.decode() for t in texts])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[Exact]:
    class Planted(Exact):
        pass

    monkeypatch.setattr(backends, "BACKENDS", {"gigatoken": Planted})
    monkeypatch.setattr(encoder, "BACKENDS", {"gigatoken": Planted})
    monkeypatch.setattr(encoder, "installed", lambda name: "9")
    return Planted


@pytest.mark.parametrize("name", ["gigatoken", "tiktoken"])
@pytest.mark.parametrize(
    ("split", "digits"),
    [("qwen3.5", "auto"), ("qwen3.5", 3), ("qwen3.5", 1), ("qwen2", 2), ("cl100k", "preset"), ("o200k", "preset"), ("gpt2", "preset")],
)  # fmt: skip
def test_ids_are_those_of_tokenizers(name: str, split: str, digits: Any) -> None:
    pytest.importorskip(name)
    made = codec(split, digits=digits)
    found = Encoder(made, [name])
    tiers = list(found.tiers())
    if not tiers:  # refused, or it has no such regex: both are answers, but not for the default
        assert split not in ("qwen3.5", "qwen2")
        assert name == "gigatoken"
        pytest.skip(f"{name} does not hold {split}")
    texts = [*adversarial([*SPECIALS.values()], seed=5), *CORPUS]
    assert split_up(*found.encode(*pack(texts))) == truth(made, texts)
    assert found.used[name] > 0.85 * len(texts)


UNICODE = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aA1٣² \n\t\r'!.s\u0301ि世\u3000")), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(st.lists(UNICODE, max_size=4))
@example(["1²2 12²", "١1", "a\x00<|eos|>", "\U00010d40\U00010d41 1\U00010d40"])
def test_any_text_gives_the_ids_of_tokenizers(texts: list[str]) -> None:
    pytest.importorskip("gigatoken")
    made = codec()
    assert split_up(*encoder_of(made).encode(*pack(texts))) == truth(made, texts)


@settings(max_examples=100, deadline=None)
@given(st.text("0123456789ab ²", max_size=30))
def test_digits_are_grouped_as_the_regex_does(text: str) -> None:
    """By hand: ids of one digit a pre-token (digits: 1) of the same merges, grouped, are those of digits: 2."""
    pytest.importorskip("gigatoken")
    made = codec()
    found = encoder_of(made)
    assert split_up(*found.encode(*pack([text, text * 3]))) == truth(made, [text, text * 3])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gigatoken", "tiktoken"])
def test_random_code_points_of_every_plane(name: str) -> None:
    """60,000 texts in which stretches of 64 neighbouring code points, assigned or not, stand among common characters."""
    pytest.importorskip(name)
    made, rng = codec(), random.Random(11)
    found = Encoder(made, [name])
    common = "aeioutnsrhAB12'.,-_/\n\t  é漢и"
    for _ in range(30):
        texts = []
        for _ in range(2_000):
            base = rng.randrange(rng.choice([0x2000, 0x3000, 0x10000, 0x20000, 0x10FF00]))
            points = [p if not 0xD800 <= p < 0xE000 else 0x78 for p in (base + rng.randrange(64) for _ in range(9))]
            kinds = [*(chr(p) for p in points), *common]
            texts.append("".join(rng.choice(kinds) for _ in range(rng.randint(1, 30))))
        assert split_up(*found.encode(*pack(texts))) == truth(made, texts)
    assert found.used[name] > 50_000


def test_a_backend_that_differs_on_adversarial_texts_is_refused(stand_in: type[Exact], caplog: Any) -> None:
    class Lossy(stand_in):  # type: ignore[misc, valid-type]
        def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
            return super().encode([t.replace(b"\r\n", b"\n") for t in texts])

    encoder.BACKENDS["gigatoken"] = Lossy
    made = codec()
    with caplog.at_level(logging.WARNING, "gristmill.tokenize"):
        found = Encoder(made)
        assert split_up(*found.encode(*pack(CORPUS))) == truth(made, CORPUS)
    assert found.used == {"tokenizers": len(CORPUS)}
    assert "encoding without gigatoken 9: other ids for" in caplog.text
    assert not list(Encoder(made).tiers()), "refused for the rest of the process"


def shard(folder: Path, texts: list[str | None], kind: Any = None) -> Shard:
    n = len(texts)
    columns: dict[str, Any] = {"id": [f"{i:032x}" for i in range(n)], "text": pa.array(texts, kind or pa.string())}
    table = pa.table(columns)
    for name in encode.CARRIED:
        if name != "id":
            kind_of = encode.TOKEN_DOC_SCHEMA.field(name).type
            table = table.append_column(name, pa.nulls(n, kind_of))
    pq.write_table(table, folder / "documents.parquet")
    path = folder / "documents.parquet"
    return Shard(str(path), path.name, sha256_file(path), path.stat().st_size)


def stored(folder: Path, source: Shard, made: Codec) -> tuple[Any, list[bytes]]:
    outs = [folder / name for name in ("tokens.bin", "docs.parquet", "drops.parquet")]
    counters = encode.encode_shard(source, made, "web", *outs)
    return counters, [p.read_bytes() for p in outs]


def test_a_backend_caught_on_the_corpus_leaves_no_byte_behind(
    tmp_path: Path, stand_in: type[Exact], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """It agrees on all adversarial texts, and then gives "zebra" another token where it stands in the corpus."""

    class Sly(stand_in):  # type: ignore[misc, valid-type]
        def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
            return super().encode([t.replace(b"zebra", b"zebrq") for t in texts])

    encoder.BACKENDS["gigatoken"] = Sly
    monkeypatch.setattr(encode, "BATCH_BYTES", 2_000)
    monkeypatch.setattr(encode, "CHECK_EVERY", 5)
    texts = [f"{CORPUS[i % 4]} {i}" for i in range(60)]
    sly = [i for i in range(40, 60) if encode.hash64(f"{i:032x}", 0) % 5 == 0]
    texts[sly[0]] += " zebra"
    source, made = shard(tmp_path, [*texts]), codec()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with caplog.at_level(logging.WARNING, "gristmill.tokenize"):
        first, planted = stored(tmp_path / "a", source, made)
    assert "other ids for a document of the corpus" in caplog.text
    monkeypatch.setenv(encoder.ENCODERS, "")
    second, plain = stored(tmp_path / "b", source, made)
    assert planted == plain
    assert (first.notes, first.rows_out) == (second.notes, second.rows_out) == ({"tokens": first.notes["tokens"]}, 60)


def test_a_backend_that_spells_another_text_is_quarantined_not_stored(
    tmp_path: Path, stand_in: type[Exact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no second encoding catches it, the bytes of its tokens do."""

    class Sly(stand_in):  # type: ignore[misc, valid-type]
        def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
            return super().encode([t.replace(b"zebra", b"zebrq") for t in texts])

    encoder.BACKENDS["gigatoken"] = Sly
    monkeypatch.setattr(encode, "CHECK_FIRST", 0)
    monkeypatch.setattr(encode, "CHECK_EVERY", 1 << 60)
    counters, _ = stored(tmp_path, shard(tmp_path, ["fine", "a zebra", "fine too"]), codec())
    assert (counters.rows_out, counters.quarantined) == (2, 1)


@pytest.mark.parametrize("kind", ["error", "panic"])
def test_a_backend_that_fails_is_refused(stand_in: type[Exact], kind: str) -> None:
    class PanicException(BaseException):
        pass

    class Fails(stand_in):  # type: ignore[misc, valid-type]
        def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
            if any(b"zebra" in t for t in texts):
                raise PanicException("stack") if kind == "panic" else ValueError("no")
            return super().encode(texts)

    encoder.BACKENDS["gigatoken"] = Fails
    found = Encoder(codec())
    assert len(found.encode(*pack(["fine"]))[0])
    with pytest.raises(Differs, match="panicked: stack" if kind == "panic" else "failed: no"):
        found.encode(*pack(["a zebra"]))
    assert split_up(*found.encode(*pack(["a zebra"]))) == truth(codec(), ["a zebra"])


def test_code_points_classed_otherwise_go_to_tokenizers(stand_in: type[Exact]) -> None:
    """A backend of an older Unicode: for it U+10570, a letter since version 14, is none."""

    class Old(stand_in):  # type: ignore[misc, valid-type]
        def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
            return super().encode([t.replace("\U00010570".encode(), "\u2190".encode() * 2) for t in texts])

    encoder.BACKENDS["gigatoken"] = Old
    made = codec()
    found = Encoder(made)
    texts = ["ab\U00010570cd", "plain", "世界"]
    assert split_up(*found.encode(*pack(texts))) == truth(made, texts)
    assert found.used == {"gigatoken": 2, "tokenizers": 1}
    (tier,) = found.tiers()
    assert tier.known.status[0x10570] & kernels.DIFFERS
    assert not tier.known.status[0x4E16] & kernels.DIFFERS


@pytest.mark.parametrize("name", ["gigatoken", "tiktoken"])
def test_long_runs_neither_fail_nor_differ(name: str) -> None:
    pytest.importorskip(name)
    made = codec()
    texts = [run * 30_000 for run in ("a", " ", "\n", "!", "1", "世", "\u0301", "\u3000", " \t")] + [
        "x" + " " * 200_000
    ]
    found = Encoder(made, [name])
    assert split_up(*found.encode(*pack(texts))) == truth(made, texts)
    assert name == "gigatoken" or found.used["tokenizers"] == 5  # white space beyond what tiktoken's stack takes


def test_the_store_is_the_same_with_any_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = codec()
    source = shard(tmp_path, [*adversarial(seed=2)[:700], None, *CORPUS])
    monkeypatch.setattr(encode, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(encoder, "RECYCLE_BYTES", 10_000)  # built anew several times
    found = []
    for names in (None, "tiktoken", "tokenizers", "gigatoken, tiktoken"):
        if names is not None:
            monkeypatch.setenv(encoder.ENCODERS, names)
        found.append(stored(tmp_path, source, made))
    assert all(f == found[0] for f in found)


def test_a_backend_is_built_anew_after_so_many_bytes(stand_in: type[Exact], monkeypatch: pytest.MonkeyPatch) -> None:
    """gigatoken holds every word it met; a worker that encodes for weeks must not."""
    built: list[int] = []

    class Counted(stand_in):  # type: ignore[misc, valid-type]
        def __init__(self, parts: Any) -> None:
            built.append(1)
            super().__init__(parts)

    encoder.BACKENDS["gigatoken"] = Counted
    found = Encoder(codec())
    list(found.tiers())
    before = len(built)
    monkeypatch.setattr(encoder, "RECYCLE_BYTES", 1_000)
    for _ in range(10):
        found.encode(*pack(["x" * 600]))
    assert len(built) - before >= 5


def test_backends_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted() == ["gigatoken", "tiktoken"]
    monkeypatch.setenv("GRISTMILL_ENCODERS", "tiktoken, tokenizers")
    assert wanted() == ["tiktoken"]
    monkeypatch.setenv(encoder.ENCODERS, "tiktokem")
    with pytest.raises(UsageError, match="tiktokem"):
        Encoder(codec())


def test_an_absent_package_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "installed", lambda name: None)
    found = Encoder(codec())
    assert split_up(*found.encode(*pack(CORPUS))) == truth(codec(), CORPUS)
    assert found.encode(*pack([]))[0].dtype == codec().dtype


def test_tokenizers_that_do_more_are_left_to_tokenizers() -> None:
    import orjson

    raw = orjson.loads(codec().raw)
    assert take_apart(codec().raw).pattern == raw["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    for change in (
        {"normalizer": {"type": "NFC"}},
        {"model": {**raw["model"], "byte_fallback": True}},
        {"pre_tokenizer": raw["pre_tokenizer"]["pretokenizers"][1]},
        {"added_tokens": [{**raw["added_tokens"][0], "special": False}]},
        {"model": {**raw["model"], "vocab": {k: v for k, v in raw["model"]["vocab"].items() if k != "A"}}},
    ):
        with pytest.raises(FormatError):
            take_apart(orjson.dumps({**raw, **change}))


def test_parts_name_every_byte_and_token() -> None:
    assert sorted(CHAR_OF) == list(range(256)) == sorted(BYTE_OF[c] for c in CHAR_OF.values())
    made = codec()
    table, offsets = take_apart(made.raw).table()
    assert len(offsets) == made.vocab_size + 1
    for text in CORPUS:
        joined = b"".join(table[offsets[i] : offsets[i + 1]].tobytes() for i in made.encode(text))
        assert joined.decode() == text
    assert offsets[made.eos] == offsets[made.eos + 1]


def test_text_that_is_not_utf8_is_said_so(tmp_path: Path) -> None:
    bad = pa.array([b"fine", b"\xff\xfe"], pa.binary()).cast(pa.binary())
    table = pa.StringArray.from_buffers(2, bad.buffers()[1], bad.buffers()[2])
    source = shard(tmp_path, ["x", "y"])
    whole = pq.read_table(source.path).set_column(1, "text", table)
    pq.write_table(whole, source.path)
    path = Path(source.path)
    source = Shard(source.path, source.name, sha256_file(path), path.stat().st_size)
    with pytest.raises(InputError, match="not UTF-8"):
        stored(tmp_path, source, codec())


@settings(max_examples=60, deadline=None)
@given(st.lists(UNICODE, max_size=4), st.integers(0, 6), st.booleans())
def test_kernels_compiled_and_plain_agree(texts: list[str], spaces: int, groups: bool) -> None:
    data, offsets = pack(texts)
    results = []
    for scan in (kernels.scan, kernels.scan.py_func):
        status = np.zeros(0x110000, np.uint8)
        status[[0x661, 0xB2]] = kernels.KNOWN | kernels.NUMBER
        status[0x3000] = kernels.KNOWN | kernels.SPACE
        status[0x4E16] = kernels.KNOWN | kernels.DIFFERS
        flags, waiting = np.zeros(len(texts), np.uint8), np.zeros(64, np.int32)
        n = scan(data, offsets, status, groups, spaces, flags, waiting)
        results.append((flags.tolist(), sorted(waiting[:n].tolist())))
        unknown = {ord(c) for t in texts for c in t if ord(c) >= 128} - {0x661, 0xB2, 0x3000, 0x4E16}
        assert len(unknown) > 64 or set(waiting[:n].tolist()) == unknown
        for text, flag in zip(texts, flags, strict=True):
            assert flag or "世" not in text
    assert results[0] == results[1]
    made = codec()
    ids, ends = encoder.join(made.encode_batch(texts), made.dtype)
    table = take_apart(made.raw).table()
    for spells in (kernels.spells, kernels.spells.py_func):
        good = np.zeros(len(texts), bool)
        spells(ids, ends, data, offsets, *table, good)
        assert good.all()
        if len(ids):
            other = ids.copy()
            other[0] = made.eos
            spells(other, ends, data, offsets, *table, good)
            assert not good.all()
            short = np.minimum(ends, len(ids) - 1)  # the last token is missing
            spells(ids, short, data, offsets, *table, good)
            assert not good.all()
