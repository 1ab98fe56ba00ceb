"""The stage contract: a stage names tasks by content and runs each one purely; the runner does the rest.

A task's id is a hash of (stage name, version, its own slice of the config, versions and digests of what it uses,
digests of its input shards): never a rank, a position, a path or a worker. Same task, same bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gristmill.core.hashing import digest

STOP_FILE = "stopping"
"""Beside `stages/` in the root while a run drains: workers on other machines see it too."""


@dataclass(frozen=True)
class Shard:
    """One file: a raw input or a task's output. `sha256` is its content's digest (raw inputs: name, size and tag)."""

    path: str
    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Task:
    """One unit of work. `key` names it for people (an input file's name, or "all"); `ordinal` is its place in order.

    Only `stage`, `version`, `config`, `uses` and the input digests reach the id.
    """

    stage: str
    version: int
    key: str
    ordinal: int
    config: Mapping[str, Any]
    uses: Mapping[str, str]
    inputs: Mapping[str, tuple[Shard, ...]]

    @property
    def id(self) -> str:
        inputs = {name: [[s.name, s.sha256] for s in shards] for name, shards in sorted(self.inputs.items())}
        return digest([self.stage, self.version, self.config, self.uses, inputs])[:32]

    def shard(self, stage: str, name: str | None = None) -> Shard:
        """The input shard of an upstream stage (by file name where it has several). Raises KeyError."""
        for shard in self.inputs[stage]:
            if name is None or shard.name == name:
                return shard
        raise KeyError(f"{self.stage} task {self.key}: no {name} among the inputs from {stage}")


@dataclass
class Counters:
    """What a task did with its rows: rows_in = rows_out + sum(drops) + quarantined, asserted on commit.

    `drops` is None for stages that do not map rows (they train, cluster, plan). `notes` are other counts worth
    keeping, e.g. rules that had no table for a document's language.
    """

    rows_in: int = 0
    rows_out: int = 0
    drops: Counter[str] | None = field(default_factory=Counter)
    quarantined: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, n: int = 1) -> None:
        assert self.drops is not None, "a stage that maps no rows drops none"
        self.drops[reason] += n

    def check(self, who: str) -> None:
        if self.drops is None:
            return
        total = self.rows_out + sum(self.drops.values()) + self.quarantined
        if total != self.rows_in:
            raise AssertionError(
                f"{who}: ledger does not balance: {self.rows_in} rows in, {self.rows_out} out, "
                f"{sum(self.drops.values())} dropped, {self.quarantined} quarantined"
            )


class Outbox:
    """Where a task writes. Files appear under temporary names and are committed by the runner after `run` returns.

    `work` is a folder that survives crashes and retries of this same task (checkpoints live there); everything
    else that is not committed vanishes.
    """

    def __init__(self, folder: Path, attempt: str) -> None:
        self.folder = folder
        self.attempt = attempt
        self._files: dict[str, Path] = {}

    def path(self, name: str) -> Path:
        """A temporary path for an output called `name` (forward slashes make folders)."""
        if name.startswith(("/", ".")) or ".." in name.split("/"):
            raise ValueError(f"output name {name!r} leaves the task's folder")
        if name not in self._files:
            path = self.folder / f".tmp-{self.attempt}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = path
        return self._files[name]

    @property
    def files(self) -> dict[str, Path]:
        return dict(self._files)

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop: a task that takes hours saves its state and raises `Stopped`."""
        return (self.folder.parents[2] / STOP_FILE).exists()  # ROOT/stages/STAGE/TASK

    @property
    def work(self) -> Path:
        path = self.folder / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(frozen=True)
class Receipt:
    """Written last, so it is the proof that a task is done. `outputs` are in name order."""

    stage: str
    version: int
    task: str
    key: str
    config: dict[str, Any]
    uses: dict[str, str]
    inputs: dict[str, list[list[str]]]
    outputs: list[Shard]
    rows_in: int
    rows_out: int
    drops: dict[str, int] | None
    quarantined: int
    notes: dict[str, int]
    seconds: float
    host: str
    finished: str
    ordinal: int = 0  # set from the plan when a manifest is built, not stored

    def output(self, name: str) -> Shard:
        for shard in self.outputs:
            if shard.name == name:
                return shard
        raise KeyError(f"{self.stage} {self.key} wrote no {name}")

    @property
    def content(self) -> list[Any]:
        """The part that a digest covers: no times, no paths, no task ids."""
        return [
            [[s.name, s.sha256] for s in self.outputs],
            self.rows_in,
            self.rows_out,
            self.drops,
            self.quarantined,
            self.notes,
        ]


class Stage(ABC):
    """A step of the line. Construct it with its own slice of the recipe; it must be picklable and hold no state."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Bump it when the code gives other bytes: old outputs become stale, and `plan` says so."""
    upstream: tuple[str, ...] = ()
    """Stages whose receipts `tasks` gets; an instance may need fewer than its class (no dedup, no clusters)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    def uses(self) -> Mapping[str, str]:
        """Versions of libraries and digests of model and list files that decide this stage's bytes."""
        return {}

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        """Default: one task per receipt of the first upstream stage, joined with the others' by key."""
        return self.map_tasks(inputs)

    @abstractmethod
    def run(self, task: Task, out: Outbox) -> Counters:
        """Do the task. Pure: no clock, no unseeded randomness, no state outside `out`."""

    def map_tasks(self, inputs: Mapping[str, Sequence[Receipt]], names: Iterable[str] | None = None) -> list[Task]:
        stages = list(names or self.upstream)
        by_key = {stage: {r.key: r for r in inputs[stage]} for stage in stages}
        tasks: list[Task] = []
        uses = dict(self.uses())
        for receipt in inputs[stages[0]]:
            if any(receipt.key not in by_key[stage] for stage in stages):
                continue  # its sibling failed; `run -k` goes on with the rest
            joined = {stage: tuple(by_key[stage][receipt.key].outputs) for stage in stages}
            tasks.append(Task(self.name, self.version, receipt.key, len(tasks), self.config, uses, joined))
        return tasks

    def one_task(self, inputs: Mapping[str, Sequence[Receipt]], names: Iterable[str] | None = None) -> list[Task]:
        """One task, called "all", over every output of the named upstream stages."""
        joined = {stage: tuple(s for r in inputs[stage] for s in r.outputs) for stage in names or self.upstream}
        return [Task(self.name, self.version, "all", 0, self.config, dict(self.uses()), joined)]
