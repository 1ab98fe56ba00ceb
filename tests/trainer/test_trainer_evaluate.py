"""Held-out bits per byte: exact for a uniform model, from the mixture's own held-out documents, and without a trace."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from gristmill.core.errors import UsageError  # noqa: E402
from gristmill.core.hashing import sha256_file  # noqa: E402
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA, PackedDataset, write_manifest  # noqa: E402
from gristmill.core.tokstore import StoreWriter  # noqa: E402
from gristmill.trainer.evaluate import Evaluator, open_tokenizer, windows  # noqa: E402
from gristmill.trainer.heldout import HeldOut, load_heldout  # noqa: E402
from gristmill.trainer.journal import read_journal  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402
from gristmill.trainer.source_loss import SourceLosses  # noqa: E402
from gristmill.trainer.startup import build_model  # noqa: E402
from gristmill.trainer.watch_schema import Evaluate  # noqa: E402

CPU = World(torch.device("cpu"))
VOCAB = 97


class Uniform(torch.nn.Module):  # type: ignore[name-defined]
    """Every token costs ln 97, in fp32 as a real model's."""

    def token_loss(self, tokens_BT, labels_BT, position_BT):
        return torch.where(labels_BT == -100, 0.0, math.log(VOCAB))


@pytest.fixture(scope="module")
def root(tmp_path_factory, dataset_maker):
    """A root as a run leaves it: two token stores, of which six documents are held out, and the packed dataset."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(5)
    stores, rows = [], []
    for number, source in enumerate(["web", "code"]):
        folder = root / "stages" / "tokens" / f"{number:04d}"
        folder.mkdir(parents=True)
        documents = [np.append(rng.integers(3, VOCAB, int(n)), 1).astype("<u2") for n in rng.integers(1, 90, 12)]
        columns = {
            "id": [f"{number:016x}{i:016x}" for i in range(12)],
            "source": [source] * 12,
            "bytes": [3 * (len(d) - 1) for d in documents],
        }
        table = pa.table(
            [
                pa.array(columns.get(f.name, [None] * 12), f.type)
                for f in TOKEN_DOC_SCHEMA
                if f.name not in ("offset", "length")
            ],
            names=[n for n in TOKEN_DOC_SCHEMA.names if n not in ("offset", "length")],
        )
        with StoreWriter(folder / "tokens.bin", folder / "docs.parquet", VOCAB) as store:
            store.write(documents, table)
        path = f"stages/tokens/{number:04d}/docs.parquet"
        stores.append({"path": path, "sha256": sha256_file(root / path)})
        rows += [(columns["id"][i], source, number, i, len(documents[i])) for i in (1, 4, 7)]
    dataset = dataset_maker(root / "stages" / "shards" / "task" / "out")
    held = dict(zip(("id", "source", "store", "doc", "length"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(held), dataset.folder / "heldout.parquet")
    write_manifest(dataset.folder, dataclasses.replace(dataset.manifest, stores=stores))
    return root


@pytest.fixture(scope="module")
def dataset(root):
    return PackedDataset(root / "stages" / "shards" / "task" / "out")


def heldout(dataset, **settings):
    said: list[str] = []
    tokenizer = open_tokenizer(dataset.folder / "tokenizer.json")
    return load_heldout(dataset, Evaluate(**settings), tokenizer, said.append), said


def evaluator(dataset, out, settings, step=0, world=CPU):
    return Evaluator(settings, dataset, dataset.folder / "tokenizer.json", out, world, step=step, rows=2)


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token(dataset, tmp_path):
    found = evaluator(dataset, tmp_path, Evaluate())(Uniform(), 3, "main")
    assert list(found["heldout"]) == ["code", "web"]
    for source in found["heldout"].values():
        assert source["documents"] == 3
        assert source["bytes"] == 3 * source["tokens"]
        assert source["bits_per_byte"] == pytest.approx(math.log2(VOCAB) * source["tokens"] / source["bytes"], rel=1e-7)
        assert source["nats_per_token"] == pytest.approx(math.log(VOCAB), rel=1e-7)


def test_every_token_is_predicted_once_but_the_first():
    ids = np.arange(100)
    parts = windows(HeldOut("x", [ids, ids[:1], ids[:33]], 1), 32)
    assert [len(p.ids) for p in parts] == [33, 33, 33, 4, 33]
    assert np.array_equal(np.concatenate([p.ids[p.first :] for p in parts[:4]]), ids[1:])


def test_the_mixtures_documents_are_read_from_their_stores(dataset, root, tmp_path):
    found, said = heldout(dataset)
    assert said == []
    store = {h.name: h for h in found}["code"]
    tokens = np.fromfile(root / "stages/tokens/0001/tokens.bin", "<u2")
    docs = pq.read_table(root / "stages/tokens/0001/docs.parquet").to_pylist()
    wanted = {tuple(tokens[d["offset"] : d["offset"] + d["length"] - 1]) for d in (docs[i] for i in (1, 4, 7))}
    assert {tuple(ids) for ids in store.documents} == wanted
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("manifest.json", "heldout.parquet", "tokenizer.json"):
        (moved / name).write_bytes((dataset.folder / name).read_bytes())
    away = PackedDataset(moved)
    found, said = heldout(away)
    assert found == []
    assert "not found" in said[0]
    assert [h.name for h in heldout(away, stores=str(root))[0]] == ["code", "web"]
    with pytest.raises(UsageError, match="does not hold"):
        heldout(away, stores=str(tmp_path))


def test_documents_are_chosen_by_hash_within_bounds(dataset):
    whole = {h.name: h for h in heldout(dataset)[0]}
    fewer = {h.name: h for h in heldout(dataset, max_documents=2)[0]}
    assert [tuple(d) for d in fewer["web"].documents] == [tuple(d) for d in whole["web"].documents[:2]]
    most = sum(len(d) for d in whole["web"].documents) - 1
    short = {h.name: h for h in heldout(dataset, max_tokens=most)[0]}
    assert len(short["web"].documents) == 2
    found, said = heldout(dataset, max_tokens=1)
    assert len(said) == 2 - len(found)
    assert all("max_tokens" in text for text in said)


def test_texts_of_ones_own(dataset, tmp_path):
    texts = [f"w{3 + n} w{4 + n}" for n in range(20)]
    lines = [orjson.dumps({"text": t}) for t in texts] + [b"{}", orjson.dumps({"text": "no such words"})]
    (tmp_path / "own.jsonl").write_bytes(b"\n".join(lines))
    pq.write_table(pa.table({"body": texts}), tmp_path / "own.parquet")
    files = [
        {"name": "lines", "path": str(tmp_path / "own.jsonl")},
        {"name": "table", "path": str(tmp_path / "own.parquet"), "field": "body"},
        {"name": "store", "path": str(dataset.folder.parents[2] / "tokens" / "0000")},
    ]
    found, said = heldout(dataset, mixture=False, heldout=files, max_documents=30)
    assert [(h.name, len(h.documents)) for h in found] == [("lines", 20), ("table", 20), ("store", 12)]
    assert [h.bytes for h in found[:2]] == [sum(len(t) for t in texts)] * 2
    assert any("without a text" in text for text in said)
    assert any("1 of 21 texts are lost" in text for text in said)
    for wrong in ({"name": "x", "path": str(tmp_path / "absent.jsonl")}, {"name": "web", "path": files[0]["path"]}):
        with pytest.raises(UsageError):
            heldout(dataset, heldout=[wrong])
    with pytest.raises(UsageError, match="no column"):
        heldout(dataset, heldout=[{"name": "x", "path": str(tmp_path / "own.parquet")}])


def test_an_evaluation_leaves_no_trace(dataset, tmp_path, run_maker):
    """Weights, gradients, modes and random states before and after; the row is the same again."""
    model = build_model(run_maker(), dataset.manifest, CPU)
    tokens = torch.randint(3, VOCAB, (2, 32), generator=torch.Generator().manual_seed(0))
    position = torch.arange(32).expand(2, 32)
    model.loss(tokens, tokens, position).backward()

    def state():
        return [
            *(p.detach().clone() for p in model.parameters()),
            *(p.grad.clone() for p in model.parameters()),
            torch.get_rng_state(),
            torch.tensor([m.training for m in model.modules()]),
        ]

    before, numpy_before = state(), np.random.get_state()[1].copy()
    first, again = (evaluator(dataset, tmp_path, Evaluate())(model, 3, "main") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert np.array_equal(numpy_before, np.random.get_state()[1])
    assert first == again
    for source in first["heldout"].values():  # untrained: near uniform
        assert source["nats_per_token"] == pytest.approx(math.log(VOCAB), abs=0.1)


def test_a_documents_bits_do_not_depend_on_its_neighbours(dataset, tmp_path, run_maker):
    """Packed into rows with others = alone in a row of its own."""
    model = build_model(run_maker(), dataset.manifest, CPU)
    source = next(h for h in heldout(dataset)[0] if h.name == "web")
    nats = 0.0
    for part in windows(source, 32):
        ids = torch.tensor(part.ids)[None]
        nats += model.loss(ids[:, :-1], ids[:, 1:], torch.arange(ids.shape[1] - 1)[None]).item()
    found = evaluator(dataset, tmp_path, Evaluate())(model, 1, "main")["heldout"]["web"]
    wanted = (nats + 3 * math.log(VOCAB)) / math.log(2) / source.bytes
    assert found["bits_per_byte"] == pytest.approx(wanted, rel=1e-6)


def test_rows_after_a_checkpoint_are_cut_off_on_resume(dataset, tmp_path):
    settings = Evaluate(every_steps=5)
    first = evaluator(dataset, tmp_path, settings)
    assert [s for s in range(1, 13) if first.due(s, edge=s == 12)] == [5, 10, 12]
    for step in (5, 10):
        first(Uniform(), step, "main")
    first.close()
    whole = (tmp_path / "evaluations.jsonl").read_bytes()
    again = evaluator(dataset, tmp_path, settings, step=7)
    assert [r["step"] for r in read_journal(tmp_path / "evaluations.jsonl")] == [5]
    again(Uniform(), 10, "main")
    again.sync()
    assert (tmp_path / "evaluations.jsonl").read_bytes() == whole
    again.rewind(5)
    assert [r["step"] for r in read_journal(tmp_path / "evaluations.jsonl")] == [5]
    again.close()
    nothing = evaluator(dataset, tmp_path / "none", Evaluate(mixture=False))
    assert not nothing.due(5, edge=True)


def test_windows_longer_than_any_row_are_refused(dataset, tmp_path):
    with pytest.raises(UsageError, match="longer than"):
        evaluator(dataset, tmp_path, Evaluate(seq_len=49))


def test_losses_by_source():
    losses = SourceLosses(["web", "code", "math"], CPU)
    nll = torch.tensor([[1.0, 2.0, 9.0, 4.0]])
    labels, source = torch.tensor([[5, 6, -100, 7]]), torch.tensor([[0, 0, 1, 1]])
    losses.add(nll, labels, source)
    losses.add(torch.tensor([[6.0, 7.0]]), torch.tensor([[1, -100]]), torch.tensor([[0, -1]]))
    assert losses.take() == {"web": 3.0, "code": 4.0}
    assert losses.take() == {}
