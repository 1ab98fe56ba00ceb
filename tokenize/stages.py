"""The stages `tokenizer` (train and measure once) and `tokens` (encode each curated shard to a token store)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
from gristmill.tokenize.schema import Tokenizer

DOCUMENTS = "documents.parquet"
TOKENIZER = "tokenizer.json"


class TokenizerStage(Stage):
    """Train a byte-level BPE on a sample of all curated documents; config is a `Tokenizer` settings dict."""

    name: ClassVar[str] = "tokenizer"
    upstream: tuple[str, ...] = ("curate",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.settings = Tokenizer.model_validate(dict(config))

    def uses(self) -> Mapping[str, str]:
        return {name: version(name) for name in ("tokenizers", "regex")}

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        shards = tuple(r.output(DOCUMENTS) for r in inputs["curate"])
        return [Task(self.name, self.version, "all", 0, self.config, dict(self.uses()), {"curate": shards})]

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.core.docshards import verify
        from gristmill.tokenize.api import train_files

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
    """Encode one curated shard: every document its text's ids and eos. Config: {"source": name kept with each row}.

    A document that does not decode to its own text is quarantined and named in drops.parquet.
    """

    name: ClassVar[str] = "tokens"
    upstream: tuple[str, ...] = ("curate", "tokenizer")

    def uses(self) -> Mapping[str, str]:
        return {"tokenizers": version("tokenizers")}

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        if not inputs["tokenizer"]:
            return []
        tokenizer = inputs["tokenizer"][0].output(TOKENIZER)
        uses = dict(self.uses())
        return [
            Task(
                self.name,
                self.version,
                receipt.key,
                ordinal,
                self.config,
                uses,
                {"curate": (receipt.output(DOCUMENTS),), "tokenizer": (tokenizer,)},
            )
            for ordinal, receipt in enumerate(inputs["curate"])
        ]

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.core.docshards import verify
        from gristmill.tokenize.codec import Codec
        from gristmill.tokenize.encode import encode_shard

        codec = Codec(verify(task.shard("tokenizer", TOKENIZER)))
        documents = task.shard("curate", DOCUMENTS)
        paths = [out.path(name) for name in ("tokens.bin", "docs.parquet", "drops.parquet")]
        return encode_shard(documents, codec, str(self.config["source"]), *paths)
