"""The stages `mixture` (plan and assign), `shards.buckets` and `shards.write` (the shuffle) and `shards` (the dataset)."""

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
HELDOUT, LAYOUT, PIECES = "heldout.parquet", "layout.json", ".pieces.npy"
BUCKET, INDEX = ".bucket", ".index.npy"
SUFFIXES = ("bin", "bnd.npy", "prov.parquet")
SHARD_BYTES = 64 << 20


def named(receipts: Sequence[Receipt], *names: str) -> tuple[Shard, ...]:
    """The outputs of these names, receipt by receipt, in the order of `names`."""
    return tuple(shard for r in receipts for name in names for shard in r.outputs if shard.name == name)


def stores_of(inputs: Mapping[str, Sequence[Receipt]], *names: str) -> list[tuple[Shard, ...]]:
    """Those outputs of every token store, in the stores' order."""
    return [named([r], *names) for r in inputs["tokens"] if len(named([r], DOCS, TOKENS)) == 2]


def shard_key(phase: str, number: int) -> str:
    return f"{phase}/{number:05d}"


class MixturePlan(Stage):
    """Decide the place of every token.

    Config: {"mixture": a Mixture as plain data, "shard_bytes"?: bytes of a .bin, "part_bytes"?: bytes of the stores that
    one task spreads, "shuffle"?: auto, gather or buckets}. Outputs: mix.lock.json, heldout.parquet, and per phase
    PHASE/layout.json and its pieces: PHASE/00000.pieces.npy … of each shard to gather, or PHASE/part-00000-0-2.pieces.npy …
    of each part of the stores to spread (here stores 0 to 2). `notes` has the shards of each phase as "shards PHASE".
    """

    name: ClassVar[str] = "mixture"
    version: ClassVar[int] = 2
    upstream: tuple[str, ...] = ("tokens", "tokenizer")

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        tokenizer, stores = named(inputs["tokenizer"], TOKENIZER), stores_of(inputs, DOCS, TOKENS)
        if not tokenizer or not stores:
            return []
        wanted = {"tokens": tuple(s for store in stores for s in store), "tokenizer": tokenizer[:1]}
        return [Task(self.name, self.version, "all", 0, self.config, dict(self.uses()), wanted)]

    def run(self, task: Task, out: Outbox) -> Counters:
        import numpy as np
        import orjson

        from gristmill.core.docshards import verify, write_table
        from gristmill.mixes import assign
        from gristmill.mixes.api import check_tokenizer
        from gristmill.mixes.buckets import Buckets
        from gristmill.mixes.catalogue import DOCUMENT
        from gristmill.mixes.chain import content_of, links
        from gristmill.mixes.plan import PhasePlan, make_plan
        from gristmill.mixes.schema import Mixture
        from gristmill.mixes.sources import scan

        def write_json(name: str, value: Any) -> None:
            out.path(name).write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")

        mixture = Mixture.model_validate(self.config["mixture"])
        size = int(self.config.get("shard_bytes", SHARD_BYTES))
        part = int(self.config.get("part_bytes", assign.PART_BYTES))
        shuffle = str(self.config.get("shuffle", "auto"))
        facts = packing_facts(verify(task.shard("tokenizer", TOKENIZER)))
        check_tokenizer(mixture, facts.sha256)
        docs = [s for s in task.inputs["tokens"] if s.name == DOCS]
        tokens = [s for s in task.inputs["tokens"] if s.name == TOKENS]  # never read here, but in the hash chain
        digests = [s.sha256 for s in docs]
        folder = out.path(LOCK).parent / "spill"  # goes with the attempt's other temporary files, killed or not
        with Buckets(folder / "documents", DOCUMENT) as spool:
            found = scan([verify(s) for s in docs], mixture, spool)
            plan = make_plan(mixture, found.stock, facts.vocab_size, overlaps=found.shared)

            def how(phase: PhasePlan) -> assign.Spread:
                rows = assign.rows_per_shard(phase, plan.dtype, size)
                return assign.spread(shuffle, rows, plan.dtype, found.stores, part)

            def save(phase: PhasePlan, number: int, pieces: np.ndarray) -> None:
                key = shard_key(phase.name, number)
                if how(phase).shuffle == "buckets":
                    key = f"{phase.name}/part-{number:05d}-{pieces['store'].min()}-{pieces['store'].max()}"
                np.save(out.path(key + PIECES), pieces, allow_pickle=False)

            phases = []
            notes: Counter[str] = Counter()
            for assigned in assign.assign(mixture, plan, found, spool, folder, how, save):
                phase = assigned.plan
                write_json(f"{phase.name}/{LAYOUT}", assign.layout(phase, plan, how(phase), facts, digests))
                phases.append(assign.lock_phase(mixture, assigned, how(phase).rows_per_shard))
                notes[f"shards {phase.name}"] = phases[-1]["shards"]
                notes["pieces"] += assigned.pieces
                notes["tokens"] += sum(assigned.tokens.values())
                notes["truncated_tokens"] += sum(assigned.truncated.values())
        contents = {
            name: content_of([(digests[i], tokens[i].sha256) for i in at]) for name, at in found.of_stores.items()
        }
        for locked, link in zip(phases, links(mixture, facts.sha256, contents, self.version), strict=True):
            locked |= {"chain": link.sha256, "spec": link.spec}
        stores = [
            {"docs_sha256": d, "documents": n, "tokens": t} for d, (n, t) in zip(digests, found.stores, strict=True)
        ]
        write_json(LOCK, assign.lock(mixture, plan, phases, facts, stores))
        write_table(out.path(HELDOUT), found.heldout_table())
        notes["warnings"] = len(plan.warnings)
        notes["heldout_documents"] = len(found.heldout)
        return Counters(sum(n for n, _ in found.stores), sum(p["rows"] for p in phases), None, notes=notes)


def phases_of(receipt: Receipt) -> list[tuple[str, Shard, int]]:
    """(name, its layout, its shards) of every phase that a `mixture` receipt holds."""
    out = []
    for shard in receipt.outputs:
        folder, _, file = shard.name.partition("/")
        if file == LAYOUT:
            out.append((folder, shard, receipt.notes[f"shards {folder}"]))
    order = [p["name"] for p in receipt.config["mixture"]["stages"]]
    return sorted(out, key=lambda found: order.index(found[0]) if found[0] in order else len(order))


def pieces_of(receipt: Receipt, phase: str) -> list[Shard]:
    return [s for s in receipt.outputs if s.name.startswith(f"{phase}/") and s.name.endswith(PIECES)]


class ShardsBuckets(Stage):
    """Pass one of the shuffle: spread a part of the stores over the shards. One task per phase and part; no config.

    Outputs: PHASE/part-00003.bucket, the tokens of every shard's pieces in that part, and PHASE/part-00003.index.npy.
    Has no tasks where the mixture says to gather.
    """

    name: ClassVar[str] = "shards.buckets"
    upstream: tuple[str, ...] = ("mixture", "tokens")

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        uses = dict(self.uses())
        stores = stores_of(inputs, DOCS, TOKENS)
        tasks: list[Task] = []
        for receipt in inputs["mixture"]:
            for phase, layout, _ in phases_of(receipt):
                for pieces in pieces_of(receipt, phase):
                    name, _, span = pieces.name.removesuffix(PIECES).rpartition("part-")
                    if not name.endswith("/"):
                        continue
                    number, first, last = span.split("-")
                    mine = stores[int(first) : int(last) + 1]
                    wanted = {"mixture": (pieces, layout), "tokens": tuple(s for store in mine for s in store)}
                    key = f"{name}part-{number}"
                    tasks.append(Task(self.name, self.version, key, len(tasks), self.config, uses, wanted))
        return tasks

    def run(self, task: Task, out: Outbox) -> Counters:
        import numpy as np

        from gristmill.core.docshards import verify
        from gristmill.mixes.catalogue import PIECE
        from gristmill.mixes.write import read_records, scatter

        pieces = read_records(verify(task.inputs["mixture"][0]), PIECE)
        layout = _layout_of(task)
        base = task.inputs["mixture"][0].name.removesuffix(PIECES)
        first = int(base.split("-")[-2])
        base = base.rsplit("-", 2)[0]
        stores = _checked_stores(task, layout, first)
        index = scatter(pieces, layout, stores, out.path(base + BUCKET))
        np.save(out.path(base + INDEX), index, allow_pickle=False)
        return Counters(len(pieces), len(pieces), None)


class ShardsWrite(Stage):
    """Write one packed shard: gather it from the token stores, or collect it from buckets. One task per phase and shard,
    keyed PHASE/00042; config: {}, and a task's own {"shard": its number}.

    Outputs: PHASE/00042.bin, .bnd.npy, .prov.parquet (core.tokshards), the same bytes either way.
    """

    name: ClassVar[str] = "shards.write"
    upstream: tuple[str, ...] = ("mixture", "tokens", "shards.buckets")

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        stores = tuple(s for store in stores_of(inputs, DOCS, TOKENS) for s in store)
        tasks: list[Task] = []
        for receipt in inputs["mixture"]:
            for phase, layout, shards in phases_of(receipt):
                pieces = {s.name.removesuffix(PIECES): s for s in pieces_of(receipt, phase)}
                parts = [k.rsplit("-", 2)[0] for k in pieces if k.startswith(f"{phase}/part-")]
                written = {s.name: s for r in inputs.get("shards.buckets", ()) for s in r.outputs}
                names = [part + suffix for part in parts for suffix in (BUCKET, INDEX)]
                if not all(name in written for name in names):
                    continue  # a part failed; `run -k` goes on with the other phases
                for number in range(shards):
                    key = shard_key(phase, number)
                    if parts:
                        wanted = {"mixture": (layout,), "shards.buckets": tuple(written[name] for name in names)}
                    else:
                        wanted = {"mixture": (layout, pieces[key]), "tokens": stores}
                    tasks.append(self._task(key, number, len(tasks), wanted))
        return tasks

    def _task(self, key: str, number: int, ordinal: int, inputs: dict[str, tuple[Shard, ...]]) -> Task:
        return Task(self.name, self.version, key, ordinal, {**self.config, "shard": number}, dict(self.uses()), inputs)

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.core.docshards import verify
        from gristmill.core.tokshards import write_packed
        from gristmill.mixes.catalogue import PIECE
        from gristmill.mixes.write import STRETCH, collect, gather, read_records, start_writeback

        layout = _layout_of(task)
        number = int(task.config["shard"])
        if "shards.buckets" in task.inputs:
            files = task.inputs["shards.buckets"]
            parts = [
                (Path(bucket.path), read_records(verify(index), STRETCH))
                for bucket, index in zip(files[::2], files[1::2], strict=True)
            ]
            rows = collect(layout, number, parts)
        else:
            pieces = read_records(verify(task.inputs["mixture"][1]), PIECE)
            rows = gather(pieces, layout, number, _checked_stores(task, layout, 0))
        found, pointers, starts = rows.finish()
        base = shard_key(layout["phase"], number)
        paths = [out.path(f"{base}.{suffix}") for suffix in SUFFIXES]
        provenance = rows.provenance(found)
        write_packed(Path(str(paths[0]).removesuffix(".bin")), rows.tokens, pointers, starts, provenance)
        with open(paths[0], "rb") as file:
            start_writeback(file)
        return Counters(len(found), len(rows.tokens), None)


def _layout_of(task: Task) -> dict[str, Any]:
    import orjson

    from gristmill.core.docshards import verify

    found: dict[str, Any] = orjson.loads(
        verify(next(s for s in task.inputs["mixture"] if s.name.endswith(f"/{LAYOUT}"))).read_bytes()
    )
    return found


def _checked_stores(task: Task, layout: Mapping[str, Any], first: int) -> dict[int, Path]:
    """tokens.bin by ordinal, the task's stores being those from `first` on. Raises FormatError when they are others."""
    from gristmill.core.docshards import verify
    from gristmill.core.errors import FormatError

    docs, tokens = ([s for s in task.inputs["tokens"] if s.name == name] for name in (DOCS, TOKENS))
    if [s.sha256 for s in docs] != layout["stores"][first : first + len(docs)] or len(tokens) != len(docs):
        raise FormatError("the token stores are not those of the mixture", hint="run the same command again")
    return {first + i: verify(shard) for i, shard in enumerate(tokens)}


class Shards(Stage):
    """Put the shards together as one packed dataset folder and check it. No config.

    Outputs: manifest.json, mix.lock.json, tokenizer.json, heldout.parquet, the find index and every shard file (hard
    links). Has no task while a shard is missing.
    """

    name: ClassVar[str] = "shards"
    version: ClassVar[int] = 3
    upstream: tuple[str, ...] = ("shards.write", "mixture", "tokenizer", "tokens")

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        lock, tokenizer = named(inputs["mixture"], LOCK, HELDOUT), named(inputs["tokenizer"], TOKENIZER)
        written = tuple(s for r in inputs["shards.write"] for s in r.outputs)
        wanted = {
            f"{shard_key(phase, number)}.bin"
            for r in inputs["mixture"]
            for phase, _, shards in phases_of(r)
            for number in range(shards)
        }
        if len(lock) != 2 or not tokenizer or not wanted <= {s.name for s in written}:
            return []
        joined = {"shards.write": written, "mixture": lock, "tokenizer": tokenizer[:1]}
        joined["tokens"] = tuple(d for (d,) in stores_of(inputs, DOCS))
        return [Task(self.name, self.version, "all", 0, self.config, dict(self.uses()), joined)]

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.core.docshards import verify
        from gristmill.core.errors import FormatError
        from gristmill.core.tokshards import PackedDataset, write_manifest
        from gristmill.mixes import index
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
        docs = [verify(shard) for shard in task.inputs["tokens"]]
        index.build(PackedDataset(folder), docs, {name: out.path(name) for name in index.NAMES})
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
