"""Saves and loads checkpoints from all ranks of a run, at once or while training goes on.

The order at a step's edge, which makes a resume exact: metrics and events are synced (by the loop), then
  begin   all ranks agree on the plan, copy their boxes to CPU memory (asynchronous) and write and sync their files
  poll    at every later edge: are all ranks done? then rank 0 writes index.json and the marker, and renames the folder
  wait    the same, waiting: before the next save, at the end of the run, before a stop
All three are collective. Only the calling thread communicates; the background thread writes and nothing else, so its
work never mixes with the training's collectives. A failed save leaves the last checkpoint whole and is raised on
every rank by the next of these calls. Generators, edit list and position are JSON in the state that `begin` is given.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan

from gristmill.core.errors import FormatError, GristmillError
from gristmill.trainer import checkpoint
from gristmill.trainer.checkpoint import HIDDEN, Checkpoint
from gristmill.trainer.checkpoint_plan import LoadPlanner, PlannedSave, stored_shape
from gristmill.trainer.checkpoint_schema import Average, kept
from gristmill.trainer.checkpoint_schema import Checkpoint as Settings
from gristmill.trainer.exchange import Exchange
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.storage import FileInfo, Payload, Reader, Writer, file_name, results_of, split_key

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Parts = Mapping[str, Mapping[str, Tensor]]  # part -> name -> tensor of this rank: plain, or a DTensor


@dataclass
class _Save:
    """A save in flight. The thread sets `infos` or `error`, nothing else."""

    state: dict[str, Any]
    writer: Writer
    plans: list[SavePlan]
    metadata: Metadata
    bytes: int
    thread: threading.Thread | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    infos: dict[str, FileInfo] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Checkpoints:
    """The checkpoints of one run in `folder`, which all ranks see (shared storage).

    `vocab_size`: rows of embed.weight and head.weight that are real; the rest pads the vocabulary and is not stored.
    None stores them as they are. `say` is told what went wrong without harm. Make it on all ranks at once.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        settings: Settings,
        vocab_size: int | None,
        average: Average | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder, self.world, self.settings, self.vocab_size = folder, world, settings, vocab_size
        self.average, self.say = average or Average(), say
        self.exchange = Exchange(world)
        self._planned = PlannedSave(vocab_size)
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._save: _Save | None = None

    @property
    def saving(self) -> bool:
        """Whether a save is in flight, the same on every rank."""
        return self._save is not None

    # saving

    def begin(self, state: Mapping[str, Any], parts: Parts) -> Checkpoint | None:
        """Save the state after step state["step"]. Returns the checkpoint if it is complete, None if it is under way.

        `state` is JSON and holds checkpoint.STATE_KEYS but for `files`; it is the same on every rank. Tensors may change
        as soon as this returns. Waits for the save before it. Raises GristmillError when one of the two fails.
        """
        self.wait()
        tensors = {f"{part}/{name}": t for part, named in sorted(parts.items()) for name, t in sorted(named.items())}
        planner = self._planned.plan(tensors, self.exchange)
        metadata = self._planned.metadata
        needed = sum(_bytes(m) for m in metadata.state_dict_metadata.values() if isinstance(m, TensorStorageMetadata))
        temporary = self._make_folder(int(state["step"]), needed)
        writer = Writer(temporary)
        layout = {"size": self.world.size, "dp": self.world.dp, "tp": self.world.tp}
        save = _Save({**state, "layout": layout}, writer, self._planned.plans, metadata, needed)
        payload = writer.payload(planner.plan, planner)
        self._save = save
        if not self.settings.asynchronous:
            self._write(save, payload, None)
            return self.wait()
        staged, copied = self._stage(payload)
        save.thread = threading.Thread(target=self._write, args=(save, staged, copied), name="checkpoint", daemon=True)
        save.thread.start()
        return None

    def poll(self) -> Checkpoint | None:
        """The save in flight, if it has become complete by now. Costs nothing when none is in flight, and one message
        between the ranks' CPUs when one is. Raises GristmillError when it failed on any rank."""
        if self._save is None:
            return None
        running = self._save.running
        pending, failed = self.exchange.any(running, not running and self._save.error is not None)
        if failed:
            self._give_up(self._save)
        return None if pending else self._commit(self._save)

    def wait(self) -> Checkpoint | None:
        """As `poll`, but waits until the save in flight is complete."""
        if self._save is not None and self._save.thread is not None:
            self._save.thread.join()
        return self.poll()

    def close(self) -> None:
        """Drop a save in flight, without talking to the other ranks: for the way out after a failure."""
        save, self._save = self._save, None
        if save is None:
            return
        save.stop.set()
        if save.thread is not None:
            save.thread.join()
        if self.world.size == 1:  # else others may still write there; the next save removes it
            shutil.rmtree(save.writer.folder, ignore_errors=True)

    def forget_after(self, step: int) -> None:
        """Collective. Remove the checkpoints after `step`: a run that goes back to it will not see them again."""
        self.wait()
        if self.exchange.leads:
            for later in (s for s in checkpoint.steps_in(self.folder) if s > step):
                checkpoint.remove(self.folder / checkpoint.folder_name(later))
        self.exchange.from_lead(b"")

    def _make_folder(self, step: int, needed: int) -> Path:
        """A new hidden folder, made by rank 0; what killed saves left is removed. Raises GristmillError."""
        told = b""
        if self.exchange.leads:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for left in self.folder.glob(HIDDEN + "*"):
                    shutil.rmtree(left)
                disk = shutil.disk_usage(self.folder)
                if disk.total > 0 and disk.free < needed:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                # not the same name twice: ranks of a job that died may still be writing to its folder
                name = f"{HIDDEN}{checkpoint.folder_name(step)}-{os.urandom(4).hex()}"
                (self.folder / name).mkdir()
                told = name.encode()
            except OSError as error:
                told = b"!" + self._describe(error, step, needed).encode()
        told = self.exchange.from_lead(told)
        if told.startswith(b"!"):
            raise _failure(told[1:].decode())
        temporary = self.folder / told.decode()
        with contextlib.suppress(OSError):  # writing to it will say so, on all ranks
            temporary.mkdir(exist_ok=True)  # on network storage this rank may not see rank 0's yet
        return temporary

    def _stage(self, payload: Payload) -> tuple[Payload, Any]:
        """Copies in CPU memory, into the same buffers each time, and the event that says they are complete on a GPU."""
        staged: Payload = {part: {} for part in payload}
        event = None
        for part, tensors in payload.items():
            for name, tensor in tensors.items():
                buffer = self._buffers.get((part, name))
                if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                    buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                    self._buffers[part, name] = buffer
                buffer.copy_(tensor, non_blocking=True)
                staged[part][name] = buffer
        if self.world.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()  # the optimizer's next step stands behind it in the same stream, so nothing waits here
        return staged, event

    def _write(self, save: _Save, payload: Payload, copied: Any) -> None:
        try:
            if copied is not None:
                copied.synchronize()
            save.infos = save.writer.write(payload, self.world.rank, self.world.size, save.stop.is_set)
        except Exception as error:  # told to all ranks by the next poll
            save.error = error

    def _commit(self, save: _Save) -> Checkpoint:
        """All payload is on disk everywhere: index, marker, name."""
        parts = sorted({split_key(key)[0] for key in save.metadata.state_dict_metadata})
        rows = self.exchange.gather(_packed(parts, save.infos))
        told = b""
        if self.exchange.leads:
            try:
                results = [
                    results_of(plan, _unpacked(parts, row, rank, len(rows)))
                    for rank, (plan, row) in enumerate(zip(save.plans, rows, strict=True))
                ]
                save.writer.finish(save.metadata, results)
                text = checkpoint.write_marker(save.writer.folder, {**save.state, "files": save.writer.files})
                checkpoint.publish(save.writer.folder, self._final(save))
                told = text
            except Exception as error:
                save.error = error
        told = self.exchange.from_lead(told)
        if not told:
            self._give_up(save)
        self._save = None
        if self.exchange.leads:
            self._prune(int(save.state["step"]))
        return checkpoint.parse(self._final(save), told)

    def _final(self, save: _Save) -> Path:
        return self.folder / checkpoint.folder_name(int(save.state["step"]))

    def _give_up(self, save: _Save) -> None:
        """Collective. Stop all writers, remove the hidden folder, raise one error on every rank."""
        save.stop.set()
        if save.thread is not None:
            save.thread.join()
        own = "" if save.error is None else self._describe(save.error, int(save.state["step"]), save.bytes)
        texts = self.exchange.texts(own)
        if self.exchange.leads:
            shutil.rmtree(save.writer.folder, ignore_errors=True)
        self._save = None
        rank, text = next((rank, text) for rank, text in enumerate(texts) if text)
        raise _failure(text if len(texts) == 1 else f"rank {rank}: {text}") from save.error

    def _describe(self, error: Exception, step: int, needed: int) -> str:
        what = f"the checkpoint of step {step} was not written"
        if isinstance(error, OSError) and error.errno in FULL:
            free = shutil.disk_usage(self.folder).free if self.folder.is_dir() else 0
            return f"{what}: {error.strerror}; it takes {needed:,} bytes, {free:,} are free in {self.folder}"
        return f"{what}: {error!r}"

    def _prune(self, step: int) -> None:
        try:
            steps = checkpoint.steps_in(self.folder)
            for old in set(steps) - kept(steps, step, self.settings, self.average):
                checkpoint.remove(self.folder / checkpoint.folder_name(old))
        except OSError as error:
            self.say(f"an old checkpoint could not be removed: {error}")

    # loading

    def latest(self, note: Callable[[str], None] | None = None, at_most: int | None = None) -> Checkpoint | None:
        """Collective. The newest complete checkpoint (of step `at_most` or before), the same on every rank, or None.

        Each file is hashed by one rank. Damaged checkpoints are passed over; rank 0 tells `note` of each.
        """
        steps = checkpoint.steps_in(self.folder) if self.exchange.leads else []
        told = self.exchange.from_lead(",".join(str(s) for s in steps if at_most is None or s <= at_most).encode())
        for step in reversed([int(s) for s in told.decode().split(",") if s]):
            try:
                return self.open(step)
            except FormatError as error:
                if self.exchange.leads:
                    (note or self.say)(f"passing over a checkpoint: {error.message}")
        return None

    def open(self, step: int) -> Checkpoint:
        """Collective. The verified checkpoint of a step. Raises FormatError, on every rank if on one."""
        folder = self.folder / checkpoint.folder_name(step)
        fault, told = "", b""
        if self.exchange.leads:
            try:
                told = checkpoint.read_marker(folder)
            except FormatError as error:
                fault = error.message
        told = self.exchange.from_lead(told)  # every rank goes by rank 0's bytes
        if not told:
            raise FormatError(self._together(fault))
        found = checkpoint.parse(folder, told)
        fault = ""
        try:
            checkpoint.verify(found, self.exchange.rank, self.exchange.size)
        except FormatError as error:
            fault = error.message
        if fault := self._together(fault):
            raise FormatError(fault)
        return found

    def load(self, found: Checkpoint, parts: Parts) -> None:
        """Collective. Fill tensors in place from a checkpoint of any layout; rows that pad the vocabulary become zero.

        A part given must name all its tensors. Raises FormatError, on every rank if on one, when a name, shape or dtype
        differs; some tensors may have been filled by then.
        """
        fault = ""
        try:
            reader = Reader(found.folder, found.sizes)
            stored = reader.read_metadata()
            for part, named in parts.items():
                have = {split_key(key)[1] for key in stored.state_dict_metadata if split_key(key)[0] == part}
                if have != set(named):
                    wrong = ", ".join(sorted(have ^ set(named))[:3])
                    raise FormatError(f"{found.folder} does not fit the run: {part} tensors that one lacks: {wrong}")
            planner = LoadPlanner(self.vocab_size)
            state = {f"{part}/{name}": t for part, named in parts.items() for name, t in named.items()}
            planner.set_up_planner(state, stored, self.exchange.leads)
            with torch.no_grad():
                reader.read_data(planner.create_local_plan(), planner)
        except FormatError as error:
            fault = error.message
        if fault := self._together(fault):
            raise FormatError(fault)

    def names(self, found: Checkpoint, part: str) -> list[str]:
        """Names of a part's tensors; none if the checkpoint has no such part. Not collective."""
        stored = Reader(found.folder, found.sizes).read_metadata().state_dict_metadata
        return [name for kind, name in map(split_key, stored) if kind == part]

    def like(self, found: Checkpoint, part: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors to load a part into, named as stored: made like the parameter a name belongs to, or plain scalars.

        `PARAMETER`, `PARAMETER.exp_avg` and `ema.PARAMETER` belong to PARAMETER. Raises FormatError where none fits.
        """
        out: dict[str, Tensor] = {}
        for key, stored in Reader(found.folder, found.sizes).read_metadata().state_dict_metadata.items():
            kind, name = split_key(key)
            if kind != part or not isinstance(stored, TensorStorageMetadata):
                continue
            candidates = (name, name.removeprefix("ema."), name.rpartition(".")[0])
            owner = next((parameters[n] for n in candidates if n in parameters), None)
            dtype = stored.properties.dtype
            if owner is not None and stored.size == stored_shape(key, owner.shape, self.vocab_size):
                out[name] = torch.empty_like(owner, dtype=dtype, requires_grad=False)
            elif owner is not None and not stored.size:
                out[name] = torch.empty((), dtype=dtype)
            else:
                raise FormatError(f"{found.folder} holds {key} of the shape {list(stored.size)}: nothing here has it")
        return out

    def _together(self, fault: str) -> str:
        """The first fault that any rank has, with its rank; "" if none has one."""
        texts = self.exchange.texts(fault)
        return next((t if len(texts) == 1 else f"{t} (rank {rank})" for rank, t in enumerate(texts) if t), "")


def _failure(text: str) -> GristmillError:
    return GristmillError(
        text, hint="the last checkpoint is whole; free space or mend the storage, then the same command goes on from it"
    )


def _bytes(stored: TensorStorageMetadata) -> int:
    return math.prod(stored.size) * stored.properties.dtype.itemsize


def _packed(parts: list[str], infos: Mapping[str, FileInfo]) -> Tensor:
    """(parts, 5) int64: a file's bytes (-1: none) and its sha256, for `gather`."""
    rows = torch.full((len(parts), 5), -1, dtype=torch.int64)
    for n, part in enumerate(parts):
        if part in infos:
            digest = struct.unpack("<4q", bytes.fromhex(infos[part].sha256))
            rows[n] = torch.tensor([infos[part].bytes, *digest], dtype=torch.int64)
    return rows


def _unpacked(parts: list[str], rows: Tensor, rank: int, size: int) -> dict[str, FileInfo]:
    return {
        part: FileInfo(file_name(part, rank, size), row[0], struct.pack("<4q", *row[1:]).hex())
        for part, row in zip(parts, rows.tolist(), strict=True)
        if row[0] >= 0
    }
