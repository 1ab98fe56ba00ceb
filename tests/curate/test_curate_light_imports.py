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


def test_the_command_line_of_spacy_comes_when_asked_for() -> None:
    code = """
import sys
from gristmill.curate.words import words
assert words("It isn't so.") == ["It", "is", "n't", "so", "."]
assert not {"spacy.cli", "spacy.cli.info", "typer", "httpx"} & sys.modules.keys()
import spacy
assert spacy.info(silent=True)["spacy_version"] == spacy.__version__
import spacy.cli
assert callable(spacy.cli.download)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_extraction_process_starts_without_what_pages_do_not_need() -> None:
    code = """
import sys
from gristmill.curate import charset, gate, identify, page_head, sandbox_child
from gristmill.curate.extract import page_text
from gristmill.curate.engines import load_engine
load_engine("resiliparse")
print(*({"pydantic", "numpy", "pyarrow", "zipfile", "importlib.metadata"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
