"""Hand-made token stores and the line mixture → shards.write → shards over them, for tests of packed datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.hashing import document_id, mix64, seed_of
from gristmill.core.manifest import run_task
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.core.tokstore import StoreWriter
from gristmill.mixes.stages import MixturePlan, Shards, ShardsBuckets, ShardsWrite

VOCAB = 300
SPECIAL = {"<|bos|>": 0, "<|eos|>": 1, "<|pad|>": 2}

WARM = {
    "name": "warm",
    "seq_len": 16,
    "global_batch": 64,
    "mix": {"english": {"epochs": 1.4}, "other": {"epochs": 0.6}},
}
ANNEAL = {"name": "anneal", "seq_len": 24, "global_batch": 48, "lr": {"phase": "decay"}}
MIXTURE = {
    "gristmill_mix": 1,
    "seed": 11,
    "sources": {"english": {"filter": "language == 'en'"}, "other": {"filter": "language != 'en'"}},
    "heldout": {"per_source": {"docs": 0.1}},
    "stages": [WARM, {**ANNEAL, "mix": {"english": {"epochs": 0.4}, "other": {"epochs": 0.5}}}],
}


class FakeTokens(Stage):
    """Token stores whose tokens say where they stand: document d of a store holds 3 + (7 d + position) mod 290."""

    name: ClassVar[str] = "tokens"

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        return [Task(self.name, 1, key, i, {"store": i, "key": key}, {}, {}) for i, key in enumerate("abc")]

    def run(self, task: Task, out: Outbox) -> Counters:
        number = int(task.config["store"])
        file = f"crawl/{task.key}.warc.gz"
        lengths = [1 + int(h % 60) for h in mix64(np.arange(40), seed_of("lengths", number))]
        ids = [document_id(file, d * 1000) for d in range(len(lengths))]
        columns: dict[str, Any] = {f.name: pa.nulls(len(ids), f.type) for f in TOKEN_DOC_SCHEMA}
        columns |= {"id": ids, "dup_cluster": [ids[d // 2 * 2] for d in range(len(ids))], "source": ["web"] * len(ids)}
        columns |= {"url": [f"http://{task.key}.example/{d}" for d in range(len(ids))], "warc_file": [file] * len(ids)}
        columns |= {"warc_offset": [d * 1000 for d in range(len(ids))], "warc_length": [900] * len(ids)}
        columns |= {
            "language": ["de" if d % 4 == 3 else "en" for d in range(len(ids))],
            "date": ["2024-05-01T00:00:00Z"] * len(ids),
        }
        names = [n for n in TOKEN_DOC_SCHEMA.names if n not in ("offset", "length")]
        table = pa.table({n: pa.array(columns[n], TOKEN_DOC_SCHEMA.field(n).type) for n in names})
        texts = [np.append(3 + (7 * d + np.arange(n - 1)) % 290, 1).astype(np.uint16) for d, n in enumerate(lengths)]
        with StoreWriter(out.path("tokens.bin"), out.path("docs.parquet"), VOCAB) as store:
            store.write(texts, table)
        pq.write_table(pa.table({"reason": pa.array([], pa.string())}), out.path("drops.parquet"))
        return Counters(len(ids), len(ids))


class FakeTokenizer(Stage):
    name: ClassVar[str] = "tokenizer"

    def run(self, task: Task, out: Outbox) -> Counters:
        vocab = {**SPECIAL, **{f"t{i}": i for i in range(3, VOCAB)}}
        kept = {text: i for text, i in SPECIAL.items() if text not in self.config.get("without", [])}
        added = [{"id": i, "content": text, "special": True} for text, i in kept.items()]
        body = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added}
        out.path("tokenizer.json").write_text(json.dumps(body))
        return Counters(drops=None)


def line(
    root: Path, mixture: dict[str, Any], *, backwards: bool = False, shard_bytes: int = 700, **shards: Any
) -> dict[str, list[Receipt]]:
    """Run the whole line and return the receipts by stage, in task order. `shards`: more of the mixture stage's config."""
    done: dict[str, list[Receipt]] = {}
    stages: list[Stage] = [FakeTokens({}), FakeTokenizer({})]
    stages += [MixturePlan({"mixture": mixture, "shard_bytes": shard_bytes, **shards}), ShardsBuckets({})]
    stages += [ShardsWrite({}), Shards({})]
    for stage in stages:
        tasks = (
            stage.one_task({})
            if isinstance(stage, FakeTokenizer)
            else stage.tasks({s: done[s] for s in stage.upstream})
        )
        receipts = {t.ordinal: run_task(stage, t, root) for t in (reversed(tasks) if backwards else tasks)}
        done[stage.name] = [replace(receipts[t.ordinal], key=t.key, ordinal=t.ordinal) for t in tasks]
    return done


def folder_of(done: dict[str, list[Receipt]]) -> Path:
    return Path(done["shards"][0].output("manifest.json").path).parent


def damage(folder: Path, name: str, change: Any) -> None:
    """Replace a hard-linked file, so that only this folder's copy changes."""
    path = folder / name
    data = change(path.read_bytes())
    path.unlink()
    path.write_bytes(data)
