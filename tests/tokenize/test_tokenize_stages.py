"""The stages through receipts: one tokenizer, token stores that decode to the documents, quarantine, task identity."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.core.docshards import write_table
from gristmill.core.document import CURATED_SCHEMA, DROP_SCHEMA
from gristmill.core.errors import FormatError
from gristmill.core.hashing import hash64, sha256_file
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt, Shard
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA, token_dtype
from gristmill.core.tokstore import StoreWriter, TokenStore
from gristmill.tokenize import encode as module
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.stages import TokenizerStage, Tokens

CONFIG = Tokenizer(vocab_size=512, reserved=8).model_dump(mode="json")


def texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["the", "grain", "mill", "turns", "naïve", "<|eos|>", "42", "世界", "\r\n", "e\u0301", "\ufeff", "\x00"]
    return ["", *(" ".join(rng.choices(words, k=rng.randint(1, 80))) for _ in range(n - 1))]


def curated(folder: Path, name: str, docs: list[str | None]) -> Receipt:
    """A hand-made receipt of `curate` with one shard, and a second output that must not matter."""
    folder.mkdir(parents=True)
    n = len(docs)
    columns: dict[str, Any] = {
        "id": [f"{hash64(f'{name}{i}'):032x}" for i in range(n)],
        "text": docs,
        "url": [f"https://example.org/{name}/{i}" for i in range(n)],
        "date": ["2024-05-01T00:00:00Z"] * n,
        "warc_file": [name] * n,
        "warc_offset": list(range(0, 100 * n, 100)),
        "warc_inner": [0] * n,
        "warc_length": [100] * n,
        "warc_record_id": [""] * n,
        "charset": ["utf-8"] * n,
        "language": ["en"] * n,
        "language_score": [0.9] * n,
        "text_version": ["raw"] * n,
        "quality": [None] * n,
        "dup_cluster": [f"{hash64(f'{name}{i}'):032x}" for i in range(n)],
        "dup_cluster_size": [1] * n,
        "dup_exact_copies": [1] * n,
    }
    columns = {name: columns.get(name, [None] * n) for name in CURATED_SCHEMA.names}
    write_table(folder / "documents.parquet", pa.table(columns, schema=CURATED_SCHEMA))
    (folder / "drops.parquet").write_bytes(b"whatever")
    outputs = [
        Shard(str(p), p.name, sha256_file(p), p.stat().st_size)
        for p in (folder / "documents.parquet", folder / "drops.parquet")
    ]
    return Receipt("curate", 1, "t", name, {}, {}, {}, outputs, n, n, {}, 0, {}, 0.0, "h", "f")


@pytest.fixture
def upstream(tmp_path: Path) -> list[Receipt]:
    return [curated(tmp_path / "c" / f"{i}", f"{i}.warc.gz", list(texts(120, i))) for i in range(2)]


def test_from_curated_to_token_stores(tmp_path: Path, upstream: list[Receipt], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 2_000)  # several batches per shard
    stage = TokenizerStage(CONFIG)
    (task,) = stage.tasks({"curate": upstream})
    assert [s.name for s in task.inputs["curate"]] == ["documents.parquet"] * 2
    receipt = run_task(stage, task, tmp_path / "root")
    assert [s.name for s in receipt.outputs] == ["fertility.json", "tokenizer.json", "tokenizer_config.json"]
    assert receipt.drops is None
    assert (receipt.rows_in, receipt.rows_out) == (240, 240)
    table = orjson.loads(Path(receipt.output("fertility.json").path).read_bytes())
    assert table["all"]["lossless"] == 1.0
    assert table["tokenizer_sha256"] == receipt.output("tokenizer.json").sha256

    tokens = Tokens({"source": "web"})
    tasks = tokens.tasks({"curate": upstream, "tokenizer": [receipt]})
    assert [t.key for t in tasks] == [r.key for r in upstream]
    codec = Codec(receipt.output("tokenizer.json").path)
    for task, curate in zip(tasks, upstream, strict=True):
        done = run_task(tokens, task, tmp_path / "root")
        assert (done.rows_in, done.rows_out, done.drops, done.quarantined) == (120, 120, {}, 0)
        assert [s.name for s in done.outputs] == ["docs.parquet", "drops.parquet", "tokens.bin"]
        store = TokenStore(done.output("tokens.bin").path, done.output("docs.parquet").path)
        documents = pq.read_table(curate.outputs[0].path)
        assert store.dtype == codec.dtype == np.dtype("<u2")
        assert store.docs["id"].to_pylist() == documents["id"].to_pylist()
        assert set(store.docs["source"].to_pylist()) == {"web"}
        for i, text in enumerate(documents["text"].to_pylist()):
            ids = store.tokens(i)
            assert ids[-1] == codec.eos
            assert (ids == codec.eos).sum() == 1
            assert codec.decode(ids[:-1]) == text
            assert store.docs["bytes"][i].as_py() == len(text.encode())
        assert store.tokens(0).tolist() == [codec.eos]  # the empty text
        assert done.notes == {"tokens": len(store.data)}


def test_same_tasks_same_bytes_and_only_own_inputs_count(tmp_path: Path, upstream: list[Receipt]) -> None:
    stage = TokenizerStage(CONFIG)
    (task,) = stage.tasks({"curate": upstream})
    first = run_task(stage, task, tmp_path / "a")
    second = run_task(stage, task, tmp_path / "b")
    assert [s.sha256 for s in first.outputs] == [s.sha256 for s in second.outputs]
    changed = [replace(r, outputs=[r.outputs[0], replace(r.outputs[1], sha256="0" * 64)]) for r in upstream]
    assert stage.tasks({"curate": changed})[0].id == task.id
    other = replace(
        first, outputs=[replace(s, sha256="0" * 64) if s.name == "fertility.json" else s for s in first.outputs]
    )
    tokens = Tokens({"source": "web"})
    ids = [t.id for t in tokens.tasks({"curate": upstream, "tokenizer": [first]})]
    assert ids == [t.id for t in tokens.tasks({"curate": changed, "tokenizer": [other]})]
    assert ids != [t.id for t in Tokens({"source": "books"}).tasks({"curate": upstream, "tokenizer": [first]})]
    done = [run_task(tokens, tokens.tasks({"curate": upstream, "tokenizer": [first]})[0], tmp_path / r) for r in "ab"]
    assert done[0].content == done[1].content


def test_a_sweep_commits_every_size_and_goes_on_with_one(tmp_path: Path, upstream: list[Receipt]) -> None:
    config = Tokenizer.model_validate({"vocab_size": [384, 512, 448], "use": 448, "reserved": 8}).model_dump(
        mode="json"
    )
    stage = TokenizerStage(config)
    receipt = run_task(stage, stage.tasks({"curate": upstream})[0], tmp_path / "root")
    sizes = [f"sweep/{n}/{name}" for n in (384, 448, 512) for name in ("fertility.json", "tokenizer.json")]
    fixed = ["fertility.json", "sweep.json", "tokenizer.json", "tokenizer_config.json"]
    assert [s.name for s in receipt.outputs] == sorted([*fixed, *sizes])
    assert receipt.output("tokenizer.json").sha256 == receipt.output("sweep/448/tokenizer.json").sha256
    alone = TokenizerStage({**config, "vocab_size": 448, "use": None})
    other = run_task(alone, alone.tasks({"curate": upstream})[0], tmp_path / "root")
    assert other.output("tokenizer.json").sha256 == receipt.output("tokenizer.json").sha256
    tokens = Tokens({"source": "web"})
    done = run_task(tokens, tokens.tasks({"curate": upstream, "tokenizer": [receipt]})[0], tmp_path / "root")
    assert done.rows_out == done.rows_in


def test_a_document_that_does_not_round_trip_is_quarantined(tmp_path: Path) -> None:
    from tokenizers import normalizers

    upstream = [curated(tmp_path / "c", "x.warc.gz", ["plain", "e\u0301", None, "more e\u0301", "end"])]
    stage = TokenizerStage(CONFIG)
    receipt = run_task(stage, stage.tasks({"curate": upstream})[0], tmp_path / "root")
    built = Codec(receipt.output("tokenizer.json").path).tokenizer
    built.normalizer = normalizers.NFC()
    lossy = tmp_path / "tokenizer.json"
    built.save(str(lossy))
    shard = Shard(str(lossy), lossy.name, sha256_file(lossy), lossy.stat().st_size)
    tokens = Tokens({"source": "web"})
    (task,) = tokens.tasks({"curate": upstream, "tokenizer": [replace(receipt, outputs=[shard])]})
    done = run_task(tokens, task, tmp_path / "root")
    assert (done.rows_in, done.rows_out, done.quarantined) == (5, 3, 2)
    dropped = pq.read_table(done.output("drops.parquet").path)
    assert dropped.schema.equals(DROP_SCHEMA)
    assert dropped["url"].to_pylist() == ["https://example.org/x.warc.gz/1", "https://example.org/x.warc.gz/3"]
    store = TokenStore(done.output("tokens.bin").path, done.output("docs.parquet").path)
    assert [len(store.tokens(i)) for i in (1, 2)] == [1, 4]  # null counts as empty; "end" + eos


def test_no_tokenizer_no_tasks_and_an_empty_shard_is_fine(tmp_path: Path, upstream: list[Receipt]) -> None:
    tokens = Tokens({"source": "web"})
    assert tokens.tasks({"curate": upstream, "tokenizer": []}) == []
    stage = TokenizerStage(CONFIG)
    empty = curated(tmp_path / "e", "e.warc.gz", [])
    receipt = run_task(stage, stage.tasks({"curate": [*upstream, empty]})[0], tmp_path / "root")
    task = tokens.tasks({"curate": [empty], "tokenizer": [receipt]})[0]
    done = run_task(tokens, task, tmp_path / "root")
    assert (done.rows_in, done.rows_out) == (0, 0)
    store = TokenStore(done.output("tokens.bin").path, done.output("docs.parquet").path)
    assert len(store) == 0
    assert pa.schema([*store.docs.schema][: len(TOKEN_DOC_SCHEMA)]).equals(TOKEN_DOC_SCHEMA)


def columns(n: int) -> pa.Table:
    own = [f for f in TOKEN_DOC_SCHEMA if f.name not in ("offset", "length")]
    return pa.table({f.name: pa.nulls(n, f.type) for f in own}, schema=pa.schema(own))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(0, 511), max_size=20), max_size=5), max_size=5), st.booleans())
def test_store_offsets_and_lengths(tmp_path_factory, batches: list[list[list[int]]], wide: bool) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("store")
    vocab = 100_000 if wide else 512
    with StoreWriter(folder / "tokens.bin", folder / "docs.parquet", vocab) as writer:
        for batch in batches:
            writer.write([np.asarray(d, token_dtype(vocab)) for d in batch], columns(len(batch)))
    store = TokenStore(folder / "tokens.bin", folder / "docs.parquet")
    flat = [d for batch in batches for d in batch]
    assert [store.tokens(i).tolist() for i in range(len(store))] == flat
    assert len(store.data) == sum(map(len, flat)) == writer.tokens
    if len(store.data):
        assert store.dtype == token_dtype(vocab)
    with pytest.raises(IndexError):
        store.tokens(len(flat))


def test_damaged_stores_are_refused(tmp_path: Path) -> None:
    bin_path, docs_path = tmp_path / "tokens.bin", tmp_path / "docs.parquet"
    with StoreWriter(bin_path, docs_path, 512) as writer:
        writer.write([np.arange(5, dtype="<u2"), np.arange(3, dtype="<u2")], columns(2))
        with pytest.raises(ValueError, match="2 documents for 1 rows"):
            writer.write([np.arange(1), np.arange(1)], columns(1))
    whole = bin_path.read_bytes()
    bin_path.write_bytes(whole[:-2])
    with pytest.raises(FormatError, match="14 bytes"):
        TokenStore(bin_path, docs_path)
    bin_path.write_bytes(whole)
    table = pq.read_table(docs_path)
    pq.write_table(
        table.set_column(table.schema.get_field_index("offset"), "offset", pa.array([0, 4], pa.int64())), docs_path
    )
    with pytest.raises(FormatError, match="back to back"):
        TokenStore(bin_path, docs_path)
    pq.write_table(table.drop_columns(["url"]), docs_path)
    with pytest.raises(FormatError, match="other columns"):
        TokenStore(bin_path, docs_path)
    with pytest.raises(FormatError, match="no token store"):
        TokenStore(tmp_path / "none.bin", docs_path)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b'{"model": {"vocab": []}, "added_tokens": []}', b"\xff"])
def test_what_is_no_tokenizer_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        Codec(raw)


def test_stage_modules_import_without_tokenizers() -> None:
    import subprocess
    import sys

    code = "import sys, gristmill.tokenize.stages; print([m for m in ('tokenizers', 'regex', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
