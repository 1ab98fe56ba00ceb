"""Encode one shard of curated documents to a token store, checking that every document decodes to its own text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import TableWriter, read_batches
from gristmill.core.document import DROP_SCHEMA
from gristmill.core.stage import Counters, Shard
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.core.tokstore import StoreWriter
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.train import single_thread

NOT_LOSSLESS = "tokens.not_lossless"

BATCH_BYTES = 1 << 20
"""Text encoded at once: an encoding takes some 100 bytes a token, so this is some 30 MB."""

CARRIED = [n for n in TOKEN_DOC_SCHEMA.names if n not in ("source", "bytes", "offset", "length")]


def encode_shard(documents: Shard, codec: Codec, source: str, tokens: Path, docs: Path, drops: Path) -> Counters:
    """Write tokens.bin, docs.parquet (TOKEN_DOC_SCHEMA) and drops.parquet (DROP_SCHEMA); returns the ledger.

    Every document becomes its text's ids and eos (an empty text, eos alone). One that does not decode to its own
    text is quarantined as `tokens.not_lossless`. Memory is bounded by a batch of BATCH_BYTES or one document.
    """
    eos = np.asarray([codec.eos], codec.dtype)
    counters = Counters()
    store = StoreWriter(tokens, docs, codec.vocab_size)
    with single_thread(), store, TableWriter(drops, DROP_SCHEMA) as dropped:
        for table in _pieces(read_batches(documents, ["text", *CARRIED], rows=256)):
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
                dropped.write(_drops(table.filter(pa.array([not ok for ok in good], pa.bool_()))))
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
