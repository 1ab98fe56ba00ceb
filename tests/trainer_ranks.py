"""One rank of the equality tests: trains named cases over one process group, some with a planted fault. Run by torchrun.

python -m torch.distributed.run --nproc-per-node N tests/trainer_ranks.py DATASET OUT CASES.json
A case: {"name", "run": settings of a training run, "dataset": another one or absent, "fault": name or null, "resume": folder of a run to go on from or null}.
Writes OUT/NAME as a training run does, tokens-RANK.json, and OUT/NAME/gradients.pt: {parameter: gradient of step 1, real rows only}.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import loop, model, state
from gristmill.trainer.parallel import mesh, shard, tensor
from gristmill.trainer.schema import TrainRun


@contextmanager
def planted(fault: str | None, world: mesh.World) -> Iterator[None]:
    """One of the four mistakes that a parallel trainer is known to make."""
    if fault is None:
        yield
    elif fault == "seed per rank":
        whole = model.Decoder.initial_value
        with mock.patch.object(model.Decoder, "initial_value", lambda m, name, seed: whole(m, name, seed + world.rank)):
            yield
    elif fault == "missing all-reduce":  # a norm's gradient of one rank's positions is taken for the whole
        with mock.patch.object(tensor.DTensor, "to_local", plain_to_local(tensor.DTensor.to_local)):
            yield
    elif fault == "per-rank mean loss":
        batch = state.Loader.batch

        def of_own_tokens(loader: Any, step: int) -> Any:
            found = batch(loader, step)
            own = sum(int((micro.labels_BT != -100).sum()) for micro in found.micros)
            return replace(found, valid_tokens=own * world.dp)

        with mock.patch.object(state.Loader, "batch", of_own_tokens):
            yield
    elif fault == "FSDP average":
        with mock.patch.object(
            shard.FSDPModule, "set_gradient_divide_factor", lambda module, factor: divide(module, float(world.dp))
        ):
            yield
    else:
        raise AssertionError(fault)


divide = shard.FSDPModule.set_gradient_divide_factor


def plain_to_local(to_local: Any) -> Any:
    return lambda parameter, *, grad_placements=None: to_local(parameter)


@contextmanager
def tokens_written(folder: Path, world: mesh.World) -> Iterator[None]:
    """Write the rows of tokens that each data-parallel rank trains on: FOLDER/tokens-RANK.json, {step: rows}."""
    batch, seen = state.Loader.batch, {}

    def noted(loader: Any, step: int) -> Any:
        found = batch(loader, step)
        rows = torch.cat([micro.tokens_BT for micro in found.micros])[: len(found.rows)]  # the rest only fills
        seen[step] = rows.tolist()
        return found

    with mock.patch.object(state.Loader, "batch", noted):
        yield
    if world.tp_rank == 0:
        (folder / f"tokens-{world.dp_rank}.json").write_text(json.dumps(seen))


def gradients(run: TrainRun, dataset: PackedDataset, folder: Path, world: mesh.World) -> dict[str, torch.Tensor]:
    trainer = state.Trainer(run, dataset, folder, lambda text: None, world)
    try:
        trainer.backward(trainer.loader.batch(1))
        found = {
            name: tensor.whole(p.grad).clone() for name, p in trainer.model.named_parameters() if p.grad is not None
        }
    finally:
        trainer.close()
    return {n: g[: dataset.manifest.vocab_size] if n.startswith(("embed", "head")) else g for n, g in found.items()}


def main(dataset_folder: str, out: str, cases: str) -> None:
    torch.set_num_threads(1)
    for case in json.loads(Path(cases).read_text()):
        dataset = PackedDataset(case.get("dataset", dataset_folder))
        run = TrainRun.model_validate(case["run"])
        world = mesh.start(torch.device("cpu"), run.parallel.tp, run.parallel.zero)
        folder = Path(out) / case["name"]
        with planted(case.get("fault"), world):
            if case.get("resume"):
                if world.leads:
                    shutil.copytree(case["resume"], folder, ignore=shutil.ignore_patterns("tokens-*"))
                world.barrier()
            else:
                found = gradients(run, dataset, folder / "probe", world)
            with tokens_written(folder, world):
                loop.train(run, dataset, folder, world=world)
        if world.leads and not case.get("resume"):
            torch.save(found, folder / "gradients.pt")
    world.barrier()
    mesh.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
