"""Planning keeps its memory while documents grow tenfold: the peak of a process of its own, and what a scan holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.core.hashing import mix64, seed_of
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.mixes.buckets import Buckets
from gristmill.mixes.catalogue import DOCUMENT, hex_ids

PLAN = """
import resource, sys
from pathlib import Path
from gristmill.core.hashing import sha256_file
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt, Shard
from gristmill.mixes.stages import MixturePlan

folder, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])

def shard(path, name):
    return Shard(str(path), name, sha256_file(path), path.stat().st_size)

def receipt(stage, *shards):
    return Receipt(stage, 1, "", "all", {}, {}, {}, list(shards), 0, 0, None, 0, {}, 0.0, "", "")

tokens = folder / "tokens.bin"
tokens.write_bytes(b"")  # planning reads no token
stores = [
    receipt("tokens", shard(p, "docs.parquet"), Shard(str(tokens), "tokens.bin", "0" * 64, 0))
    for p in sorted(folder.glob("*.parquet"))
]
phase = {"name": "p", "seq_len": 4096, "global_batch": 32768, "mix": {"web": {"epochs": 1.5}}}
mixture = {"gristmill_mix": 1, "sources": {"web": {}}, "heldout": {}, "stages": [phase]}
stage = MixturePlan({"mixture": mixture, "shuffle": sys.argv[3]})
given = {"tokens": stores, "tokenizer": [receipt("tokenizer", shard(tokenizer, "tokenizer.json"))]}
run_task(stage, stage.tasks(given)[0], folder / "root")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make_stores(folder: Path, documents: int) -> None:
    """Synthetic docs.parquet of 100,000 documents each: ids and log-normal lengths, nothing else."""
    folder.mkdir()
    for store, first in enumerate(range(0, documents, 100_000)):
        n = min(100_000, documents - first)
        keys = mix64(np.arange(first, first + n), seed_of("ids"))
        ids = pa.array(hex_ids(np.stack([keys, mix64(keys, 1)], axis=1).view("V16").reshape(-1)), pa.string())
        lengths = np.clip(np.random.default_rng(store).lognormal(6.3, 1.1, n), 16, 1 << 20).astype(np.int64)
        columns = {f.name: pa.nulls(n, f.type) for f in TOKEN_DOC_SCHEMA}
        columns |= {"id": ids, "dup_cluster": ids, "length": pa.array(lengths, pa.int32())}
        columns |= {"offset": pa.array(np.cumsum(lengths) - lengths, pa.int64())}
        pq.write_table(pa.table({f.name: columns[f.name] for f in TOKEN_DOC_SCHEMA}), folder / f"{store:02d}.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["gather", "buckets"])
def test_the_peak_of_planning_is_flat(shuffle: str, tmp_path: Path) -> None:
    """From 10^5 to 10^6 documents: their ids alone as Python strings would be 80 MB more, their records 48 MB."""
    from mix_line import FakeTokenizer

    from gristmill.core.manifest import run_task

    stage = FakeTokenizer({})
    tokenizer = run_task(stage, stage.one_task({})[0], tmp_path / "tokenizer").output("tokenizer.json").path
    peaks = []
    for documents in (100_000, 1_000_000):
        folder = tmp_path / f"{documents}"
        make_stores(folder, documents)
        command = [sys.executable, "-c", PLAN, str(folder), tokenizer, shuffle]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 60 << 20
    assert peaks[1] < 1.2 * peaks[0]


def test_buckets_hold_what_they_were_told_and_give_records_back_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = np.zeros(5000, DOCUMENT)
    records["doc"] = np.arange(5000)
    to = rng.integers(0, 37, 5000) ** 2
    with Buckets(tmp_path / "deep" / "file", DOCUMENT, memory=100 * DOCUMENT.itemsize) as spread:
        at = 0
        while at < 5000:
            n = int(rng.integers(0, 260))
            spread.add(records[at : at + n], to[at : at + n])
            at += n
        assert len(spread._records) == 100
        spread.add(records[:3], 7)
        assert spread.bucket(7)["doc"].tolist() == [0, 1, 2]
        for number in (0, 1, 4, 36**2, 5):
            want = np.flatnonzero(to == number)
            assert spread.bucket(number)["doc"].tolist() == want.tolist()
            assert spread.count(number) == len(want)
            for first, most in ((0, 3), (5, 60), (len(want) - 1, 9), (len(want), 1)):
                assert spread.part(number, first, most)["doc"].tolist() == want[first : first + most].tolist()
        with pytest.raises(ValueError, match="records of"):
            spread.add(np.zeros(1), 0)
    assert not (tmp_path / "deep" / "file").exists()
