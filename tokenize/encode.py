"""Encode one shard of documents to a token store, checking that every document's tokens spell its own text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.core.docshards import TableWriter, read_batches, verify
from gristmill.core.document import DROP_SCHEMA
from gristmill.core.errors import InputError
from gristmill.core.hashing import hash64
from gristmill.core.stage import Counters, Shard
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.core.tokstore import StoreWriter, is_scalar
from gristmill.tokenize.backends import BACKENDS
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.encoder import Differs, Encoder, encoder_of
from gristmill.tokenize.train import single_thread

NOT_LOSSLESS = "tokens.not_lossless"

BATCH_BYTES = 4 << 20
"""Text encoded at once; with its ids it takes some 16 MB."""

BATCH_ROWS = 512

CHECK_FIRST, CHECK_EVERY = 4, 512
"""Documents encoded a second time by `tokenizers`, wherever another backend encoded them: the first of a shard, and those
whose hash(id) is divisible. At 30 times its speed, one in 512 costs a backend 6 % of its time."""

CARRIED = [n for n in TOKEN_DOC_SCHEMA.names if n not in ("source", "bytes", "dup_count", "offset", "length")]
NOT_CARRIED = {"text", "title", "canonical_url", "charset", "warc_inner", "warc_record_id", "dup_cluster_size"}
"""Curated columns that no mixture asks for, and the one that goes on as dup_count. All other scalar ones are carried, so
that filters may name them; per document they take some 5 bytes."""


def encode_shard(documents: Shard, codec: Codec, source: str, tokens: Path, docs: Path, drops: Path) -> Counters:
    """Write tokens.bin, docs.parquet (TOKEN_DOC_SCHEMA, extra columns) and drops.parquet (DROP_SCHEMA); returns the ledger.

    Every document becomes its text's ids and eos (an empty text, eos alone). One whose tokens do not spell its own
    text is quarantined as `tokens.not_lossless`. Memory is bounded by a batch of BATCH_BYTES or one document. The
    bytes written do not depend on the backends at hand: one that is caught with other ids is left out and the shard
    begun again. Raises InputError when a text is not UTF-8.
    """
    for _ in BACKENDS:
        try:
            return _encode(documents, encoder_of(codec), source, tokens, docs, drops)
        except Differs:
            continue  # logged, and refused from now on
    return _encode(documents, Encoder(codec, []), source, tokens, docs, drops)


def _encode(documents: Shard, encoder: Encoder, source: str, tokens: Path, docs: Path, drops: Path) -> Counters:
    codec = encoder.codec
    counters = Counters()
    known = pq.read_schema(verify(documents))
    extra = [f for f in known if f.name not in {*TOKEN_DOC_SCHEMA.names, *NOT_CARRIED} and is_scalar(f.type)]
    sized = ["dup_cluster_size"] if "dup_cluster_size" in known.names else []
    carried = [*CARRIED, *(f.name for f in extra)]
    store = StoreWriter(tokens, docs, codec.vocab_size, extra)
    with single_thread(), store, TableWriter(drops, DROP_SCHEMA) as dropped:
        for table in _pieces(read_batches(documents, ["text", *carried, *sized], rows=BATCH_ROWS)):
            data, offsets = _utf8(table["text"], documents.path)
            check = _check(table["id"].to_pylist(), counters.rows_in)
            ids, ends = encoder.encode(data, offsets, check)
            good = _lossless(encoder, ids, ends, data, offsets)
            kept = table if good.all() else table.filter(pa.array(good))
            columns = kept.select(carried).append_column("source", pa.array([source] * len(kept), pa.string()))
            columns = columns.append_column("bytes", pa.array(np.diff(offsets)[good], pa.int32()))
            if sized:
                columns = columns.append_column("dup_count", kept["dup_cluster_size"].cast(pa.int32()))
            store.write(_closed(ids, ends, good, codec.eos), columns)
            counters.rows_in += len(table)
            counters.rows_out += len(kept)
            if len(kept) < len(table):
                counters.quarantined += len(table) - len(kept)
                dropped.write(_drops(table.filter(pa.array(~good))))
    counters.notes["tokens"] = store.tokens
    return counters


def _utf8(text: pa.ChunkedArray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of texts as (bytes,) uint8 and (texts + 1,) int64 offsets into it, without a copy."""
    array = text.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    _, ends, content = array.buffers()
    width = np.int64 if pa.types.is_large_string(array.type) else np.int32
    offsets = np.frombuffer(ends, width)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    data = np.frombuffer(content or b"", np.uint8)
    inner = offsets[(offsets > offsets[0]) & (offsets < offsets[-1])]
    try:
        str(memoryview(data[offsets[0] : offsets[-1]]), "utf-8")  # type: ignore[arg-type]
        if (data[inner] & 0xC0 == 0x80).any():
            raise ValueError("a text begins inside a character")
    except ValueError as error:
        raise InputError(f"{where}: a text is not UTF-8: {error}", hint="write the file again") from error
    return data, offsets


def _check(ids: list[str | None], done: int) -> list[int]:
    """Places of the documents to encode twice."""
    return [i for i, name in enumerate(ids) if done + i < CHECK_FIRST or hash64(name or "", 0) % CHECK_EVERY == 0]


def _lossless(encoder: Encoder, ids: np.ndarray, ends: np.ndarray, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(documents,) bool: those whose tokens spell their text. Byte level decodes by joining the tokens' bytes."""
    from gristmill.tokenize.kernels import spells

    good = np.zeros(len(offsets) - 1, bool)
    if encoder.table is not None:
        spells(ids, ends, data, offsets, *encoder.table, good)
        return good
    back = encoder.codec.decode_batch([ids[a:b] for a, b in itertools.pairwise(ends)])
    for i, text in enumerate(back):
        good[i] = text.encode() == data[offsets[i] : offsets[i + 1]].tobytes()
    return good


def _closed(ids: np.ndarray, ends: np.ndarray, good: np.ndarray, eos: int) -> list[np.ndarray]:
    """The documents that are good, each closed by eos."""
    lengths = np.diff(ends) + 1
    stops = np.cumsum(lengths)
    whole = np.empty(len(ids) + len(lengths), ids.dtype)
    text = np.ones(len(whole), bool)
    text[stops - 1] = False
    whole[text] = ids
    whole[stops - 1] = eos
    return [whole[b - n : b] for b, n, ok in zip(stops.tolist(), lengths.tolist(), good.tolist(), strict=True) if ok]


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
