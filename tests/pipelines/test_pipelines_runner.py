"""The runner on a small line of fake stages: resume, reasons, failures, retries, leases and interrupts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gristmill.core.errors import LeaseHeld, Stopped, UsageError
from gristmill.core.manifest import read_manifest
from gristmill.core.settings import parse
from gristmill.core.stage import Counters, Outbox, Receipt, Shard, Stage, Task
from gristmill.pipelines import graph, planner, runner, views
from gristmill.pipelines.graph import Node, Origin
from gristmill.pipelines.lease import Lease, holder
from gristmill.pipelines.views import clean_root


class Split(Stage):
    """Keeps lines of at least `min_words` words."""

    name = "curate.pages"
    upstream = ("input",)
    calls: ClassVar[list[str]] = []
    broken: ClassVar[dict[str, int]] = {}

    def run(self, task: Task, out: Outbox) -> Counters:
        Split.calls.append(task.key)
        if Split.broken.get(task.key, 0) > 0:
            Split.broken[task.key] -= 1
            raise OSError(f"cannot read {task.key}")
        lines = Path(task.shard("input").path).read_text().splitlines()
        kept = [x for x in lines if len(x.split()) >= self.config["rules"]["min_words"]]
        out.path("kept.txt").write_text("\n".join(kept))
        counters = Counters(rows_in=len(lines), rows_out=len(kept))
        counters.drop("split.too_few_words", len(lines) - len(kept))
        return counters


class Join(Stage):
    name = "curate"
    upstream = ("curate.pages",)

    def tasks(self, inputs: Any) -> list[Task]:
        return self.one_task(inputs)

    def run(self, task: Task, out: Outbox) -> Counters:
        texts = [Path(s.path).read_text() for s in task.inputs["curate.pages"]]
        out.path("all.txt").write_text("\n".join(texts))
        return Counters(len(texts), len(texts), drops=None)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {"curate.pages": Split, "curate": Join}
    monkeypatch.setattr(graph, "REGISTRY", dict.fromkeys(classes, ""))
    monkeypatch.setattr(views, "REGISTRY", dict.fromkeys(classes, ""))
    monkeypatch.setattr(runner, "load_class", classes.__getitem__)
    Split.calls.clear()
    Split.broken.clear()


def nodes(min_words: int = 2, line: int = 3) -> list[Node]:
    doc = parse("\n" * (line - 2) + f"rules:\n  min_words: {min_words}\n", "recipe.yaml")
    return [
        Node("curate.pages", Split({"rules": {"min_words": min_words}}), {"rules": Origin(doc, ("rules",))}),
        Node("curate", Join({}), {}),
    ]


def inputs(folder: Path, texts: Sequence[str] = ("a b\nc", "d e f\ng h", "i")) -> list[Receipt]:
    folder.mkdir(exist_ok=True)
    out = []
    for i, text in enumerate(texts):
        path = folder / f"{i}.txt"
        path.write_text(text)
        shard = Shard(str(path), path.name, f"sha-{text}", len(text))
        out.append(Receipt("input", 1, "", path.name, {}, {}, {}, [shard], 0, 0, None, 0, {}, 0.0, "", "", ordinal=i))
    return out


def go(root: Path, what: list[Node], given: list[Receipt], **options: Any) -> tuple[runner.Outcome, list[str]]:
    said: list[str] = []
    return runner.run(what, root, given, cluster="inline", say=said.append, **options), said


def test_the_second_run_redoes_nothing_and_says_so(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in")
    first, _ = go(tmp_path / "root", nodes(), given)
    assert (first.exit_code, first.ran) == (0, 4)
    second, said = go(tmp_path / "root", nodes(), given)
    assert (second.exit_code, second.ran, second.fresh) == (0, 0, 4)
    assert any("nothing to do" in line for line in said)
    assert second.manifests["curate"].digest == first.manifests["curate"].digest


def test_plan_names_the_field_old_new_and_its_line(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in")
    go(tmp_path / "root", nodes(2), given)
    fresh = planner.plan(nodes(2), tmp_path / "root", given)
    assert [p.run for p in fresh] == [0, 0]
    stale = planner.plan(nodes(3, line=7), tmp_path / "root", given)
    assert stale[0].run == 3
    assert stale[0].why == ["config rules.min_words 2 → 3 (recipe.yaml:7)"]
    assert stale[1].run is None
    assert "curate.pages" in stale[1].why[0]


def test_only_changed_inputs_run_again(tmp_path: Path) -> None:
    go(tmp_path / "root", nodes(), inputs(tmp_path / "in"))
    Split.calls.clear()
    changed = inputs(tmp_path / "in", ("a b\nc", "x y\nz", "i"))
    assert planner.plan(nodes(), tmp_path / "root", changed)[0].why == ["input file changed"]
    outcome, _ = go(tmp_path / "root", nodes(), changed)
    assert Split.calls == ["1.txt"]
    assert outcome.exit_code == 0


def test_a_change_that_writes_the_same_bytes_stops_there(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in", ("a b c d", "e f g h"))
    go(tmp_path / "root", nodes(2), given)
    outcome, _ = go(tmp_path / "root", nodes(3), given)
    assert outcome.ran == 2  # the two splits; joining found its inputs unchanged


def test_failed_tasks_are_retried(tmp_path: Path) -> None:
    Split.broken["1.txt"] = 2
    outcome, _ = go(tmp_path / "root", nodes(), inputs(tmp_path / "in"))
    assert outcome.exit_code == 0
    assert Split.calls.count("1.txt") == 3


def test_a_stage_with_failures_is_finished_and_the_run_stops_there(tmp_path: Path) -> None:
    Split.broken["0.txt"] = 99
    given = inputs(tmp_path / "in")
    outcome, said = go(tmp_path / "root", nodes(), given)
    assert outcome.exit_code == 1
    assert set(Split.calls) == {"0.txt", "1.txt", "2.txt"}
    assert "curate" not in outcome.manifests
    assert any("failed: curate.pages 0.txt: OSError: cannot read 0.txt" in line for line in said)
    assert any(line.startswith("resume: ") for line in said)
    manifest = read_manifest(tmp_path / "root", "curate.pages")
    assert manifest is not None
    assert not manifest.complete
    Split.broken.clear()
    again, _ = go(tmp_path / "root", nodes(), given)
    assert (again.exit_code, again.ran, again.fresh) == (0, 2, 2)


def test_keep_going_runs_later_stages_on_what_succeeded(tmp_path: Path) -> None:
    Split.broken["0.txt"] = 99
    outcome, _ = go(tmp_path / "root", nodes(), inputs(tmp_path / "in"), keep_going=True)
    assert outcome.exit_code == 1
    assert outcome.manifests["curate"].receipts[0].rows_in == 2
    assert not outcome.manifests["curate"].complete  # nor is what stands on an incomplete stage


def test_usage_errors_are_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Split, task: Task, out: Outbox) -> Counters:
        Split.calls.append(task.key)
        raise UsageError("needs a model", hint="install it")

    monkeypatch.setattr(Split, "run", run)
    outcome, _ = go(tmp_path / "root", nodes(), inputs(tmp_path / "in", ("a",)))
    assert outcome.exit_code == 1
    assert len(Split.calls) == 1


def test_a_live_root_refuses_a_second_run_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    code = f"""
        import time
        from pathlib import Path
        from gristmill.pipelines.lease import Lease
        with Lease(Path({str(tmp_path)!r}), "run x"):
            print("held", flush=True)
            time.sleep(60)
    """
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeld, match=str(other.pid)), Lease(tmp_path, "run y"):
        pass
    assert (holder(tmp_path) or {}).get("pid") == other.pid
    other.kill()
    other.wait()
    assert holder(tmp_path) is None
    with Lease(tmp_path, "run y") as lease:
        assert (lease.took_over or {}).get("pid") == other.pid
        assert (holder(tmp_path) or {}).get("pid") == os.getpid()
    assert holder(tmp_path) is None


def test_an_interrupt_drains_and_the_same_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Split.run

    def interrupting(self: Split, task: Task, out: Outbox) -> Counters:
        if task.key == "1.txt":
            os.kill(os.getpid(), 2)
        return plain(self, task, out)

    monkeypatch.setattr(Split, "run", interrupting)
    given = inputs(tmp_path / "in")
    outcome, said = go(tmp_path / "root", nodes(), given)
    assert outcome.exit_code == 130
    assert Split.calls == ["0.txt", "1.txt"]  # the running task was finished, no other was started
    assert any(line.startswith("resume: ") for line in said)
    monkeypatch.setattr(Split, "run", plain)
    again, _ = go(tmp_path / "root", nodes(), given)
    assert (again.exit_code, again.ran, again.fresh) == (0, 2, 2)


def test_a_long_task_hears_of_the_stop_saves_and_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def long_run(self: Split, task: Task, out: Outbox) -> Counters:
        assert not out.stopping
        os.kill(os.getpid(), 15)
        if out.stopping:
            (out.work / "state").write_text("kept")
            raise Stopped("stopped at step 3")
        raise AssertionError("the stop was not passed on")

    monkeypatch.setattr(Split, "run", long_run)
    outcome, said = go(tmp_path / "root", nodes(), inputs(tmp_path / "in", ("a",)))
    assert outcome.exit_code == 130
    assert not outcome.failures
    assert not any("failed" in line for line in said)
    assert list((tmp_path / "root").rglob("work/state"))
    assert not (tmp_path / "root" / "stopping").exists()


def test_a_task_that_stops_by_itself_stops_the_run_as_a_signal_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As training does when someone creates its trigger file: not tried again, no failure, and the same run resumes."""
    plain = Split.run

    def stopping(self: Split, task: Task, out: Outbox) -> Counters:
        if task.key == "1.txt":
            Split.calls.append(task.key)
            raise Stopped("asked to stop", hint="the same command goes on from it")
        return plain(self, task, out)

    monkeypatch.setattr(Split, "run", stopping)
    given, root = inputs(tmp_path / "in"), tmp_path / "root"
    outcome, said = go(root, nodes(), given)
    assert outcome.exit_code == 130
    assert not outcome.failures
    assert Split.calls == ["0.txt", "1.txt"]
    assert said[0] == "stopped: curate.pages 1.txt: asked to stop\n  hint: the same command goes on from it"
    assert any(line.startswith("resume: ") for line in said)
    assert "FAILED" not in capsys.readouterr().err
    assert not (root / "stopping").exists()
    monkeypatch.setattr(Split, "run", plain)
    again, _ = go(root, nodes(), given)
    assert (again.exit_code, again.ran, again.fresh) == (0, 3, 1)


def test_what_stands_on_a_changed_stage_is_incomplete_until_it_ran(tmp_path: Path) -> None:
    given, root = inputs(tmp_path / "in"), tmp_path / "root"
    go(root, nodes(2), given)
    go(root, nodes(3)[:1], given, dependents=nodes(3))
    stale = read_manifest(root, "curate")
    assert stale is not None
    assert not stale.complete
    go(root, nodes(3), given)
    assert (read_manifest(root, "curate") or stale).complete


def test_cleaning_keeps_what_an_unfinished_stage_has_done(tmp_path: Path) -> None:
    given, root = inputs(tmp_path / "in"), tmp_path / "root"
    Split.broken["1.txt"] = 99
    go(root, nodes(), given)
    left = root / "stages" / "curate.pages" / "ffff" / ".tmp-1-1"
    left.mkdir(parents=True)
    folders, _ = clean_root(root, everything=False, delete=True)
    assert folders >= 1
    assert not left.exists()
    Split.broken.clear()
    again, _ = go(root, nodes(), given)
    assert (again.ran, again.fresh) == (2, 2)  # the failed one and the joining; two splits were kept
    go(root, nodes(5), given)
    stale = {f.name for f in (root / "stages" / "curate.pages").iterdir() if f.is_dir()}
    clean_root(root, everything=False, delete=True)
    assert len({f.name for f in (root / "stages" / "curate.pages").iterdir() if f.is_dir()}) == 3 < len(stale)
    with pytest.raises(UsageError, match="is not the root"):
        clean_root(tmp_path, everything=True, delete=True)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"format": "gristmill-manifest-1", "receipts": [3]}', "{"])
def test_a_manifest_of_another_shape_is_written_again(tmp_path: Path, text: str) -> None:
    given, root = inputs(tmp_path / "in"), tmp_path / "root"
    first, _ = go(root, nodes(), given)
    (root / "stages" / "curate" / "manifest.json").write_text(text)
    next((root / "stages" / "curate.pages").glob("*/receipt.json")).write_text("[null]")
    again, _ = go(root, nodes(), given)
    assert again.exit_code == 0
    assert again.ran == 1
    assert (read_manifest(root, "curate") or first.manifests["curate"]).digest == first.manifests["curate"].digest


def test_a_refused_run_touches_nothing(tmp_path: Path) -> None:
    called: list[int] = []
    with Lease(tmp_path / "root", "other"), pytest.raises(LeaseHeld):
        go(tmp_path / "root", nodes(), inputs(tmp_path / "in"), prepare=lambda: called.append(1))
    assert not called


def test_a_full_disk_is_a_failure_with_a_resume_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(runner, "write_manifest", full)
    outcome, said = go(tmp_path / "root", nodes(), inputs(tmp_path / "in"))
    assert outcome.exit_code == 1
    assert any("No space left on device" in line for line in said)
    assert any(line.startswith("resume: ") for line in said)


def test_an_unknown_stage_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no stage named 'nope'") as caught:
        graph.ancestors(nodes(), "nope")
    assert "curate.pages" in (caught.value.hint or "")


def test_a_change_in_a_list_of_blocks_is_named_at_its_line() -> None:
    """A mixture's stages: the leaf that differs, not two lists that are cut before they do."""
    text = "stages:\n  - {name: a, mix: {web: 1.0}}\n  - name: b\n    mix:\n      web: 0.4\n      math: 0.6\n"
    document = parse(text, "mix.yaml")
    node = Node("mixture", Split({}), {"stages": Origin(document, ("stages",))})
    old = {"stages": [{"name": "a", "mix": {"web": 1.0}}, {"name": "b", "mix": {"web": 0.5, "math": 0.5}}]}
    assert planner.config_changes(node, old, document.data) == [
        "config stages[1].mix.math 0.5 → 0.6 (mix.yaml:6)",
        "config stages[1].mix.web 0.5 → 0.4 (mix.yaml:5)",
    ]
    assert planner.config_changes(node, {"stages": old["stages"][:1]}, document.data) == [
        "config stages [a] → [a, b] (mix.yaml:2)"
    ]
