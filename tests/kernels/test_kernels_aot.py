"""The ahead-of-time compiler's limits: each is broken once, by figures or by a kernel compiled for a GPU that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gristmill.trainer.kernels import aot, aot_limits
from gristmill.trainer.kernels.aot_measure import CHIPS, Chip, dots, toolchain
from gristmill.trainer.kernels.cases import MODULES

SOUND = {
    "shared": 65536,
    "registers": 100,
    "stack": 0,
    "hgmma": 8,
    "load_async": 4,
    "store_wide": 4,
    "instructions": 1000,
    "dots": 1,
}


def faults(now: dict[str, int], was: dict[str, int], target: str = "sm90") -> list[str]:
    return aot_limits.wrong("k", now, target) + aot_limits.drifted("k", now, was)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"registers": 105}, None),
        ({"registers": 106}, "registers 100 -> 106"),
        ({"instructions": 1200}, None),
        ({"instructions": 1201}, "instructions 1000 -> 1201"),
        ({"stack": 8}, "stack 0 -> 8"),
        ({"spills": 1}, "spills 0 -> 1"),
        ({"hgmma": 2}, None),
        ({"hgmma": 0, "hmma": 16}, "lost all of its 8 hgmma"),  # a warp's instruction at half the rate
        ({"hgmma": 0}, "1 dots, no matrix instruction"),
        ({"load_async": 0, "load_narrow": 32}, "lost all of its 4 load_async"),
        ({"store_wide": 0}, "lost all of its 4 store_wide"),
        ({"shared": 232_448}, None),
        ({"shared": 232_449}, "232449 bytes of shared memory, sm90 has 232448"),
    ],
    ids=str,
)
def test_each_limit(change: dict[str, int], words: str | None) -> None:
    found = faults({**SOUND, **change}, SOUND)
    assert any(words in fault for fault in found) if words else not found


@pytest.mark.parametrize(("target", "most"), [("sm80", 166_912), ("sm100", 232_448), ("gfx942", 65_536)])
def test_shared_memory_by_chip(target: str, most: int) -> None:
    assert not aot_limits.wrong("k", {**SOUND, "shared": most}, target)
    assert aot_limits.wrong("k", {**SOUND, "shared": most + 1}, target)


def test_figures_of_other_versions_say_nothing(tmp_path: Path) -> None:
    now = {"k": SOUND}
    (fault,) = aot_limits.check(now, "sm90", "triton 9, ptxas 9", tmp_path)
    assert "no figures for triton 9, ptxas 9 (known: none)" in fault
    assert "--target sm90 --write" in fault
    aot_limits.write(now, "sm90", "triton 8, ptxas 9", tmp_path)
    aot_limits.write(now, "sm90", "triton 9, ptxas 9", tmp_path)
    assert set(aot_limits.load("sm90", tmp_path)) == {"triton 8, ptxas 9", "triton 9, ptxas 9"}
    assert not aot_limits.check(now, "sm90", "triton 9, ptxas 9", tmp_path)


def test_kernels_that_came_or_went(tmp_path: Path) -> None:
    aot_limits.write({"k": SOUND}, "sm90", "v", tmp_path)
    came, went = aot_limits.check({"new": SOUND}, "sm90", "v", tmp_path)
    assert "new: not among the committed figures" in came
    assert "k: committed, but no longer compiled" in went


def test_dots_meant_for_matrix_units() -> None:
    line = "%a = tt.dot %x, %y, %z{} : tensor<64x16x{}> * tensor<16x64x{}> -> tensor<64x64xf32>"
    assert dots(line.format("", "bf16", "bf16")) == 1
    assert dots(line.format(", inputPrecision = tf32", "f32", "f32")) == 1
    assert dots(line.format("", "f32", "f32")) == 0


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs the command on cases of tests/aot_planted.py: (exit code, its JSON)."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the workers must not inherit it

    def run(cases: str, *options: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setenv("PLANTED_CASES", cases)
        command = ["--target", "sm90", "--module", "aot_planted", "--budgets", str(tmp_path), "--json", *options]
        code = aot.main(command)
        return code, json.loads(capsys.readouterr().out)

    return run


def test_write_then_check_then_drift(planted: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, report = planted("sound,sound again,full precision", "--write")
    assert code == 0
    kernels = report["kernels"]
    assert list(kernels) == ["aot_planted.product_kernel sound", "aot_planted.product_kernel full precision"]
    sound, full = kernels.values()
    assert sound["hgmma"] > 0
    assert sound["dots"] == 1
    assert sound["load_async"] > 0
    assert sound["shared"] == 2 * 2 * 64 * 64 * 2  # two stages of two 64 x 64 bf16 tiles
    assert "hgmma" not in full
    assert "dots" not in full
    monkeypatch.setattr(aot, "compile_all", lambda modules, target: (kernels, []))  # the same once more
    assert planted("", "--check")[0] == 0
    path = tmp_path / "sm90.json"
    budgets = json.loads(path.read_text())
    budgets[toolchain(CHIPS["sm90"])]["aot_planted.product_kernel sound"]["registers"] -= 10
    path.write_text(json.dumps(budgets))
    code, report = planted("", "--check")
    assert code == 1
    assert len(report["faults"]) == 1
    assert "registers" in report["faults"][0]
    path.unlink()
    code, report = planted("", "--check")
    assert code == 1
    assert "no figures for triton" in report["faults"][0]


def test_kernels_that_break_a_limit_are_not_written(planted: Any, tmp_path: Path) -> None:
    code, report = planted("spills,shared,refused", "--write", "--module", "no_such_module")
    assert code == 1
    assert not (tmp_path / "sm90.json").exists()
    text = "\n".join(report["faults"])
    assert "product_kernel spills:" in text
    assert "spill registers: choose a smaller tile for sm90" in text
    assert "product_kernel shared: 262144 bytes of shared memory, sm90 has 232448 a block" in text
    assert "aot_planted refused: " in text
    assert "no_such_module: " in text  # a worker that dies


@pytest.mark.parametrize("target", CHIPS)
def test_committed_figures(target: str) -> None:
    """Of the installed versions: there, of every kernel file, and within the absolute limits."""
    chip: Chip = CHIPS[target]
    committed = aot_limits.load(target)[toolchain(chip)]
    assert {kernel.split(".")[0] for kernel in committed} == {module.rpartition(".")[2] for module in MODULES}
    for kernel, figures in committed.items():
        assert not aot_limits.wrong(kernel, figures, target)
        if chip.backend == "cuda":
            assert figures["stack"] == 0, kernel
