"""The vocabulary cut over two processes gives the losses and gradients of the whole, over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels_linear_ce import errors, inputs, oracle, wrong
from linear_ce_ranks import CASES

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    command = [*launcher, str(TESTS / "linear_ce_ranks.py"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("residual", ["whole", "sequence"])
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one(name: str, residual: str, dtype: torch.dtype, launched: Path) -> None:
    case = CASES[name]
    want = oracle(case, inputs(case, dtype))
    first, second = (
        torch.load(launched / f"{name}-{residual}-{dtype}-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    for part in ("nll", "lse"):
        assert torch.equal(first[part], second[part])
    weight = torch.cat([first["weight"], second["weight"]])
    if residual == "sequence":
        x = torch.cat([first["x"], second["x"]])
        assert not x[case.positions :].any()
        x = x[: case.positions]
    else:
        assert torch.equal(first["x"], second["x"])
        x = first["x"]
    got = {"nll": first["nll"], "lse": first["lse"], "x": x, "weight": weight}
    assert not wrong(got, want, dtype), errors(got, want)
