"""Runs a recipe: stage by stage, tasks to Dask, receipts back, a manifest for each stage; the same command resumes.

A stage starts when all its inputs are written. Finished tasks are found by their receipts. A task that raises is
tried again `retries` times; a task whose worker dies is given to another. By default a stage with failed tasks is
finished and the run stops there; with keep_going later stages run on what succeeded.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gristmill.core.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    FormatError,
    GristmillError,
    Stopped,
    UsageError,
)
from gristmill.core.manifest import Manifest, read_manifest, read_receipt, run_task, task_folder, write_manifest
from gristmill.core.stage import STOP_FILE, Receipt, Task
from gristmill.pipelines import cluster as clusters
from gristmill.pipelines.graph import Node, load_class
from gristmill.pipelines.lease import Lease
from gristmill.pipelines.planner import StageState, state_of
from gristmill.pipelines.progress import StageProgress
from gristmill.pipelines.record import RunRecord, command_line

RETRIES = 2
FINAL = (UsageError, Stopped)  # another try would not help, or would undo what somebody asked for
IN_FLIGHT_PER_WORKER = 2  # one running, one waiting: the scheduler never holds the whole graph

Say = Callable[[str], None]


@dataclass
class Outcome:
    """How a run ended. `ran` counts tasks executed now, `fresh` those found finished."""

    exit_code: int = EXIT_OK
    ran: int = 0
    fresh: int = 0
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    """Stages whose content is not what it was before the run."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: running tasks were drained."""


class _Stop:
    """First signal: stop handing out tasks and drain. Second: stop now."""

    def __init__(self, root: Path, say: Say) -> None:
        self.asked = False
        self.say = say
        self.file = root / STOP_FILE  # how workers, here or elsewhere, hear of it
        self.file.unlink(missing_ok=True)

    def __call__(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self._ask()
        self.say("stopping: draining running tasks (Ctrl-C again to stop now)")

    def by_task(self, key: str, error: Stopped) -> None:
        """A task that saved and stopped without our signal, by a trigger file of its own say, stops the run as one does."""
        if not self.asked:
            self._ask()
            self.say(f"stopped: {key}: {error}")

    def _ask(self) -> None:
        self.asked = True
        with contextlib.suppress(OSError):
            self.file.touch()


@contextlib.contextmanager
def _signals(stop: _Stop) -> Iterator[None]:
    try:
        previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: an embedding program handles signals itself
        yield
        return
    try:
        yield
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def execute(stage: str, config: Mapping[str, Any], task: Task, root: str) -> dict[str, Any]:
    """Run one task in a worker. Returns where its receipt is, not the receipt: data never crosses the scheduler."""
    receipt = run_task(load_class(stage)(config), task, Path(root), _kill_for_tests(stage))
    return {"task": receipt.task}


def _kill_for_tests(stage: str) -> Callable[[str], None]:
    """`GRISTMILL_TEST_KILL=STAGE:STEP:FILE` kills the worker once at that step of a commit, then creates FILE."""
    wanted = os.environ.get("GRISTMILL_TEST_KILL", "")
    if not wanted:
        return lambda _: None
    name, step, marker = wanted.split(":", 2)

    def at(here: str) -> None:
        if name == stage and step == here:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)

    return at


def run(
    nodes: Sequence[Node],
    root: Path,
    inputs: list[Receipt],
    *,
    cluster: str,
    keep_going: bool = False,
    retries: int = RETRIES,
    say: Say = lambda text: print(text, file=sys.stderr),
    emit: Callable[[dict[str, Any]], None] = lambda _: None,
    given: Mapping[str, list[Receipt]] | None = None,
    prepare: Callable[[], None] = lambda: None,
    dependents: Sequence[Node] = (),
) -> Outcome:
    """Run stages in order under the root's lease. Raises LeaseHeld when another run is live.

    `say` gets lines for people, `emit` a JSON event per stage, `given` are receipts of stages that are not run.
    `prepare` is called once the lease is held. `dependents` are stages whose manifests become incomplete when one that
    they stand on has changed. Failures are in the outcome, not raised.
    """
    clusters.parse(cluster)
    argv = command_line()
    with Lease(root, " ".join(argv[:3])) as lease:
        if lease.took_over:
            say(
                f"taking over from a run that ended without cleaning up: {lease.took_over.get('host')}:{lease.took_over.get('pid')}"
            )
        prepare()
        record = RunRecord(root, argv)
        stop = _Stop(root, say)
        outcome = Outcome()
        session = _Session(root, cluster, record, stop, retries)
        with _signals(stop):
            try:
                _stages(nodes, root, {"input": inputs, **(given or {})}, session, outcome, keep_going, emit)
            except (Interrupted, KeyboardInterrupt):
                outcome.exit_code = EXIT_INTERRUPTED
            except OSError as error:  # a full disk, say
                outcome.failures.append(("run", str(error.filename or root), f"{error.strerror or error}"))
            finally:
                session.close()
                stop.file.unlink(missing_ok=True)
                _mark_stale(root, [*nodes, *dependents], outcome)
        if outcome.failures and outcome.exit_code == EXIT_OK:
            outcome.exit_code = EXIT_FAILED
        for stage, key, cause in outcome.failures:
            say(f"failed: {stage} {key}: {cause}")
        if outcome.exit_code != EXIT_OK:
            say(f"resume: {shlex.join(argv)}")
        elif not outcome.ran:
            say(f"nothing to do: {outcome.fresh} tasks of {len(nodes)} stages are up to date")
        with contextlib.suppress(OSError):
            record.close(
                {0: "done", 1: "failed", 130: "interrupted"}.get(outcome.exit_code, "failed"), outcome.exit_code
            )
    return outcome


def _stages(
    nodes: Sequence[Node],
    root: Path,
    known: dict[str, list[Receipt]],
    session: _Session,
    outcome: Outcome,
    keep_going: bool,
    emit: Callable[[dict[str, Any]], None],
) -> None:
    partial: set[str] = set()
    for node in nodes:
        state = state_of(node, root, known)
        outcome.fresh += len(state.done)
        receipts, failures = session.run_stage(state)
        outcome.ran += len(receipts) - len(state.done)
        outcome.failures += failures
        finished = len(receipts) == len(state.tasks)
        if not finished or partial & set(node.upstream):
            partial.add(node.name)
        manifest, changed = _settle(root, node.name, receipts, node.name not in partial)
        if changed:
            outcome.changed.add(node.name)
        outcome.manifests[node.name] = manifest
        known[node.name] = manifest.receipts
        total = manifest.total()
        total.pop("outputs")
        emit(total)
        if session.stop.asked and not finished:
            raise Interrupted
        if failures and not keep_going:
            return
        if session.stop.asked and node is not nodes[-1]:
            raise Interrupted


def _settle(root: Path, stage: str, receipts: list[Receipt], complete: bool) -> tuple[Manifest, bool]:
    """Write the stage's manifest, unless the one on disk already says the same. Returns it and whether its content changed."""
    new = Manifest(stage, sorted(receipts, key=lambda r: r.ordinal), complete)
    old: Manifest | None = None
    with contextlib.suppress(FormatError):
        old = read_manifest(root, stage)
    same_tasks = old is not None and [(r.task, r.key) for r in old.receipts] == [(r.task, r.key) for r in new.receipts]
    if old is None or old.complete != complete or not same_tasks:
        write_manifest(root, stage, new.receipts, complete)
    return new, old is not None and old.digest != new.digest


def _mark_stale(root: Path, nodes: Sequence[Node], outcome: Outcome) -> None:
    """A stage that was not run again although what it stands on changed is incomplete: its figures are of old inputs."""
    stale = set(outcome.changed)
    for node in nodes:
        if node.name in outcome.manifests or not stale & set(node.upstream):
            continue
        stale.add(node.name)
        with contextlib.suppress(FormatError, OSError):
            manifest = read_manifest(root, node.name)
            if manifest is not None and manifest.complete:
                write_manifest(root, node.name, manifest.receipts, complete=False)


class _Session:
    """A cluster that is started at the first task and lives to the end of the run."""

    def __init__(self, root: Path, spec: str, record: RunRecord, stop: _Stop, retries: int) -> None:
        self.root, self.spec, self.record, self.stop, self.retries = root, spec, record, stop, retries
        self.pool = clusters.Pool(spec, stop.say, lambda: stop.asked)

    def close(self) -> None:
        self.pool.close()

    def run_stage(self, state: StageState) -> tuple[list[Receipt], list[tuple[str, str, str]]]:
        """Run what is left of a stage. Returns all its receipts and (stage, key, cause) for each failed task."""
        name = state.node.name
        progress = StageProgress(name, len(state.tasks), state.done)
        receipts, failures = list(state.done), []
        self.record.event("stage", stage=name, tasks=len(state.tasks), fresh=len(state.done))
        try:
            for task, error in self._results(state):
                if error is None:
                    receipt = read_receipt(task_folder(self.root, task))
                    if receipt is None:
                        error = FormatError(f"the receipt of {task.key} is not readable after its task ended")
                    else:
                        receipts.append(replace(receipt, key=task.key, ordinal=task.ordinal))
                        progress.add(receipts[-1])
                        self.record.event("task", stage=name, key=task.key, task=task.id, seconds=receipt.seconds)
                        continue
                if isinstance(error, Stopped):
                    self.stop.by_task(f"{name} {task.key}", error)
                    self.record.event("stopped", stage=name, key=task.key, task=task.id)
                    continue
                log = self.record.failure(name, task.id, "".join(traceback.format_exception(error)))
                cause = error.message if isinstance(error, GristmillError) else f"{type(error).__name__}: {error}"
                self.record.event("failed", stage=name, key=task.key, task=task.id, cause=cause, log=str(log))
                hint = f"\n  hint: {error.hint}" if isinstance(error, GristmillError) and error.hint else ""
                failures.append((name, task.key, f"{cause.splitlines()[0] if cause else '?'}  [{log}]{hint}"))
                progress.fail()
        finally:
            progress.close()
        return receipts, failures

    def _results(self, state: StageState) -> Iterator[tuple[Task, BaseException | None]]:
        if not state.todo:
            return
        if clusters.parse(self.spec)[0] == "inline":
            yield from self._inline(state)
        else:
            yield from self._dask(state)

    def _inline(self, state: StageState) -> Iterator[tuple[Task, BaseException | None]]:
        for task in state.todo:
            if self.stop.asked:
                return
            error: BaseException | None = None
            for _ in range(self.retries + 1):
                try:
                    execute(state.node.name, state.node.stage.config, task, str(self.root))
                    error = None
                except Exception as caught:
                    error = caught
                if error is None or isinstance(error, FINAL) or self.stop.asked:
                    break
            yield task, error

    def _dask(self, state: StageState) -> Iterator[tuple[Task, BaseException | None]]:
        from distributed import as_completed

        waiting = deque((task, 0) for task in state.todo)
        running: dict[Any, tuple[Task, int]] = {}
        try:
            completed = as_completed(loop=self.pool.client.loop)
        except UsageError:
            raise
        except GristmillError as lost:  # one task stands for all: none was tried
            if not self.stop.asked:
                yield state.todo[0], lost
            return
        number = 0

        def fill() -> None:
            nonlocal number
            workers = max(1, self.pool.workers())
            while waiting and not self.stop.asked and len(running) < workers * IN_FLIGHT_PER_WORKER:
                task, tries = waiting.popleft()
                number += 1
                future = self.pool.client.submit(
                    execute,
                    state.node.name,
                    state.node.stage.config,
                    task,
                    str(self.root),
                    key=f"{task.stage}-{task.id[:12]}-{tries}-{number}-{os.getpid()}",
                    pure=False,
                )
                running[future] = (task, tries)
                completed.add(future)

        fill()
        while running:
            future = self.pool.next_ended(completed)
            if future is None:  # no worker is left: what runs has not failed, it is given out again
                again = list(running.values())
                running.clear()
                if self.stop.asked:
                    return
                self.record.event("restart", stage=state.node.name, tasks=len(again))
                try:
                    self.pool.restart()
                except GristmillError as lost:
                    if not self.stop.asked:
                        yield from ((task, lost) for task, _ in again)
                    return
                completed = as_completed(loop=self.pool.client.loop)
                waiting.extendleft(reversed(again))
                fill()
                continue
            task, tries = running.pop(future)
            error = future.exception() if future.status != "finished" else None
            if future.status == "cancelled":
                error = GristmillError("cancelled: the scheduler went away")
            future.release()
            if error is not None and tries < self.retries and not isinstance(error, FINAL) and not self.stop.asked:
                self.record.event("retry", stage=task.stage, key=task.key, cause=repr(error))
                waiting.append((task, tries + 1))
            else:
                yield task, error
            fill()
