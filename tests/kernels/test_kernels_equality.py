"""Training on Triton kernels is the same in one process, tensor parallel and data x tensor parallel, and as in torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import packed_rows
import pytest
import torch

from gristmill.trainer.journal import read_journal
from gristmill.trainer.schema import TrainRun

pytestmark = [pytest.mark.slow, pytest.mark.kernel_equality]

TESTS = Path(__file__).resolve().parents[1]
STEPS = 3
LOSS = 2e-6  # nats a token
WEIGHTS = 1e-5  # of a tensor's norm
CASES: dict[str, tuple[int, dict[str, Any]]] = {  # name: processes, changed settings
    "torch": (1, {"kernels": "torch"}),
    "one": (1, {}),
    "tp2": (2, {"parallel": {"tp": 2, "zero": 1}}),
    "dp2 tp2": (4, {"parallel": {"tp": 2, "zero": 3}}),
}
FAULTS = {"sums of two maxima": 1, "dW of one rank dropped": 2}  # the step whose loss shows it


def settings(changes: dict[str, Any], steps: int = STEPS) -> dict[str, Any]:
    """2 layers with all that differs between layouts: GQA, QK-norm, a tied table of 97 ids, accumulation, clipping.

    A step has 3 rows of 24 tokens, in micro batches of 2 and a row that only fills: the interpreter's time goes by rows x
    heads.
    """
    model = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64, "qk_norm": True}
    run = {
        "gristmill_train": 1,
        "mixture": "toy",
        "seed": 3,
        "model": model,
        "optimizer": {"lr": 2e-3, "clip": 0.5},
        "loss": {"z_loss": 1e-3},
        "data": {"batch_ramp": [{"rows": 3, "until_samples": 3 * STEPS}]},
        "micro_batch_rows": 2,
        "max_steps": steps,
        "device": "cpu",
        "kernels": "triton",
        "checkpoint": {"every_steps": steps},
    }
    return TrainRun.model_validate(run | changes).model_dump(mode="json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, in one launch for each number of processes, all at once. Folders: a case's or a fault's name."""
    out = tmp_path_factory.mktemp("equality")
    dataset = packed_rows.make(out / "dataset").folder
    launches: dict[int, list[dict[str, Any]]] = {}
    for name, (processes, changes) in CASES.items():
        launches.setdefault(processes, []).append({"name": name, "run": settings(changes)})
    for fault, steps in FAULTS.items():
        run = settings(CASES["tp2"][1], steps)
        launches[2].append({"name": fault, "run": run, "fault": fault})
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment["TRITON_INTERPRET"] = "1"
    started = []
    for processes, cases in launches.items():
        file = out / f"cases-{processes}.json"
        file.write_text(json.dumps(cases))
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += [str(TESTS / "kernel_ranks.py"), str(dataset), str(out), str(file)]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
    try:
        ended = [(child.communicate(timeout=900)[1], child.returncode) for child in started]
    finally:
        for child in started:
            child.kill()
    assert not any(code for _, code in ended), "\n".join(err[-6000:] for err, code in ended if code)
    return out


def losses(folder: Path) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    return [(record["loss"], record["grad_norm"]) for record in read_journal(folder / "metrics.jsonl")]


def apart(a: Path, b: Path) -> tuple[float, float]:
    """Largest difference of a loss over the steps that both have, and of a last weight by its tensor's norm."""
    loss = max(abs(x - y) for (x, _), (y, _) in zip(losses(a), losses(b), strict=False))
    left, right = (torch.load(folder / "weights.pt", weights_only=True) for folder in (a, b))
    assert left.keys() == right.keys()
    return loss, max((left[n] - right[n]).norm().item() / left[n].norm().item() for n in left)


@pytest.mark.parametrize("name", ["torch", "tp2", "dp2 tp2"])
def test_training_is_that_of_one_process(name: str, trained: Path) -> None:
    one, other = trained / "one", trained / name
    assert len(losses(one)) == len(losses(other)) == STEPS
    loss, weight = apart(one, other)
    print(f"one process on triton and {name}: losses differ by {loss:.1e}, last weights by {weight:.1e}")
    assert loss <= LOSS
    assert weight <= WEIGHTS
    norms = [(x, y) for (_, x), (_, y) in zip(losses(one), losses(other), strict=True)]
    assert all(abs(x - y) <= 1e-5 * x for x, y in norms)
    assert all(x > 0.5 for x, _ in norms)  # clipping works at every step


def test_it_trains(trained: Path) -> None:
    """Equal nonsense would be equal, too."""
    first, *_, last = losses(trained / "one")
    assert last[0] < first[0] - 1e-3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, trained: Path) -> None:
    faulty, right = losses(trained / fault), losses(trained / "one")
    assert len(faulty) == FAULTS[fault]
    off = [abs(x - y) for (x, _), (y, _) in zip(faulty, right, strict=False)]
    print(f"{fault}: losses off by {', '.join(f'{x:.1e}' for x in off)}")
    assert off[-1] > 10 * LOSS
    assert max(off[:-1], default=0.0) <= LOSS  # a wrong gradient leaves the loss before the first update
