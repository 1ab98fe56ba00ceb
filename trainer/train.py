"""The train stage: packed shards in, a trained model and its metrics out. It runs the launch as a process of its own.

A process keeps torch and its thread pools out of the workers, and lets a run go on exactly from its last checkpoint
(in the task's work folder) after the worker, the node or the whole tree was killed. timings.jsonl and train.log stay in
the work folder: an output must not hold a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import orjson

from gristmill.core.errors import EXIT_INTERRUPTED, EXIT_USAGE, GristmillError, Stopped, TaskFailed, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task

OUTPUTS = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "generation_config.json",
    "provenance.json",
    "metrics.jsonl",
    "generated.txt",
    "summary.json",
)
FINISHED = "finished.json"
"""Written by a launch after all outputs: {name: sha256}. Slurm may have run it, and the stage then only takes them over."""
OPERATIONAL = frozenset(
    {"mixture", "log_every", "checkpoint", "verify_shards", "ladder", "track", "peak_tflops", "gallery"}
)
"""Settings that change no output. Samples (gallery) are none: they stay in the work folder."""
WATCHING = frozenset(
    {"health_every", "slow_rank_factor", "throughput_drop", "heartbeat_seconds", "stalled_seconds"}
    | {"ring_steps", "max_reports"}  # whether an event names a report, which stays in the work folder
    | {"max_actions", "max_actions_in_window"}  # whether a run ends, not what it gives: stopped, it goes on with more
)
"""Settings of `guards` that decide no weight and no edit."""
ROUNDING = frozenset({"parallel", "kernels"})
"""Settings that change outputs by rounding alone: a run that goes on with other processes is the same run."""
STOP_POLL_SECONDS = 0.5
TAIL_LINES = 20  # of the log, in an error message


class Train(Stage):
    """config: {"run": resolved settings of a training run (trainer.schema.TrainRun)}. One task over the shards.

    Its rows are the rows of the packed dataset it trained on; notes hold steps, tokens and parameters.
    """

    name: ClassVar[str] = "train"
    version: ClassVar[int] = 1
    upstream: tuple[str, ...] = ("shards",)

    def uses(self) -> Mapping[str, str]:
        try:
            return {"torch": metadata.version("torch")}
        except metadata.PackageNotFoundError:
            return {"torch": "none"}  # planning works without it; running says what to install

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        """One task. Its id leaves out what changes no output, so that a changed log line, checkpoint interval, gallery or limit
        of guards resumes. What changes one (`evaluate`, `generate`) is another run, though it changes no weight.

        Raises UsageError when the run branches off a source that is not there.
        """
        from gristmill.trainer import branch

        run = {key: value for key, value in self.config["run"].items() if key not in OPERATIONAL | ROUNDING}
        if "guards" in run:
            run["guards"] = {key: value for key, value in run["guards"].items() if key not in WATCHING}
        tasks = self.one_task(inputs)
        if run.get("from") is not None:
            run["from"] = branch.in_task_id(self._source(tasks[0]))
        return [replace(task, config={"run": run}) for task in tasks]

    def run(self, task: Task, out: Outbox) -> Counters:
        """Raises UsageError without torch or when run and dataset do not fit, TaskFailed (with the log's end) otherwise."""
        require_torch()
        launch = self.prepare(task, out.work)
        if not finished(launch.work):
            launch_training(launch.settings, launch.dataset, launch.tokenizer, launch.work, lambda: out.stopping)
        for name in (*OUTPUTS, *found_outputs(launch.work)):
            shutil.copyfile(launch.work / name, out.path(name))
        summary: dict[str, Any] = orjson.loads((launch.work / "summary.json").read_bytes())
        rows = summary["samples"]
        notes = Counter({key: summary[key] for key in ("steps", "tokens", "params")})
        return Counters(rows_in=rows, rows_out=rows, drops=None, notes=notes)

    def launch_of(self, task: Task, work: Path) -> Launch:
        """How a launch of this task in `work` is started. Nothing is written."""
        manifest = Path(task.shard("shards", "manifest.json").path)
        return Launch(work / "run.json", manifest.parent, Path(task.shard("shards", "tokenizer.json").path), work)

    def prepare(self, task: Task, work: Path) -> Launch:
        """Write what a launch of this task reads into its work folder."""
        run = dict(self.config["run"])
        if run.get("from") is not None:
            run["from"] = self._source(task)
        launch = self.launch_of(task, work)
        launch.settings.write_bytes(orjson.dumps(run, option=orjson.OPT_INDENT_2))
        # what `gristmill trace` needs of a run that has no receipt yet; a digest, since a root may be moved
        digest = task.shard("shards", "manifest.json").sha256
        (work / "launch.json").write_bytes(orjson.dumps({"manifest_sha256": digest}))
        return launch

    def _source(self, task: Task) -> dict[str, Any]:
        """`from:` with its source found. Raises UsageError when it is not there."""
        from gristmill.trainer import branch
        from gristmill.trainer.branch_schema import Branch

        shards = Path(task.shard("shards", "manifest.json").path)
        root = shards.parents[3] if len(shards.parents) > 3 else None  # ROOT/stages/shards/TASK/manifest.json
        return branch.find(Branch.model_validate(self.config["run"]["from"]), root).model_dump(mode="json")


@dataclass(frozen=True)
class Launch:
    """The files and folders of one launch; `work` holds its checkpoints."""

    settings: Path
    dataset: Path
    tokenizer: Path
    work: Path

    @property
    def arguments(self) -> list[str]:
        """Of `python -m gristmill.trainer.launch`."""
        pairs = {"settings": self.settings, "dataset": self.dataset, "tokenizer": self.tokenizer, "out": self.work}
        return [text for option, value in pairs.items() for text in (f"--{option}", str(value))]


def finished(work: Path) -> bool:
    """Whether a launch of this task has ended well, and its outputs are still what it wrote."""
    try:
        written = orjson.loads((work / FINISHED).read_bytes())
        return all(sha256_file(work / name) == written[name] for name in OUTPUTS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def found_outputs(work: Path) -> list[str]:
    """Outputs that only some runs have: the mixture's lock, events and edits of guards, evaluations.

    Samples stay in the work folder: there are as many as checkpoints, and how often those are made changes no output.
    """
    names = ("mix.lock.json", "events.jsonl", "edits.json", "evaluations.jsonl")
    return [name for name in names if (work / name).exists()]


def require_torch() -> None:
    """Raises UsageError that says what to install."""
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"training needs {package}", hint="pip install 'gristmill[train]'")


def launch_training(
    settings: Path, dataset: Path, tokenizer: Path, work: Path, stopping: Callable[[], bool] = lambda: False
) -> None:
    """Run trainer.launch to its end, its progress passed on to stderr and kept in work/train.log.

    The child, and the ranks that it may start, end with this process, however it dies; it is told to save and stop
    once `stopping` is true. It has a session of its own, so that a Ctrl-C reaches it once, through us. Raises Stopped,
    UsageError, or TaskFailed with the end of the log.
    """
    launch = Launch(settings, dataset, tokenizer, work)
    command = [sys.executable, "-m", "gristmill.trainer.launch", *launch.arguments, "--parent", str(os.getpid())]
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    # glibc gives logits and gradients back to the kernel after every use and faults them in again; a worker's own
    # low trim threshold makes it worse. Kept, the demo's model trains at 18k tok/s instead of 9k (14k by glibc's defaults).
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": str(1 << 31), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    ended = threading.Event()
    threading.Thread(target=_pass_on, args=(process, stopping, ended), daemon=True, name="pass-on-stop").start()
    try:
        assert process.stderr is not None
        with open(work / "train.log", "a", encoding="utf-8") as log:
            for line in process.stderr:
                sys.stderr.write(line)
                log.write(line)
                tail.append(line.rstrip())
        code = process.wait()
    finally:
        ended.set()
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its ranks, in sessions of their own, see their input close
        for pipe in (process.stdin, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()
    if code:
        raise _failure(code, list(tail))


def _pass_on(process: subprocess.Popen[str], stopping: Callable[[], bool], ended: threading.Event) -> None:
    while not ended.wait(STOP_POLL_SECONDS):
        if stopping():
            process.terminate()
            return


def _failure(code: int, tail: list[str]) -> GristmillError:
    """The error of a launch that ended with `code`; its first line holds the cause that the log ends with."""
    errors = [line.removeprefix("error: ") for line in tail if line.startswith("error: ")]
    cause = errors[-1] if errors else f"exit code {code}"
    log = "\n".join(tail)
    if code == EXIT_INTERRUPTED:
        return Stopped("training was asked to stop; its checkpoint is kept", hint="the same command goes on from it")
    if code == EXIT_USAGE:
        return UsageError(f"training cannot start: {cause}\n{log}")
    own = any(line.lstrip().startswith("hint: ") for line in tail)  # it knows better
    hint = None if own else "the same command goes on from the last checkpoint"
    return TaskFailed(f"training failed: {cause}\n{log}", hint=hint)
