"""The stages `mixture` (plan and assign), `shards.write` (one packed shard each) and `shards` (the finished dataset)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from gristmill.core.stage import Counters, Outbox, Receipt, Shard, Stage, Task

DOCS, TOKENS, TOKENIZER, LOCK = "docs.parquet", "tokens.bin", "tokenizer.json", "mix.lock.json"
HELDOUT, LAYOUT, PIECES = "heldout.parquet", "layout.json", ".pieces.parquet"
SUFFIXES = ("bin", "bnd.npy", "prov.parquet")
SHARD_BYTES = 64 << 20


def named(receipts: Sequence[Receipt], *names: str) -> tuple[Shard, ...]:
    """The outputs of these names, receipt by receipt, in the order of `names`."""
    return tuple(shard for r in receipts for name in names for shard in r.outputs if shard.name == name)


class MixturePlan(Stage):
    """Decide the place of every token. Config: {"mixture": a Mixture as plain data, "shard_bytes"?: bytes of a .bin}.

    Outputs: mix.lock.json, heldout.parquet, and per phase PHASE/layout.json and PHASE/00000.pieces.parquet ….
    """

    name: ClassVar[str] = "mixture"
    upstream: tuple[str, ...] = ("tokens", "tokenizer")

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        tokenizer, docs = named(inputs["tokenizer"], TOKENIZER), named(inputs["tokens"], DOCS)
        if not tokenizer or not docs:
            return []
        wanted = {"tokens": docs, "tokenizer": tokenizer[:1]}
        return [Task(self.name, self.version, "all", 0, self.config, dict(self.uses()), wanted)]

    def run(self, task: Task, out: Outbox) -> Counters:
        import orjson

        from gristmill.core.docshards import verify, write_table
        from gristmill.mixes import assign
        from gristmill.mixes.plan import make_plan
        from gristmill.mixes.schema import Mixture
        from gristmill.mixes.sources import read_documents, stocks

        def write_json(name: str, value: Any) -> None:
            out.path(name).write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")

        mixture = Mixture.model_validate(self.config["mixture"])
        size = int(self.config.get("shard_bytes", SHARD_BYTES))
        facts = packing_facts(verify(task.shard("tokenizer", TOKENIZER)))
        docs = task.inputs["tokens"]
        documents = read_documents([verify(s) for s in docs], mixture)
        stock = stocks(mixture, documents)
        plan = make_plan(mixture, stock, facts.vocab_size)
        digests = [s.sha256 for s in docs]
        phases = []
        pieces = placed = 0
        for assigned in assign.assign(mixture, plan, documents, stock):
            phase = assigned.plan.name
            spec = assign.layout(assigned, plan, size, facts, digests)
            write_json(f"{phase}/{LAYOUT}", spec)
            for i, table in enumerate(assign.shard_tables(assigned, spec["rows_per_shard"])):
                write_table(out.path(f"{phase}/{i:05d}{PIECES}"), table)
            phases.append(assign.lock_phase(mixture, assigned, spec["rows_per_shard"]))
            pieces += assigned.pieces.num_rows
            placed += sum(assigned.tokens.values())
        counts = _counts(documents, len(docs))
        stores = [{"docs_sha256": d, "documents": n, "tokens": t} for d, (n, t) in zip(digests, counts, strict=True)]
        write_json(LOCK, assign.lock(mixture, plan, phases, facts, stores))
        write_table(out.path(HELDOUT), _heldout(documents, stock))
        notes = Counter({"tokens": placed, "pieces": pieces, "warnings": len(plan.warnings)})
        notes["heldout_documents"] = sum(len(s.heldout) for s in stock)
        return Counters(len(documents.lengths), sum(p["rows"] for p in phases), None, notes=notes)


class ShardsWrite(Stage):
    """Gather one packed shard from the token stores. One task per phase and shard, keyed PHASE/00042; no config.

    Outputs: PHASE/00042.bin, .bnd.npy, .prov.parquet (core.tokshards).
    """

    name: ClassVar[str] = "shards.write"
    upstream: tuple[str, ...] = ("mixture", "tokens")

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        uses = dict(self.uses())
        stores = named(inputs["tokens"], DOCS, TOKENS)
        tasks: list[Task] = []
        for receipt in inputs["mixture"]:
            for phase in receipt.config["mixture"]["stages"]:
                layout = receipt.output(f"{phase['name']}/{LAYOUT}")
                for shard in receipt.outputs:
                    folder, _, file = shard.name.partition("/")
                    if folder == phase["name"] and file.endswith(PIECES):
                        wanted = {"mixture": (shard, layout), "tokens": stores}
                        key = shard.name.removesuffix(PIECES)
                        tasks.append(Task(self.name, self.version, key, len(tasks), self.config, uses, wanted))
        return tasks

    def run(self, task: Task, out: Outbox) -> Counters:
        import orjson

        from gristmill.core.docshards import read_table, verify
        from gristmill.core.errors import FormatError
        from gristmill.core.tokshards import write_rows
        from gristmill.mixes.write import gather

        assignment, layout_shard = task.inputs["mixture"]
        layout = orjson.loads(verify(layout_shard).read_bytes())
        docs = [s for s in task.inputs["tokens"] if s.name == DOCS]
        tokens = [s for s in task.inputs["tokens"] if s.name == TOKENS]
        if [s.sha256 for s in docs] != layout["stores"] or len(tokens) != len(docs):
            raise FormatError("the token stores are not those of the mixture", hint="run the same command again")
        base = assignment.name.removesuffix(PIECES)
        first = int(base.rpartition("/")[2]) * layout["rows_per_shard"]
        pieces = read_table(assignment)
        rows, starts, provenance = gather(
            pieces, layout, first, [(verify(t), verify(d)) for t, d in zip(tokens, docs, strict=True)]
        )
        paths = [out.path(f"{base}.{suffix}") for suffix in SUFFIXES]
        write_rows(Path(str(paths[0]).removesuffix(".bin")), rows, starts, provenance)
        return Counters(pieces.num_rows, len(rows), None)


class Shards(Stage):
    """Put the shards together as one packed dataset folder and check it. No config.

    Outputs: manifest.json, mix.lock.json, tokenizer.json, heldout.parquet and every shard file (hard links).
    Has no task while a shard is missing.
    """

    name: ClassVar[str] = "shards"
    upstream: tuple[str, ...] = ("shards.write", "mixture", "tokenizer", "tokens")

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        lock, tokenizer = named(inputs["mixture"], LOCK, HELDOUT), named(inputs["tokenizer"], TOKENIZER)
        written = tuple(s for r in inputs["shards.write"] for s in r.outputs)
        wanted = {
            s.name.removesuffix(PIECES) + ".bin"
            for r in inputs["mixture"]
            for s in r.outputs
            if s.name.endswith(PIECES)
        }
        if len(lock) != 2 or not tokenizer or not wanted <= {s.name for s in written}:
            return []
        joined = {"shards.write": written, "mixture": lock, "tokenizer": tokenizer[:1]}
        joined["tokens"] = named(inputs["tokens"], DOCS)
        return [Task(self.name, self.version, "all", 0, self.config, dict(self.uses()), joined)]

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.core.docshards import verify
        from gristmill.core.errors import FormatError
        from gristmill.core.tokshards import write_manifest
        from gristmill.mixes.verify import problems
        from gristmill.mixes.write import manifest

        shards = [*task.inputs["shards.write"], *task.inputs["mixture"], task.shard("tokenizer", TOKENIZER)]
        for shard in shards:
            _link(verify(shard), out.path(shard.name))
        found = manifest(task.shard("mixture", LOCK), task.inputs["shards.write"], task.inputs["tokens"])
        folder = write_manifest(out.path("manifest.json").parent, found).parent
        faults = problems(folder, digests=False)  # every file was just checked against its receipt
        if faults:
            raise FormatError("the packed dataset is wrong: " + "; ".join(faults[:5]))
        rows = sum(p.rows for p in found.phases)
        return Counters(rows, rows, None, notes=Counter({"shards": sum(len(p.shards) for p in found.phases)}))


def packing_facts(path: Path) -> Any:
    """`core.vocabulary.TokenizerFacts` of a tokenizer that can close documents and pad rows. Raises UsageError (E106)."""
    from gristmill.core.errors import UsageError
    from gristmill.core.vocabulary import SPECIALS, tokenizer_facts

    facts = tokenizer_facts(path)
    missing = [SPECIALS[role] for role in ("eos", "pad") if role not in facts.special_ids]
    if missing:
        raise UsageError(
            f"E106 the tokenizer has no {' and no '.join(missing)}", hint="train it with `gristmill run --to tokenizer`"
        )
    return facts


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none (or another one is crossed)."""
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _counts(documents: Any, stores: int) -> list[tuple[int, int]]:
    """Documents and tokens of every store."""
    import numpy as np

    number = np.bincount(documents.store, minlength=stores)
    tokens = np.zeros(stores, np.int64)
    np.add.at(tokens, documents.store, documents.lengths)
    return list(zip(number.tolist(), tokens.tolist(), strict=True))


def _heldout(documents: Any, stock: Sequence[Any]) -> Any:
    """(id, source, store, doc, length) of the held-out documents, by source and then in store order."""
    import numpy as np
    import pyarrow as pa

    at = np.concatenate([np.empty(0, np.int64), *(s.heldout for s in stock)])
    sources = [s.name for s in stock for _ in range(len(s.heldout))]
    columns = {
        "id": documents.columns["id"].take(pa.array(at)).combine_chunks(),
        "source": pa.array(sources, pa.string()),
        "store": pa.array(documents.store[at], pa.int32()),
        "doc": pa.array(documents.doc[at], pa.int32()),
        "length": pa.array(documents.lengths[at], pa.int32()),
    }
    return pa.table(columns)
