"""The batch script of a training job on Slurm, and its submission. No torch.

Slurm signals the batch script only (B:USR1), which touches the trigger file that the ranks agree on and waits for
them. A job whose time ran out queues itself again; `singleton` keeps two jobs of one run from running at once.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gristmill.core.errors import GristmillError, UsageError
from gristmill.trainer.outcome import FOLDER
from gristmill.trainer.slurm_schema import SlurmProfile
from gristmill.trainer.stopping import STOP_FILE

SCRIPT = "launch.sbatch"
PLAIN_PATH = re.compile(r"/[A-Za-z0-9_.,:@+=/#-]*")
"""What an `#SBATCH --output` line takes as it stands: % begins a pattern of Slurm's there, blanks end it."""
JOB_LINES = """\
out={out}
rm -rf -- "$out/{stop}" "$out/{exits}"

# Slurm warns this script alone; ranks see the file, finish their step, save and leave
warned=0
ask() {{ touch -- "$out/{stop}"; }}
trap 'warned=1; ask' USR1
trap ask TERM

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
{srun} \\
  {python} -m torch.distributed.run --nnodes={nodes} --nproc-per-node={ranks} --max-restarts=0 \\
  --rdzv-backend=c10d --rdzv-endpoint="$head_node:{port}" --rdzv-id="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}" \\
  -m gristmill.trainer.launch {arguments} &
ranks=$!
wait "$ranks"
while kill -0 "$ranks" 2>/dev/null; do wait "$ranks"; done  # a trap ends a wait early
{srun_one} {python} -m gristmill.trainer.outcome "$out" {total}
code=$?
"""
LAST_LINES = """\
if [ "$code" -eq 0 ]; then
  # the root takes over what the job wrote
  cd -- {cwd} && {srun_one} {collect}
  code=$?
{requeue}fi
exit "$code"
"""
REQUEUE_LINES = """\
elif [ "$code" -eq 130 ] && [ "$warned" -eq 1 ]; then
  scontrol requeue "$SLURM_JOB_ID"
"""


def script(
    profile: SlurmProfile, name: str, arguments: Sequence[str], out: Path, collect: Sequence[str], cwd: Path
) -> str:
    """The batch script of one run.

    `name` is the same for every job of this run and of no other; `arguments` are those of gristmill.trainer.launch,
    `out` its folder, `collect` the arguments of `gristmill` that take its outputs into the root, run in `cwd`. Raises
    UsageError when Slurm could not take `out` as it is.
    """
    if not PLAIN_PATH.fullmatch(str(out)):
        raise UsageError(
            f"Slurm cannot write its log in {out}", hint="move the root to a path of letters, digits and -_.,:@+=#"
        )
    srun, srun_one = _srun(profile, profile.nodes), _srun(profile, 1)
    python = shlex.quote(profile.python)
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in _options(profile, name, out)), ""]
    lines += [*(f"module load {shlex.quote(module)}" for module in profile.modules)]
    lines += [*(f"export {key}={shlex.quote(value)}" for key, value in profile.env.items())]
    lines += [*profile.setup, ""]
    job = JOB_LINES.format(
        out=shlex.quote(str(out)),
        stop=STOP_FILE,
        exits=FOLDER,
        srun=srun,
        srun_one=srun_one,
        python=python,
        nodes=profile.nodes,
        ranks=profile.ranks_per_node,
        port=profile.port,
        arguments=shlex.join(arguments),
        total=profile.nodes * profile.ranks_per_node,
    )
    last = LAST_LINES.format(
        cwd=shlex.quote(str(cwd)),
        srun_one=srun_one,
        collect=f"{python} -m gristmill.pipelines {shlex.join(collect)}",
        requeue=REQUEUE_LINES if profile.requeue else "",
    )
    return "\n".join(lines) + job + last


def _options(profile: SlurmProfile, name: str, out: Path) -> list[str]:
    given = {
        "job-name": name,
        "nodes": profile.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": profile.gpus_per_node or None,
        "cpus-per-task": profile.cpus_per_task,
        "mem": profile.memory,
        "time": profile.time,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "reservation": profile.reservation,
        "signal": f"B:USR1@{profile.signal_seconds}",
        "dependency": "singleton",
        "output": f"{out}/slurm-%j.log",
        "open-mode": "append",
    }
    flags = ["--requeue" if profile.requeue else "--no-requeue"]
    return [f"--{key}={value}" for key, value in given.items() if value is not None] + flags + profile.options


def _srun(profile: SlurmProfile, nodes: int) -> str:
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    if profile.cpus_per_task is not None:
        words.append(f"--cpus-per-task={profile.cpus_per_task}")  # srun does not take it over from sbatch since 22.05
    if (container := profile.container) is not None:
        words.append(f"--container-image={container.image}")
        if container.mounts:
            words.append(f"--container-mounts={','.join(container.mounts)}")
        if container.workdir is not None:
            words.append(f"--container-workdir={container.workdir}")
    return shlex.join(words)


def require_sbatch() -> None:
    """Raises UsageError without Slurm."""
    if shutil.which("sbatch") is None:
        raise UsageError("there is no sbatch here", hint="--dry-run prints the script; submit it where Slurm is")


def submit(path: Path) -> str:
    """Hand a script to sbatch. Returns what it says. Raises UsageError without Slurm, GristmillError when it refuses."""
    require_sbatch()
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise GristmillError(
            f"sbatch refused {path}: {done.stderr.strip() or done.stdout.strip()}", hint="mend the profile"
        )
    return done.stdout.strip()
