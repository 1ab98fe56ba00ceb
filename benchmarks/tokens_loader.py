"""Time the trainer's read side and measure its memory, beside the indices that Megatron and nanotron build.

Usage: python benchmarks/tokens_loader.py [--json] [--only copy,batch,memory,peers] [--scratch DIR] [--rounds 5]

loader_bytes_per_s: stored rows copied into one reused buffer in the stored type, rows and shards at random, page cache
warm, one thread: bytes per CPU second (the system's time for the reads counts), median of the rounds; wall beside it.
batch: complete batches of the trainer (tokens, labels, positions, sources, cu_seqlens) in tokens a CPU second, in order.
loader_rss_bytes: growth of anonymous memory of a fresh process from before it opens a dataset to after 10^6 samples as
complete batches, for a manifest of 10^8 samples; `memory` has it for 10^5, too, and the ratio. Those shards are synthetic:
random boundaries and provenance, tokens that are holes in the file (zeros), and of 10^8 samples only the shards
that are read exist. peers: time and anonymous memory to have 10^8 samples in order. Megatron: the calls of GPTDataset
(document index, build_sample_idx of its C++ helpers, shuffle index) over 10^8 documents of mean 4,096 tokens. nanotron:
Nanoset's algorithm written again here (greedy blend, one uint64 and one int64 a sample, both shuffled), as a model of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa

from gristmill.core.rowcopy import RowCopier
from gristmill.core.tokshards import (
    PROVENANCE_SCHEMA,
    PackedDataset,
    PackedManifest,
    PackedPhase,
    PackedShard,
    write_manifest,
    write_packed,
)
from gristmill.trainer.data import RowReader
from gristmill.trainer.order import DataOrder

LENGTH = 4_096
WIDTH = LENGTH + 1
VOCAB = 32_000
SHARD_ROWS = 8_192  # 67 MB of uint16: the default `shard_bytes`
BATCH = 64
PIECES = 4.2  # a row, as measured on web text packed at 4,096
SOURCES = ("web", "code", "math", "books")

Result = dict[str, Any]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def made_shard(folder: Path, number: int, rows: int, tokens: np.ndarray | None) -> None:
    """Shard `number` of phase "a": boundaries and provenance of random pieces; tokens are holes where none are given."""
    made = np.random.default_rng(number)
    counts = np.minimum(made.geometric(1 / PIECES, rows), 64)
    total = int(counts.sum())
    ends = np.cumsum(counts)
    row = np.repeat(np.arange(rows), counts)
    starts = np.sort(row * WIDTH + made.integers(1, WIDTH, total))  # equal ones are parted below
    starts[ends - counts] = np.arange(rows) * WIDTH
    starts = np.unique(starts)
    row = starts // WIDTH
    counts = np.bincount(row, minlength=rows)
    starts -= row * WIDTH
    lengths = np.diff(starts, append=WIDTH)
    lengths[lengths <= 0] += WIDTH
    last = np.cumsum(counts) - 1
    lengths[last] = WIDTH - starts[last]
    n = len(row)
    source = pa.DictionaryArray.from_arrays(
        pa.array(made.integers(0, len(SOURCES), rows).astype(np.int16)[row]), pa.array(SOURCES)
    )
    ids = pa.Array.from_buffers(pa.binary(16), n, [None, pa.py_buffer(made.bytes(16 * n))])
    columns: dict[str, Any] = {name: np.zeros(n, np.int32) for name in PROVENANCE_SCHEMA.names}
    columns |= {"row": row + number * SHARD_ROWS, "row_start": starts, "length": lengths, "source": source, "id": ids}
    table = pa.table(columns).cast(PROVENANCE_SCHEMA)
    base = folder / "a" / f"{number:05d}"
    write_packed(base, np.empty((0, WIDTH), "<u2") if tokens is None else tokens, np.append(0, last + 1), starts, table)
    if tokens is None:
        os.truncate(f"{base}.bin", rows * WIDTH * 2)


def made_dataset(folder: Path, rows: int, shards: range, *, real: bool) -> None:
    """A dataset of `rows` rows of which `shards` exist, with random tokens where they are to be `real`."""
    (folder / "a").mkdir(parents=True)
    listed = []
    for i, first in enumerate(range(0, rows, SHARD_ROWS)):
        n = min(SHARD_ROWS, rows - first)
        listed.append(PackedShard(f"a/{i:05d}.bin", n, {s: f"{i:064x}" for s in ("bin", "bnd.npy", "prov.parquet")}))
        if i in shards:
            tokens = np.random.default_rng(i).integers(0, VOCAB, (n, WIDTH), np.uint16) if real else None
            made_shard(folder, i, n, tokens)
    shares = {name: {"target": 0.25, "realised": 0.25} for name in SOURCES}
    phase = PackedPhase("a", LENGTH, rows, BATCH, SHARD_ROWS, {}, shares, shards=listed)
    special = {"bos": 0, "eos": 1, "pad": 2}
    write_manifest(folder, PackedManifest("<u2", VOCAB, special, "", 0, "", [phase], []))


def timed(call: Any) -> tuple[float, float]:
    """(CPU, wall) seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def copy(dataset: PackedDataset, rounds: int, rows: int = 65_536) -> Result:
    """Bytes a second of RowCopier: random rows of random shards, all warm."""
    made = np.random.default_rng(7)
    total = dataset.manifest.phases[0].rows
    buffer = np.empty((512, WIDTH), "<u2")
    with RowCopier(dataset) as copier:
        for first in range(0, total, len(buffer)):  # warm: every page of every shard
            copier.rows_into("a", np.arange(first, min(first + len(buffer), total)), buffer)

        def once(order: np.ndarray) -> None:
            for at in range(0, len(order), len(buffer)):
                copier.rows_into("a", order[at : at + len(buffer)], buffer)

        orders = [made.integers(0, total, rows) for _ in range(rounds)]
        turns = [timed(lambda o=order: once(o)) for order in orders]  # type: ignore[misc]
    size = rows * WIDTH * 2
    return {
        "loader_bytes_per_s": statistics.median(size / cpu for cpu, _ in turns),
        "wall_bytes_per_s": statistics.median(size / wall for _, wall in turns),
        "rounds": [size / cpu for cpu, _ in turns],
        "dataset_bytes": total * WIDTH * 2,
        "shards": len(dataset.manifest.phases[0].shards),
    }


def batches(dataset: PackedDataset, rounds: int, steps: int = 64) -> Result:
    """Tokens a second of complete batches, steps in order."""
    reader = RowReader(dataset, DataOrder(dataset.manifest))

    def once(first: int) -> None:
        for step in range(first, first + steps):
            rows = reader.of_step(step)
            reader.arrays(rows, 0, len(rows.rows))
            piece_rows = np.repeat(np.arange(len(rows.rows)), rows.pieces.count_B)
            np.append(rows.pieces.start_P + piece_rows * LENGTH, len(rows.rows) * LENGTH).astype(np.int32)  # cu_seqlens

    once(1)
    firsts = [1 + i * steps % (reader.order.steps - steps) for i in range(rounds)]
    turns = [timed(lambda f=f: once(f)) for f in firsts]  # type: ignore[misc]
    size = steps * BATCH * LENGTH
    return {
        "tokens_per_cpu_second": statistics.median(size / cpu for cpu, _ in turns),
        "tokens_per_second": statistics.median(size / wall for _, wall in turns),
        "rows_per_batch": BATCH,
    }


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say how much memory is anonymous")


def child_reads(folder: Path, first_step: int, last_step: int, samples: int) -> Result:
    """In a process of its own: open the dataset, read `samples` as complete batches over these steps, again and again."""
    before = anonymous()
    began = time.perf_counter()
    dataset = PackedDataset(folder)
    reader = RowReader(dataset, DataOrder(dataset.manifest))
    opened, seconds = anonymous(), time.perf_counter() - began
    done, marks = 0, []
    for step in itertools.cycle(range(first_step, last_step + 1)):
        rows = reader.of_step(step)
        reader.arrays(rows, 0, len(rows.rows))
        done += len(rows.rows)
        if done % (samples // 4) < BATCH:
            marks.append(anonymous() - before)
        if done >= samples:
            break
    return {
        "growth": anonymous() - before,
        "growth_since_open": anonymous() - opened,
        "opening": opened - before,
        "open_seconds": seconds,
        "at_quarters": marks,
        "samples": done,
    }


def child_megatron(samples: int) -> Result:
    """GPTDataset's three indices, by the calls that it makes."""
    from megatron.core.datasets import helpers
    from megatron.core.datasets.gpt_dataset import _build_document_index, _build_shuffle_index

    state = np.random.RandomState(1)
    sizes = state.randint(1, 2 * LENGTH, samples + samples // 50, dtype=np.int32)
    documents = np.arange(len(sizes), dtype=np.int32)
    before, began = anonymous(), time.perf_counter()
    order = _build_document_index(documents, 1, state, False)
    index = helpers.build_sample_idx(sizes, order, LENGTH, 1, int(sizes.sum(dtype=np.int64)), True, True)
    shuffle = _build_shuffle_index(samples, index.shape[0] - 1, state)
    held = order.nbytes + index.nbytes + shuffle.nbytes
    return {
        "seconds": time.perf_counter() - began,
        "growth": anonymous() - before,
        "array_bytes": held,
        "samples": index.shape[0] - 1,
        "documents": len(sizes),
    }


def child_nanotron(samples: int) -> Result:
    """Nanoset's index by its algorithm: the source most behind its weight gets the next sample; then both are shuffled."""
    import numba

    @numba.njit
    def blend(n: int, weights: Any, sizes: Any, source: Any, place: Any) -> None:
        given = np.zeros(len(weights), np.int64)
        for i in range(n):
            best, most = 0, -1e300
            for s in range(len(weights)):
                behind = weights[s] * max(i, 1.0) - given[s]
                if behind > most:
                    best, most = s, behind
            source[i], place[i] = best, given[best] % sizes[best]
            given[best] += 1

    weights, sizes = np.full(len(SOURCES), 1 / len(SOURCES)), np.full(len(SOURCES), samples, np.int64)
    blend(10, weights, sizes, np.empty(10, np.uint64), np.empty(10, np.int64))
    before, began = anonymous(), time.perf_counter()
    source, place = np.empty(samples, np.uint64), np.empty(samples, np.int64)
    blend(samples, weights, sizes, source, place)
    for array in (source, place):
        np.random.RandomState(1).shuffle(array)
    seconds = time.perf_counter() - began
    held = source.nbytes + place.nbytes
    return {"seconds": seconds, "growth": anonymous() - before, "array_bytes": held, "samples": samples}


def child(name: str, *arguments: Any, path: Path | None = None) -> Result:
    command = [sys.executable, __file__, "--child", name, *map(str, arguments)]
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def memory(scratch: Path, samples: int) -> Result:
    """Growth of anonymous memory over `samples` for manifests of 10^5 and 10^8 samples, and their ratio."""
    out: Result = {}
    for rows in (100_000, 100_000_000):
        folder = scratch / f"{rows}"
        needed = min(-(-samples // SHARD_ROWS) + 1, -(-rows // SHARD_ROWS))
        first = (-(-rows // SHARD_ROWS) - needed) // 2  # in the middle of the order
        made_dataset(folder, rows, range(first, first + needed), real=False)
        begin = first * SHARD_ROWS // BATCH + 1
        end = min((first + needed) * SHARD_ROWS, rows) // BATCH
        out[f"{rows:.0e}"] = found = child("reads", folder, begin, end, samples)
        say(f"{rows:.0e} samples: {found}")
    out["ratio"] = out["1e+08"]["growth"] / out["1e+05"]["growth"]
    return out


def peers(samples: int, readers: Path) -> Result:
    out = {"nanotron_model": child("nanotron", samples)}
    say(f"nanotron: {out['nanotron_model']}")
    if (readers / "megatron").is_dir():
        out["megatron"] = child("megatron", samples, path=readers)
        say(f"Megatron: {out['megatron']}")
    else:
        out["megatron"] = {"skipped": f"no megatron-core in {readers}: make readers"}
    return out


def measure(args: argparse.Namespace) -> Result:
    """Every figure that `args.only` names."""
    only = args.only.split(",")
    args.scratch.mkdir(parents=True, exist_ok=True)
    out: Result = {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        if "copy" in only or "batch" in only:
            folder = Path(name) / "real"
            made_dataset(folder, args.shards * SHARD_ROWS, range(args.shards), real=True)
            dataset = PackedDataset(folder)
            if "copy" in only:
                out["copy"] = copy(dataset, args.rounds)
                out["loader_bytes_per_s"] = out["copy"]["loader_bytes_per_s"]
                say(f"copy: {out['copy']}")
            if "batch" in only:
                out["batch"] = batches(dataset, args.rounds)
                say(f"batch: {out['batch']}")
        if "memory" in only:
            out["memory"] = memory(Path(name), args.samples)
            out["loader_rss_bytes"] = out["memory"]["1e+08"]["growth"]
    if "peers" in only:
        out["peers"] = peers(args.peer_samples, args.readers)
    return out


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--json", action="store_true", help="one JSON object on stdout")
    out.add_argument("--only", default="copy,batch,memory,peers", help="figures, by comma")
    out.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where temporary files go")
    out.add_argument("--rounds", type=int, default=5)
    out.add_argument("--shards", type=int, default=16, help="of 67 MB each, to copy from")
    out.add_argument("--samples", type=int, default=1_000_000, help="read for the memory figure")
    out.add_argument("--peer-samples", type=int, default=100_000_000)
    root = Path(__file__).resolve().parents[1]
    out.add_argument(
        "--readers", type=Path, default=root / ".venv-parity" / "readers", help="folder with megatron-core"
    )
    return out


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, *rest = sys.argv[2:]
        if name == "reads":
            print(json.dumps(child_reads(Path(rest[0]), *map(int, rest[1:]))))
        else:
            print(json.dumps({"megatron": child_megatron, "nanotron": child_nanotron}[name](int(rest[0]))))
        return
    args = parser().parse_args()
    print(json.dumps(measure(args), indent=None if args.json else 2))


if __name__ == "__main__":
    main()
