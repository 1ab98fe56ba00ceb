"""The stages `tokenizer` (train and measure once) and `tokens` (encode each curated shard to a token store)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from gristmill.core.stage import Counters, Outbox, Receipt, Shard, Stage, Task
from gristmill.tokenize.schema import Tokenizer

DOCUMENTS = "documents.parquet"
TOKENIZER = "tokenizer.json"
TEXTS = ("curate", "imports.text")
"""Stages that write documents.parquet; an instance has those of its recipe upstream."""


class TokenizerStage(Stage):
    """Train a byte-level BPE on a sample of all documents; config is a `Tokenizer` settings dict.

    With {"file": a tokenizer.json, "sha256": its digest} nothing is trained: that file is the output.
    """

    name: ClassVar[str] = "tokenizer"
    version: ClassVar[int] = 2
    upstream: tuple[str, ...] = ("curate",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.settings = Tokenizer() if "file" in self.config else Tokenizer.model_validate(dict(config))

    def uses(self) -> Mapping[str, str]:
        return {name: version(name) for name in ("tokenizers", "regex")}

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        if "file" in self.config:
            file, sha256 = str(self.config["file"]), str(self.config["sha256"])
            given = Shard(file, TOKENIZER, sha256, Path(file).stat().st_size)
            return [Task(self.name, self.version, "all", 0, {"sha256": sha256}, {}, {"file": (given,)})]
        shards = tuple(r.output(DOCUMENTS) for name in TEXTS for r in inputs.get(name, []))
        return [Task(self.name, self.version, "all", 0, self.config, dict(self.uses()), {"curate": shards})]

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.core.docshards import verify
        from gristmill.tokenize.api import train_files

        if "file" in task.inputs:
            out.path(TOKENIZER).write_bytes(verify(task.shard("file", TOKENIZER)).read_bytes())
            return Counters(drops=None)
        trained = train_files([verify(shard) for shard in task.inputs["curate"]], self.settings)
        for name, data in trained.files.items():
            out.path(name).write_bytes(data)
        docs = sum(trained.sample.docs.values())
        notes = {
            "sampled_bytes": sum(trained.sample.bytes.values()),
            "merges": trained.merges,
            "reserved_ids": trained.report["unused"]["free"],
        }
        return Counters(trained.sample.available_docs, docs, None, notes=Counter(notes))


class Tokens(Stage):
    """Encode one shard of documents: every document its text's ids and eos; or take over an imported token store.

    Config: {"source": name kept with each curated document, "imports"?: {NAME: `core.imports.Import.for_task`} of token
    stores}. A document that does not decode to its own text is quarantined and named in drops.parquet.
    """

    name: ClassVar[str] = "tokens"
    version: ClassVar[int] = 2
    upstream: tuple[str, ...] = ("curate", "tokenizer")

    def uses(self) -> Mapping[str, str]:
        return {"tokenizers": version("tokenizers")}

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        if not inputs["tokenizer"]:
            return []
        tokenizer = (inputs["tokenizer"][0].output(TOKENIZER),)
        tasks: list[Task] = []

        def add(key: str, config: dict[str, Any], uses: Mapping[str, str], given: dict[str, tuple[Shard, ...]]) -> None:
            joined = {**given, "tokenizer": tokenizer}
            tasks.append(Task(self.name, self.version, key, len(tasks), config, dict(uses), joined))

        for receipt in inputs.get("curate", []):
            add(receipt.key, {"source": self.config["source"]}, self.uses(), {"curate": (receipt.output(DOCUMENTS),)})
        for receipt in inputs.get("imports.text", []):
            source = {"source": receipt.config["import"]}
            add(receipt.key, source, self.uses(), {"imports.text": (receipt.output(DOCUMENTS),)})
        for receipt in inputs.get("imports", []):
            spec = self.config.get("imports", {}).get(receipt.config["import"])
            if spec is not None:
                config = {"import": receipt.config["import"], **spec}
                add(receipt.key, config, {}, {"imports": tuple(receipt.outputs)})
        return tasks

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.core.docshards import verify
        from gristmill.tokenize.codec import codec_of
        from gristmill.tokenize.encode import encode_shard

        tokenizer = task.shard("tokenizer", TOKENIZER)
        paths = [out.path(name) for name in ("tokens.bin", "docs.parquet", "drops.parquet")]
        if "imports" in task.inputs:
            from gristmill.core.vocabulary import tokenizer_facts
            from gristmill.tokenize.imports_tokens import import_store

            return import_store(task.config, task.inputs["imports"], tokenizer_facts(verify(tokenizer)), *paths)
        codec = codec_of(str(verify(tokenizer)), tokenizer.sha256)
        [documents] = (task.shard(name, DOCUMENTS) for name in TEXTS if name in task.inputs)
        return encode_shard(documents, codec, str(task.config["source"]), *paths)
