"""The train stage: packed shards in, a trained model and its metrics out. It runs the launch as a process of its own.

A process keeps torch and its thread pools out of the workers, and lets a run go on exactly from its last checkpoint
(in the task's work folder) after the worker, the node or the whole tree was killed. timings.jsonl and train.log stay in
the work folder: an output must not hold a time.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import orjson

from gristmill.core.errors import EXIT_INTERRUPTED, EXIT_USAGE, GristmillError, Stopped, TaskFailed, UsageError
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task

OUTPUTS = ("model.safetensors", "config.json", "metrics.jsonl", "generated.txt", "summary.json")
OPERATIONAL = frozenset({"mixture", "log_every", "checkpoint", "verify_shards"})  # settings that change no output
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
        """One task. Its id leaves out what changes no weight, so that a changed log line or checkpoint interval resumes."""
        run = {key: value for key, value in self.config["run"].items() if key not in OPERATIONAL}
        return [replace(task, config={"run": run}) for task in self.one_task(inputs)]

    def run(self, task: Task, out: Outbox) -> Counters:
        """Raises UsageError without torch or when run and dataset do not fit, TaskFailed (with the log's end) otherwise."""
        require_torch()
        work = out.work
        settings = work / "run.json"
        settings.write_bytes(orjson.dumps(self.config["run"], option=orjson.OPT_INDENT_2))
        dataset = Path(task.shard("shards", "manifest.json").path).parent
        tokenizer = Path(task.shard("shards", "tokenizer.json").path)
        # what `gristmill trace` needs of a run that has no receipt yet; a digest, since a root may be moved
        digest = task.shard("shards", "manifest.json").sha256
        (work / "launch.json").write_bytes(orjson.dumps({"manifest_sha256": digest}))
        launch_training(settings, dataset, tokenizer, work, lambda: out.stopping)
        for name in OUTPUTS:
            shutil.copyfile(work / name, out.path(name))
        summary: dict[str, Any] = orjson.loads((work / "summary.json").read_bytes())
        rows = summary["samples"]
        notes = Counter({key: summary[key] for key in ("steps", "tokens", "params")})
        return Counters(rows_in=rows, rows_out=rows, drops=None, notes=notes)


def require_torch() -> None:
    """Raises UsageError that says what to install."""
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"training needs {package}", hint="pip install 'gristmill[train]'")


def launch_training(
    settings: Path, dataset: Path, tokenizer: Path, work: Path, stopping: Callable[[], bool] = lambda: False
) -> None:
    """Run trainer.launch to its end, its progress passed on to stderr and kept in work/train.log.

    The child ends with this process, however it dies; it is told to save and stop once `stopping` is true. Raises
    Stopped, UsageError, or TaskFailed with the end of the log.
    """
    command = [sys.executable, "-m", "gristmill.trainer.launch"]
    for option, value in (("run", settings), ("dataset", dataset), ("tokenizer", tokenizer), ("out", work)):
        command += [f"--{option}", str(value)]
    command += ["--parent", str(os.getpid())]
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    # glibc gives logits and gradients back to the kernel after every use and faults them in again; a worker's own
    # low trim threshold makes it worse. Kept, the demo's model trains at 18k tok/s instead of 9k (14k by glibc's defaults).
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": str(1 << 31), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True, errors="replace"
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
        process.kill()  # nothing when it has ended
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
        return Stopped(
            "training was stopped by a signal; its checkpoint is kept", hint="the same command goes on from it"
        )
    if code == EXIT_USAGE:
        return UsageError(f"training cannot start: {cause}\n{log}")
    own = any(line.lstrip().startswith("hint: ") for line in tail)  # it knows better
    hint = None if own else "the same command goes on from the last checkpoint"
    return TaskFailed(f"training failed: {cause}\n{log}", hint=hint)
