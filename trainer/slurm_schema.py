"""The Slurm profile YAML: where and how long a training job runs, and what its nodes need before it starts. No torch.

Names go into `#SBATCH` lines and paths into a shell script, so they hold no blanks, quotes or line ends; values of
`env` are quoted. Only the lines of `setup` are shell.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from gristmill.core.settings import Settings

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:@+=/*\[\]&|-]{1,200}$")]
"""A name or list of names as Slurm takes them."""
PathText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:@+=/#-]{1,500}$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]{1,1000}$")]
Duration = Annotated[str, StringConstraints(pattern=r"^(\d{1,3}-)?\d{1,3}(:[0-5]?\d){0,2}$")]
SHORTEST_START = 60  # seconds that a job must have before its warning


class Container(Settings):
    """A container for all ranks, through srun's options of pyxis/enroot."""

    image: PathText
    mounts: list[PathText] = Field([], max_length=64)
    """SOURCE:TARGET; the root, the run's folder and gristmill itself must be visible inside."""
    workdir: PathText | None = None


class SlurmProfile(Settings):
    """One way to run training jobs on a cluster. Use it with `gristmill train run RUN --slurm PROFILE.yaml`."""

    gristmill_slurm: Literal[1]
    nodes: int = Field(1, ge=1, le=100_000)
    gpus_per_node: int = Field(8, ge=0, le=64)
    processes_per_node: int | None = Field(None, ge=1, le=1024)
    """Ranks on each node; null: one a GPU."""
    cpus_per_task: int | None = Field(None, ge=1, le=4096)
    """CPU cores of each node's one task, which starts that node's ranks."""
    memory: Word | None = None
    """--mem of a node, e.g. 480G; 0 is all of it."""
    time: Duration
    """Limit, as Slurm writes it: minutes, HH:MM:SS or D-HH:MM:SS."""
    signal_seconds: int = Field(600, ge=1, le=65_535)
    """Warning before the limit, in which the ranks finish a step and save. 600 is Apertus'; 70B took 40 s to write."""
    requeue: bool = True
    """Queue the job again when its time ran out: it goes on from its checkpoint. A stop by hand never does."""
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    reservation: Word | None = None
    options: list[Word] = Field([], max_length=32)
    """Further sbatch options, e.g. --exclusive or --gres=gpu:8."""
    modules: list[Word] = Field([], max_length=64)
    """`module load` of each, in order."""
    env: dict[Variable, Line] = Field({}, max_length=200)
    """Variables of all ranks."""
    setup: list[Line] = Field([], max_length=64)
    """Lines of bash that the job runs as they stand before it starts the ranks, e.g. `source venv/bin/activate`."""
    container: Container | None = None
    python: PathText = "python"
    """The interpreter that has gristmill, on the nodes or in the container."""
    port: int = Field(29_500, ge=1024, le=65_535)
    """Of the first node, where the ranks meet; jobs that share a node need different ones."""

    @property
    def ranks_per_node(self) -> int:
        return self.processes_per_node or self.gpus_per_node

    @property
    def seconds(self) -> int:
        """The time limit."""
        days, _, clock = self.time.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        if days:
            hours, minutes, seconds = (*parts, 0, 0)[:3]  # D-HH, D-HH:MM, D-HH:MM:SS
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:
            hours, (minutes, seconds) = 0, (*parts, 0)[:2]  # MM, MM:SS
        return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds

    @model_validator(mode="after")
    def _possible(self) -> SlurmProfile:
        if not self.ranks_per_node:
            raise ValueError("no ranks: gpus_per_node is 0 hint: set processes_per_node for a CPU job")
        if self.seconds < self.signal_seconds + SHORTEST_START:
            raise ValueError(
                f"time {self.time} leaves no time before the warning {self.signal_seconds} s earlier "
                "hint: raise time or lower signal_seconds"
            )
        if wrong := [o for o in self.options if not re.fullmatch(r"--[a-z][a-z-]*(=.+)?", o)]:
            raise ValueError(f"{wrong[0]} is no long option of sbatch hint: write --name or --name=value")
        return self
