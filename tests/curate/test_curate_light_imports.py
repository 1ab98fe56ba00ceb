"""spaCy and numba are loaded without torch, scipy's BLAS and numba's extensions, all of which still work afterwards."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from gristmill.curate.kernels import kernels
from gristmill.curate.words import words
assert words("It isn't so.") == ["It", "is", "n't", "so", "."]
assert "torch" not in sys.modules
if kernels().compiled:
    import numba, numpy as np
    assert "scipy.linalg" not in sys.modules
    from numba.core import entrypoints
    assert entrypoints._already_initialized is False, "extensions still load when someone else needs them"
    @numba.njit
    def product(a, b):
        return (a @ b).sum()
    assert product(np.ones((3, 3)), np.ones((3, 3))) == 27
    assert entrypoints._already_initialized is True
assert sys.modules.get("torch", 0) is not None and sys.modules.get("scipy.linalg", 0) is not None
"""


def test_what_is_held_back_comes_later() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
