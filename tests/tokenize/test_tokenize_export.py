"""Exports load in `transformers` and tiktoken with the same ids; the commands train, sweep and export."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helper import shared_data

from gristmill.core.errors import FormatError
from gristmill.core.vocabulary import SPECIALS
from gristmill.pipelines.cli.main import main
from gristmill.tokenize import export as module
from gristmill.tokenize.adversarial import adversarial
from gristmill.tokenize.bytelevel import take_apart
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.encoder import Encoder, pack
from gristmill.tokenize.export import META, RANKS, export, files, load_tiktoken
from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.train import train_bpe

TEXTS = [
    "The mill grinds 12345 grains, doesn't it? हिन्दी शब्द, 世界。",
    "Die Würde ist\r\n\tunantastbar.  <|eos|> 😀",
] * 6


@pytest.fixture(scope="module", params=["qwen3.5", "o200k", "gpt2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tok") / "tokenizer.json"
    made = Tokenizer.model_validate({"vocab_size": 512, "reserved": 8, "split": request.param})
    train_bpe(iter(TEXTS), made).save(str(path))
    return path


def alike(codec: Codec, library: str) -> list[str]:
    """Adversarial texts without special tokens and without what the library's Unicode classes otherwise."""
    texts = [*TEXTS[:1], *adversarial(tokens=take_apart(codec.raw).spelt(), seed=3)]
    found = Encoder(codec, [library])
    if library == "tokenizers":
        return texts
    (tier,) = found.tiers()
    return [t for t, held in zip(texts, tier.held(*pack(texts)), strict=True) if not held]


def test_tiktoken_loads_the_ranks_with_equal_ids(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    assert export(source, "tiktoken", tmp_path)[0].startswith("tiktoken ")
    encoding = load_tiktoken((tmp_path / RANKS).read_bytes(), (tmp_path / META).read_bytes())
    codec = Codec(source)
    texts = alike(codec, "tiktoken")
    assert len(texts) > 1000
    for text, want in zip(texts, codec.encode_batch(texts), strict=True):
        assert encoding.encode_ordinary(text) == want.tolist()
        assert encoding.decode_bytes(want.tolist()) == text.encode()
    assert encoding.n_vocab == codec.vocab_size
    assert encoding.encode("a<|eos|>", allowed_special="all")[-1] == codec.eos
    assert encoding.encode_ordinary("a<|eos|>") == codec.encode("a<|eos|>").tolist()


def test_transformers_loads_the_folder_with_equal_ids(source: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(source, "transformers", tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    codec = Codec(source)
    texts = alike(codec, "tokenizers")
    for text, want in zip(texts, codec.encode_batch(texts), strict=True):
        assert loaded(text)["input_ids"] == want.tolist()
        assert loaded.decode(want.tolist()) == text
    assert len(loaded) == codec.vocab_size
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (codec.bos, codec.eos, codec.pad)
    assert loaded.convert_tokens_to_ids(SPECIALS["fim_middle"]) == codec.special_ids["fim_middle"]
    assert loaded("a<|eos|>")["input_ids"][-1] == codec.eos
    assert loaded("a<|eos|>", split_special_tokens=True)["input_ids"] == codec.encode("a<|eos|>").tolist()


def test_json_is_the_file(source: Path, tmp_path: Path) -> None:
    assert export(source, "json", tmp_path) == []
    assert (tmp_path / "tokenizer.json").read_bytes() == source.read_bytes()


def test_what_a_form_cannot_hold_is_refused(source: Path, tmp_path: Path) -> None:
    data = orjson.loads(source.read_bytes())
    with pytest.raises(FormatError, match="normalises"):
        files(orjson.dumps({**data, "normalizer": {"type": "NFC"}}), "tiktoken")
    vocab: dict[str, int] = data["model"]["vocab"]
    last = sorted(vocab, key=vocab.__getitem__)[-2:]
    vocab[last[0]], vocab[last[1]] = vocab[last[1]], vocab[last[0]]
    with pytest.raises(FormatError, match="do not rise"):
        files(orjson.dumps(data), "tiktoken")
    with pytest.raises(FormatError):
        files(b"{}", "json")


def test_ranks_that_give_other_ids_are_not_written(source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("tiktoken")

    def planted(raw: bytes) -> dict[str, bytes]:
        made = module._tiktoken(raw)
        meta = orjson.loads(made[META])
        meta["gristmill"]["pat_str"] = r"\s+|\S+"
        return {**made, META: orjson.dumps(meta)}

    monkeypatch.setattr(module, "files", lambda raw, form: planted(raw))
    with pytest.raises(FormatError, match="gives other ids for"):
        export(source, "tiktoken", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_foreign_tokenizer_of_cl100ks_family(tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    raw = gzip.decompress((shared_data("tokenizers") / "dolma2.tokenizer.json.gz").read_bytes())
    codec = Codec(raw)
    found = Encoder(codec)
    texts = [*TEXTS, *adversarial(seed=9)]
    flat, ends = found.encode(*pack(texts))
    for i, want in enumerate(codec.encode_batch(texts)):
        assert np.array_equal(flat[ends[i] : ends[i + 1]], want)


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    rows = {"id": [f"{i:032x}" for i in range(len(TEXTS))], "text": TEXTS, "language": ["en", "de"] * 6}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(args)
    assert isinstance(done.value.code, int)
    return done.value.code


def test_train_and_export_commands(tmp_path: Path, parquet: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "t.yaml").write_text("reserved: 8\nsample: {policy: unimax, max_epochs: 2}\nfertility_docs: 3\n")
    out = str(tmp_path / "tok")
    sizes = ["--set", "vocab_size=[384, 448]", "--set", "use=448"]
    assert run("tokenizer", "train", parquet, "-o", out, "-c", str(tmp_path / "t.yaml"), *sizes, "--json") == 0
    said = orjson.loads(capsysbinary.readouterr().out)
    assert said["vocab_size"] == 448
    assert "sweep/384/tokenizer.json" in said["files"]
    assert [row["size"] for row in said["sweep"]["sweep"]] == [384, 448]
    assert Codec(tmp_path / "tok" / "tokenizer.json").vocab_size == 448
    assert orjson.loads((tmp_path / "tok" / "fertility.json").read_bytes())["sample"]["policy"] == "unimax"
    for form in ("json", "transformers"):
        assert run("tokenizer", "export", f"{out}/tokenizer.json", "--format", form, "-o", str(tmp_path / form)) == 0
        assert Codec(tmp_path / form / "tokenizer.json").vocab_size == 448


def test_train_takes_the_block_of_a_recipe(tmp_path: Path, parquet: str) -> None:
    recipe = "gristmill: 1\ntokenizer:\n  vocab_size: 512\n  reserved: 8\n  fertility_docs: 3\n"
    (tmp_path / "r.yaml").write_text(recipe)
    args = ["tokenizer", "train", parquet, "-o", str(tmp_path / "tok"), "-c", str(tmp_path / "r.yaml")]
    assert run(*args, "--set", "vocab_size=384") == 0
    assert Codec(tmp_path / "tok" / "tokenizer.json").vocab_size == 384
    (tmp_path / "r.yaml").write_text("gristmill: 1\n")
    assert run(*args) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--set", "vocab_size=[384, 512]"], "add use: 512"),
        (["--vocab-size", "50257"], "use 50304"),
        (["--set", "splitt=gpt2"], "did you mean `split`?"),
    ],
)
def test_faults_of_settings_are_exit_code_2(
    tmp_path: Path, parquet: str, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tokenizer", "train", parquet, "-o", str(tmp_path / "tok"), "--set", "reserved=8", *args) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "tok").exists()
