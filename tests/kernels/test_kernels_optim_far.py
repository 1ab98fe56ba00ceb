"""Offsets beyond 2^31 elements in the optimizer's kernels: views over memory that is never touched, in processes of their own.

A 32-bit offset wraps to an address outside: a wrong result, or the process dies of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ADAM = """
import types
import triton.runtime.interpreter as interpreter
from gristmill.trainer.kernels import adam
planted(adam, "_adam_kernel")
size, last = 2**31 + 1024, 2**31 // 1024  # the last block of 1024 begins at 2^31: 2 million programs before it
whole = [torch.empty(size, dtype=torch.float16) for _ in range(4)]
for array in whole:
    array[-1024:] = 1
builder = interpreter.interpreter_builder
builder.set_grid_idx = lambda x, y, z: setattr(builder, "grid_idx", (x + last, y, z))
adam.triton = types.SimpleNamespace(cdiv=lambda size, block: 1)  # launches that one alone
step = torch.zeros(())
adam.adamw_step(*whole, step, lr=0.5, betas=(0.5, 0.5), eps=0.0, weight_decay=0.0)
# m = v = 1 again, corrected by 1 - 0.5: 1 - 0.5 * 2 / sqrt(2)
assert torch.allclose(whole[0][-1024:].float(), torch.tensor(1 - 0.5 * 2**0.5), atol=1e-3), whole[0][-1024:]
"""

STACK = """
from gristmill.trainer.kernels import newton_schulz as ns
planted(ns, "_symmetric_kernel")
x = torch.empty(2 * 2**30 + 64, dtype=torch.float16).as_strided((3, 4, 8), (2**30, 8, 1))  # the third begins at 2^31
x.copy_(torch.randn(3, 4, 8))
assert torch.allclose(ns.symmetric_product(x).float(), x.float() @ x.float().mT, atol=2e-2)
"""

ROWS = """
from gristmill.trainer.kernels import newton_schulz as ns
planted(ns, "_symmetric_kernel")
x = torch.empty(9 * 2**28 + 8, dtype=torch.float16).as_strided((1, 10, 8), (0, 2**28, 1))  # row 8 begins at 2^31
x.copy_(torch.randn(1, 10, 8))
assert torch.allclose(ns.symmetric_product(x).float(), x.float() @ x.float().mT, atol=2e-2)
"""

BEGIN = """
import pathlib, sys
import pytest, torch
from kernel_planting import plant
torch.manual_seed(0)
patch = pytest.MonkeyPatch()
def planted(module, kernel):
    plant(patch, pathlib.Path(sys.argv[1]), module, kernel, *sys.argv[2:])
"""

BUGS = {
    "adam": (ADAM, "tl.program_id(0).to(tl.int64)", "tl.program_id(0)"),
    "matrix of a stack": (STACK, "tl.program_id(1).to(tl.int64)", "tl.program_id(1)"),
    "row of a matrix": (ROWS, "of_i = X + i.to(tl.int64)[:, None]", "of_i = X + i[:, None]"),
}


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("which", BUGS)
def test_far_offsets(which: str, tmp_path: Path) -> None:
    code, old, _ = BUGS[which]
    done = run(code, str(tmp_path), old, old)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("which", BUGS)
def test_an_offset_of_32_bits_is_caught(which: str, tmp_path: Path) -> None:
    code, old, new = BUGS[which]
    assert run(code, str(tmp_path), old, new).returncode != 0
