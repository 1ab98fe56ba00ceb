"""Starts the processes of a run on this machine through torchrun's launcher, and ends with the first fault of theirs.

Only this process talks to whoever started it: it turns its own SIGTERM, SIGINT or SIGUSR1 into the trigger file that
the ranks agree on, and its death closes their standard input, which ends them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gristmill.core.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError
from gristmill.trainer import outcome
from gristmill.trainer.stopping import STOP_FILE, signals

GRACE_SECONDS = 5
"""What torchrun leaves the other ranks after one has failed. They have nothing to save; a stop does not come this way."""


def launched() -> bool:
    """Whether this process is one rank of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def started() -> bool:
    """Whether torchrun started this process, be it the only rank."""
    return "RANK" in os.environ


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def check_groups(size: int, tp: int) -> None:
    """Raises UsageError when `size` processes cannot be divided into groups of `tp`."""
    if size % tp:
        raise UsageError(
            f"parallel.tp is {tp}, there are {size} processes", hint="start a multiple of it with `--nproc`"
        )


def launch(arguments: Sequence[str], out: Path, nproc: int) -> outcome.Exit:
    """Run `python -m gristmill.trainer.launch ARGUMENTS` in `nproc` processes to their end. Returns how it ended."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    out.mkdir(parents=True, exist_ok=True)
    (out / STOP_FILE).unlink(missing_ok=True)  # of a run that had ended: it is not meant for this one
    outcome.clear(out)
    logging.disable(logging.CRITICAL)  # torchrun's own account of a failure is two pages; ours is one line
    _own_standard_streams()
    command = ["-m", "gristmill.trainer.launch", *arguments, "--parent", str(os.getpid())]
    killed: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="gristmill-ranks-") as logs, signals(lambda name: _ask(out, name), _end):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=f"gristmill-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,  # the same command resumes; a restart would hide the fault
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            signals_to_handle="SIGQUIT",  # not those that mean save and exit
            shutdown_timeout=GRACE_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)(*command)
            return outcome.Exit(EXIT_OK)
        except ChildFailedError as error:
            for number, failure in error.failures.items():
                if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                    killed[number] = failure.signal_name()
    return outcome.root_cause(outcome.read(out), killed)


def _own_standard_streams() -> None:
    """Ranks read a pipe that closes when this process dies, however it dies, and write no standard output (gloo does)."""
    reader, _ = os.pipe()  # the writing end stays open, and is not inherited, for as long as this process lives
    os.dup2(reader, 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _ask(out: Path, name: str) -> None:
    (out / STOP_FILE).touch()
    print(f"{name}: passed on to all ranks", file=sys.stderr, flush=True)


def _end() -> None:
    """At once: the ranks see their standard input close."""
    os._exit(EXIT_INTERRUPTED)


def quiet(number: int) -> None:
    """Make this process one of many: only rank 0 talks. Of the others, errors are left, each line with its rank before it."""
    import warnings

    # FSDP2 warns of its own deprecated calls and of a danger that our loss does not run into, on each rank (torch 2.13)
    warnings.filterwarnings("ignore", module=r"torch\.distributed")
    if number:
        warnings.simplefilter("ignore")
        sys.stderr = _Prefixed(f"[rank {number}] ")  # type: ignore[assignment]


def quiet_torch() -> None:
    """Once torch is imported, which sets the levels of its loggers: DTensor tells each rank that exports gather in two steps."""
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


class _Prefixed:
    """A text stream that writes whole lines, each after a prefix, so that lines of several processes do not mix."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.part = prefix, ""
        self.stream = sys.stderr

    def write(self, text: str) -> int:
        *lines, self.part = (self.part + text).split("\n")
        self.stream.write("".join(f"{self.prefix}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return False
