"""One rank of the vocabulary-parallel test of the fused cross-entropy, over gloo. Run by torchrun.

TRITON_INTERPRET=1 python -m torch.distributed.run --nproc-per-node N tests/linear_ce_ranks.py OUT
Writes OUT/CASE-RANK.pt: the rank's results, for each way of dividing the residual stream and the vocabulary.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from kernels_linear_ce import Case, inputs, results

from gristmill.trainer.kernels.interpret import interpreting
from gristmill.trainer.kernels.linear_ce import Chunks, linear_cross_entropy
from gristmill.trainer.parallel.tensor import TensorParallel

ROWS = 72  # of each of two ranks
CASES = {
    "plain": Case(37, 2 * ROWS, 53),
    "padded": Case(37, 2 * ROWS, 53, valid=131, softcap=3.0, z_weight=0.01, chunks=Chunks(16, 30)),
    "one rank pads alone": Case(37, 2 * ROWS, 53, valid=70),
}


def main(out: Path) -> None:
    assert interpreting()
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    for name, case in CASES.items():
        for sequence in (False, True):
            for dtype in (torch.float32, torch.bfloat16):
                x, weight, labels, a, b = inputs(case, dtype)
                own = -(-len(x) // size)
                if sequence:  # the last rank's rows are filled up
                    x = torch.nn.functional.pad(x, (0, 0, 0, own * size - len(x)))[rank * own : (rank + 1) * own]
                found = results(
                    linear_cross_entropy,
                    (x, weight[rank * ROWS : (rank + 1) * ROWS], labels, a, b),
                    vocab_valid=None if case.valid is None else case.valid - rank * ROWS,
                    softcap=case.softcap,
                    z_weight=case.z_weight,
                    chunks=case.chunks,
                    tp=TensorParallel(size, rank, dist.group.WORLD, sequence=sequence),
                )
                torch.save(found, out / f"{name}-{'sequence' if sequence else 'whole'}-{dtype}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
