"""Offsets beyond 2^31 elements in the row-wise kernels: views over memory of which few pages are ever touched.

Each runs in a process of its own: a 32-bit offset wraps to an address outside, and the process may die of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import pathlib, resource, sys
import pytest, torch
from kernel_planting import plant
from kernel_errors import error
torch.manual_seed(0)
patch = pytest.MonkeyPatch()
def planted(module):
    if len(sys.argv) > 1:
        plant(patch, pathlib.Path(sys.argv[1]), module, *sys.argv[2:])
def far(rows, *inner, apart=2**30):
    # row 2 begins at element 2^31 of 4.3 GB, of which three pages are written
    strides = torch.empty(inner, device="meta").stride()
    x = torch.empty((rows - 1) * apart + 2**12, dtype=torch.float16).as_strided((rows, *inner), (apart, *strides))
    return x.copy_(torch.randn(x.shape))
"""

END = """
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**20, "over 1 GB was touched"
"""

NORM = """
from gristmill.trainer.kernels import norm, reference
planted(norm)
x, residual, dy, w = far(3, 8), far(3, 8), far(3, 8), torch.randn(8).half()
y, total, scale = norm.launch_forward(x, residual, w, 1e-5)
Y, _ = reference.add_rms_norm(*(t.double() for t in (x, residual, w)), 1e-5)
assert error(y, Y) < 4e-3
gx = x.double().requires_grad_()
reference.rms_norm(gx, w.double(), 1e-5).backward(dy.double())
dx, dw = norm.launch_backward(dy, residual, x, w, torch.rsqrt(x.float().square().mean(-1) + 1e-5))
assert error(dx, gx.grad + residual.double()) < 4e-3
"""

ROPE = """
from gristmill.trainer.kernels import rope, reference
planted(rope)
q, k, dq = far(3, 2, 2, 8), far(3, 2, 1, 8), far(3, 2, 2, 8)
angle = torch.randn(3, 2, 4).repeat(1, 1, 2)
y, _ = rope.launch_forward(q, k, angle.cos(), angle.sin(), None, None, 1e-5)
assert error(y, reference.rope(q.double(), angle.cos().double(), angle.sin().double())) < 2e-3
dx, _, _, _ = rope.launch_backward(dq, k, q, k, angle.cos(), angle.sin(), None, None, 1e-5)
assert error(dx, reference.rope(dq.double(), angle.cos().double(), -angle.sin().double())) < 2e-3
"""

MLP = """
from gristmill.trainer.kernels import mlp, reference
planted(mlp)
x, up, dy = far(3, 8), far(3, 8), far(3, 8)
y = mlp.launch_forward("silu", x, up, None)
assert error(y, reference.swiglu(x.double(), up.double())) < 2e-3
dx, dup, _ = mlp.launch_backward("silu", dy, x, up, None)
gx, gup = (t.double().requires_grad_() for t in (x, up))
reference.swiglu(gx, gup).backward(dy.double())
assert error(dx, gx.grad) < 2e-3 and error(dup, gup.grad) < 2e-3
"""

FLAT = """
import types
from triton.runtime.interpreter import interpreter_builder as builder
from gristmill.trainer.kernels import mlp, reference
planted(mlp)
size, block = 2**31 + 8, mlp.choose("mlp forward", mlp.TILE).elements
x, up, dy = (torch.empty(size, dtype=torch.float16).view(1, -1) for _ in range(3))
for t in (x, up, dy):
    t[0, -8:] = torch.randn(8)
# the last program alone, which begins at element 2^31: 131,072 are before it
builder.set_grid_idx = lambda *at: setattr(builder, "grid_idx", (2**31 // block, 0, 0))
mlp.triton = types.SimpleNamespace(cdiv=lambda *_: 1)
y = mlp.launch_forward("relu2", x, up, None)
dx, dup, _ = mlp.launch_backward("relu2", dy, x, up, None)
last = [t[0, -8:].double() for t in (x, up, dy)]
assert error(y[0, -8:], reference.relu2(*last[:2])) < 2e-3
assert error(dup[0, -8:], last[2] * reference.relu2(last[0])) < 2e-3
"""

BUGS = {  # {what: (code, kernel, old, new)}
    "norm": (NORM, "_forward_kernel", "row = tl.program_id(0).to(tl.int64) * ROWS", "row = tl.program_id(0) * ROWS"),
    "norm's gradient": (NORM, "_backward_kernel", "tl.cast(first, tl.int64) +", "first +"),
    "rope": (
        ROPE,
        "_forward_kernel",
        "at = (position // T).to(tl.int64) * strides[0] + (position % T).to(tl.int64) * strides[1]\n    live",
        "at = (position // T) * strides[0] + (position % T) * strides[1]\n    live",
    ),
    "rope's gradient": (
        ROPE,
        "_backward_kernel",
        "at = (position // T).to(tl.int64) * strides[0] + (position % T).to(tl.int64) * strides[1]\n    live",
        "at = (position // T) * strides[0] + (position % T) * strides[1]\n    live",
    ),
    "mlp": (MLP, "_forward_kernel", "(program // blocks).to(tl.int64)", "(program // blocks)"),
    "mlp's gradient": (MLP, "_backward_kernel", "(program // blocks).to(tl.int64)", "(program // blocks)"),
    "flat mlp": (FLAT, "_forward_kernel", "(program % blocks).to(tl.int64)", "(program % blocks).to(tl.int32)"),
}


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code + END, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("which", ["norm", "rope", "mlp", "flat mlp"])
def test_far_offsets(which: str) -> None:
    done = run(BUGS[which][0])
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("which", BUGS)
def test_an_offset_of_32_bits_is_caught(which: str, tmp_path: Path) -> None:
    code, kernel, old, new = BUGS[which]
    done = run(code, str(tmp_path), kernel, old, new)
    assert done.returncode != 0
    assert " times in " not in done.stderr, done.stderr  # not because nothing could be planted
