"""`from:`: runs that begin with another run's weights, at step 0 of other data or behind its step in the same."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import orjson
import pytest

torch = pytest.importorskip("torch")

from trainer_launches import end, launch, write_run  # noqa: E402

from gristmill.core.errors import FormatError, UsageError  # noqa: E402
from gristmill.core.hashing import sha256_file  # noqa: E402
from gristmill.core.stage import Receipt, Shard  # noqa: E402
from gristmill.core.tokshards import PackedDataset, write_manifest  # noqa: E402
from gristmill.trainer import branch, export, loop  # noqa: E402
from gristmill.trainer.branch_schema import Branch  # noqa: E402
from gristmill.trainer.journal import read_journal  # noqa: E402
from gristmill.trainer.train import Train  # noqa: E402

CHECKPOINTS = {"every_steps": 5, "keep": 1, "keep_every_steps": 10}
TINY = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64}


@pytest.fixture(scope="module")
def source(toy, run_maker, tmp_path_factory) -> Path:
    """A finished run of the toy dataset, exported beside its checkpoints of steps 10, 20, 30 and 40."""
    out = tmp_path_factory.mktemp("source")
    done = loop.train(run_maker(checkpoint=CHECKPOINTS), toy, out)
    export.export(done.model, toy.manifest.special_ids, out)
    return out


def train(run, dataset, out: Path):
    """Train a branched run; what it said and its records."""
    out.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    done = loop.train(branch.pinned(run, out), dataset, out, say=said.append)
    return done, said, read_journal(out / "metrics.jsonl")


def other_ending(toy, folder: Path, phase: str = "anneal") -> PackedDataset:
    """The toy dataset with one token of a phase changed."""
    shutil.copytree(toy.folder, folder)
    file = f"{phase}/00000.bin"
    data = bytearray((folder / file).read_bytes())
    data[0] = data[0] ^ 1
    (folder / file).write_bytes(data)
    phases = []
    for p in toy.manifest.phases:
        shards = [dataclasses.replace(s, sha256={**s.sha256, "bin": sha256_file(folder / s.file)}) for s in p.shards]
        phases.append(dataclasses.replace(p, shards=shards))
    write_manifest(folder, dataclasses.replace(toy.manifest, phases=phases))
    return PackedDataset(folder)


def test_behind_a_step_the_branch_is_the_run_itself(toy, run_maker, source, tmp_path):
    setting = {"run": str(source), "step": 20, "keep_position": True}
    _, said, records = train(run_maker(branch=setting, checkpoint=CHECKPOINTS), toy, tmp_path)
    assert f"begins behind step 20 of {source}" in said
    assert (tmp_path / "metrics.jsonl").read_bytes() == (source / "metrics.jsonl").read_bytes()
    assert len(records) == 40


def test_another_ending_of_the_same_mixture(toy, run_maker, source, tmp_path):
    dataset = other_ending(toy, tmp_path / "dataset")
    setting = {"run": str(source), "step": 30, "keep_position": True}
    _, _, records = train(run_maker(branch=setting, optimizer={"lr": 5e-3}), dataset, tmp_path / "out")
    theirs = read_journal(source / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 41))
    assert records[:30] == theirs[:30]
    assert records[30]["lr"] == pytest.approx(theirs[30]["lr"] / 2)
    assert records[31]["loss"] != theirs[31]["loss"]
    changed = other_ending(toy, tmp_path / "changed", "main")
    with pytest.raises(UsageError, match="phase main of this dataset is not the source's"):
        train(run_maker(branch=setting), changed, tmp_path / "refused")
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()


def test_a_new_dataset_starts_at_step_0_with_the_weights(toy, run_maker, dataset_maker, source, tmp_path):
    dataset = dataset_maker(tmp_path / "dataset", 5)
    _, _, from_seed = train(run_maker(max_steps=3), dataset, tmp_path / "fresh")
    _, said, warm = train(
        run_maker(max_steps=3, branch={"run": str(source)} | {"step": 40}), dataset, tmp_path / "kept"
    )
    assert f"begins with the weights of step 40 of {source}" in said
    assert [r["step"] for r in warm] == [1, 2, 3]
    assert warm[0]["loss"] < from_seed[0]["loss"] - 1
    assert warm[0]["lr"] == from_seed[0]["lr"]  # the schedule is the branch's own
    setting = {"run": str(source), "step": 40, "optimizer": "fresh"}
    anew, _, cold = train(run_maker(max_steps=3, branch=setting), dataset, tmp_path / "anew")
    assert cold[0] == warm[0]  # same weights and rows; the update after it differs
    assert cold[1]["loss"] != warm[1]["loss"]
    exported, _, records = train(
        run_maker(max_steps=3, branch={"safetensors": str(source)}), dataset, tmp_path / "exported"
    )
    assert records == cold
    assert all(torch.equal(a, b) for a, b in zip(exported.model.parameters(), anew.model.parameters(), strict=True))
    with pytest.raises(UsageError, match=r"step 40 of this run is not sample|was trained on another|phase main"):
        train(run_maker(branch=setting | {"keep_position": True}), dataset, tmp_path / "refused")


def test_a_branch_resumes_from_its_own_checkpoint_without_its_source(toy, run_maker, source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    setting = branch.find(Branch(run=str(copy), step=10)).model_dump()
    whole = run_maker(branch=setting, max_steps=8)
    train(whole, toy, tmp_path / "undisturbed")
    train(run_maker(branch=setting, max_steps=4), toy, tmp_path / "out")
    shutil.rmtree(copy)
    _, said, _ = train(whole, toy, tmp_path / "out")
    assert "resuming after step 4 of 8 from 00000004" in said
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == (
        tmp_path / "undisturbed" / "metrics.jsonl"
    ).read_bytes()
    state = orjson.loads((tmp_path / "out" / "checkpoints" / "00000008" / "state.json").read_bytes())
    assert state["run"]["branch"]["sha256"] == setting["sha256"]
    elsewhere = setting | {"sha256": "0" * 64}
    with pytest.raises(UsageError, match=r"branch\.sha256"):
        train(run_maker(branch=elsewhere, max_steps=9), toy, tmp_path / "out")


def test_what_does_not_fit_is_refused(toy, run_maker, source, tmp_path):
    setting = {"run": str(source), "step": 40}
    wide = run_maker(branch=setting, model=TINY | {"ffn": 96})
    with pytest.raises(UsageError, match=r"has other shapes: model\.ffn 64 -> 96"):
        train(wide, toy, tmp_path / "a")
    with pytest.raises(UsageError, match="other shapes"):
        train(run_maker(branch={"safetensors": str(source)}, model=TINY | {"layers": 3}), toy, tmp_path / "b")
    manifest = dataclasses.replace(toy.manifest, vocab_size=90)
    with pytest.raises(UsageError, match=r"has 97 ids, the dataset 90"):
        branch.check_fit("it", TINY, 97, run_maker(), manifest, print)
    muon = run_maker(branch=setting, optimizer={"lr": 1e-2, "name": "muon"})
    with pytest.raises(UsageError, match=r"(?s)from: .*from\.optimizer: fresh"):
        train(muon, toy, tmp_path / "c")
    said = train(run_maker(branch=setting, model=TINY | {"rope_theta": 50_000}, max_steps=1), toy, tmp_path / "d")[1]
    assert any("model.rope_theta" in text for text in said)  # told, not refused: long-context stages do this


def test_sources_are_found_and_named_by_content(source, tmp_path):
    found = branch.find(Branch(run=str(source)))
    assert found.step == 40
    task = tmp_path / "stages" / "train" / "0123abcd"
    task.mkdir(parents=True)
    shutil.copytree(source, task / "work")
    for name in ("0123abcd", "0123", str(task), str(task / "work")):
        moved = branch.find(Branch(run=name), tmp_path)
        assert (moved.run, moved.sha256) == (str(task / "work"), found.sha256)
    assert branch.find(Branch(run="0123", step=30), tmp_path).sha256 != found.sha256
    with pytest.raises(UsageError, match="has no checkpoint of step 31") as caught:
        branch.find(Branch(run=str(source), step=31))
    assert caught.value.hint is not None
    assert "10, 20, 30, 40" in caught.value.hint
    with pytest.raises(UsageError, match="is no run with checkpoints"):
        branch.find(Branch(run="ffff"), tmp_path)
    (tmp_path / "stages" / "train" / "0123ffff" / "work" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="fits 2 runs"):
        branch.find(Branch(run="0123"), tmp_path)
    with pytest.raises(UsageError, match=r"is not the source that from\.sha256 names"):
        branch.find(Branch(run=str(source), sha256="0" * 64))
    with pytest.raises(UsageError, match=r"holds no \.safetensors file|config\.json"):
        branch.find(Branch(safetensors=str(tmp_path)))


def test_an_exports_digest_covers_weights_and_config(source, tmp_path):
    for name in ("model.safetensors", "config.json"):
        shutil.copy(source / name, tmp_path)
    before = branch.export_digest(tmp_path)
    assert before == branch.export_digest(source)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    changed = branch.export_digest(tmp_path)
    assert changed != before
    (tmp_path / "config.json").write_text("{}")
    assert branch.export_digest(tmp_path) != changed


def test_settings_that_mean_nothing_are_refused():
    for wrong in (
        {},
        {"run": "a", "safetensors": "b"},
        {"safetensors": "b", "step": 3},
        {"safetensors": "b", "keep_position": True},
    ):
        with pytest.raises(ValueError, match=r"from needs|hold no step"):
            Branch(**wrong)


def test_the_task_follows_the_sources_content(toy, run_maker, source, tmp_path):
    files = sorted(p for p in toy.folder.rglob("*") if p.is_file())
    shards = [Shard(str(p), p.relative_to(toy.folder).as_posix(), sha256_file(p), p.stat().st_size) for p in files]
    receipt = Receipt("shards", 1, "t", "all", {}, {}, {}, shards, 0, 0, None, 0, {}, 0.0, "", "")
    shutil.copytree(source, tmp_path / "copy")

    def task(**changes):
        run = run_maker(**changes).model_dump(mode="json", by_alias=True)
        return Train({"run": run}).tasks({"shards": [receipt]})[0]

    here = task(branch={"run": str(source), "step": 30})
    assert here.id == task(branch={"run": str(tmp_path / "copy"), "step": 30}).id
    assert here.id != task(branch={"run": str(source), "step": 20}).id
    assert here.id != task(branch={"run": str(source), "step": 30, "optimizer": "fresh"}).id
    assert here.id != task().id
    assert task().id == task(parallel={"nproc": 2, "tp": 2}).id
    assert set(here.config["run"]["from"]) == {"sha256", "optimizer", "keep_position"}
    with pytest.raises(UsageError, match="is no run with checkpoints"):
        task(branch={"run": str(tmp_path / "none"), "step": 30})
    stage = Train({"run": run_maker(branch={"run": str(source)}).model_dump(mode="json", by_alias=True)})
    launch_files = stage.prepare(here, tmp_path)
    pinned = orjson.loads(launch_files.settings.read_bytes())["from"]
    assert (pinned["run"], pinned["step"]) == (str(source), 40)


def test_a_launch_by_hand_names_its_step(run_maker, source, tmp_path):
    with pytest.raises(UsageError, match=r"from\.step is not given"):
        branch.pinned(run_maker(branch={"run": str(source)}), tmp_path)
    assert branch.pinned(run_maker(), tmp_path).branch is None


def test_a_source_without_its_journal_cannot_keep_the_position(source, tmp_path):
    with pytest.raises(FormatError, match="does not hold the steps up to 41"):
        branch.copy_journal(source / "metrics.jsonl", tmp_path / "metrics.jsonl", 41)
    with pytest.raises(FormatError, match="cannot be read"):
        branch.copy_journal(tmp_path / "none.jsonl", tmp_path / "metrics.jsonl", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "safetensors"])
def test_several_processes_begin_with_the_same_weights(kind, toy, run_maker, source, tmp_path):
    setting = {"run": str(source), "step": 40} if kind == "run" else {"safetensors": str(source)}
    run = run_maker(branch=setting, max_steps=3, parallel={"nproc": 2, "tp": 2})
    code, err = end(launch(write_run(tmp_path, run), toy.folder, tmp_path / "two"))
    assert code == 0, err
    assert err.count("begins with the weights of") == 1
    _, _, alone = train(run_maker(branch=setting, max_steps=3), toy, tmp_path / "one")
    together = read_journal(tmp_path / "two" / "metrics.jsonl")
    assert [r["loss"] for r in together] == pytest.approx([r["loss"] for r in alone], abs=5e-6)
