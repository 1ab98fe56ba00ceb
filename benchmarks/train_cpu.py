"""Time the trainer's whole loop on a CPU beside plain PyTorch: same model, batches, threads, document mask and clipping.

Usage: python benchmarks/train_cpu.py [--json] [--pairs 9] [--steps 60] [--threads 1]

Ours is `trainer.loop.train` as a launch calls it: loader, guards, journals, health, all at their defaults. Theirs is
train_reference.bare, a dozen lines over batches that already lie in memory, around the very same Decoder (the strictest
comparison: what the trainer costs beyond the model) and, as information, around a decoder of its own with a boolean mask.
Windows of `--steps` steps alternate in one process; the first of each side, and a few steps of every window, are not
counted. A pair's ratio is our tokens per second over theirs; printed are the median and its interval of at least 95 % by
order statistics. `cpu_ratio` compares seconds of CPU, all threads counted: it holds on a busy machine too. The model is the demo recipe's; the documents are random tokens of a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

READY = "GRISTMILL_BENCHMARK_READY"
UNCOUNTED = (
    4  # steps at the start of a window: caches warm up, and ours has two batches read ahead in the other's window
)
VOCAB, SEQ_LEN, BATCH_ROWS = 2048, 128, 16
AGREE = 0.02  # nats: both sides train the same model on the same rows


def environment(threads: int) -> None:
    """Start again with what a launch sets for its process (trainer/train.py): it counts from the first allocation."""
    wanted = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        READY: "1",
    }
    if os.environ.get(READY) != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def make_dataset(folder: Path, batches: int) -> Any:
    """Documents of 8 to about 400 random tokens, packed back to back into rows."""
    import numpy as np
    import pyarrow as pa

    from gristmill.core.hashing import sha256_file
    from gristmill.core.tokshards import (
        PROVENANCE_SCHEMA,
        PackedDataset,
        PackedManifest,
        PackedPhase,
        PackedShard,
        write_manifest,
        write_rows,
    )

    rng = np.random.default_rng(1)
    rows, width = batches * BATCH_ROWS, SEQ_LEN + 1
    ends = np.cumsum(8 + rng.exponential(100, size=rows * width // 50).astype(np.int64))
    ends = ends[ends < rows * width]
    tokens = (3 + (VOCAB - 3) * rng.random(rows * width) ** 3).astype("<u2").reshape(rows, width)
    tokens.reshape(-1)[ends - 1] = 1
    borders = np.union1d(np.arange(0, rows * width, width), ends)
    starts = [
        part % width for part in np.split(borders, np.searchsorted(borders, np.arange(width, rows * width, width)))
    ]
    count = len(borders)
    columns = {
        "row": borders // width,
        "row_start": borders % width,
        "length": np.diff(np.append(borders, rows * width)),
        "source": pa.array(["random"] * count).dictionary_encode().cast(PROVENANCE_SCHEMA.field("source").type),
        "id": [n.to_bytes(16, "big") for n in range(count)],
        "doc_start": np.zeros(count, int),
        "store": np.zeros(count, int),
        "doc": np.arange(count),
        "epoch": np.zeros(count, int),
    }
    table = pa.table([pa.array(columns[f.name], f.type) for f in PROVENANCE_SCHEMA], schema=PROVENANCE_SCHEMA)
    (folder / "main").mkdir(parents=True)
    base = folder / "main" / "00000"
    write_rows(base, tokens, [part.astype(np.int32) for part in starts], table)
    digests = {suffix: sha256_file(f"{base}.{suffix}") for suffix in ("bin", "bnd.npy", "prov.parquet")}
    shares = {"random": {"target": 1.0, "realised": 1.0}}
    shard = PackedShard("main/00000.bin", rows, digests)
    phase = PackedPhase("main", SEQ_LEN, rows, BATCH_ROWS, rows, {"phase": "stable"}, shares, [shard])
    special = {"bos": 0, "eos": 1, "pad": 2}
    write_manifest(folder, PackedManifest("<u2", VOCAB, special, "0" * 64, 1, "0" * 64, [phase], []))
    return PackedDataset(folder)


def settings(threads: int) -> Any:
    """The demo recipe with a constant learning rate and no checkpoint on the way."""
    from gristmill.core.places import find_yaml
    from gristmill.core.settings import load
    from gristmill.trainer.schema import TrainRun

    path, name = find_yaml("demo", "gristmill.trainer")
    plain = ("schedule={warmup_steps: 0}", f"threads={threads}", "device=cpu", "checkpoint.every_steps=1000000")
    return load(path, TrainRun, overrides=plain, name=name)[0]


class Side:
    """A plain loop that goes through the steps of the dataset, and the seconds of its windows."""

    def __init__(self, name: str, step: Callable[[Any], float]) -> None:
        self.name, self.step = name, step
        self.at = 0
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def window(self, data: list[Any], steps: int) -> None:
        began = now()
        for i in range(UNCOUNTED + steps):
            if i == UNCOUNTED:
                began = now()
            self.losses.append(self.step(data[self.at]))
            self.at += 1
        seconds, cpu = since(began)
        self.seconds.append(seconds)
        self.cpu.append(cpu)


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    """Seconds that passed, and seconds of CPU that this process used, its loader's and journals' threads included."""
    return time.perf_counter() - began[0], time.process_time() - began[1]


def measure(pairs: int, steps: int, threads: int, folder: Path) -> dict[str, Any]:
    import torch
    from train_reference import PlainDecoder, StepData, bare

    from gristmill.trainer import loop
    from gristmill.trainer.data import batch_of_step
    from gristmill.trainer.model import Decoder

    torch.set_num_threads(threads)
    length = UNCOUNTED + steps
    windows = pairs + 1
    dataset = make_dataset(folder / "dataset", windows * length)
    run = settings(threads)
    data = []
    for step in range(1, windows * length + 1):
        batch = batch_of_step(dataset, step)
        arrays = [torch.from_numpy(a) for a in (batch.tokens_BT, batch.labels_BT, batch.position_BT)]
        micros = list(zip(*(a.split(run.micro_batch_rows) for a in arrays), strict=True))
        data.append(StepData(micros, batch.valid_tokens))

    same = Decoder(run.model, VOCAB, SEQ_LEN)
    same.init_weights(run.seed)
    c = run.model
    own = PlainDecoder(VOCAB, c.layers, c.hidden, c.heads, c.kv_heads, c.head_dim, c.ffn, SEQ_LEN)
    own.load_state_dict(same.state_dict())
    how = (run.optimizer.lr, run.optimizer.betas, run.optimizer.weight_decay, run.optimizer.clip)
    sides = [Side("same model", bare(same, *how)), Side("own model", bare(own, *how))]

    losses: list[float] = []
    ours: list[float] = []
    cpu: list[float] = []
    waits: list[float] = []
    began, waited = now(), 0.0

    def report(record: dict[str, Any]) -> None:
        nonlocal began, waited
        losses.append(record["loss"])
        place = len(losses) % length
        if place == UNCOUNTED:
            began, waited = now(), 0.0
            return
        waited += record["data_wait"] * record["seconds"]
        if place == 0:
            for column, value in zip((ours, cpu), since(began), strict=True):
                column.append(value)
            waits.append(waited)
            for side in sides if len(ours) % 2 else reversed(sides):
                side.window(data, steps)

    loop.train(run, dataset, folder / "out", report=report)
    for side in sides:
        apart = max(abs(a - b) for a, b in zip(losses[:length], side.losses, strict=False))
        if apart > AGREE:
            raise SystemExit(f"{side.name} trains something else: losses of the first window differ by {apart:.4f}")
    tokens = steps * BATCH_ROWS * SEQ_LEN
    ratios = {s.name: [theirs / mine for mine, theirs in zip(ours[1:], s.seconds[1:], strict=True)] for s in sides}
    cpu_ratio = [statistics.median(b / a for a, b in zip(cpu[1:], side.cpu[1:], strict=True)) for side in sides]
    return {
        "tokens_per_s_ratio": statistics.median(ratios["same model"]),
        "interval": interval(ratios["same model"]),
        "loader_wait_share": sum(waits[1:]) / sum(ours[1:]),
        "own_model_ratio": statistics.median(ratios["own model"]),
        "own_model_interval": interval(ratios["own model"]),
        "tokens_per_s": {
            "trainer": tokens / statistics.median(ours[1:]),
            **{s.name: tokens / statistics.median(s.seconds[1:]) for s in sides},
        },
        "cpu_ratio": cpu_ratio[0],
        "own_model_cpu_ratio": cpu_ratio[1],
        "ratios": ratios["same model"],
        "pairs": pairs,
        "steps": steps,
        "threads": threads,
        "parameters": sum(p.numel() for p in same.parameters()),
        "torch": torch.__version__,
    }


def interval(values: list[float]) -> list[float]:
    """The narrowest pair of order statistics that holds the median in at least 95 % of cases (binomial)."""
    n, values = len(values), sorted(values)
    rank = 0
    while rank < (n - 1) // 2 and 2 * sum(math.comb(n, k) for k in range(rank + 2)) / 2**n <= 0.05:
        rank += 1
    return [values[rank], values[n - 1 - rank]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--pairs", type=int, default=9, help="counted windows of each side")
    parser.add_argument("--steps", type=int, default=60, help="counted steps of a window")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    environment(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.pairs, args.steps, args.threads, Path(folder))
    if args.json:
        print(json.dumps(found, indent=2))
        return
    low, high = found["interval"]
    speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in found["tokens_per_s"].items())
    print(f"tokens/s: {speeds}")
    print(f"trainer / plain loop, same model: {found['tokens_per_s_ratio']:.3f} [{low:.3f}, {high:.3f}]")
    low, high = found["own_model_interval"]
    print(f"trainer / plain loop, own model:  {found['own_model_ratio']:.3f} [{low:.3f}, {high:.3f}]")
    print(f"by seconds of CPU: {found['cpu_ratio']:.3f} same model, {found['own_model_cpu_ratio']:.3f} own model")
    print(f"waiting for data: {found['loader_wait_share']:.2%} of the time")


if __name__ == "__main__":
    main()
