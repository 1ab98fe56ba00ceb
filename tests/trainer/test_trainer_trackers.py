"""The console line, the timing record, MFU where a peak is known, and trackers behind packages that may be absent."""

from __future__ import annotations

import sys
import types

import pytest

from gristmill.core.errors import UsageError
from gristmill.trainer import hardware, progress
from gristmill.trainer.trackers import Trackers

STEP = {
    "step": 20,
    "steps": 120,
    "phase": "main",
    "samples": 1280,
    "loss": 3.14159,
    "grad_norm": 0.5,
    "lr": 1e-3,
    "source_loss": {"web": 3.2, "code": 2.5},
    "seconds": 0.5,
    "tokens_per_second": 31_234.0,
}
FULL = STEP | {"tflops": 12.345, "mfu": 0.412, "memory_bytes": 3 << 30, "data_wait": 0.001}
EVALUATION = {
    "step": 20,
    "phase": "main",
    "heldout": {"web": {"bits_per_byte": 1.25}},
    "tasks": {
        "arc": {"accuracy": 0.3, "accuracy_per_char": 0.31, "accuracy_per_char_stderr": 0.02, "random": 0.25},
        "gsm8k": {"gold_logprob_per_char": -0.7},
    },
}


def lines(*records, **options):
    said: list[str] = []
    show = progress.Progress(options.pop("every", 1), said.append, **options)
    for record in records:
        show(record)
    return said


def test_the_line():
    assert lines(STEP) == [
        "step  20/120 | main row 1,280 | loss 3.142 (code 2.50, web 3.20) | grad 0.50 | lr 1.0e-03 | 31k tok/s"
    ]
    peak = progress.Peak(989.4e12, "bf16")
    assert lines(FULL | {"phase_step": 20, "phase_steps": 100}, peak=peak) == [
        "step  20/120 | main 20/100 row 1,280 | loss 3.142 (code 2.50, web 3.20) | grad 0.50 | lr 1.0e-03 | 31k tok/s"
        " | 12.3 TFLOP/s | MFU 41.2% of 989.4 bf16 | 3.0 GiB | wait 0.1%"
    ]
    assert "(" not in lines(STEP | {"source_loss": {"web": 3.2}})[0]
    assert ", 3 more)" in lines(STEP | {"source_loss": {f"s{i}": 1.0 for i in range(9)}})[0]


def test_speeds_are_means_over_the_time_since_the_last_line():
    slow = STEP | {"step": 11, "seconds": 3.0, "tokens_per_second": 100.0, "data_wait": 0.5}
    fast = STEP | {"step": 12, "seconds": 1.0, "tokens_per_second": 500.0, "data_wait": 0.1}
    (line,) = lines(slow, fast, every=12)
    assert "| 200 tok/s | wait 40.0%" in line


def test_timing_counts_flops_per_device():
    meter = progress.Meter(lambda seq_len: 6 * seq_len, progress.Peak(1e6, "fp32"), devices=2)
    timing = meter.timing(tokens=1000, seq_len=10, seconds=0.5, wait=0.01)
    assert timing.pop("memory_bytes") > 1 << 20
    assert timing == {
        "seconds": 0.5,
        "tokens_per_second": 2000.0,
        "tflops": 6e-8,
        "mfu": 0.06,
        "data_wait": 0.02,
    }
    unknown = progress.Meter(lambda seq_len: 6, progress.Peak(None, "fp32"))
    assert "mfu" not in unknown.timing(tokens=1, seq_len=1, seconds=1.0)


def test_no_peak_is_invented_for_a_cpu():
    assert progress.find_peak("cpu", "bf16", None) == progress.Peak(None, "bf16")
    assert progress.find_peak("cpu", "fp32", 0.2) == progress.Peak(2e11, "fp32")
    torch = pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
        assert progress.find_peak("cuda", "bf16", None).flops == hardware.PEAKS["h100"]["bf16"]
        patch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        assert progress.find_peak("cuda", "fp32", None) == progress.Peak(hardware.PEAKS["h100"]["tf32"], "tf32")


def test_the_line_of_an_evaluation():
    assert progress.evaluation_line(EVALUATION) == (
        "evaluation after step 20 | held-out bits/byte web 1.2500 | arc 31.0% ± 2.0%, chance 25.0% | gsm8k -0.700 nats/char"
    )


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # import fails
    with pytest.raises(UsageError) as fault:
        Trackers([name], tmp_path, {}, 0, print)
    assert fault.value.hint == f"pip install 'gristmill[{name}]'"


class FakeWriter:
    made: list[FakeWriter] = []

    def __init__(self, log_dir, purge_step):
        self.log_dir, self.purge_step, self.calls, self.closed = log_dir, purge_step, [], False
        FakeWriter.made.append(self)

    def add_scalar(self, name, value, step):
        self.calls.append((name, value, step))

    def add_text(self, name, text, step):
        self.calls.append((name, text, step))

    def close(self):
        self.closed = True


@pytest.fixture
def tensorboard(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    FakeWriter.made.clear()
    return FakeWriter.made


def test_tensorboard_gets_metrics_evaluations_and_samples(tensorboard, tmp_path):
    trackers = Trackers(["tensorboard"], tmp_path, {}, 10, print)
    trackers.step(FULL)
    trackers.evaluation(EVALUATION)
    trackers.samples({"step": 20, "phase": "main", "samples": [{"prompt": "The", "text": "The\n# mill"}]})
    trackers.samples(None)
    trackers.close()
    (writer,) = tensorboard
    assert (writer.log_dir, writer.purge_step, writer.closed) == (str(tmp_path / "tensorboard"), 11, True)
    assert {step for *_, step in writer.calls} == {20}
    found = {name: value for name, value, _ in writer.calls}
    assert found["train/loss"] == 3.14159
    assert found["source/code"] == 2.5
    assert found["speed/mfu"] == 0.412
    assert found["heldout/web/bits_per_byte"] == 1.25
    assert found["task/arc/accuracy_per_char"] == 0.31
    assert found["sample/0 The"] == "    The\n    # mill"
    assert not any(isinstance(value, dict) for value in found.values())


def test_wandb_goes_on_in_its_own_run(tmp_path, monkeypatch):
    calls: list[tuple[str, object]] = []

    class Run:
        id = "abc123"
        log = staticmethod(lambda values: calls.append(("log", values)))
        finish = staticmethod(lambda: calls.append(("finish", None)))
        define_metric = staticmethod(lambda name, step_metric: calls.append((name, step_metric)))

    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(("init", options)) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for _ in range(2):
        trackers = Trackers(["wandb"], tmp_path, {"seed": 3}, 0, print)
        trackers.step(STEP)
        trackers.close()
    started = [options for kind, options in calls if kind == "init"]
    assert [o["id"] for o in started] == [None, "abc123"]
    assert all("mode" not in o and "project" not in o for o in started)  # WANDB_MODE and WANDB_PROJECT decide
    logged = [values for kind, values in calls if kind == "log"]
    assert logged[0]["step"] == 20
    assert logged[0]["train/loss"] == 3.14159


def test_a_tracker_that_fails_is_said_once_and_left_out(tensorboard, tmp_path, monkeypatch):
    said: list[str] = []
    trackers = Trackers(["tensorboard"], tmp_path, {}, 0, said.append)

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(FakeWriter, "add_scalar", full)
    trackers.step(STEP)
    trackers.step(STEP)
    trackers.close()
    assert said == ["tensorboard failed and is left out from here on: OSError: disk full"]
