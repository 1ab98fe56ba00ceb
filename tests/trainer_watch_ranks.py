"""One rank of the evaluation's parallel test: trains a step, watches, trains a step, and writes what it saw. Run by torchrun.

torchrun --nproc-per-node N tests/trainer_watch_ranks.py DATASET OUT RUN.json
Writes OUT/seen-TP.json from the first rank: {"evaluation", "samples", "losses", "untouched"}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import generate
from gristmill.trainer.evaluate import Evaluator
from gristmill.trainer.parallel import mesh, shard
from gristmill.trainer.schema import TrainRun


def main(dataset_folder: str, out: str, run_file: str) -> None:
    torch.set_num_threads(1)
    run, dataset = TrainRun.model_validate(json.loads(Path(run_file).read_text())), PackedDataset(dataset_folder)
    world = mesh.start(torch.device("cpu"), run.parallel.tp, run.parallel.zero)
    folder = Path(out)
    folder.mkdir(exist_ok=True)
    tokenizer = dataset.folder / "tokenizer.json"
    model = shard.build(run.model, dataset.manifest.vocab_size, 48, world, run.parallel)
    model.init_weights(run.seed)
    evaluator = Evaluator(run.evaluate, dataset, tokenizer, folder, world, step=0, rows=3)

    def watch() -> dict[str, object]:
        samples = generate.write_samples(
            model,
            Tokenizer.from_file(str(tokenizer)),
            run.gallery,
            dataset.manifest.special_ids,
            folder,
            step=1,
            phase="main",
            world=world,
        )
        return {"evaluation": evaluator(model, 1, "main"), "samples": samples}

    def train(watched: bool) -> list[float]:
        """Losses of two steps of plain gradient descent on fixed tokens, the same on every data-parallel rank."""
        model.init_weights(run.seed)
        losses = []
        for _ in range(2):
            rows = torch.arange(96).view(3, 32) % 90 + 3
            loss = model.loss(rows, rows.roll(-1, 1), torch.arange(32).expand(3, 32))
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=1e-3 / world.dp)
                    parameter.grad = None
            losses.append(loss.item())
            if watched:
                watch()
        return losses

    random = torch.get_rng_state()
    seen = watch() | {"losses": train(watched=True)}
    seen["untouched"] = seen["losses"] == train(watched=False) and torch.equal(random, torch.get_rng_state())
    if world.leads:
        (folder / "seen.json").write_text(json.dumps(seen))
    world.barrier()
    mesh.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
