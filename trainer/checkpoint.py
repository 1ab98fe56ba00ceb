"""Checkpoints on disk: complete or not there, verified when read, without pickle. Needs no torch but for the tensors.

checkpoints/00000017/model.safetensors       weights; with several ranks model-RANK.safetensors, each its boxes
                     optimizer.safetensors   the optimizer's averages and step counts, PARAMETER.exp_avg and the like
                     average.safetensors     averaged weights, ema.PARAMETER, where the run keeps them
                     index.json              which box of which tensor stands in which file
                     state.json              the marker: step, position in the data, run, layout, sizes and sha256 of all
One format for every layout: the files of one process and of any dp x tp are read by any other. A checkpoint is
written into a hidden folder; every file is synced before state.json is written, and the folder is renamed last. A
folder without state.json is no checkpoint. Writing is `saver`'s part, boxes are `checkpoint_plan`'s, files `storage`'s.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "gristmill-checkpoint-2"
MARKER = "state.json"
HIDDEN = ".tmp-"  # what is being written or removed
MODEL, OPTIMIZER, AVERAGE = "model", "optimizer", "average"
STATE_KEYS = ("step", "samples", "tokens", "dataset_digest", "vocab_size", "run", "files")
MARKER_BYTES = 64 << 20  # a larger state.json is none of ours: 1,024 ranks list about 0.5 MB
FILE_NAME = re.compile(r"[a-z]+(-\d{5})?\.safetensors|index\.json")
PICKLED = {
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".bin",
    ".ckpt",
    ".distcp",
    ".metadata",
}  # what torch.save's users call them


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and its state.json."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def sizes(self) -> dict[str, int]:
        """The files that the marker vouches for, and their bytes."""
        return {name: int(info["bytes"]) for name, info in self.state["files"].items()}

    def part(self, part: str) -> dict[str, Tensor]:
        """Whole tensors of one part (MODEL, OPTIMIZER or AVERAGE), on CPU, whatever layout wrote them.

        Without the rows that pad the vocabulary. Raises FormatError when a file does not hold what the index says.
        """
        import torch

        from gristmill.trainer.checkpoint_plan import LoadPlanner
        from gristmill.trainer.storage import Reader

        reader = Reader(self.folder, self.sizes)
        stored = reader.read_metadata()
        keys = [key for key in stored.state_dict_metadata if key.startswith(part + "/")]
        shapes: dict[str, Any] = {key: stored.state_dict_metadata[key] for key in keys}
        state = {key: torch.empty(m.size, dtype=m.properties.dtype) for key, m in shapes.items()}
        planner = LoadPlanner(None)
        planner.set_up_planner(state, stored, True)
        reader.read_data(planner.create_local_plan(), planner)
        return {key.partition("/")[2]: tensor for key, tensor in state.items()}

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and optimizer tensors, as `part` gives them."""
        return self.part(MODEL), self.part(OPTIMIZER)


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder that have a marker, oldest first. None of them is verified."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(
        int(n) for n in names if n.isdecimal() and folder_name(int(n)) == n and (folder / n / MARKER).exists()
    )


def folder_name(step: int) -> str:
    return f"{step:08d}"


def latest(
    folder: Path, note: Callable[[str], None] = lambda text: None, at_most: int | None = None
) -> Checkpoint | None:
    """The newest complete checkpoint (of step `at_most` or before), or None, for one process. Damaged ones are passed
    over, each told to `note`."""
    for step in reversed(steps_in(folder)):
        try:
            if at_most is None or step <= at_most:
                return read(folder / folder_name(step))
        except FormatError as error:
            note(f"passing over a checkpoint: {error.message}")
    return None


def read(folder: Path) -> Checkpoint:
    """Open and verify one checkpoint. Raises FormatError when a file is missing, cut short, altered or a pickle."""
    found = parse(folder, read_marker(folder))
    verify(found)
    return found


def read_marker(folder: Path) -> bytes:
    """The bytes of state.json. Raises FormatError when there is none: then there is no checkpoint."""
    try:
        if (folder / MARKER).stat().st_size > MARKER_BYTES:
            raise FormatError(f"{folder / MARKER} has more than {MARKER_BYTES} bytes")
        return (folder / MARKER).read_bytes()
    except OSError as error:
        raise FormatError(f"{folder} is incomplete: {error}") from error


def parse(folder: Path, marker: bytes) -> Checkpoint:
    """The checkpoint that a marker describes, its files not looked at. Raises FormatError."""
    try:
        state = orjson.loads(marker)
        if state["format"] != FORMAT:
            raise FormatError(f"{folder} has format {state['format']!r}, this version reads {FORMAT!r}")
        if missing := [key for key in STATE_KEYS if key not in state]:
            raise FormatError(f"{folder / MARKER} has no {missing[0]}")
        for name, info in state["files"].items():
            if not FILE_NAME.fullmatch(name):
                raise FormatError(f"{folder / MARKER} names {name!r}, which is no file of a checkpoint")
            int(info["bytes"]), str(info["sha256"])
        if "index.json" not in state["files"]:
            raise FormatError(f"{folder / MARKER} names no index.json")
        int(state["step"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{folder} is incomplete: {MARKER}: {error!r}") from error
    return Checkpoint(folder, state)


def verify(found: Checkpoint, rank: int = 0, size: int = 1) -> None:
    """Check sizes, sha256 and kind of every `size`-th file, from the `rank`-th on; rank 0 also looks for strange files.

    So `size` ranks read each file once. Raises FormatError.
    """
    if rank == 0:
        _refuse_pickles(found)
    for name in sorted(found.state["files"])[rank::size]:
        want, path = found.state["files"][name], found.folder / name
        try:
            if (have := path.stat().st_size) != want["bytes"]:
                raise FormatError(f"{path} has {have} bytes, its state says {want['bytes']}")
            if path.suffix == ".safetensors":
                _check_kind(path, have)
            if sha256_file(path) != want["sha256"]:
                raise FormatError(f"{path} does not match its sha256")
        except OSError as error:
            raise FormatError(f"{found.folder} is incomplete: {error}") from error


def _check_kind(path: Path, size: int) -> None:
    """Raises FormatError unless the file begins as a safetensors file does: bytes of a JSON header, then the header."""
    with open(path, "rb") as handle:
        head = handle.read(9)
    length = int.from_bytes(head[:8], "little")
    if len(head) == 9 and head[8:] == b"{" and 8 + length <= size:
        return
    if _is_pickle(head):
        raise FormatError(f"{path} is a pickle, which can run any program and is never opened", hint=_PICKLE_HINT)
    raise FormatError(f"{path} is no safetensors file")


_PICKLE_HINT = "take the checkpoint from whoever made it again; ours hold safetensors and JSON only"


def _is_pickle(head: bytes) -> bool:
    """Zip archives of torch.save, and pickles of protocol 2 and later."""
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _refuse_pickles(found: Checkpoint) -> None:
    """Raises FormatError when a file that the marker does not name looks like a pickle. Such a file would never be
    opened, but whoever put it there hoped that another tool would."""
    for path in sorted(found.folder.iterdir()):
        if path.name in found.state["files"] or path.name == MARKER or not path.is_file():
            continue
        named = path.name == ".metadata" or path.suffix in PICKLED
        with open(path, "rb") as handle:
            if named or _is_pickle(handle.read(4)):
                raise FormatError(f"{path} is a pickle, which a checkpoint of ours never holds", hint=_PICKLE_HINT)


def write_marker(folder: Path, state: dict[str, Any]) -> bytes:
    """Write and sync state.json, the last file of a checkpoint. Returns its bytes."""
    text = orjson.dumps({"format": FORMAT, **state}, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    with open(folder / MARKER, "wb") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    sync_folder(folder)
    return text


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, final: Path) -> None:
    """Rename a complete hidden folder to its name. One that stands there already (damaged, or of another try) goes."""
    replaced = _hide(final) if final.exists() else None
    temporary.rename(final)
    sync_folder(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def remove(folder: Path) -> None:
    """Remove a checkpoint so that a crash half-way leaves none that looks damaged: hidden first."""
    shutil.rmtree(_hide(folder))


def _hide(folder: Path) -> Path:
    hidden = folder.parent / f"{HIDDEN}removed-{folder.name}"
    shutil.rmtree(hidden, ignore_errors=True)
    return folder.rename(hidden)


def rng_state() -> dict[str, str]:
    """torch's generators as base64 of their bytes. Training draws from none; this proves it, and holds what a hook draws."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def restore_rng(states: dict[str, str]) -> None:
    """Put back what `rng_state` gave; a device that is not there is left out. Raises FormatError."""
    import torch

    setters: dict[str, Callable[[Tensor], None]] = {"cpu": torch.set_rng_state}
    if torch.cuda.is_available():
        setters["cuda"] = torch.cuda.set_rng_state
    try:
        for name in setters.keys() & states.keys():
            setters[name](torch.frombuffer(bytearray(base64.b64decode(states[name], validate=True)), dtype=torch.uint8))
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise FormatError(f"the checkpoint's random state cannot be restored: {error}") from error
