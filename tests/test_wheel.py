"""The wheel: recipes and texts are inside, and the command works from it where torch is absent."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def test_the_wheel_is_whole_and_works_without_torch(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    built = subprocess.run(
        [sys.executable, "-m", "build", "-q", "--wheel", "-o", str(tmp_path / "dist"), str(source)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    for room in ("pipelines", "mixes", "trainer"):
        for recipe in ("demo", "web"):
            assert f"gristmill/{room}/recipes/{recipe}.yaml" in names
    for table in ("smollm3", "k2"):
        assert f"gristmill/mixes/recipes/{table}.yaml" in names
        assert f"gristmill/mixes/recipes/available/{table}.json" in names
    assert "gristmill/tokenize/train.py" in names
    assert "gristmill/tokenize/__init__.py" not in names
    assert "gristmill/py.typed" in names
    assert "gristmill/curate/rules/vectors/gopher@datatrove.jsonl" in names
    assert not [n for n in names if n.split("/")[0] not in ("gristmill",) and ".dist-info" not in n]
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['triton'] = None\n"
        "import gristmill; assert 'site' in gristmill.__file__, gristmill.__file__\n"
        "from gristmill.pipelines.cli.main import main\nmain(sys.argv[1:])"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for args, word in (
        (["--help"], "Commands:"),
        (["plan", "web", "--json"], "curate.pages"),
        (["check", "demo"], "ok:"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert word in done.stdout
