"""The loop in one process: exact resume, accumulation, refusals, damaged checkpoints, a falling loss."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil

import pytest

torch = pytest.importorskip("torch")

from gristmill.core.errors import FormatError, GristmillError, UsageError  # noqa: E402
from gristmill.core.tokshards import PackedDataset  # noqa: E402
from gristmill.trainer import checkpoint, loop  # noqa: E402
from gristmill.trainer.journal import Journal, read_journal  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class StopAt:
    """Stop cleanly after a step: counts the calls, one a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


class Killed(Exception):
    pass


def kill_at(step):
    def report(record):
        if record["step"] == step:
            raise Killed

    return report


def weights(folder):
    return checkpoint.latest(folder / "checkpoints").tensors()[0]


@pytest.fixture(scope="module")
def undisturbed(toy, run_maker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert loop.train(run_maker(), toy, folder).finished
    return folder


def test_metrics_are_functions_of_the_state_and_the_loss_falls(undisturbed, toy):
    records = read_journal(undisturbed / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 41))
    assert set(records[0]) == {"step", "phase", "loss", "grad_norm", "lr", "tokens", "samples", "valid_tokens"}
    assert [r["phase"] for r in records] == ["main"] * 30 + ["anneal"] * 10
    assert (records[-1]["samples"], records[-1]["tokens"]) == (280, 30 * 256 + 10 * 192)
    assert [r["lr"] for r in records[:5]] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert records[-1]["lr"] == pytest.approx(0.01 * (0.1 + 0.9 * 0.1))
    assert records[0]["loss"] == pytest.approx(math.log(97), abs=0.05)
    assert records[-1]["loss"] < records[0]["loss"] - 1.0
    assert [set(r) for r in read_journal(undisturbed / "timings.jsonl")] == [
        {"step", "seconds", "tokens_per_second", "tflops", "memory_bytes", "data_wait"}
    ] * 40


@pytest.mark.parametrize("killed_at", [3, 17, 30, 40])
def test_a_killed_run_resumes_bit_for_bit(killed_at, undisturbed, toy, run_maker, tmp_path):
    """Killed between checkpoints, at a phase edge, before the first checkpoint (3) and after the last step (40)."""
    with pytest.raises(Killed):
        loop.train(run_maker(), toy, tmp_path, report=kill_at(killed_at))
    with open(tmp_path / "metrics.jsonl", "ab") as f:
        f.write(b'{"step": 18, "lo')  # a line cut short by the kill
    said: list[str] = []
    assert loop.train(run_maker(), toy, tmp_path, say=said.append).finished
    assert (tmp_path / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    assert [r["step"] for r in read_journal(tmp_path / "timings.jsonl")] == list(range(1, 41))
    assert bool(said) == (killed_at >= 5)
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(tensor, weights(tmp_path)[name]), name


def test_a_clean_stop_checkpoints_and_resumes(undisturbed, toy, run_maker, tmp_path):
    outcome = loop.train(run_maker(), toy, tmp_path, stop=StopAt(17))
    assert (outcome.step, outcome.finished) == (17, False)
    assert checkpoint.latest(tmp_path / "checkpoints").step == 17
    loop.train(run_maker(), toy, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_a_damaged_checkpoint_is_passed_over(undisturbed, toy, run_maker, tmp_path):
    loop.train(run_maker(), toy, tmp_path, stop=StopAt(17))
    newest = tmp_path / "checkpoints" / "00000017"
    path = newest / "optimizer.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    (tmp_path / "checkpoints" / ".tmp-00000018").mkdir()  # a save that was killed
    said: list[str] = []
    assert loop.train(run_maker(), toy, tmp_path, say=said.append).finished
    assert "passing over" in said[0]
    assert "resuming after step 15" in said[1]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("damage", ["flip", "no state", "no weights", "bad json", "no digest"])
def test_every_kind_of_damage_is_seen(damage, toy, run_maker, tmp_path):
    loop.train(run_maker(max_steps=2), toy, tmp_path)
    folder = tmp_path / "checkpoints"
    newest = checkpoint.latest(folder).folder
    if damage == "flip":
        data = bytearray((newest / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (newest / "model.safetensors").write_bytes(data)
    elif damage == "bad json":
        (newest / "state.json").write_bytes(b'{"format": ')
    elif damage == "no digest":
        text = (newest / "state.json").read_bytes()
        (newest / "state.json").write_bytes(text.replace(b'"dataset_digest"', b'"something_else"'))
    else:
        (newest / {"no state": "state.json", "no weights": "model.safetensors"}[damage]).unlink()
    assert checkpoint.latest(folder) is None


def test_only_the_newest_checkpoints_are_kept(undisturbed):
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == ["00000035", "00000040"]


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_gradient_accumulation_changes_only_rounding(rows, toy, run_maker, tmp_path, undisturbed):
    """Micro batches hold unequal numbers of valid tokens, so a mean of means would show at once."""
    loop.train(run_maker(micro_batch_rows=rows, max_steps=3), toy, tmp_path)
    want = read_journal(undisturbed / "metrics.jsonl")
    for got, reference in zip(read_journal(tmp_path / "metrics.jsonl"), want, strict=False):
        assert got["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert got["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)


def test_max_steps_leaves_the_schedule_and_can_be_raised(undisturbed, toy, run_maker, tmp_path):
    assert loop.train(run_maker(max_steps=33), toy, tmp_path).step == 33
    assert loop.train(run_maker(), toy, tmp_path).step == 40
    assert (tmp_path / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_bf16_trains(toy, run_maker, tmp_path):
    loop.train(run_maker(precision="bf16"), toy, tmp_path)
    records = read_journal(tmp_path / "metrics.jsonl")
    assert records[-1]["loss"] < records[0]["loss"] - 1.0
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}


def test_another_dataset_or_run_is_refused(toy, dataset_maker, run_maker, tmp_path):
    loop.train(run_maker(max_steps=2), toy, tmp_path / "out")
    other = dataset_maker(tmp_path / "other", seed=9)
    with pytest.raises(UsageError, match="was trained on dataset"):
        loop.train(run_maker(max_steps=3), other, tmp_path / "out")
    with pytest.raises(UsageError, match=r"optimizer\.lr 0.01 -> 0.02"):
        loop.train(run_maker(max_steps=3, optimizer={"lr": 2e-2}), toy, tmp_path / "out")
    said: list[str] = []
    loop.train(run_maker(max_steps=3, threads=2, log_every=1), toy, tmp_path / "out", say=said.append)
    assert "threads 1 -> 2: not equal bit for bit" in said[0]


def with_manifest(dataset: PackedDataset, **changes) -> PackedDataset:
    changed = PackedDataset(dataset.folder)
    changed.manifest = dataclasses.replace(dataset.manifest, **changes)
    return changed


def test_data_that_does_not_fit_is_refused(toy, run_maker, tmp_path):
    with pytest.raises(FormatError, match="token id 9"):
        loop.train(run_maker(), with_manifest(toy, vocab_size=64), tmp_path / "a")
    short = {"layers": 1, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64, "max_seq_len": 40}
    with pytest.raises(UsageError, match="max_seq_len is 40, the dataset has rows of 48"):
        loop.train(run_maker(model=short), toy, tmp_path / "b")
    with pytest.raises(UsageError, match="fills one batch"):
        loop.train(run_maker(), with_manifest(toy, phases=[]), tmp_path / "c")
    loop.train(run_maker(max_steps=2), toy, tmp_path / "d")
    (tmp_path / "d" / "metrics.jsonl").unlink()
    with pytest.raises(FormatError, match="does not hold the steps up to 2"):
        loop.train(run_maker(max_steps=3), toy, tmp_path / "d")


@pytest.mark.parametrize("where", ["loss", "gradient norm"])
def test_a_step_that_is_not_finite_is_not_applied(where, toy, run_maker, tmp_path, monkeypatch):
    from gristmill.trainer.model import Decoder

    loop.train(run_maker(max_steps=5), toy, tmp_path)
    before = weights(tmp_path)
    plain = Decoder.token_loss

    def broken(self, *args):
        nll = plain(self, *args)
        return nll * float("nan") if where == "loss" else nll + torch.sqrt(nll * 0)  # its gradient is 0 x inf

    monkeypatch.setattr(Decoder, "token_loss", broken)
    with pytest.raises(GristmillError, match=f"step 6: {where} is (nan|inf)"):
        loop.train(run_maker(), toy, tmp_path)
    monkeypatch.setattr(Decoder, "token_loss", plain)
    assert all(torch.equal(t, before[n]) for n, t in weights(tmp_path).items())
    assert len(read_journal(tmp_path / "metrics.jsonl")) == 5
    assert loop.train(run_maker(max_steps=6), toy, tmp_path).finished


def test_a_journal_keeps_whole_lines_up_to_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2}\n{"step":3}\n{"st')
    journal = Journal(path, 2, complete=True)
    journal.write({"step": 3, "x": 1})
    journal.close()
    assert read_journal(path) == [{"step": 1}, {"step": 2}, {"step": 3, "x": 1}]
    with pytest.raises(FormatError):
        Journal(path, 4, complete=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPU")
def test_compiled_blocks_train_alike(toy, run_maker, tmp_path):
    model = {"layers": 1, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64}
    for name, parallel in (("eager", {}), ("compiled", {"compile": True})):
        loop.train(run_maker(model=model, max_steps=4, parallel=parallel), toy, tmp_path / name)
    eager, compiled = (read_journal(tmp_path / name / "metrics.jsonl") for name in ("eager", "compiled"))
    assert [r["loss"] for r in compiled] == pytest.approx([r["loss"] for r in eager], abs=1e-5)
