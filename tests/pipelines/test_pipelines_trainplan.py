"""`train plan` takes a run's stages from what a root holds: shards before the lock, the lock before the mixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest
from click.testing import CliRunner

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file
from gristmill.core.manifest import run_task, write_manifest
from gristmill.core.mixlock import LOCK_FORMAT, read_lock
from gristmill.core.stage import Counters, Outbox, Stage, Task
from gristmill.core.tokshards import write_manifest as write_dataset
from gristmill.pipelines.cli.main import cli
from gristmill.pipelines.trainplan import find_stages


def lock_of(rows: int) -> dict[str, Any]:
    phase = {
        "name": "main",
        "seq_len": 128,
        "rows": rows,
        "batch_rows": 4,
        "lr": {"phase": "stable"},
        "shares": {"web": {"target": 1.0, "realised": 1.0}},
        "sources": {"web": {"rows": rows, "tokens": rows * 129, "epochs": 2.5}},
    }
    return {"format": LOCK_FORMAT, "seed": 1, "vocab_size": 512, "phases": [phase]}


def finished(root: Path, stage: str, write: Callable[[Outbox], object]) -> Path:
    """A root with one finished task of a stage; returns its folder."""

    class Written(Stage):
        name: ClassVar[str] = stage

        def run(self, task: Task, out: Outbox) -> Counters:
            write(out)
            return Counters(1, 1, None)

    receipt = run_task(Written({}), Task(stage, 1, "all", 0, {}, {}, {}), root)
    write_manifest(root, stage, [receipt], True)
    return Path(receipt.outputs[0].path).parent


def mixed(root: Path, rows: int) -> None:
    finished(root, "mixture", lambda out: _lock(out, rows))


def _lock(out: Outbox, rows: int) -> Path:
    path = out.path("mix.lock.json")
    path.write_bytes(orjson.dumps(lock_of(rows)))
    return path


def packed(root: Path, rows: int, digest: str | None = None) -> None:
    from dataclasses import replace

    def write(out: Outbox) -> None:
        path = _lock(out, rows)
        manifest = replace(read_lock(path).manifest(), lock_sha256=digest or sha256_file(path))
        write_dataset(out.path("manifest.json").parent, manifest)

    finished(root, "shards", write)


def test_shards_come_before_the_lock_and_the_lock_before_the_mixture(tmp_path):
    mixed(tmp_path, 40)
    found = find_stages(tmp_path, "web")
    assert "not packed yet" in found.origin
    assert found.manifest.phases[0].rows == 40
    packed(tmp_path, 80)
    found = find_stages(tmp_path, "web")
    assert "packed shards" in found.origin
    assert found.manifest.phases[0].rows == 80
    assert found.lock.phases[0].sources["web"].epochs == 2.5
    found = find_stages(tmp_path, "llama-3-8b", overrides=["stages.0.tokens=1T"], vocab_size=512)  # another mixture
    assert "alone" in found.origin
    assert found.lock.phases[0].sources["documents"].epochs is None


def test_a_lock_of_other_shards_is_refused(tmp_path):
    packed(tmp_path, 80, digest="0" * 64)
    with pytest.raises(FormatError, match="not the one its dataset was packed with"):
        find_stages(tmp_path, "web")


def test_the_command_reads_the_root(tmp_path):
    mixed(tmp_path, 40)
    done = CliRunner().invoke(cli, ["train", "plan", "demo", "--root", str(tmp_path), "--json"])
    assert done.exception is None, done.exception
    plan = orjson.loads(done.stdout)
    assert (plan["steps"], plan["vocab_size"]) == (10, 512)
    assert plan["stages"][0]["sources"]["web"]["epochs"] == 2.5
    text = CliRunner().invoke(cli, ["train", "plan", "demo", "--root", str(tmp_path), "--gpus", "2"]).output
    assert "web 100.0% (2.50)" in text
    assert "layouts of 2 GPUs" in text


def test_a_mixture_beside_the_run_is_found(tmp_path):
    (tmp_path / "m.yaml").write_text(
        "gristmill_mix: 1\nsources: {web: {}}\nstages:\n"
        "  - {name: only, tokens: 1M, seq_len: 100, global_batch: 1000, mix: {web: 1.0}}\n"
    )
    (tmp_path / "r.yaml").write_text(
        "gristmill_train: 1\nmixture: m.yaml\nmodel: {preset: tiny}\noptimizer: {lr: 1e-3}\n"
    )
    arguments = ["train", "plan", str(tmp_path / "r.yaml"), "--vocab-size", "300", "--json"]
    done = CliRunner().invoke(cli, arguments, env={"GRISTMILL_ROOT": None})
    assert done.exception is None, done.exception
    assert orjson.loads(done.stdout)["steps"] == 1000
    without = CliRunner().invoke(
        cli, [a for a in arguments if a not in ("--vocab-size", "300")], env={"GRISTMILL_ROOT": None}
    )
    assert "vocabulary is not known" in str(without.exception)
