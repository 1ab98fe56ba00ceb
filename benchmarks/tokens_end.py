"""Time text to packed, shuffled shards beside datatrove's tokenizer and merger: the same documents, one core each.

Usage: python benchmarks/tokens_end.py --text DIR [--json] [--rounds 5] [--shards 4] [--vocab-size V]

DIR holds *.jsonl.zst with `text` (and `lang`). By a hash of its text a document goes to training (a tokenizer is trained
here), to warming up, or to the timed ones. A round is a fresh process of either side, in turns: it loads and warms up on
other documents, then runs the line over the timed ones, new to it. Ours: the stages tokens, mixture, shards.buckets,
shards.write and shards with their checks, digests and provenance, from Parquet. The peer: DocumentTokenizer with its
shuffle of each file, then DocumentTokenizerMerger with its own, from documents in memory. Ratios above 1 say that ours
is faster; medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(ONE_THREAD)

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".venv-parity" / "bin" / "python"
LENGTH, BATCH_ROWS = 4_096, 8

Result = dict[str, Any]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def line(root: Path, tokenizer: Path, files: Sequence[Path], shuffle: str) -> Result:
    """Documents to the packed dataset in this process, through the stages. Seconds of each."""
    from dataclasses import replace

    from gristmill.core.hashing import sha256_file
    from gristmill.core.manifest import run_task
    from gristmill.core.stage import Receipt, Shard, Stage
    from gristmill.mixes.stages import MixturePlan, Shards, ShardsBuckets, ShardsWrite
    from gristmill.tokenize.stages import Tokens

    def given(stage: str, key: str, path: Path, name: str) -> Receipt:
        shard = Shard(str(path), name, sha256_file(path), path.stat().st_size)
        return Receipt(stage, 1, "", key, {}, {}, {}, [shard], 0, 0, None, 0, {}, 0.0, "", "")

    phase = {"name": "all", "seq_len": LENGTH, "global_batch": LENGTH * BATCH_ROWS, "mix": {"web": {"epochs": 0.99}}}
    mixture = {"gristmill_mix": 1, "sources": {"web": {}}, "stages": [phase]}
    done = {
        "curate": [given("curate", p.stem, p, "documents.parquet") for p in files],
        "tokenizer": [given("tokenizer", "all", tokenizer, "tokenizer.json")],
        "imports": [],
        "imports.text": [],
    }
    stages: list[Stage] = [Tokens({"source": "web"}), MixturePlan({"mixture": mixture, "shuffle": shuffle})]
    stages += [ShardsBuckets({}), ShardsWrite({}), Shards({})]
    start = time.perf_counter(), time.process_time()
    seconds: Result = {}
    for stage in stages:
        begin = time.perf_counter()
        tasks = stage.tasks({s: done[s] for s in stage.upstream})
        done[stage.name] = [replace(run_task(stage, t, root), key=t.key, ordinal=t.ordinal) for t in tasks]
        seconds[stage.name] = round(time.perf_counter() - begin, 3)
    end = time.perf_counter(), time.process_time()
    tokens = sum(r.output("tokens.bin").bytes for r in done["tokens"]) // 2
    return {"wall": end[0] - start[0], "cpu": end[1] - start[1], "tokens": tokens, "seconds": seconds}


def side(args: argparse.Namespace) -> None:
    """Our side of a round, in a process of its own."""
    tokenizer, folder, warm, *files = map(Path, args.side)
    line(folder / "warm", tokenizer, [warm], args.shuffle)
    print(json.dumps(line(folder / "timed", tokenizer, files, args.shuffle)))


def ask(command: Sequence[str | Path]) -> Result:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[1]} failed:\n{done.stderr[-3000:]}")
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> Result:
    """The ratios. Raises SystemExit when a side fails."""
    from gristmill.tokenize.api import train_files
    from gristmill.tokenize.schema import Tokenizer

    sys.path.insert(0, str(HERE))
    from tokens_encode import divide, write

    if not PEER.exists():
        subprocess.run(["make", "parity"], cwd=HERE.parent, check=True, stdout=sys.stderr)
    args.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        folder = Path(name)
        train, warm, fresh = divide(Path(args.text), args.shards)
        say(f"training {args.vocab_size} ids on {len(train)} documents")
        corpus = Path(write(folder / "train.parquet", train).path)
        tokenizer = folder / "tokenizer.json"
        tokenizer.write_bytes(train_files([corpus], Tokenizer(vocab_size=args.vocab_size)).files["tokenizer.json"])
        paths = [Path(write(folder / f"{i}.parquet", rows).path) for i, rows in enumerate(fresh)]
        warming = Path(write(folder / "warm.parquet", warm).path)
        texts = [p.with_suffix(".jsonl") for p in (warming, *paths)]
        ours: list[Result] = []
        theirs: list[Result] = []
        me = [sys.executable, Path(__file__), "--shuffle", args.shuffle, "--side", tokenizer]
        for number in range(args.rounds):
            sides = [
                lambda n=number: ours.append(ask([*me, folder / f"ours-{n}", warming, *paths])),
                lambda n=number: theirs.append(
                    ask([PEER, HERE / "peer_tokens_shards.py", tokenizer, folder / f"peer-{n}", *texts])
                ),
            ]
            for run in sides if number % 2 == 0 else reversed(sides):
                run()
            say(f"round {number}: ours {ours[-1]['wall']:.2f} s {ours[-1]['seconds']}, peer {theirs[-1]['wall']:.2f} s")
        ratios = {clock: [t[clock] / o[clock] for o, t in zip(ours, theirs, strict=True)] for clock in ("wall", "cpu")}
        return {
            "end_to_end": round(statistics.median(ratios["wall"]), 2),
            "end_to_end_cpu": round(statistics.median(ratios["cpu"]), 2),
            "ratios": {k: [round(x, 2) for x in v] for k, v in ratios.items()},
            "documents": sum(map(len, fresh)),
            "bytes": sum(len(r["text"].encode()) for rows in fresh for r in rows),
            "tokens": {"ours": ours[0]["tokens"], "peer": theirs[0]["tokens"]},
            "ours": ours,
            "peer": theirs,
        }


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--text", metavar="DIR", help="folder of *.jsonl.zst")
    out.add_argument("--json", action="store_true", help="one JSON object on stdout")
    out.add_argument("--rounds", type=int, default=5)
    out.add_argument("--shards", type=int, default=4, help="files that the documents are divided into")
    out.add_argument("--vocab-size", type=int, default=32_768)
    out.add_argument("--shuffle", default="auto", choices=["auto", "gather", "buckets"])
    out.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where temporary files go")
    out.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    return out


def main() -> None:
    args = parser().parse_args()
    if args.side:
        side(args)
        return
    if not args.text:
        raise SystemExit("--text DIR is needed")
    print(json.dumps(measure(args), indent=None if args.json else 1))


if __name__ == "__main__":
    main()
