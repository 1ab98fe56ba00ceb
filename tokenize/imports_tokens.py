"""Import token stores that others wrote, Megatron's .bin/.idx and datatrove's .ds, as token stores of gristmill.

Nothing that a header says is believed: counts are held against the file's size before anything is allocated, pointers
and ends must ascend and stay inside the data, and every id must be of the vocabulary. Documents are copied in batches.

.idx: `MMIDIDX\\0\\0`, version 1 (<u8), type code (u1), sequences S and document indices D (<u8), lengths (<i4, S), first
bytes (<i8, S), document indices (<i8, D). .ds.index: the documents' ends in tokens (<u8). .ds.metadata: `name|bytes`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from gristmill.core.docshards import TableWriter
from gristmill.core.document import DROP_SCHEMA
from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import document_id
from gristmill.core.imports import KNOWN_COLUMNS, Import
from gristmill.core.stage import Counters, Shard
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.core.tokstore import StoreWriter
from gristmill.core.vocabulary import TokenizerFacts

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
CODES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Megatron's type codes; 6 and 7 are floats."""
BATCH_TOKENS = 1 << 20
MAX_DOCUMENT = (1 << 31) - 2
"""Tokens of one document: its length is an int32, and it may get an eos."""


MAX_EXPORT_JSON = 64 << 20
"""Bytes of an export.json that are read: some 300 B a file."""


@dataclass(frozen=True)
class Documents:
    """Documents as stretches of one array: first token and tokens of each, int64 (D,)."""

    data: np.ndarray
    first: np.ndarray
    length: np.ndarray


def import_store(
    config: Mapping[str, Any], inputs: Sequence[Shard], facts: TokenizerFacts, tokens: Path, docs: Path, drops: Path
) -> Counters:
    """Write tokens.bin, docs.parquet and drops.parquet from one imported pair of files; returns the ledger.

    `config`: {"import": NAME, `Import.for_task`}. `inputs`: the index (.idx, .ds.index) and the data. A document's id is
    that of (file name, number), its source the import's name; it is closed by eos where it was not. Empty documents
    are dropped as `import.empty`. Raises UsageError (E106) when the ids are not of this tokenizer or a .ds holds packed
    rows, FormatError on files that contradict themselves.
    """
    name = str(config["import"])
    spec = Import.model_validate(
        {config["format"]: "", **{k: v for k, v in config.items() if k not in ("import", "format")}}
    )
    check_tokenizer(name, spec, facts)
    index, data = (Path(s.path) for s in inputs)
    if spec.format == "datatrove":
        refuse_packed(data)
    found = read_megatron(index, data) if spec.format == "megatron" else read_datatrove(index, data)
    counters = Counters(rows_in=len(found.length))
    extra = [pa.field(n, pa.array([spec.constants[n]]).type) for n in spec.extra]
    file = inputs[1].name
    with StoreWriter(tokens, docs, facts.vocab_size, extra) as store, TableWriter(drops, DROP_SCHEMA) as dropped:
        for begin, end in _batches(found.length):
            kept = [n for n in range(begin, end) if found.length[n]]
            dropped.write(_empty([n for n in range(begin, end) if not found.length[n]], file))
            counters.drop("import.empty", end - begin - len(kept))
            documents = [_document(found, n, facts, data, counters) for n in kept]
            store.write(documents, _columns(kept, name, file, spec, extra))
            counters.rows_out += len(kept)
    if not counters.drops["import.empty"]:  # type: ignore[index]
        counters.drops.pop("import.empty", None)  # type: ignore[union-attr]
    counters.notes["tokens"] = store.tokens
    return counters


def check_tokenizer(name: str, spec: Import, facts: TokenizerFacts) -> None:
    """Raises UsageError (E106) when the declared tokenizer is not the recipe's."""
    if spec.tokenizer_sha256 is not None and spec.tokenizer_sha256 != facts.sha256:
        raise UsageError(
            f"E106 imports.{name} has ids of tokenizer {spec.tokenizer_sha256[:12]}, the recipe's is {facts.sha256[:12]}",
            hint="take the tokenizer.json that made the ids",
        )
    if spec.vocab_size is not None and spec.vocab_size != facts.vocab_size:
        raise UsageError(
            f"E106 imports.{name} has ids of a vocabulary of {spec.vocab_size}, the recipe's is {facts.vocab_size}",
            hint="take the tokenizer.json that made the ids",
        )
    if "eos" not in facts.special_ids:
        raise UsageError("E106 the tokenizer has no end-of-document token", hint="gristmill closes documents with it")


MAX_REPEATS = 1000
"""Times that an index may name the tokens of its file, on average: a document's weight in a mixture is at most that."""


def read_megatron(index: Path, data: Path) -> Documents:
    """The documents of SOURCE.idx and SOURCE.bin. Raises FormatError on anything that cannot be.

    A document of several sequences must have them side by side.
    """
    try:
        size, total = index.stat().st_size, data.stat().st_size
        with open(index, "rb") as file:
            head = file.read(HEADER.size)
    except OSError as error:
        raise FormatError(f"{error.filename} cannot be read: {error.strerror}") from error
    if len(head) < HEADER.size:
        raise FormatError(f"{index} is too short for a Megatron index")
    magic, version, code, sequences, marks = HEADER.unpack(head)
    if magic != MAGIC or version != 1:
        raise FormatError(f"{index} is no Megatron index of version 1")
    if code not in CODES:
        raise FormatError(f"{index} has tokens of type code {code}; integers are {', '.join(map(str, CODES))}")
    want = HEADER.size + 12 * sequences + 8 * marks
    if size != want:
        modes = " (multimodal ones have modes, and are not read)" if size == want + sequences else ""
        raise FormatError(f"{index} has {size} bytes, its header says {want}{modes}")
    if not marks:
        raise FormatError(f"{index} has no document indices")
    lengths = _map(index, "<i4", sequences, HEADER.size).astype(np.int64)
    pointers = _map(index, "<i8", sequences, HEADER.size + 4 * sequences)
    indices = _map(index, "<i8", marks, HEADER.size + 12 * sequences)
    width = np.dtype(CODES[code]).itemsize
    if total % width:
        raise FormatError(f"{data} has {total} bytes, no whole number of {width}-byte tokens")
    if len(lengths) and (lengths.min() < 0 or pointers.min() < 0 or (pointers % width).any()):
        raise FormatError(f"{index} has a negative length or a pointer inside a token")
    first = pointers // width
    if (np.diff(first) < 0).any():
        raise FormatError(f"{index} has pointers that do not ascend")
    if len(lengths) and (first > total // width - lengths).any():  # no sum that could overflow
        raise FormatError(f"{index} points beyond the {total} bytes of {data}")
    if indices[0] != 0 or indices[-1] != sequences or (np.diff(indices) < 0).any():
        raise FormatError(f"{index} has document indices that do not ascend from 0 to {sequences}")
    begin, end = indices[:-1], indices[1:]
    inner = np.ones(max(sequences - 1, 0), bool)
    inner[end[(end > 0) & (end < sequences)] - 1] = False  # where one document ends and the next begins
    if (first[1:] != first[:-1] + lengths[:-1])[inner].any():
        raise FormatError(f"{index} has a document whose sequences stand apart")
    again = (np.diff(first) == 0) & (np.diff(lengths) == 0)  # how our own export writes a document's weight
    if not (again | (first[1:] >= first[:-1] + lengths[:-1])).all():
        raise FormatError(f"{index} has sequences that overlap")
    if lengths.sum() > MAX_REPEATS * (total // width):
        raise FormatError(f"{index} repeats the tokens of {data} more than {MAX_REPEATS:,} times")
    ends = np.concatenate([[0], np.cumsum(lengths)])
    length = ends[end] - ends[begin]
    starts = np.append(first, 0)[np.minimum(begin, sequences)]
    return Documents(_map(data, CODES[code], total // width, 0), starts, _checked(length, index))


def refuse_packed(data: Path) -> None:
    """Raises UsageError when a .ds is a shard of `mix export datatrove`: its rows hold several documents, and padding.

    Told by the export.json that `mix export` writes beside the folders of its stages.
    """
    try:
        with open(data.parent.parent / "export.json", "rb") as file:
            found = orjson.loads(file.read(MAX_EXPORT_JSON))
    except (OSError, ValueError):
        return
    if isinstance(found, dict) and found.get("format") == "gristmill-export-1" and found.get("written") == "datatrove":
        raise UsageError(
            f"{data} holds packed rows of `gristmill mix export datatrove`, no documents",
            hint="`gristmill mix export megatron` writes documents: import its .idx files with `megatron:`",
        )


def read_datatrove(index: Path, data: Path) -> Documents:
    """The documents of NAME.ds.index and NAME.ds. The token's size is the one that makes both agree. Raises FormatError."""
    try:
        size, total = index.stat().st_size, data.stat().st_size
    except OSError as error:
        raise FormatError(f"{error.filename} cannot be read: {error.strerror}") from error
    if size % 8:
        raise FormatError(f"{index} has {size} bytes, no whole number of uint64")
    raw = _map(index, "<u8", size // 8, 0)
    if len(raw) and int(raw.max()) > total:
        raise FormatError(f"{index} has an end beyond the {total} bytes of {data}")
    ends = raw.astype(np.int64)
    last = int(ends[-1]) if len(ends) else 0
    if (np.diff(ends) < 0).any():
        raise FormatError(f"{index} has ends that do not ascend")
    width = next((w for w in (2, 4) if last * w == total), None)
    if width is None:
        raise FormatError(f"{data} has {total} bytes, {index} says {last} tokens of 2 or 4 bytes")
    metadata = Path(f"{data}.metadata")
    if metadata.is_file() and total:
        with open(metadata, "rb") as file:
            said = file.readline(4096).decode("utf-8", "replace").strip().rpartition("|")[2]
        if said in ("2", "4") and int(said) != width:
            raise FormatError(f"{metadata} says tokens of {said} bytes, {index} of {width}")
    first = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    return Documents(_map(data, f"<u{width}", last, 0), first, _checked(ends - first, index))


def _map(path: Path, dtype: str, count: int, offset: int) -> np.ndarray:
    return np.memmap(path, dtype, "r", offset, (count,)) if count else np.empty(0, dtype)


def _checked(length: np.ndarray, index: Path) -> np.ndarray:
    if length.max(initial=0) > MAX_DOCUMENT:
        raise FormatError(f"{index} has a document of {int(length.max())} tokens; {MAX_DOCUMENT} is the most")
    return length


def _batches(length: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of documents of at most BATCH_TOKENS tokens, or one document."""
    ends = np.cumsum(length)
    begin = 0
    while begin < len(length):
        done = int(ends[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(ends, done + BATCH_TOKENS, "right")), begin + 1)
        end = min(end, begin + (1 << 16))
        yield begin, end
        begin = end


def _document(found: Documents, number: int, facts: TokenizerFacts, data: Path, counters: Counters) -> np.ndarray:
    first, length = int(found.first[number]), int(found.length[number])
    ids = found.data[first : first + length]
    if int(ids.max()) >= facts.vocab_size or (ids.dtype.kind == "i" and int(ids.min()) < 0):
        raise UsageError(
            f"E106 document {number} of {data} has token id {int(ids.max()) if int(ids.min()) >= 0 else int(ids.min())}, "
            f"the vocabulary has {facts.vocab_size}",
            hint="take the tokenizer.json that made the ids",
        )
    kept = ids.astype(np.uint32)
    eos = facts.special_ids["eos"]
    if int(kept[-1]) != eos:
        counters.notes["eos_appended"] += 1
        kept = np.append(kept, np.uint32(eos))
    return kept.astype(np.uint16) if facts.vocab_size <= 1 << 16 else kept


def _columns(numbers: Sequence[int], name: str, file: str, spec: Import, extra: Sequence[pa.Field]) -> pa.Table:
    n = len(numbers)
    schema = {f.name: f.type for f in TOKEN_DOC_SCHEMA if f.name not in ("offset", "length")}
    columns: dict[str, Any] = {column: pa.nulls(n, kind) for column, kind in schema.items()}
    columns["id"] = pa.array([document_id(file, i) for i in numbers], pa.string())
    columns["source"] = pa.array([name] * n, pa.string())
    columns["warc_file"] = pa.array([file] * n, pa.string())
    columns["warc_offset"] = pa.array(numbers, pa.int64())
    columns["warc_length"] = pa.array([0] * n, pa.int64())
    for column, value in spec.constants.items():
        if column in KNOWN_COLUMNS and column in schema:
            try:
                columns[column] = pa.array([value] * n, schema[column])
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise UsageError(f"imports.{name}.constants.{column}: {value!r} is no {schema[column]}") from error
    for field in extra:
        columns[field.name] = pa.array([spec.constants[field.name]] * n, field.type)
    return pa.table(columns)


def _empty(numbers: Sequence[int], file: str) -> pa.Table:
    rows = [
        {"id": document_id(file, n), "warc_file": file, "warc_offset": n, "warc_length": 0, "reason": "import.empty"}
        for n in numbers
    ]
    return pa.Table.from_pylist(rows, DROP_SCHEMA)
