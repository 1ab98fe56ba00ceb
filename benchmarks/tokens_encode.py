"""Measures encoding beside datatrove's DocumentTokenizer: tokens a second of one thread, in turns, on text met once.

Usage: python benchmarks/tokens_encode.py --text DIR [--json] [--rounds N] [--vocab-size V]

DIR holds *.jsonl.zst with `text` (and `lang`). Documents go by a hash of their text to training (a tokenizer of V ids
with the default settings is trained here), to warming up, or to one of the rounds; no document is used twice and each
round's are new to both sides. A round is both sides' `store` (ours: from Parquet to a checked token store, the peer:
documents in memory to its .ds) and both sides' `ids` (encoding alone: ours with its screen and its second encoding of
some documents). Ratios are of tokens per CPU second, medians over the rounds, wall-clock ratios beside them. Ids are
compared over every whole round, and on the adversarial texts with `tokenizers` told that special tokens are text.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from gristmill.core.hashing import sha256_file
from gristmill.core.stage import Shard
from gristmill.tokenize.adversarial import adversarial
from gristmill.tokenize.api import train_files
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.encode import encode_shard
from gristmill.tokenize.encoder import Encoder, encoder_of, installed, pack
from gristmill.tokenize.schema import Tokenizer

ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ.update(ONE_THREAD)  # the libraries look when they start their threads, at their first call
REPO = Path(__file__).resolve().parents[1]
PEER = REPO / ".venv-parity" / "bin" / "python"
CARRIED = ("url", "date", "warc_file", "dup_cluster")


def documents(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl.zst")):
        with open(path, "rb") as raw:
            stream = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8")
            for line in stream:
                row = json.loads(line)
                yield {"text": row["text"], "language": str(row.get("lang") or "en")}


def divide(folder: Path, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Documents to train on (45 %), to warm up with (10 %), and of each round, by a hash of the text, none twice."""
    train: list[dict[str, Any]] = []
    warm: list[dict[str, Any]] = []
    fresh: list[list[dict[str, Any]]] = [[] for _ in range(rounds)]
    seen = set()
    for row in documents(folder):
        key = hashlib.sha256(row["text"].encode()).digest()
        if key in seen:
            continue
        seen.add(key)
        row["id"] = key.hex()[:32]
        place = int.from_bytes(key[:4], "big") / 2**32
        bucket = train if place < 0.45 else warm if place < 0.55 else fresh[key[4] % rounds]
        bucket.append(row)
    return train, warm, fresh


def write(path: Path, rows: list[dict[str, Any]]) -> Shard:
    table = pa.Table.from_pylist(rows).select(["id", "text", "language"])
    n = len(rows)
    for name in CARRIED:
        table = table.append_column(name, pa.array([f"https://example.org/{i}" for i in range(n)], pa.string()))
    for name, kind in (("warc_offset", pa.int64()), ("warc_length", pa.int64())):
        table = table.append_column(name, pa.array(range(n), kind))
    for name in ("language_score", "quality"):
        table = table.append_column(name, pa.array([0.5] * n, pa.float32()))
    pq.write_table(table, path, compression="zstd", compression_level=3)
    with open(path.with_suffix(".jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": r["id"], "text": r["text"]}) + "\n" for r in rows)
    return Shard(str(path), path.name, sha256_file(path), path.stat().st_size)


class Peer:
    def __init__(self, tokenizer: Path, folder: Path) -> None:
        if not PEER.exists():
            subprocess.run(["make", "parity"], cwd=REPO, check=True, stdout=sys.stderr)
        command = [str(PEER), str(REPO / "benchmarks" / "peer_tokens_encode.py"), str(tokenizer), str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._read()

    def ask(self, what: str, shard: Shard) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {Path(shard.path).with_suffix('.jsonl')}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peer's process ended; its errors are above")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def timed(call: Callable[[], int]) -> dict[str, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = call()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "tokens": tokens}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train, warm, fresh = divide(Path(args.text), args.rounds)
        corpus = write(folder / "train.parquet", train)
        say(f"training {args.vocab_size} ids on {len(train)} documents")
        trained = train_files([Path(corpus.path)], Tokenizer(vocab_size=args.vocab_size))
        raw = folder / "tokenizer.json"
        raw.write_bytes(trained.files["tokenizer.json"])
        shards = [write(folder / f"{i}.parquet", rows) for i, rows in enumerate(fresh)]
        warming = write(folder / "warm.parquet", warm)
        codec = Codec(raw)
        peer = Peer(raw, folder)
        try:
            found = _rounds(codec, peer, warming, shards, fresh, folder)
        finally:
            peer.close()
        found["corpus"] = {
            "training_documents": len(train),
            "fresh_documents": sum(map(len, fresh)),
            "fresh_bytes": sum(len(r["text"].encode()) for rows in fresh for r in rows),
        }
        return found


def _rounds(
    codec: Codec, peer: Peer, warming: Shard, shards: list[Shard], fresh: list[list[dict[str, Any]]], folder: Path
) -> dict[str, Any]:
    outs = [folder / name for name in ("tokens.bin", "docs.parquet", "drops.parquet")]
    began = time.perf_counter()
    encoder = Encoder(codec)
    for each in (encoder, encoder_of(codec)):  # `encode_shard` has one of its own
        list(each.tiers())  # builds and compares every backend, which else waits until a document needs it
    started = (time.perf_counter() - began) / 2
    encode_shard(warming, codec, "web", *outs)
    encoder.encode(*pack(pq.read_table(warming.path)["text"].to_pylist()))
    encoder.used.clear()
    peer.ask("store", warming)
    turns: list[dict[str, Any]] = []
    for at, (shard, rows) in enumerate(zip(shards, fresh, strict=True)):
        data, offsets = pack(r["text"] for r in rows)
        check = range(0, len(rows), 512)
        # Both have an encoder of their own, to which this round's documents are new.
        sides: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("ours.store", lambda s=shard: timed(lambda: encode_shard(s, codec, "web", *outs).notes["tokens"])),  # type: ignore[misc]
            ("peer.store", lambda s=shard: peer.ask("store", s)),  # type: ignore[misc]
            ("ours.ids", lambda d=data, o=offsets, c=check: timed(lambda: len(encoder.encode(d, o, c)[0]))),  # type: ignore[misc]
            ("peer.ids", lambda s=shard: peer.ask("ids", s)),  # type: ignore[misc]
        ]
        turn: dict[str, Any] = {}
        for name, side in sides if at % 2 == 0 else [*reversed(sides)]:
            turn[name] = side()
        ours, theirs = np.fromfile(outs[0], codec.dtype), _peer_ids(turn["peer.store"])
        turn["same_ids"] = bool(np.array_equal(ours, theirs))
        turn["ours.store"]["tokens"] = turn["peer.store"]["tokens"] = len(ours)
        turns.append(turn)
        say(f"round {at}: {_ratio(turn, 'store', 'cpu'):.1f} x to the store, {_ratio(turn, 'ids', 'cpu'):.1f} x ids")
    return {
        "encode": statistics.median(_ratio(t, "store", "cpu") for t in turns),
        "encode_wall": statistics.median(_ratio(t, "store", "wall") for t in turns),
        "encode_ids": statistics.median(_ratio(t, "ids", "cpu") for t in turns),
        "encode_ids_wall": statistics.median(_ratio(t, "ids", "wall") for t in turns),
        "rounds": [{"store": _ratio(t, "store", "cpu"), "ids": _ratio(t, "ids", "cpu")} for t in turns],
        "tokens_per_cpu_second": {
            name: statistics.median(t[name]["tokens"] / t[name]["cpu"] for t in turns)
            for name in ("ours.store", "peer.store", "ours.ids", "peer.ids")
        },
        "same_ids": all(t["same_ids"] for t in turns),
        "documents_by_backend": dict(encoder.used),
        "start_seconds": started,
        "adversarial": _adversarial(codec, encoder),
        "versions": {
            "peer": peer.versions,
            "ours": {name: installed(name) for name in ("tokenizers", "gigatoken", "tiktoken")},
        },
    }


def _adversarial(codec: Codec, encoder: Encoder) -> dict[str, Any]:
    texts = adversarial(sorted(codec.tokenizer.get_vocab()), seed=1)  # special tokens' texts and all others, in text
    began = time.perf_counter()
    want = codec.encode_batch(texts)
    truth = time.perf_counter()
    ids, ends = encoder.encode(*pack(texts))
    done = time.perf_counter()
    bad = sum(not np.array_equal(w, ids[a:b]) for w, (a, b) in zip(want, itertools.pairwise(ends), strict=True))
    return {
        "texts": len(texts),
        "bytes": sum(len(t.encode()) for t in texts),
        "differing": bad,
        "tokenizers_seconds": truth - began,
        "ours_seconds": done - truth,
    }


def _peer_ids(answer: dict[str, Any]) -> np.ndarray:
    (path,) = answer["files"]
    return np.fromfile(path, "<u2" if answer["token_bytes"] == 2 else "<u4")


def _ratio(turn: dict[str, Any], what: str, clock: str) -> float:
    ours, theirs = turn[f"ours.{what}"], turn[f"peer.{what}"]
    return float(theirs[clock] / ours[clock])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--text", required=True, metavar="DIR", help="folder of *.jsonl.zst")
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--vocab-size", type=int, default=32_768)
    found.add_argument("--json", action="store_true")
    return found


def main() -> None:
    args = parser().parse_args()
    found = measure(args)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    rate = found["tokens_per_cpu_second"]
    print(
        f"to the store  {found['encode']:.1f} x   {rate['ours.store']:,.0f} against {rate['peer.store']:,.0f} tokens/s"
    )
    print(
        f"ids alone     {found['encode_ids']:.1f} x   {rate['ours.ids']:,.0f} against {rate['peer.ids']:,.0f} tokens/s"
    )
    print(f"ids {'identical' if found['same_ids'] else 'DIFFER'}; adversarial: {found['adversarial']}")


if __name__ == "__main__":
    main()
