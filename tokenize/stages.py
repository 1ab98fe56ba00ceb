"""The stages `tokenizer` (train and measure once) and `tokens` (encode each curated shard to a token store)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import TableWriter, read_batches, verify
from gristmill.core.document import DROP_SCHEMA
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.core.tokstore import StoreWriter
from gristmill.tokenize.schema import Tokenizer

DOCUMENTS = "documents.parquet"
TOKENIZER = "tokenizer.json"
NOT_LOSSLESS = "tokens.not_lossless"

BATCH_BYTES = 1 << 20
"""Text encoded at once: an encoding takes some 100 bytes a token, so this is some 30 MB."""

CARRIED = [n for n in TOKEN_DOC_SCHEMA.names if n not in ("source", "bytes", "offset", "length")]


class TokenizerStage(Stage):
    """Train a byte-level BPE on a sample of all curated documents; config is a `Tokenizer` settings dict."""

    name: ClassVar[str] = "tokenizer"
    upstream: ClassVar[tuple[str, ...]] = ("curate",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.settings = Tokenizer.model_validate(dict(config))

    def uses(self) -> Mapping[str, str]:
        return {name: version(name) for name in ("tokenizers", "regex")}

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        shards = tuple(r.output(DOCUMENTS) for r in inputs["curate"])
        return [Task(self.name, self.version, "all", 0, self.config, dict(self.uses()), {"curate": shards})]

    def run(self, task: Task, out: Outbox) -> Counters:
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
    upstream: ClassVar[tuple[str, ...]] = ("curate", "tokenizer")

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
        import numpy as np

        from gristmill.tokenize.codec import Codec
        from gristmill.tokenize.train import single_thread

        codec = Codec(verify(task.shard("tokenizer", TOKENIZER)))
        eos = np.asarray([codec.eos], codec.dtype)
        source = str(self.config["source"])
        counters = Counters()
        store = StoreWriter(out.path("tokens.bin"), out.path("docs.parquet"), codec.vocab_size)
        with single_thread(), store, TableWriter(out.path("drops.parquet"), DROP_SCHEMA) as drops:
            for table in _pieces(read_batches(task.shard("curate", DOCUMENTS), ["text", *CARRIED], rows=256)):
                texts = table["text"].to_pylist()
                ids = codec.encode_batch(texts)
                good = [back == text for back, text in zip(codec.decode_batch(ids), texts, strict=True)]
                kept = table.filter(pa.array(good, pa.bool_()))
                columns = kept.select(CARRIED).append_column("source", pa.array([source] * len(kept), pa.string()))
                columns = columns.append_column("bytes", pc.binary_length(kept["text"]))
                whole = [np.concatenate([i, eos]) for i, ok in zip(ids, good, strict=True) if ok]
                store.write(whole, columns)
                counters.rows_in += len(texts)
                counters.rows_out += len(whole)
                if len(whole) < len(texts):
                    counters.quarantined += len(texts) - len(whole)
                    drops.write(_drops(table.filter(pa.array([not ok for ok in good], pa.bool_()))))
        counters.notes["tokens"] = store.tokens
        return counters


def _pieces(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches cut so that each has at most BATCH_BYTES of text, or one document. Null texts are empty ones."""
    for batch in batches:
        table = pa.Table.from_batches([batch])
        text = pc.fill_null(table["text"], "")
        table = table.set_column(table.schema.get_field_index("text"), "text", text)
        sizes = pc.binary_length(text).to_pylist()
        start = total = 0
        for i, size in enumerate(sizes):
            if i > start and total + size > BATCH_BYTES:
                yield table.slice(start, i - start)
                start, total = i, 0
            total += size
        if start < len(sizes):
            yield table.slice(start)


def _drops(rows: pa.Table) -> pa.Table:
    """Quarantined documents as rows of DROP_SCHEMA."""
    columns = {name: rows[name] for name in DROP_SCHEMA.names if name in rows.column_names}
    columns["reason"] = pa.array([NOT_LOSSLESS] * len(rows), pa.string())
    nothing = pa.nulls(len(rows), pa.float64())
    return pa.table({**columns, "value": nothing, "threshold": nothing}).select(DROP_SCHEMA.names)
