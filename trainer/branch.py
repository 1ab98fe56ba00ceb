"""Begins a run from the weights of another run's checkpoint or of an export: branches, annealing ablations, continued
pretraining.

`find` and `pinned` need no torch: they name the source by content, which is part of the task's id and of every
checkpoint. A `Source` fills the model (and the optimizer) of a fresh run on all its ranks.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import digest
from gristmill.core.tokshards import PackedManifest
from gristmill.trainer import checkpoint
from gristmill.trainer.architecture import Model
from gristmill.trainer.branch_schema import Branch
from gristmill.trainer.consumed import chained, differences
from gristmill.trainer.order import DataOrder
from gristmill.trainer.schema import TrainRun

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gristmill.trainer.optim import Hybrid
    from gristmill.trainer.parallel.mesh import World
    from gristmill.trainer.saver import Checkpoints

SAMPLED_BLOCKS, BLOCK_BYTES = 1024, 4096  # of each weight file, evenly spaced: 4 MiB, whatever its size
ENCODE = "encode the data with the source's tokenizer"
TASK_ID = re.compile(r"[0-9a-f]{4,32}")

Say = Callable[[str], None]


def find(setting: Branch, root: Path | None = None) -> Branch:
    """The setting with its folder absolute, its step a number and its digest filled in.

    `root` is the root whose train tasks `run` may name. Raises UsageError when there is no such source, or another one
    than the digest says.
    """
    if setting.safetensors is not None:
        folder = Path(setting.safetensors).absolute()
        found = setting.model_copy(update={"safetensors": str(folder), "sha256": export_digest(folder)})
    else:
        assert setting.run is not None
        folder = _run_folder(setting.run, root)
        steps = checkpoint.steps_in(folder / "checkpoints")
        step = setting.step if setting.step is not None else max(steps, default=None)
        if step is None or step not in steps:
            have = ", ".join(map(str, steps[-8:])) or "none"
            raise UsageError(
                f"from: {folder} has no checkpoint of step {step if step is not None else 'any'}",
                hint=f"it has {have}; checkpoint.keep_every_steps keeps more",
            )
        marker = checkpoint.read_marker(folder / "checkpoints" / checkpoint.folder_name(step))
        sha256 = hashlib.sha256(marker).hexdigest()  # it holds the sha256 of every file
        found = setting.model_copy(update={"run": str(folder), "step": step, "sha256": sha256})
    if setting.sha256 is not None and setting.sha256 != found.sha256:
        raise UsageError(
            f"from: {folder} is not the source that from.sha256 names: {str(found.sha256)[:12]}, not {setting.sha256[:12]}",
            hint="the source was trained or written anew; leave out from.sha256 to take it as it is",
        )
    return found


def pinned(run: TrainRun, out: Path) -> TrainRun:
    """A launch's run with its source found. Raises UsageError when only a step would say which checkpoint it is."""
    setting = run.branch
    if setting is None or (setting.sha256 is not None and checkpoint.steps_in(out / "checkpoints")):
        return run  # begun already: the source may be gone
    if setting.run is not None and setting.step is None:
        raise UsageError("from.step is not given", hint="name the checkpoint, so that a resume takes the same one")
    return run.model_copy(update={"branch": find(setting)})


def in_task_id(setting: Mapping[str, Any]) -> dict[str, Any]:
    """What of a found setting (plain data) changes a run: content, not where it stands."""
    return {key: setting[key] for key in ("sha256", "optimizer", "keep_position")}


def _run_folder(name: str, root: Path | None) -> Path:
    path = Path(name).absolute()
    for folder in (path, path / "work"):
        if (folder / "checkpoints").is_dir():
            return folder
    tasks = root / "stages" / "train" if root is not None else None
    if tasks is not None and tasks.is_dir() and TASK_ID.fullmatch(name):
        found = [p / "work" for p in sorted(tasks.iterdir()) if p.name.startswith(name)]
        found = [p for p in found if (p / "checkpoints").is_dir()]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"from.run {name} fits {len(found)} runs", hint=", ".join(p.parent.name for p in found))
    raise UsageError(
        f"from.run: {name} is no run with checkpoints", hint="give its folder, or its task's id in this root"
    )


def export_digest(folder: Path) -> str:
    """sha256 over config.json and, of each weight file, its name, size and 1,024 evenly spaced blocks of 4 KiB.

    Any training moves all weights, so samples tell two exports apart without reading terabytes at every plan.
    Raises UsageError when the folder holds none.
    """
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors")
        config = (folder / "config.json").read_bytes()
    except OSError as error:
        raise UsageError(
            f"from.safetensors: {error.filename}: {error.strerror}", hint="a folder as an export writes it"
        ) from error
    if not files:
        raise UsageError(f"from.safetensors: {folder} holds no .safetensors file")
    sum_ = hashlib.sha256(config)
    for path in files:
        size = path.stat().st_size
        sum_.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as handle:
            step = max(BLOCK_BYTES, size // SAMPLED_BLOCKS)
            for offset in range(0, size, step):
                handle.seek(offset)
                sum_.update(handle.read(BLOCK_BYTES))
    return sum_.hexdigest()


def identity(manifest: PackedManifest) -> dict[str, Any]:
    """What a checkpoint's state says of its data, for branches into other datasets: tokenizer and each phase's rows."""
    return {
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "phases": [
            [p.name, digest([p.seq_len, p.rows, [[s.rows, dict(s.sha256)] for s in p.shards]])] for p in manifest.phases
        ],
    }


def check_position(state: Mapping[str, Any], manifest: PackedManifest, order: DataOrder) -> None:
    """Raises UsageError unless the data behind the checkpoint is that of this run, as far as the checkpoint has come."""
    step, samples = int(state["step"]), int(state["samples"])
    hint = "leave out from.keep_position to begin at step 0 of this dataset"
    if step > order.steps or order.samples_after(step) != samples:
        raise UsageError(
            f"from.keep_position: step {step} of this run is not sample {samples}, where its source stands", hint=hint
        )
    if state["dataset_digest"] == manifest.digest or (same := chained(state, order)):
        return
    if same is False:
        raise UsageError(f"from.keep_position: {differences(state, order)}", hint=hint)
    theirs = state.get("phases")
    if theirs is None:
        raise UsageError("from.keep_position: the source was trained on another dataset", hint=hint)
    ours = identity(manifest)["phases"]
    begun = {span.phase.name for span in order.phases if span.first_sample < samples}
    for i, (name, sha256) in enumerate(ours):
        if name in begun and (i >= len(theirs) or list(theirs[i]) != [name, sha256]):
            raise UsageError(f"from.keep_position: phase {name} of this dataset is not the source's", hint=hint)


def check_fit(
    name: str, theirs: Mapping[str, Any], vocab_size: int, run: TrainRun, manifest: PackedManifest, say: Say
) -> None:
    """Raises UsageError when the source's weights have other shapes than the run's; other differences are only said."""
    if vocab_size != manifest.vocab_size:
        raise UsageError(
            f"from: {name} has {vocab_size} ids, the dataset {manifest.vocab_size}",
            hint=ENCODE,
        )
    try:
        model = Model.model_validate(theirs)
    except ValidationError as error:
        raise UsageError(f"from: {name} has a model this version does not know: {error.errors()[0]['msg']}") from error
    old, new = model.model_dump(mode="json"), run.model.model_dump(mode="json")
    differ = [f"model.{key} {old[key]} -> {new[key]}" for key in new if old.get(key) != new[key]]
    if model.params(vocab_size) != run.model.params(vocab_size):
        raise UsageError(
            f"from: {name} has other shapes: {', '.join(differ)}", hint="take over the source's model settings"
        )
    for text in differ:
        say(f"from {name} with {text}")


class Source:
    """The opened source of a fresh run. Made, and filled from, on all ranks at once.

    Raises UsageError on what does not fit the run and its dataset, on every rank alike, FormatError on a damaged source.
    """

    def __init__(self, run: TrainRun, manifest: PackedManifest, world: World, say: Say) -> None:
        assert run.branch is not None
        self.run, self.manifest, self.world, self.say, self.setting = run, manifest, world, say, run.branch
        self.checkpoints: Checkpoints | None = None
        self.found: checkpoint.Checkpoint | None = None
        if self.setting.run is not None:
            self._open(Path(self.setting.run))

    def _open(self, folder: Path) -> None:
        from gristmill.trainer.checkpoint_schema import Checkpoint as Settings
        from gristmill.trainer.saver import Checkpoints

        assert self.setting.step is not None, "pinned"
        self.checkpoints = Checkpoints(
            folder / "checkpoints", self.world, Settings(), self.manifest.vocab_size, say=self.say
        )
        self.found = self.checkpoints.open(self.setting.step)
        state = self.found.state
        check_fit(str(folder), state["run"]["model"], int(state["vocab_size"]), self.run, self.manifest, self.say)
        if state.get("tokenizer_sha256", self.manifest.tokenizer_sha256) != self.manifest.tokenizer_sha256:
            raise UsageError(f"from: {folder} was trained with another tokenizer", hint=ENCODE)

    @property
    def position(self) -> checkpoint.Checkpoint | None:
        """The checkpoint whose edits and place in the data this run goes on from; None to begin at step 0."""
        return self.found if self.setting.keep_position else None

    def fill(self, model: nn.Module, optimizer: Hybrid, order: DataOrder, out: Path) -> int:
        """Set the weights, and the optimizer where it is kept. Returns the step behind which the run begins.

        `order` is this run's. With keep_position, out/metrics.jsonl begins with the source's records.
        """
        if self.found is None or self.checkpoints is None:
            assert self.setting.safetensors is not None
            _from_export(Path(self.setting.safetensors), self.run, self.manifest, model, self.say)
            self.say(f"begins with the weights of {self.setting.safetensors}")
            return 0
        folder, keep = self.checkpoints.folder.parent, self.setting.optimizer == "keep"
        if self.position is not None:
            check_position(self.found.state, self.manifest, order)
        parts: dict[str, dict[str, Tensor]] = {checkpoint.MODEL: dict(model.named_parameters())}
        if keep:
            parts[checkpoint.OPTIMIZER] = optimizer.state_tensors()
        try:
            self.checkpoints.load(self.found, parts)
        except FormatError as error:
            if not keep or self.found.state["run"]["optimizer"] == self.run.model_dump(mode="json")["optimizer"]:
                raise
            raise UsageError(f"from: {error.message}", hint="from.optimizer: fresh takes the weights alone") from error
        if self.position is None:
            self.say(f"begins with the weights of step {self.found.step} of {folder}")
            return 0
        if self.world.leads:
            copy_journal(folder / "metrics.jsonl", out / "metrics.jsonl", self.found.step)
        self.say(f"begins behind step {self.found.step} of {folder}")
        return self.found.step


def copy_journal(source: Path, target: Path, step: int) -> None:
    """The records of steps 1..step, whole or not at all. Raises FormatError when the source lacks them."""
    try:
        lines = source.read_bytes().splitlines(keepends=True)[:step]
        steps = [orjson.loads(line)["step"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{source} cannot be read: {error}") from error
    if not steps or steps[-1] != step:
        raise FormatError(
            f"{source} does not hold the steps up to {step}", hint="leave out from.keep_position to begin at step 0"
        )
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(b"".join(lines))
    os.replace(temporary, target)


def _from_export(folder: Path, run: TrainRun, manifest: PackedManifest, model: nn.Module, say: Say) -> None:
    import torch

    from gristmill.core.hashing import sha256_file
    from gristmill.trainer.checkpoint_plan import box_of, local
    from gristmill.trainer.export import load_exported

    loaded, _ = load_exported(folder)
    check_fit(str(folder), loaded.config.model_dump(mode="json"), loaded.vocab_size, run, manifest, say)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file() and sha256_file(tokenizer) != manifest.tokenizer_sha256:
        raise UsageError(f"from: {tokenizer} is not the tokenizer of this dataset", hint=ENCODE)
    whole = dict(loaded.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            box, part, full = box_of(parameter), local(parameter), whole[name]
            part.zero_()  # rows that pad the vocabulary, which may be more here, stay so
            value = full[tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))]
            part[tuple(slice(0, n) for n in value.shape)].copy_(value)
