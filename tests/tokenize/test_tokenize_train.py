"""Training: the traps of byte-level BPE, an id space of exactly V, the same bytes twice, the int32 guard."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gristmill.core.errors import ConfigError, InputError
from gristmill.core.settings import parse, validate
from gristmill.core.vocabulary import SPECIALS, tokenizer_facts
from gristmill.tokenize import train
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.split import PRESETS, pattern
from gristmill.tokenize.train import PairGuard, train_bpe, transformers_config

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's used to it. 12345 67",
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung.",
    "def f(x):\n    return x + 1  # <|eos|>\n",
] * 3
SMALL = Tokenizer(vocab_size=512, reserved=8)


def trained(**changes: object) -> bytes:
    options = {"vocab_size": 512, "reserved": 8, **changes}
    return train_bpe(iter(CORPUS), Tokenizer.model_validate(options)).to_str(pretty=True).encode()


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(trained())


@pytest.mark.parametrize("text", ["héllo 世界", "\x00\x01", "\U0010ffff", "日本語テキスト"])
def test_unseen_bytes_do_not_vanish(codec: Codec, text: str) -> None:
    assert codec.decode(codec.encode(text)) == text


def test_no_prefix_space_is_added(codec: Codec) -> None:
    assert codec.decode(codec.encode("hello")) == "hello"
    assert codec.encode("hello")[0] != codec.encode(" hello")[0]


def test_own_regex_is_not_split_again_by_gpt2s() -> None:
    # GPT-2's regex cuts "(the" after the bracket and Hindi at each vowel sign; qwen3.5's keeps both whole.
    texts = ["(the (the (the (the"] * 5 + ["हिन्दी हिन्दी हिन्दी"] * 5
    codec = Codec(train_bpe(texts, SMALL).to_str().encode())
    assert len(codec.encode("(the")) == 1
    assert len(codec.encode("हिन्दी")) == 1


def test_special_token_text_stays_text(codec: Codec) -> None:
    for special in (*SPECIALS.values(), "<|reserved_0|>"):
        text = f"a{special}b"
        ids = codec.encode(text)
        assert not set(ids.tolist()) & set(codec.free_ids.tolist())
        assert codec.decode(ids) == text


@pytest.mark.parametrize("form", ["e\u0301", "\u00e9", "\ufb01", "\u212b"])
def test_text_is_not_normalised(codec: Codec, form: str) -> None:
    assert codec.decode(codec.encode(form)) == form


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@settings(max_examples=300, deadline=None)
@given(UNICODE)
@example("\x00")
@example("\ufeffBOM first")
@example("👩‍👩‍👧‍👦 and 🏳️‍🌈")
@example("a\r\nb\r\r\n\n  \t c")
@example("e\u0301a\u0323\u0302")
@example("<|eos|><|bos|>")
@example("")
def test_round_trip_of_any_text(text: str) -> None:
    codec = _shared()
    ids = codec.encode(text)
    assert codec.decode(ids) == text
    assert codec.eos not in ids
    assert ids.dtype == codec.dtype


_CODEC: list[Codec] = []


def _shared() -> Codec:
    if not _CODEC:
        _CODEC.append(Codec(trained()))
    return _CODEC[0]


def test_two_trainings_give_the_same_bytes_in_any_order_of_texts() -> None:
    digests = set()
    for seed in range(3):
        texts = [f"{t} {i % 7} {chr(97 + i % 26) * (i % 5 + 2)}" for i, t in enumerate(CORPUS * 20)]
        random.Random(seed).shuffle(texts)
        digests.add(hashlib.sha256(train_bpe(iter(texts), SMALL).to_str(pretty=True).encode()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("size", [384, 512, 4096])  # the last two want more merges than the corpus has
def test_vocabulary_is_exactly_v_and_ids_are_dense(size: int) -> None:
    from tokenizers import Tokenizer as Built

    raw = trained(vocab_size=size)
    built = Built.from_str(raw.decode())
    assert sorted(built.get_vocab(with_added_tokens=True).values()) == list(range(size))
    facts = tokenizer_facts(raw)
    assert facts.vocab_size == size
    assert facts.special_ids == {role: i for i, role in enumerate(SPECIALS)}
    assert facts.sha256 == hashlib.sha256(raw).hexdigest()
    codec = Codec(raw)
    assert (codec.bos, codec.eos, codec.pad) == (0, 1, 2)
    assert {text: codec.tokenizer.token_to_id(text) for text in SPECIALS.values()} == dict(
        zip(SPECIALS.values(), range(6), strict=True)
    )


def test_tokens_are_no_longer_than_the_cap() -> None:
    texts = ["abcdefghijklmnop " * 30]
    longest = max(len(t) for t in _merges(train_bpe(texts, Tokenizer(vocab_size=512, reserved=8, max_token_length=4))))
    assert longest == 4
    assert max(len(t) for t in _merges(train_bpe(texts, SMALL))) > 4


def _merges(built: object) -> list[str]:
    return [t for t in built.get_vocab() if not t.startswith("<|")]  # type: ignore[attr-defined]


def test_loads_from_file_and_in_transformers(tmp_path, codec: Codec) -> None:  # type: ignore[no-untyped-def]
    import orjson
    from tokenizers import Tokenizer as Built

    (tmp_path / "tokenizer.json").write_bytes(trained())
    (tmp_path / "tokenizer_config.json").write_bytes(orjson.dumps(transformers_config()))
    text = "The  quick ( brown ) fox 's  naïve .\r\n\tdone "
    assert Built.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == codec.encode(text).tolist()
    assert Codec(tmp_path / "tokenizer.json").sha256 == codec.sha256
    transformers = pytest.importorskip("transformers")
    for loader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        other = loader.from_pretrained(str(tmp_path))
        assert other(text)["input_ids"] == codec.encode(text).tolist()
        assert other.decode(other(text)["input_ids"]) == text
        assert len(other) == 512
        assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (0, 1, 2)


def test_pair_guard_counts_and_refuses() -> None:
    guard = PairGuard(limit=1_000)
    assert list(guard.watch(["ab" * 100, "xyz"])) == ["ab" * 100, "xyz"]
    assert guard.counts[ord("a") << 8 | ord("b")] == 100
    assert guard.counts[ord("b") << 8 | ord("a")] == 99
    with pytest.raises(InputError, match="byte pair b'  '"):
        list(PairGuard(limit=1_000).watch([" " * 600, " " * 600]))
    with pytest.raises(InputError, match="32 bits"):
        train_bpe(["aa" * 600], SMALL, pair_limit=1_000)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a" * 40, " " * 33, "\n" * 9, "ab" * 20, "世" * 15, "x", "abc ", "12 "]), max_size=12))
def test_the_guard_bounds_every_count_of_the_trainer(parts: list[str]) -> None:
    """What the trainer counts, by hand: pairs of neighbouring symbols inside pre-tokens, at the start and after each
    merge. Long runs, whose pairs overlap, are within the guard's bound on the bytes at the seam."""
    from tokenizers import Regex, pre_tokenizers

    text = "".join(parts)
    guard = PairGuard()
    list(guard.watch([text, text]))
    split = pre_tokenizers.Split(Regex(pattern(SMALL)), "isolated")
    words = [[bytes([b]) for b in word.encode()] for word, _ in split.pre_tokenize_str(text) * 2]
    for _ in range(12):
        counts = Counter((a, b) for word in words for a, b in itertools.pairwise(word))
        if not counts:
            break
        for (a, b), n in counts.items():
            assert n <= guard.counts[a[-1] << 8 | b[0]]
        best = max(counts, key=lambda pair: (counts[pair], pair))
        words = [_merged(word, best) for word in words]


def _merged(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    at = 0
    while at < len(word):
        joined = tuple(word[at : at + 2]) == pair
        out.append(b"".join(word[at : at + 2]) if joined else word[at])
        at += 2 if joined else 1
    return out


def test_a_run_is_counted_whole_across_the_guards_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_COUNT_BYTES", 64)
    guard = PairGuard()
    list(guard.watch([" " * 1000, "x", " " * 1000]))
    assert guard.counts[0x2020] == 2 * 999
    with pytest.raises(InputError, match="byte pair b'  '"):
        list(PairGuard(limit=1_900).watch([" " * 1000, "x", " " * 1000]))


def test_nothing_to_train_on_is_an_error() -> None:
    for texts in ([], [""]):
        with pytest.raises(InputError, match="no text"):
            train_bpe(texts, SMALL)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_split_as_published(name: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    text = "I'LL pay 12345 (naïve) शब्द\r\n\n  end"
    split = pre_tokenizers.Split(Regex(PRESETS[name]), "isolated")
    got = [piece for piece, _ in split.pre_tokenize_str(text)]
    assert "".join(got) == text
    expected = {
        "gpt2": ["I", "'", "LL", " pay", " 12345", " (", "naïve", ")", " शब", "्", "द", "\r\n\n ", " end"],
        "cl100k": ["I", "'LL", " pay", " ", "123", "45", " (", "naïve", ")", " शब", "्द", "\r\n\n", " ", " end"],
        "qwen2": ["I", "'LL", " pay", " ", *"12345", " (", "naïve", ")", " शब", "्द", "\r\n\n", " ", " end"],
        "qwen3.5": ["I", "'LL", " pay", " ", *"12345", " (", "naïve", ")", " शब्द", "\r\n\n", " ", " end"],
        "o200k": ["I'LL", " pay", " ", "123", "45", " (", "naïve", ")", " शब्द", "\r\n\n", " ", " end"],
    }
    assert got == expected[name]


def test_digit_rule() -> None:
    def at(**options: object) -> str:
        return pattern(Tokenizer.model_validate(options))

    assert r"|\p{N}{1,2}|" in at(vocab_size=65_536)
    assert r"|\p{N}{1,3}|" in at(vocab_size=65_664)
    assert at(digits="preset") == PRESETS["qwen3.5"]
    assert at(split="cl100k") == PRESETS["cl100k"]
    assert r"|\p{N}{1,1}|" in at(split="gpt2", digits=1)


def test_settings_faults_name_a_remedy() -> None:
    with pytest.raises(ValidationError, match="use 50304"):
        Tokenizer(vocab_size=50_257)
    with pytest.raises(ValidationError, match="reserved ids"):
        Tokenizer(vocab_size=384, reserved=200)
    with pytest.raises(ValidationError):
        Tokenizer(digits=4)
    value, problems = validate(parse("vocab_size: 50257\nsplitt: gpt2\n", "r.yaml"), Tokenizer)
    assert value is None
    text = str(ConfigError(problems))
    assert "r.yaml:1:13: error: vocab_size" in text
    assert "hint: use 50304" in text
    assert "did you mean `split`?" in text
