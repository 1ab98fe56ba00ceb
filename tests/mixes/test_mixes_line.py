"""mixture → shards.write → shards on hand-made token stores: bytes, provenance, tracing, order independence, held-out."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mix_line import MIXTURE, FakeTokenizer, damage, folder_of, line

from gristmill.core.errors import ConfigError, FormatError, UsageError
from gristmill.core.hashing import document_id
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt
from gristmill.core.tokshards import PackedDataset
from gristmill.core.tokstore import TokenStore
from gristmill.mixes.api import load_mixture, plan_from_stores, verify_dataset
from gristmill.mixes.schema import Mixture
from gristmill.mixes.stages import MixturePlan, Shards, ShardsWrite
from gristmill.mixes.tracing import find_document, pieces_of, trace_rows, trace_token


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Receipt]], PackedDataset]:
    root = tmp_path_factory.mktemp("root")
    done = line(root, MIXTURE)
    return root, done, PackedDataset(folder_of(done))


def all_rows(dataset: PackedDataset) -> list[tuple[str, int]]:
    return [(p.name, r) for p in dataset.manifest.phases for r in range(p.rows)]


def open_stores(done: dict[str, list[Receipt]]) -> list[TokenStore]:
    return [TokenStore(r.output("tokens.bin").path, r.output("docs.parquet").path) for r in done["tokens"]]


def test_every_token_is_its_documents(world: Any) -> None:
    """Rows, boundaries and provenance agree with the stores, token for token."""
    _, done, dataset = world
    stores = open_stores(done)
    padding = 0
    for phase, row in all_rows(dataset):
        tokens, starts = dataset.row(phase, row)
        pieces = pieces_of(dataset, phase, row)
        at = 0
        for piece in pieces:
            assert piece.row_start == at
            document = stores[piece.store].tokens(piece.doc)
            assert (
                tokens[at : at + piece.length].tolist()
                == document[piece.doc_start : piece.doc_start + piece.length].tolist()
            )
            assert stores[piece.store].docs["id"][piece.doc].as_py() == piece.id
            language = stores[piece.store].docs["language"][piece.doc].as_py()
            assert piece.source == ("english" if language == "en" else "other")
            at += piece.length
        assert starts.tolist() == [p.row_start for p in pieces] + ([at] if at < len(tokens) else [])
        assert (tokens[at:] == 2).all()
        padding += len(tokens) - at
    lock = orjson.loads((dataset.folder / "mix.lock.json").read_bytes())
    assert padding == sum(p["padding"] for p in lock["phases"])


def test_trace_of_every_token(world: Any) -> None:
    root, done, dataset = world
    stores = {f"crawl/{r.key}.warc.gz": s for r, s in zip(done["tokens"], open_stores(done), strict=True)}
    for phase, row in all_rows(dataset)[::7]:
        tokens, _ = dataset.row(phase, row)
        filled = sum(p.length for p in pieces_of(dataset, phase, row))
        for pos in range(len(tokens)):
            if pos >= filled:
                with pytest.raises(UsageError, match="padding"):
                    trace_token(dataset, root, phase, row, pos)
                continue
            found = trace_token(dataset, root, phase, row, pos)
            store = stores[found["warc_file"]]
            doc = found["warc_offset"] // 1000
            assert found["token"] == tokens[pos] == store.tokens(doc)[found["document_position"]]
            assert found["id"] == document_id(found["warc_file"], found["warc_offset"])
    with pytest.raises(UsageError, match=r"positions 0\.\.16"):
        trace_token(dataset, root, "warm", 0, 17)


def test_trace_rows_and_find(world: Any) -> None:
    root, _, dataset = world
    rows = all_rows(dataset)
    traced = trace_rows(dataset, root, rows)
    assert [(t["phase"], t["row"]) for t in traced] == [(p, r) for p, r in rows for _ in pieces_of(dataset, p, r)]
    assert set(traced[0]) >= {
        "source",
        "id",
        "url",
        "warc_file",
        "warc_offset",
        "warc_length",
        "phase",
        "row",
        "row_start",
        "doc_start",
        "length",
        "language",
        "date",
    }
    for url in ("http://a.example/0", "http://b.example/7"):
        mine = [t for t in traced if t["url"] == url]
        assert find_document(dataset, url, root) == mine
        if mine:
            assert find_document(dataset, mine[0]["id"], root) == mine
    assert find_document(dataset, "http://nowhere.example/", root) == []


def test_a_moved_store_is_found_by_id(world: Any, tmp_path: Path) -> None:
    root, done, dataset = world
    moved = tmp_path / "root"
    shutil.copytree(root, moved)
    here = PackedDataset(moved / folder_of(done).relative_to(root))
    want = trace_rows(dataset, root, [("warm", 0)])
    assert trace_rows(here, moved, [("warm", 0)]) == want  # paths are relative to the root
    for i, folder in enumerate(sorted((moved / "stages" / "tokens").iterdir())):
        folder.rename(folder.with_name(f"other{i}"))
    assert trace_rows(PackedDataset(here.folder), moved, [("warm", 0)]) == want
    shutil.rmtree(moved / "stages" / "tokens")
    with pytest.raises(FormatError, match="no token store"):
        trace_rows(PackedDataset(here.folder), moved, [("warm", 0)])


def test_same_bytes_in_any_order(world: Any, tmp_path: Path) -> None:
    _, done, _ = world
    again = line(tmp_path, MIXTURE, backwards=True)
    for stage in ("mixture", "shards.write", "shards"):
        assert [r.content for r in again[stage]] == [r.content for r in done[stage]]
        assert [r.task for r in again[stage]] == [r.task for r in done[stage]]


def test_shard_size_changes_no_row(world: Any, tmp_path: Path) -> None:
    _, done, dataset = world
    other = PackedDataset(folder_of(line(tmp_path, MIXTURE, shard_bytes=1 << 20)))
    assert len(done["shards.write"]) > 6
    assert [len(p.shards) for p in other.manifest.phases] == [1, 1]
    for phase, row in all_rows(dataset):
        assert dataset.row(phase, row)[0].tolist() == other.row(phase, row)[0].tolist()
        assert dataset.row(phase, row)[1].tolist() == other.row(phase, row)[1].tolist()


def test_order_of_stores_changes_no_token(world: Any, tmp_path: Path) -> None:
    _, _, dataset = world
    done = line(tmp_path, MIXTURE)
    stage = MixturePlan({"mixture": MIXTURE, "shard_bytes": 700})
    done["tokens"].reverse()
    done["mixture"] = [run_task(stage, t, tmp_path) for t in stage.tasks(done)]
    done["shards.write"] = [run_task(ShardsWrite({}), t, tmp_path) for t in ShardsWrite({}).tasks(done)]
    done["shards"] = [run_task(Shards({}), t, tmp_path) for t in Shards({}).tasks(done)]
    other = PackedDataset(folder_of(done))
    for phase, row in all_rows(dataset):
        assert dataset.row(phase, row)[0].tolist() == other.row(phase, row)[0].tolist()


def test_cursor_goes_on_and_epochs_complete(world: Any) -> None:
    """No document's tokens are used twice within an epoch; anneal takes what warm has left of it."""
    _, done, dataset = world
    stores = open_stores(done)
    seen: Counter[tuple[str, int, str, int]] = Counter()
    first: dict[str, int] = {}
    for phase, row in all_rows(dataset):
        for p in pieces_of(dataset, phase, row):
            seen.update((p.source, p.epoch, p.id, i) for i in range(p.doc_start, p.doc_start + p.length))
            if phase == "anneal":
                first[p.source] = min(first.get(p.source, 9), p.epoch)
    assert set(seen.values()) == {1}
    held = set(pq.read_table(dataset.folder / "heldout.parquet")["id"].to_pylist())
    for source in ("english", "other"):
        want = sum(
            int(n)
            for s in stores
            for n, i, language in zip(s.lengths, s.docs["id"].to_pylist(), s.docs["language"].to_pylist(), strict=True)
            if i not in held and (language == "en") == (source == "english")
        )
        assert sum(1 for s, e, _, _ in seen if s == source and e == 0) == want  # epoch 0 is complete
    assert first == {"english": 1, "other": 0}


def test_held_out_documents_are_in_no_row(world: Any) -> None:
    _, done, dataset = world
    held = pq.read_table(dataset.folder / "heldout.parquet")
    assert 0 < held.num_rows < 40
    assert done["mixture"][0].notes["heldout_documents"] == held.num_rows
    used = {p.id for phase, row in all_rows(dataset) for p in pieces_of(dataset, phase, row)}
    assert not used & set(held["id"].to_pylist())
    assert set(held["source"].to_pylist()) == {"english", "other"}


def test_shares_are_realised(world: Any) -> None:
    _, _, dataset = world
    for phase in dataset.manifest.phases:
        assert sum(s["target"] for s in phase.shares.values()) == pytest.approx(1)
        for share in phase.shares.values():
            assert share["realised"] == pytest.approx(share["target"], abs=0.05)  # 3 % padding, whole rows
        assert phase.rows % phase.batch_rows == 0
    assert [p.name for p in dataset.manifest.phases] == ["warm", "anneal"]
    assert dataset.manifest.special_ids == {"bos": 0, "eos": 1, "pad": 2}
    assert dataset.manifest.phase("anneal").lr == {"phase": "decay"}


def test_a_later_phase_leaves_earlier_shards_alone(world: Any, tmp_path: Path) -> None:
    _, done, _ = world
    changed = json.loads(json.dumps(MIXTURE))
    changed["stages"][1]["mix"]["other"]["epochs"] = 0.3
    changed["stages"][0]["lr"] = {"phase": "stable", "warmup_steps": 3}
    again = line(tmp_path, changed)
    tasks = [{r.key: r.task for r in d["shards.write"]} for d in (done, again)]
    warm = [k for k in tasks[0] if k.startswith("warm/")]
    assert warm
    assert all(tasks[0][k] == tasks[1][k] for k in warm)
    assert any(tasks[0][k] != tasks[1].get(k) for k in tasks[0] if k.startswith("anneal/"))


def test_no_dataset_while_a_shard_is_missing(world: Any) -> None:
    _, done, _ = world
    short = {**done, "shards.write": done["shards.write"][1:]}
    assert Shards({}).tasks({s: short[s] for s in Shards.upstream}) == []
    assert MixturePlan({"mixture": MIXTURE}).tasks({"tokens": done["tokens"], "tokenizer": []}) == []


@pytest.mark.parametrize("defaults", [{"pack": "concat"}, {"max_docs_per_row": 2}])
def test_other_ways_of_packing(defaults: dict[str, Any], tmp_path: Path) -> None:
    dataset = PackedDataset(folder_of(line(tmp_path, {**MIXTURE, "defaults": defaults})))
    assert verify_dataset(dataset.folder) == []
    most = max(len(pieces_of(dataset, *r)) for r in all_rows(dataset))
    assert most == 2 if "max_docs_per_row" in defaults else most > 2


def test_verify_names_what_is_wrong(world: Any, tmp_path: Path) -> None:
    _, _, dataset = world
    assert verify_dataset(dataset.folder) == []

    def fresh(name: str) -> Path:
        return Path(shutil.copytree(dataset.folder, tmp_path / name))

    folder = fresh("token")
    damage(folder, "warm/00001.bin", lambda b: b[:10] + b"\xff\xff" + b[12:])
    assert any("warm/00001.bin differs" in p for p in verify_dataset(folder))
    assert any("not in the vocabulary" in p for p in verify_dataset(folder))
    folder = fresh("short")
    damage(folder, "anneal/00000.bin", lambda b: b[:-2])
    assert any("anneal/00000.bin" in p and "bytes" in p for p in verify_dataset(folder))
    folder = fresh("lock")
    damage(folder, "mix.lock.json", lambda b: b + b" ")
    assert verify_dataset(folder) == ["mix.lock.json is missing or differs from the manifest"]
    folder = fresh("gone")
    (folder / "warm/00000.prov.parquet").unlink()
    assert any("gone" in p for p in verify_dataset(folder))

    folder = fresh("heldout")
    id_ = pieces_of(dataset, "warm", 0)[0].id
    damage(folder, "heldout.parquet", lambda _: b"")
    pq.write_table(pa.table({"id": [id_]}), folder / "heldout.parquet")
    assert any("held-out document" in p for p in verify_dataset(folder))

    folder = fresh("provenance")
    table = pq.read_table(folder / "warm/00000.prov.parquet")
    (folder / "warm/00000.prov.parquet").unlink()
    pq.write_table(table.slice(1), folder / "warm/00000.prov.parquet")
    found = verify_dataset(folder)
    assert any("gap or overlap" in p or "disagree" in p for p in found)
    folder = fresh("shares")
    body = orjson.loads((folder / "manifest.json").read_bytes())
    body["phases"][0]["shares"]["english"]["realised"] += 0.01
    damage(folder, "manifest.json", lambda _: orjson.dumps(body))
    assert any(p.startswith("warm: english is") for p in verify_dataset(folder))


def test_shards_are_linked_not_copied(world: Any) -> None:
    _, done, dataset = world
    name = "warm/00000.bin"
    source = next(s for r in done["shards.write"] for s in r.outputs if s.name == name)
    assert os.path.samefile(source.path, dataset.folder / name)
    assert done["shards.write"][0].key == "warm/00000"


def test_tokenizer_without_pad_is_refused(tmp_path: Path) -> None:
    stage = FakeTokenizer({"without": ["<|pad|>"]})
    receipt = run_task(stage, stage.one_task({})[0], tmp_path)
    with pytest.raises(UsageError, match=r"E106 the tokenizer has no <\|pad\|>"):
        plan_from_stores(Mixture.model_validate(MIXTURE), [], Path(receipt.output("tokenizer.json").path))


@pytest.mark.parametrize("name", ["demo", "web"])
def test_packaged_mixtures_run_on_small_stores(name: str, tmp_path: Path) -> None:
    sizes = [f"stages.{i}.{key}" for i in (0, 1) for key in ("seq_len=16", "global_batch=32")]
    mixture, _ = load_mixture(name, sizes)
    done = line(tmp_path, mixture.model_dump(mode="json", by_alias=True))
    docs = [Path(r.output("docs.parquet").path) for r in done["tokens"]]
    plan = plan_from_stores(mixture, docs, Path(done["tokenizer"][0].output("tokenizer.json").path))
    assert [p.rows for p in plan.phases] == [p.rows for p in PackedDataset(folder_of(done)).manifest.phases]
    assert {w.split()[0] for w in plan.warnings} <= {"W205"}  # a handful of documents cannot be dealt out evenly
    unchanged, _ = load_mixture(name)
    with pytest.raises(UsageError, match="E109 phase `anneal`"):
        plan_from_stores(unchanged, docs[:1], Path(done["tokenizer"][0].output("tokenizer.json").path))


def test_a_plan_over_stores_names_the_place(world: Any, tmp_path: Path) -> None:
    done = world[1]
    docs = [Path(r.output("docs.parquet").path) for r in done["tokens"]]
    path = tmp_path / "mix.yaml"
    path.write_text(
        "gristmill_mix: 1\nsources:\n  de: {filter: \"language == 'xx'\"}\n"
        "stages:\n  - {name: a, seq_len: 9, global_batch: 36, mix: {de: {epochs: 1}}}\n"
    )
    mixture, document = load_mixture(str(path))
    with pytest.raises(ConfigError, match=r"mix\.yaml:3:16: error: sources\.de\.filter: E103"):
        plan_from_stores(mixture, docs, Path(done["tokenizer"][0].output("tokenizer.json").path), document)
