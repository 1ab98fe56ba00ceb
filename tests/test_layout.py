"""The layout: layers point one way, links resolve, nothing shadows the standard library, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["core", "curate", "tokenize", "mixes", "trainer", "pipelines"]
MAY_IMPORT = {
    "core": set(),
    "curate": {"core"},
    "tokenize": {"core"},
    "mixes": {"core"},
    "trainer": {"core"},
    "pipelines": {"core", "curate", "tokenize", "mixes", "trainer"},
}
ONLY_IN = {"torch": {"trainer"}, "triton": {"trainer"}, "dask": {"pipelines"}, "distributed": {"pipelines"}}


def sources(folder: str) -> Iterator[Path]:
    yield from sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_tokenize_has_no_init() -> None:
    assert not (ROOT / "tokenize" / "__init__.py").exists(), "it would shadow the standard library's tokenize"


@pytest.mark.parametrize("room", ROOMS)
def test_links_resolve(room: str) -> None:
    link = ROOT / "src" / "gristmill" / room
    assert link.is_symlink(), f"{link}: clone with git config core.symlinks=true"
    assert link.resolve() == ROOT / room


@pytest.mark.parametrize("room", ROOMS)
def test_layers(room: str) -> None:
    faults = []
    for path in sources(room):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "gristmill" and len(parts) > 1 and parts[1] in ROOMS and parts[1] != room:
                if parts[1] not in MAY_IMPORT[room]:
                    faults.append(f"{path.relative_to(ROOT)} imports {name}")
            elif parts[0] in ONLY_IN and room not in ONLY_IN[parts[0]]:
                faults.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not faults


@pytest.mark.parametrize("room", [*ROOMS, "tests", "benchmarks"])
def test_nobody_imports_by_folder_name(room: str) -> None:
    bare = set(ROOMS) - {"tokenize"}
    faults = [f"{p}: {n}" for p in sources(room) for n in imports(p) if n.split(".")[0] in bare]
    assert not faults, "import gristmill.X instead: the bare folder would load every module twice"


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_has_a_stdlib_name(room: str) -> None:
    names = {p.stem for p in (ROOT / room).glob("*.py")} | {p.name for p in (ROOT / room).iterdir() if p.is_dir()}
    assert not names & set(sys.stdlib_module_names)


def test_files_are_small() -> None:
    big = [
        f"{p.relative_to(ROOT)}: {n}" for r in ROOMS for p in sources(r) if (n := len(p.read_text().splitlines())) > 400
    ]
    assert not big


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(p.relative_to(ROOT)) for r in ROOMS for p in sources(r) if not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not silent


@pytest.mark.parametrize("arguments", [["-c"], ["-m", "timeit", "-n1", "-r1"]])
def test_stdlib_tokenize_wins_in_the_root(arguments: list[str]) -> None:
    code = "import tokenize, inspect, linecache; assert hasattr(tokenize, 'open'), tokenize"
    subprocess.run([sys.executable, *arguments, code], cwd=ROOT, check=True, timeout=60)


def test_nothing_evaluates_or_unpickles_files() -> None:
    faults = []
    for room in ROOMS:
        for path in sources(room):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                    faults.append(f"{path}:{node.lineno}")
            if any(n.split(".")[0] in ("pickle", "dill", "shelve", "marshal") for n in imports(path)):
                faults.append(str(path))
    assert not faults
