"""The whole training state on disk: complete or not there, verified when read, without pickle.

checkpoints/00000017/model.safetensors      weights, the padded vocabulary included
                     optimizer.safetensors  the optimizer's averages and step counts, PARAMETER.exp_avg and the like
                     state.json             step, position in the data, dataset digest, run, sizes and sha256 of the two
A checkpoint is written into a hidden folder, synced and renamed, so a crash leaves the last one whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file

FORMAT = "gristmill-checkpoint-1"
FILES = ("model.safetensors", "optimizer.safetensors")

STATE_KEYS = ("step", "samples", "tokens", "dataset_digest", "vocab_size", "run", "files")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and its state.json."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and optimizer tensors, on CPU. Raises FormatError when a file is no safetensors file."""
        try:
            weights, moments = (load_file(self.folder / name) for name in FILES)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{self.folder} cannot be read: {error}") from error
        return weights, moments


def save(
    folder: Path, state: dict[str, Any], weights: dict[str, Tensor], moments: dict[str, Tensor], keep: int
) -> Path:
    """Write the checkpoint of state["step"], then remove all but the newest `keep`. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".tmp-*"):
        shutil.rmtree(left)
    final = folder / f"{state['step']:08d}"
    temporary = folder / f".tmp-{final.name}"
    temporary.mkdir()
    for name, tensors in zip(FILES, (weights, moments), strict=True):
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary / name)
    files = {n: {"bytes": (temporary / n).stat().st_size, "sha256": sha256_file(temporary / n)} for n in FILES}
    text = orjson.dumps({"format": FORMAT, **state, "files": files}, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    (temporary / "state.json").write_bytes(text)
    for name in (*FILES, "state.json", "."):
        sync(temporary / name)
    if final.exists():  # a damaged one that `latest` passed over
        shutil.rmtree(final)
    temporary.rename(final)
    sync(folder)
    for old in sorted(p for p in folder.iterdir() if p.name.isdigit() and int(p.name) <= state["step"])[:-keep]:
        shutil.rmtree(old)
    return final


def sync(path: Path) -> None:
    """fsync a file or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def latest(folder: Path, note: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
    """The newest complete checkpoint, or None. Damaged ones are passed over, each told to `note`."""
    names = sorted((p.name for p in folder.iterdir() if p.name.isdigit()), reverse=True) if folder.is_dir() else []
    for name in names:
        try:
            return read(folder / name)
        except FormatError as error:
            note(f"passing over a checkpoint: {error.message}")
    return None


def read(folder: Path) -> Checkpoint:
    """Open one checkpoint. Raises FormatError when a file is missing, cut short or altered."""
    try:
        state = orjson.loads((folder / "state.json").read_bytes())
        if state["format"] != FORMAT:
            raise FormatError(f"{folder} has format {state['format']!r}, this version reads {FORMAT!r}")
        if missing := [key for key in STATE_KEYS if key not in state]:
            raise FormatError(f"{folder}/state.json has no {missing[0]}")
        for name in FILES:
            want = state["files"][name]
            size = (folder / name).stat().st_size
            if size != want["bytes"]:
                raise FormatError(f"{folder / name} has {size} bytes, its state says {want['bytes']}")
            if sha256_file(folder / name) != want["sha256"]:
                raise FormatError(f"{folder / name} does not match its sha256")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{folder} is incomplete: {error}") from error
    return Checkpoint(folder, state)
