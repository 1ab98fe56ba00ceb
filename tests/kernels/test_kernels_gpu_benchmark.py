"""benchmarks/kernels_gpu.py: every operation runs in the interpreter and agrees with eager torch; without a GPU it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gristmill.trainer.architecture import read_preset
from gristmill.trainer.kernels import adam
from gristmill.trainer.kernels.roofline_passes import costs

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels_gpu.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernels_gpu", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_smoke(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--interpret-smoke"]) == 0
    printed = capsys.readouterr().out
    counted = {c.name for name in ("llama-3-8b", "apertus-8b") for c in costs(read_preset(name), 32, 16, 7)}
    timed = {line.split("|")[1].strip() for line in printed.splitlines()[2:]}
    assert timed == counted  # the roofline's rows, all of them


def test_a_wrong_kernel_is_not_timed_in_silence(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = adam.adamw_step
    monkeypatch.setattr(
        adam, "adamw_step", lambda *a, weight_decay, **b: real(*a, weight_decay=weight_decay + 100, **b)
    )
    assert benchmark.main(["--interpret-smoke", "--only", "adamw"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([]) == 2
    assert "no GPU" in capsys.readouterr().err
