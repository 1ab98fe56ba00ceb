"""How each process of a launch ended: OUT/.exit/RANK.json, since torchrun makes 1 of every exit code. No torch.

The first fault of a rank's own is what the user reads; ranks that only lost their peer say so, and do not hide it.
`python -m gristmill.trainer.outcome OUT RANKS` prints it and exits with its code, for batch scripts.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from gristmill.core.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, GristmillError

FOLDER = ".exit"
RESUME = "the same command goes on from the last checkpoint"
PEER_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "DistStore")
"""Parts of what torch.distributed raises in a rank whose peer is gone (torch 2.13)."""


@dataclass(frozen=True)
class Exit:
    """`peer`: this rank failed because another one was gone. `at` is in seconds of the machine's clock."""

    code: int
    message: str = ""
    hint: str | None = None
    peer: bool = False
    at: float = 0.0

    def render(self) -> str:
        return f"error: {self.message}" + (f"\n  hint: {self.hint}" if self.hint else "")


def of_error(error: BaseException) -> Exit:
    """The outcome of a process that an exception ends."""
    if isinstance(error, GristmillError):
        return Exit(error.exit_code, error.message, error.hint, at=time.time())
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return Exit(EXIT_FAILED, f"{where}{error.strerror or error}", RESUME, at=time.time())
    text = str(error).strip().split("\n", 1)[0]
    peer = isinstance(error, RuntimeError) and any(part in str(error) for part in PEER_LOST)
    return Exit(EXIT_FAILED, f"{type(error).__name__}: {text}", RESUME, peer, time.time())


def clear(out: Path) -> None:
    """Forget how an earlier launch ended."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)


def write(out: Path, rank: int, ended: Exit) -> None:
    """Written whole or not at all. A disk that takes nothing more is no second fault."""
    path = out / FOLDER / f"{rank}.json"
    temporary = path.with_name(f".{rank}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(orjson.dumps(asdict(ended)))
        os.replace(temporary, path)
    except OSError:
        return


def read(out: Path) -> dict[int, Exit]:
    """Outcomes by rank; damaged ones are left out."""
    found: dict[int, Exit] = {}
    for path in (out / FOLDER).glob("*.json"):
        try:
            found[int(path.stem)] = Exit(**orjson.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            continue
    return found


def root_cause(exits: Mapping[int, Exit], killed: Mapping[int, str]) -> Exit:
    """The one outcome of a launch from those of its ranks and the signals (by rank) that ended some of them.

    A rank that a signal ended comes first: the others' errors follow from it. Then the earliest fault of a rank's own.
    A stop counts when no rank failed.
    """
    if killed:
        rank, name = min(killed.items())
        why = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
        return Exit(EXIT_FAILED, f"rank {rank} was ended by {name}{why}", RESUME)
    failed = sorted((e.peer, e.at, rank) for rank, e in exits.items() if e.code not in (EXIT_OK, EXIT_INTERRUPTED))
    if failed:
        peer, _, rank = failed[0]
        found = exits[rank]
        return Exit(EXIT_FAILED, f"rank {rank} lost another process: {found.message}", RESUME) if peer else found
    if any(e.code == EXIT_INTERRUPTED for e in exits.values()):
        return Exit(EXIT_INTERRUPTED)
    return Exit(EXIT_FAILED, "a process ended without saying why", RESUME)


def main(argv: Sequence[str]) -> int:
    out, ranks = Path(argv[0]), int(argv[1])
    exits = read(out)
    if sorted(exits) == list(range(ranks)) and all(e.code == EXIT_OK for e in exits.values()):
        return EXIT_OK
    ended = root_cause(exits, {})
    if ended.message:
        print(ended.render(), file=sys.stderr)
    return ended.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
