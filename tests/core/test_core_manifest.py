"""Receipts: written last, content-keyed, balanced, and blind to paths, times and workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gristmill.core.docshards import read_table
from gristmill.core.errors import FormatError
from gristmill.core.manifest import (
    find_receipt,
    read_manifest,
    read_receipt,
    run_task,
    task_folder,
    write_manifest,
)
from gristmill.core.stage import Counters, Outbox, Shard, Stage, Task


class Copy(Stage):
    name = "copy"
    upstream = ("input",)

    def run(self, task: Task, out: Outbox) -> Counters:
        data = Path(task.shard("input").path).read_bytes()
        out.path("sub/copy.bin").write_bytes(data)
        counters = Counters(rows_in=len(data), rows_out=len(data) - 1)
        counters.drop("copy.last_byte", self.config.get("lost", 1))
        return counters


def make(root: Path, config: dict[str, int] | None = None, text: bytes = b"abc") -> tuple[Copy, Task]:
    root.mkdir(exist_ok=True)
    source = root / "in.bin"
    source.write_bytes(text)
    stage = Copy(config or {})
    shard = Shard(str(source), "in.bin", f"sha-{text!r}", len(text))
    return stage, Task("copy", 1, "in.bin", 0, stage.config, {}, {"input": (shard,)})


def test_a_committed_task_is_found_again_and_its_files_are_digested(tmp_path: Path) -> None:
    stage, task = make(tmp_path)
    assert find_receipt(tmp_path, task) is None
    receipt = run_task(stage, task, tmp_path)
    found = find_receipt(tmp_path, task)
    assert found is not None
    assert found.content == receipt.content
    assert [s.name for s in found.outputs] == ["sub/copy.bin"]
    assert not list(task_folder(tmp_path, task).glob(".tmp*"))


def test_the_ledger_must_balance(tmp_path: Path) -> None:
    stage, task = make(tmp_path, {"lost": 2})
    with pytest.raises(AssertionError, match="does not balance"):
        run_task(stage, task, tmp_path)
    assert find_receipt(tmp_path, task) is None


@pytest.mark.parametrize("step", ["before_rename", "before_receipt"])
def test_no_receipt_not_done(tmp_path: Path, step: str) -> None:
    stage, task = make(tmp_path)

    def die(here: str) -> None:
        if here == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_task(stage, task, tmp_path, die)
    assert find_receipt(tmp_path, task) is None
    assert find_receipt(tmp_path, task) is None
    run_task(stage, task, tmp_path)
    assert find_receipt(tmp_path, task) is not None


def test_a_truncated_output_is_not_done_and_a_changed_one_is_caught_when_read(tmp_path: Path) -> None:
    stage, task = make(tmp_path)
    receipt = run_task(stage, task, tmp_path)
    path = Path(receipt.outputs[0].path)
    path.write_bytes(b"xyz")  # same size
    os.utime(path, ns=(1, 1))
    with pytest.raises(FormatError, match="differs from its receipt"):
        read_table(receipt.outputs[0])
    path.write_bytes(b"x")
    assert find_receipt(tmp_path, task) is None


def test_ids_depend_on_config_code_and_content_only(tmp_path: Path) -> None:
    _, one = make(tmp_path / "a")
    _, two = make(tmp_path / "b")
    assert one.id == two.id  # another path, the same content
    assert make(tmp_path / "a", {"lost": 1})[1].id != one.id
    assert make(tmp_path / "a", text=b"abd")[1].id != one.id
    moved = Task(one.stage, one.version, "other name", 7, one.config, one.uses, one.inputs)
    assert moved.id == one.id
    assert Task(one.stage, 2, one.key, 0, one.config, one.uses, one.inputs).id != one.id


def test_manifest_digest_ignores_paths_and_times(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        stage, task = make(tmp_path / name)
        receipt = run_task(stage, task, tmp_path / name)
        manifest = write_manifest(tmp_path / name, "copy", [receipt], complete=True)
        again = read_manifest(tmp_path / name, "copy")
        assert again is not None
        assert again.digest == manifest.digest
        total = again.total()
        assert total["rows_in"] == total["rows_out"] + sum(total["drops"].values()) + total["quarantined"]
        digests.append(manifest.digest)
    assert digests[0] == digests[1]


def test_damaged_receipts_are_absent_and_manifests_that_name_them_say_so(tmp_path: Path) -> None:
    stage, task = make(tmp_path)
    receipt = run_task(stage, task, tmp_path)
    write_manifest(tmp_path, "copy", [receipt], complete=True)
    (task_folder(tmp_path, task) / "receipt.json").write_text("{")
    assert read_receipt(task_folder(tmp_path, task)) is None
    with pytest.raises(FormatError, match="is gone"):
        read_manifest(tmp_path, "copy")


@pytest.mark.parametrize("name", ["../x", "/x", ".hidden", "a/../../x"])
def test_outputs_cannot_leave_the_task(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leaves the task"):
        Outbox(tmp_path, "1").path(name)
