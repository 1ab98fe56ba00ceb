"""What a mixture says of training its stages: weights of sources' losses, how far a branch's parent stage is trained, and
that a run goes on over an edit of a stage that it has not begun.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gristmill.core.errors import UsageError  # noqa: E402
from gristmill.core.tokshards import PackedDataset, write_manifest  # noqa: E402
from gristmill.trainer import loop  # noqa: E402
from gristmill.trainer.journal import read_journal  # noqa: E402
from gristmill.trainer.plan import plan_run  # noqa: E402


def with_phases(toy: PackedDataset, folder: Path, **changes: Any) -> PackedDataset:
    """The toy dataset whose first phase says more."""
    shutil.copytree(toy.folder, folder)
    first, *rest = toy.manifest.phases
    write_manifest(folder, dataclasses.replace(toy.manifest, phases=[dataclasses.replace(first, **changes), *rest]))
    return PackedDataset(folder)


def losses(run: Any, dataset: PackedDataset, out: Path) -> list[tuple[float, float]]:
    out.mkdir()
    loop.train(run, dataset, out)
    return [(r["loss"], r["grad_norm"]) for r in read_journal(out / "metrics.jsonl")]


def test_the_mixtures_loss_weights_are_the_runs(toy: Any, run_maker: Any, tmp_path: Path) -> None:
    quarter = with_phases(toy, tmp_path / "quarter", loss_weights={"toy": 0.25})
    plain = losses(run_maker(max_steps=3), toy, tmp_path / "0")
    mixed = losses(run_maker(max_steps=3), quarter, tmp_path / "1")
    own = losses(run_maker(max_steps=3, stages={"main": {"loss_weights": {"toy": 0.25}}}), toy, tmp_path / "2")
    over = losses(run_maker(max_steps=3, stages={"main": {"loss_weights": {"toy": 1.0}}}), quarter, tmp_path / "3")
    assert mixed == own
    assert over == plain
    assert mixed[0][0] == plain[0][0]  # the loss itself is told unweighted
    assert mixed[0][1] == pytest.approx(plain[0][1] / 4, rel=1e-6)


def test_a_stage_is_trained_up_to_its_place(toy: Any, run_maker: Any, tmp_path: Path) -> None:
    cut = with_phases(toy, tmp_path / "cut", until_rows=64)
    found = plan_run(run_maker(), cut.manifest)
    assert [s["steps"] for s in found["stages"]] == [8, 10]
    records = losses(run_maker(max_steps=9), cut, tmp_path / "out")
    whole = losses(run_maker(max_steps=9), toy, tmp_path / "whole")
    assert records[:8] == whole[:8]
    assert records[8] != whole[8]  # a batch of the second phase


def test_a_run_goes_on_over_a_later_edit(toy: Any, run_maker: Any, tmp_path: Path) -> None:
    """By the chain: 30 steps of `main` on one dataset, then `anneal` of another; what it has begun may not change."""

    def dataset(name: str, *links: str, lr: float) -> PackedDataset:
        shutil.copytree(toy.folder, tmp_path / name)
        phases = [
            dataclasses.replace(p, chain=link, spec={"stage": {"name": p.name}, "link": link})
            for p, link in zip(toy.manifest.phases, links, strict=True)
        ]
        phases[1] = dataclasses.replace(phases[1], lr={"phase": "decay", "to": lr})
        write_manifest(tmp_path / name, dataclasses.replace(toy.manifest, phases=phases))
        return PackedDataset(tmp_path / name)

    first = dataset("first", "m1", "a1", lr=0.1)
    out = tmp_path / "out"
    out.mkdir()
    loop.train(run_maker(max_steps=30), first, out)
    said: list[str] = []
    other = dataset("other", "m1", "a2", lr=0.5)
    loop.train(run_maker(max_steps=35), other, out, say=said.append)
    assert any("the stages trained so far are the same" in text for text in said)
    records = read_journal(out / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 36))
    assert records[34]["lr"] == pytest.approx(1e-2 * (0.5 + 0.5 * 0.6))  # 4 of 10 steps into a decay to one half
    with pytest.raises(UsageError, match=r"E120 stage `main` is edited, and it is trained on: link m1 -> m2"):
        loop.train(run_maker(max_steps=36), dataset("main", "m2", "a2", lr=0.5), out)
    with pytest.raises(UsageError, match=r"E120 stage `anneal` is edited, and it is trained on: link a2 -> a1"):
        loop.train(run_maker(max_steps=36), dataset("back", "m1", "a1", lr=0.5), out)
