"""One rank of the kernels' equality test: trains named cases on Triton kernels in its interpreter, some with a planted fault.

TRITON_INTERPRET=1 python -m torch.distributed.run --nproc-per-node N tests/kernel_ranks.py DATASET OUT CASES.json
A case: {"name", "run": settings of a training run, "fault": name or absent}. Writes OUT/NAME as a training run does, and
OUT/NAME/weights.pt: {parameter: its last value, whole, real rows only}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from kernel_planting import plant

from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import loop
from gristmill.trainer.kernels import linear_ce
from gristmill.trainer.kernels.interpret import interpreting
from gristmill.trainer.parallel import mesh, shard, tensor
from gristmill.trainer.schema import TrainRun

FAULTS = {  # name: function of linear_ce, what it says, what it says then
    "sums of two maxima": (  # exponentials of each rank are added as if all had been taken from one maximum
        "log_sum_exp",
        "torch.stack([total_N * (top_N - above_N).exp(), picked_N",
        "torch.stack([total_N, picked_N",
    ),
    "dW of one rank dropped": (
        "gradients",
        "return of_x_NC, of_weight_vC",
        "return of_x_NC, None if of_weight_vC is None else of_weight_vC * (options.tp.rank == 0)",
    ),
}


def main(dataset_folder: str, out: str, cases: str) -> None:
    assert interpreting(), "triton was imported without TRITON_INTERPRET=1"
    torch.set_num_threads(1)
    dataset = PackedDataset(dataset_folder)
    for case in json.loads(Path(cases).read_text()):
        run = TrainRun.model_validate(case["run"])
        world = mesh.start(torch.device("cpu"), run.parallel.tp, run.parallel.zero)
        folder = Path(out) / case["name"]
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            if "fault" in case:
                own = folder / f"fault-{world.rank}"
                own.mkdir(parents=True)
                plant(patch, own, linear_ce, *FAULTS[case["fault"]])
            model = loop.train(run, dataset, folder, say=said.append, world=world).model
        assert model.ops.name == run.kernels, said
        shard.settle(model)
        weights = {name: tensor.whole(p).detach().clone() for name, p in model.named_parameters()}
        if world.leads:
            vocab = dataset.manifest.vocab_size
            real = {n: w[:vocab] if n.startswith(("embed", "head")) else w for n, w in weights.items()}
            torch.save(real, folder / "weights.pt")
    world.barrier()
    mesh.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
