"""A root's training run as a Slurm job: the task's files, its batch script, and the line that takes over its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gristmill.core.errors import UsageError
from gristmill.core.manifest import find_receipt, task_folder
from gristmill.core.settings import load
from gristmill.core.stage import Receipt
from gristmill.trainer import slurm
from gristmill.trainer.slurm_schema import SlurmProfile
from gristmill.trainer.train import Train

JOB_NAME = "gristmill-{id}"
"""The beginning of the task's id: `singleton` holds back a second job of the same name and user."""


def slurm_job(
    stage: Train,
    shards: Sequence[Receipt],
    root: Path,
    profile_path: Path,
    run: str,
    overrides: Sequence[str],
    *,
    dry_run: bool,
    say: Callable[[str], None],
) -> str | None:
    """Submit a job that trains the stage's one task, or return its script when `dry_run`; nothing is written then.

    The job itself runs `gristmill train run RUN --root ROOT` at its end, which copies the outputs and writes the
    receipt. Raises UsageError on a profile that does not fit the run, ConfigError on faults of the profile.
    """
    if not profile_path.is_file():
        raise UsageError(
            f"no such profile: {profile_path}", hint="a YAML file: `gristmill schema slurm` says what it holds"
        )
    profile, _ = load(profile_path, SlurmProfile)
    (task,) = stage.tasks({"shards": shards})
    if find_receipt(root, task) is not None:
        say("nothing to do: this run is trained")
        if not dry_run:
            return None
    ranks, tp = profile.nodes * profile.ranks_per_node, int(stage.config["run"]["parallel"]["tp"])
    if ranks % tp:
        raise UsageError(
            f"parallel.tp is {tp}, the profile starts {ranks} ranks", hint="nodes x ranks must be a multiple of it"
        )
    work = task_folder(root, task) / "work"
    collect = ["train", "run", run, "--root", str(root)]
    for override in overrides:
        collect += ["--set", override]
    name = JOB_NAME.format(id=task.id[:12])
    arguments = stage.launch_of(task, work).arguments
    text = slurm.script(profile, name, arguments, work, collect, Path.cwd())
    if dry_run:
        return text
    slurm.require_sbatch()  # before anything is written
    work.mkdir(parents=True, exist_ok=True)
    stage.prepare(task, work)
    path = work / slurm.SCRIPT
    path.write_text(text, encoding="utf-8")
    say(slurm.submit(path))
    say(f"log: {work}/slurm-*.log; stop it with: touch {work}/STOP")
    return None
