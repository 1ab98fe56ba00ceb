"""Time the mixture line: the shuffle beside plain copying, packing, and memory at 10^8 and 10^9 tokens.

Usage: python benchmarks/tokens_shards.py [--json] [--only shuffle,pack,memory] [--scratch DIR] [--rounds 5]

shuffle_of_floor: t(two sequential read + write passes with fsync over the same bytes) / t(the shuffle with sha256,
provenance and fsync), as many processes each, alternated, medians. The token stores are synthetic: random ids, log-normal
lengths like the web's. pack_docs_per_s: documents drawn, ordered and packed at L = 4,096, a CPU second.
memory: the peak resident bytes of planning and of single shuffle tasks, each a process of its own, over synthetic stores
of 10^8 and 10^9 tokens. With --json one object on stdout; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from gristmill.core.hashing import mix64, seed_of
from gristmill.core.manifest import run_task
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.core.tokstore import StoreWriter
from gristmill.mixes.buckets import Buckets
from gristmill.mixes.catalogue import DOCUMENT, hex_ids
from gristmill.mixes.draw import Cursor, Draws
from gristmill.mixes.pack import pack
from gristmill.mixes.stages import MixturePlan, ShardsBuckets, ShardsWrite

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # for the processes that are started; nothing here uses threads

VOCAB = 32_000
MEAN_LOG, SIGMA = 6.332, 1.1  # of token lengths: mean 1,029, as measured on web text
STORE_TOKENS = 16_000_000
CHUNK = 8 << 20
LENGTH = 4_096

Result = dict[str, Any]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class SyntheticTokens(Stage):
    """Token stores of random ids in documents of log-normal lengths. Config: {"store": ordinal, "tokens": how many}."""

    name: ClassVar[str] = "tokens"

    def run(self, task: Task, out: Outbox) -> Counters:
        store, left = int(task.config["store"]), int(task.config["tokens"])
        rng = np.random.default_rng(store)
        count = 0
        with StoreWriter(out.path("tokens.bin"), out.path("docs.parquet"), VOCAB) as writer:
            while left:
                lengths = np.clip(rng.lognormal(MEAN_LOG, SIGMA, 4096), 16, 1 << 20).astype(np.int64)
                lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), left)) + 1]
                lengths[-1] -= max(int(lengths.sum()) - left, 0)
                tokens = rng.integers(0, VOCAB, int(lengths.sum()), np.uint16)
                keys = mix64(np.arange(count, count + len(lengths)), seed_of("ids", store))
                raw = np.stack([keys, mix64(keys, 1)], axis=1).view("V16").reshape(-1)
                columns: dict[str, Any] = {f.name: pa.nulls(len(lengths), f.type) for f in TOKEN_DOC_SCHEMA}
                columns["id"] = columns["dup_cluster"] = pa.array(hex_ids(raw), pa.string())
                columns["language"] = pa.array(["en"] * len(lengths), pa.string())
                names = [n for n in TOKEN_DOC_SCHEMA.names if n not in ("offset", "length")]
                writer.write(np.split(tokens, np.cumsum(lengths)[:-1]), pa.table({n: columns[n] for n in names}))
                left -= len(tokens)
                count += len(lengths)
        return Counters(count, count)


class SyntheticTokenizer(Stage):
    """A tokenizer.json with the ids that the random ones stand for."""

    name: ClassVar[str] = "tokenizer"

    def run(self, task: Task, out: Outbox) -> Counters:
        special = {"<|bos|>": 0, "<|eos|>": 1, "<|pad|>": 2}
        vocab = {**special, **{f"t{i}": i for i in range(3, VOCAB)}}
        added = [{"id": i, "content": text, "special": True} for text, i in special.items()]
        body = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added}
        out.path("tokenizer.json").write_text(json.dumps(body))
        return Counters(drops=None)


def mixture(epochs: float = 0.999) -> dict[str, Any]:
    phase = {"name": "all", "seq_len": LENGTH, "global_batch": LENGTH * 8, "mix": {"web": {"epochs": epochs}}}
    return {"gristmill_mix": 1, "seed": 1, "sources": {"web": {}}, "stages": [phase]}


def receipts_of(root: Path, stage: Stage, tasks: Sequence[Task]) -> list[Receipt]:
    return [replace(run_task(stage, t, root), key=t.key, ordinal=t.ordinal) for t in tasks]


def synthetic(root: Path, tokens: int) -> dict[str, list[Receipt]]:
    """Token stores of `tokens` in all, and the tokenizer. Random ids: named synthetic wherever it is printed."""
    sizes = [STORE_TOKENS] * (tokens // STORE_TOKENS) + [tokens % STORE_TOKENS]
    stage = SyntheticTokens({})
    tasks = [Task("tokens", 1, f"{i:04d}", i, {"store": i, "tokens": n}, {}, {}) for i, n in enumerate(sizes) if n]
    done = {"tokens": receipts_of(root, stage, tasks)}
    tokenizer = SyntheticTokenizer({})
    done["tokenizer"] = receipts_of(root, tokenizer, tokenizer.one_task({}))
    return done


def planned(root: Path, done: dict[str, list[Receipt]], shuffle: str, mix: Mapping[str, Any] | None = None) -> float:
    """Run the `mixture` stage; its seconds."""
    stage = MixturePlan({"mixture": mix or mixture(), "shuffle": shuffle, "shard_bytes": 64 << 20})
    start = time.perf_counter()
    done["mixture"] = receipts_of(root, stage, stage.tasks(done))
    return time.perf_counter() - start


# -- shuffle -----------------------------------------------------------------------------------------------------------


def one(job: tuple[str, Task, Path]) -> Receipt:
    """Run one task in a worker."""
    name, task, root = job
    stage = {"shards.buckets": ShardsBuckets, "shards.write": ShardsWrite}[name]({})
    return replace(run_task(stage, task, root), key=task.key, ordinal=task.ordinal)


def timed(job: tuple[str, Task, Path]) -> tuple[Receipt, float]:
    """`one`, and its CPU seconds."""
    start = time.process_time()
    return one(job), time.process_time() - start


def copy(job: tuple[str, str]) -> float:
    """Read a file in long pieces, write another, fsync; the CPU seconds."""
    source, target = job
    start = time.process_time()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as write:
        while n := read.readinto(buffer):
            write.write(view[:n])
        os.fsync(write.fileno())
    return time.process_time() - start


def warm(_: int) -> int:
    """Import and load what a worker needs before the clock starts."""
    import gristmill.mixes.write as write

    for dtype in (np.uint16,):
        source = np.frombuffer(bytes(8), dtype)
        one_piece = np.ones(1, np.int64)
        write.copy_pieces(np.zeros(4, dtype), source, one_piece, one_piece, one_piece)
    time.sleep(0.2)
    return os.getpid()


def evict(paths: Sequence[str | Path]) -> None:
    """Drop files from the page cache, so that the next pass over them reads the disk."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def floor(pool: Any, stores: Sequence[str], scratch: Path, cold: bool) -> tuple[float, float]:
    """Seconds of two passes that copy the stores, by the clock and of all processes' CPU."""
    seconds = cpu = 0.0
    paths = list(stores)
    for name in ("a", "b"):
        if cold:
            evict(paths)
        jobs = [(source, str(scratch / f"copy-{name}-{i}")) for i, source in enumerate(paths)]
        start = time.perf_counter()
        cpu += sum(pool.map(copy, jobs, chunksize=1))
        seconds += time.perf_counter() - start
        paths = [target for _, target in jobs]
    for path in scratch.glob("copy-*"):
        path.unlink()
    return seconds, cpu


def shuffled(pool: Any, done: Mapping[str, list[Receipt]], target: Path, cold: bool) -> tuple[float, float, str]:
    """`floor` of the stages of the shuffle, as the mixture has planned it, and the digests of what they wrote."""
    here = dict(done)
    seconds = cpu = 0.0
    for name, stage in (("shards.buckets", ShardsBuckets({})), ("shards.write", ShardsWrite({}))):
        tasks = stage.tasks({s: here[s] for s in stage.upstream})
        if cold:
            evict(sorted({s.path for t in tasks for shards in t.inputs.values() for s in shards}))
        start = time.perf_counter()
        found = pool.map(timed, [(name, t, target) for t in tasks], chunksize=1)
        seconds += time.perf_counter() - start
        here[name] = [receipt for receipt, _ in found]
        cpu += sum(n for _, n in found)
    shutil.rmtree(target)
    return seconds, cpu, json.dumps([[s.name, s.sha256] for r in here["shards.write"] for s in r.outputs])


def shuffle(scratch: Path, megabytes: int, rounds: int, processes: int) -> Result:
    """Alternate the floor and the shuffle (gathering, and in two passes) over the same synthetic stores.

    Warm: everything is in the page cache, as it is for stores that `shuffle: auto` gathers from. Cold: every pass of
    either side begins with its input evicted, as it is for stores larger than memory, where `auto` takes two passes.
    The first round of each is not counted.
    """
    root = scratch / "shuffle"
    say(f"writing {megabytes} MB of synthetic token stores")
    done = synthetic(root, megabytes * 1_000_000 // 2)
    stores = [r.output("tokens.bin") for r in done["tokens"]]
    paths = [s.path for s in stores]
    plans = {}
    for how in ("gather", "buckets"):
        plans[how] = dict(done)
        planned(root, plans[how], how)
    out: Result = {"bytes": sum(s.bytes for s in stores), "processes": processes, "auto": "gather"}
    digests = set()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(warm, range(4 * processes), chunksize=1)
        for cold in (False, True):
            wall: dict[str, list[float]] = {"floor": [], "gather": [], "buckets": []}
            cpu: dict[str, list[float]] = {"floor": [], "gather": [], "buckets": []}
            for number in range(rounds + 1):
                found: dict[str, tuple[float, float]] = {"floor": floor(pool, paths, scratch, cold)}
                for how, plan in plans.items():
                    seconds, busy, digest = shuffled(pool, plan, root / f"{how}-{number}", cold)
                    found[how] = seconds, busy
                    digests.add(digest)
                for how, (seconds, busy) in found.items():
                    wall[how].append(seconds)
                    cpu[how].append(busy)
                text = ", ".join(f"{how} {s:.2f} s ({c:.2f} CPU)" for how, (s, c) in found.items())
                say(f"{'cold' if cold else 'warm'} {number}: {text}")
            medians, busy_medians = ({k: statistics.median(v[1:]) for k, v in x.items()} for x in (wall, cpu))
            out["cold" if cold else "warm"] = {
                "seconds": {k: [round(x, 3) for x in v[1:]] for k, v in wall.items()},
                "cpu_seconds": {k: round(v, 3) for k, v in busy_medians.items()},
                **{f"{how}_of_floor": round(medians["floor"] / medians[how], 3) for how in plans},
            }
    shutil.rmtree(root)
    out["same_bytes"] = len(digests) == 1
    out["shuffle_of_floor"] = out["warm"]["gather_of_floor"]
    return out


# -- packing -----------------------------------------------------------------------------------------------------------


def packing(scratch: Path, documents: int, rounds: int) -> Result:
    """Draw, order and pack one epoch of synthetic documents at L = 4,096."""
    rng = np.random.default_rng(0)
    records = np.zeros(documents, DOCUMENT)
    records["length"] = np.clip(rng.lognormal(MEAN_LOG, SIGMA, documents), 16, 1 << 20).astype(np.int64)
    records["hash"] = mix64(np.arange(documents))
    records["weight"] = 1
    rows = int(records["length"].sum(dtype=np.int64)) // (LENGTH + 1) - 2
    out: Result = {}
    for method in ("bfd", "bfd-truncate", "concat"):
        speeds = []
        padding = 0.0
        for _ in range(rounds):
            with Buckets(scratch / "documents", DOCUMENT) as spool:
                spool.add(records, 0)
                draws = Draws(spool, 0, 1, "web", scratch)
                start = time.process_time()  # one thread: what a core of its own would take
                placed = used = 0
                here = rows if method != "bfd-truncate" else int(rows * 0.85)
                for window in pack(draws, Cursor(), here, LENGTH + 1, method, 512):
                    placed += int(window.pieces.length.sum())
                    used = window.cursor.documents
                speeds.append(used / (time.process_time() - start))
                draws.close()
                padding = 1 - placed / (here * (LENGTH + 1))
        out[method] = {"docs_per_s": round(statistics.median(speeds)), "padding": round(padding, 6), "documents": used}
    out["pack_docs_per_s"] = out["bfd"]["docs_per_s"]
    return out


# -- memory ------------------------------------------------------------------------------------------------------------


def peak(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """The result of a call in a process of its own, and that process's peak resident bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (function, arguments))


def _peak(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, int]:
    result = function(*arguments)
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _plan(root: Path, done: dict[str, list[Receipt]], how: str) -> tuple[float, list[Receipt]]:
    seconds = planned(root, done, how)
    return seconds, done["mixture"]


def memory(scratch: Path, sizes: Sequence[int]) -> Result:
    """Peak resident bytes of planning and of shuffle tasks, by number of tokens."""
    out: Result = {}
    for tokens in sizes:
        root = scratch / "memory"
        shutil.rmtree(root, ignore_errors=True)
        say(f"writing {tokens:,} synthetic tokens")
        done = synthetic(root, tokens)
        found: Result = {"documents": sum(r.rows_out for r in done["tokens"])}
        (seconds, done["mixture"]), found["plan"] = peak(_plan, root, done, "buckets")
        found["plan_seconds"] = round(seconds, 2)
        for name, stage in (("shards.buckets", ShardsBuckets({})), ("shards.write", ShardsWrite({}))):
            tasks = stage.tasks({s: done[s] for s in stage.upstream})
            most = 0
            done[name] = []
            for number, task in enumerate(tasks):
                if name == "shards.buckets" or number in (0, len(tasks) // 2):
                    receipt, size = peak(one, (name, task, root))
                    most = max(most, size)
                    done[name].append(receipt)
            found[name] = most
            found[f"{name} tasks"] = len(tasks)
        (_, gathered), found["plan gather"] = peak(_plan, root, dict(done), "gather")
        tasks = ShardsWrite({}).tasks({"mixture": gathered, "tokens": done["tokens"], "shards.buckets": []})
        _, found["gather"] = peak(one, ("shards.write", tasks[0], root))
        out[f"{tokens:.0e}"] = found
        say(f"{tokens:.0e} tokens: " + ", ".join(f"{k} {v:,}" for k, v in found.items()))
        shutil.rmtree(root)
    first, last = (out[f"{n:.0e}"] for n in (sizes[0], sizes[-1]))
    out["growth"] = {k: round(last[k] / first[k], 3) for k in ("plan", "shards.buckets", "shards.write", "gather")}
    return out


def measure(args: argparse.Namespace) -> Result:
    """Every figure that `args.only` names. Raises SystemExit when a peer is missing."""
    only = args.only.split(",")
    args.scratch.mkdir(parents=True, exist_ok=True)
    out: Result = {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        scratch = Path(name)
        if "shuffle" in only:
            out["shuffle"] = shuffle(scratch, args.megabytes, args.rounds, args.processes)
            out["shuffle_of_floor"] = out["shuffle"]["shuffle_of_floor"]
        if "pack" in only:
            out["pack"] = packing(scratch, args.documents, args.rounds)
            out["pack_docs_per_s"] = out["pack"]["pack_docs_per_s"]
        if "memory" in only:
            out["memory"] = memory(scratch, [int(float(n)) for n in args.tokens.split(",")])
    return out


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--json", action="store_true", help="one JSON object on stdout")
    out.add_argument("--only", default="shuffle,pack,memory", help="figures, by comma")
    out.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where temporary files go")
    out.add_argument("--rounds", type=int, default=5)
    out.add_argument("--processes", type=int, default=2)
    out.add_argument("--megabytes", type=int, default=512, help="of synthetic tokens to shuffle")
    out.add_argument("--documents", type=int, default=1_000_000, help="synthetic documents to pack")
    out.add_argument("--tokens", default="1e8,1e9", help="sizes of the memory figures")
    return out


def main() -> None:
    args = parser().parse_args()
    found = measure(args)
    print(json.dumps(found, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
