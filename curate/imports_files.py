"""Rows of untrusted JSONL (plain, gzip, zstd) and Parquet files, in bounded memory: values, or the reason there are none."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError, InputError, UsageError

CHUNK = 1 << 20
SLICE = 4096
"""Bytes of a zstd file, or of a damaged stretch of a gzip file, unpacked at once."""
MAX_RATIO = 1000
"""Bytes that one compressed byte may become, once FREE_BYTES are out: text comes to 20, a bomb to 1,000 and more."""
FREE_BYTES = 64 << 20
PARQUET_ROWS = 16
"""Rows of a Parquet file made objects at once: one short value of a dictionary can stand for a long text in every row."""
MAX_WINDOW = 1 << 27
"""zstd frames that want more than 128 MiB of memory are refused (`zstd --long=27` writes those)."""

ZSTD = b"\x28\xb5\x2f\xfd"

Fault = tuple[str, float | None, float | None]
Row = tuple[Mapping[str, Any], Fault | None]


def jsonl_rows(path: str, max_line: int) -> Iterator[Row]:
    """The objects of a JSON Lines file, or the fault of a line; blank lines are no rows.

    A file that ends inside its compression gives a last fault, `import.truncated`. Raises InputError when the file
    cannot be read and FormatError when it grows beyond MAX_RATIO.
    """
    try:
        with open(path, "rb") as file:
            for line, length in _lines(_unpacked(file), max_line):
                if line is None:
                    reason = "import.truncated" if length < 0 else "import.line_too_long"
                    yield {}, (reason, float(length) if length >= 0 else None, float(max_line) if length >= 0 else None)
                    continue
                if not line.strip():
                    continue
                try:
                    value = orjson.loads(line)
                except ValueError:
                    yield {}, ("import.bad_json", None, None)
                    continue
                yield (value, None) if isinstance(value, dict) else ({}, ("import.not_an_object", None, None))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def is_skippable(head: bytes) -> bool:
    """Whether a zstd skippable frame begins so (RFC 8878): `pzstd` writes one before every frame of data."""
    return head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def _unpacked(file: BinaryIO) -> Iterator[bytes | None]:
    """The file's content in pieces; a last None where its compression is damaged or cut."""
    head = file.read(4)
    file.seek(0)
    if head[:2] == b"\x1f\x8b":
        parts = _gunzip(file)
    elif head == ZSTD or is_skippable(head):
        parts = _unzstd(file)
    else:
        yield from iter(lambda: file.read(CHUNK), b"")
        return
    out = 0
    for part in parts:
        yield part
        out += len(part or b"")
        if out > FREE_BYTES and out > MAX_RATIO * file.tell():
            raise FormatError(f"{file.name} grows more than {MAX_RATIO} times when unpacked", hint="unpack it yourself")


def _gunzip(file: BinaryIO) -> Iterator[bytes | None]:
    """All members of a gzip file, at most CHUNK bytes at a time."""
    unpack = zlib.decompressobj(31)
    pending = b""
    while True:
        if not pending:
            pending = file.read(CHUNK)
            if not pending:
                while part := b"" if unpack.eof else unpack.decompress(b"", CHUNK):
                    yield part
                if not unpack.eof:
                    yield None
                return
        if unpack.eof:
            pending = pending.lstrip(b"\0")  # members may be padded
            if not pending:
                continue
            unpack = zlib.decompressobj(31)
        before = unpack.copy()  # some 50 KB
        try:
            part = unpack.decompress(pending, CHUNK)
        except zlib.error:
            yield from _before_fault(before, pending)
            yield None
            return
        pending = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
        if part:
            yield part


def _before_fault(unpack: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What `data` gives before the byte that zlib refuses: a call that fails gives nothing of what it had unpacked."""
    for size in (SLICE, 1):
        for at in range(0, len(data), size):
            before = unpack.copy()
            try:
                part = unpack.decompress(data[at : at + size])  # 4 MiB at most: deflate's ratio is 1,032
            except zlib.error:
                unpack, data = before, data[at : at + size]
                break
            if part:
                yield part


def _unzstd(file: BinaryIO) -> Iterator[bytes | None]:
    """All frames of a zstd file. A block of 128 KiB takes 4 bytes at least, so SLICE becomes 128 MiB at most."""
    import zstandard

    maker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    unpack = maker.decompressobj()
    begin = made = 0  # of the current frame: its place, and the bytes it gave
    pending = b""
    while pending := pending or file.read(SLICE):
        at = file.tell() - len(pending)
        if unpack.eof:
            unpack, begin, made = maker.decompressobj(), at, 0
        try:
            part = unpack.decompress(pending)
        except zstandard.ZstdError:
            yield from _before_zstd_fault(file, begin, at, made)
            yield None
            return
        pending, made = unpack.unused_data if unpack.eof else b"", made + len(part)
        if part:
            yield part
    if not unpack.eof and file.tell() > begin:
        yield None  # the last frame has no end


def _before_zstd_fault(file: BinaryIO, begin: int, at: int, made: int) -> Iterator[bytes]:
    """What the slice at `at` gives before the byte that fails: its frame is read once more, that slice byte by byte."""
    import zstandard

    unpack = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
    file.seek(begin)
    while (left := at - file.tell()) > 0:
        made -= len(unpack.decompress(file.read(min(SLICE, left))))
    try:
        for byte in file.read(SLICE):
            part = unpack.decompress(bytes((byte,)))
            skip, made = min(max(made, 0), len(part)), made - len(part)
            if part := part[skip:]:
                yield part
    except zstandard.ZstdError:
        return


def _lines(parts: Iterator[bytes | None], most: int) -> Iterator[tuple[bytes | None, int]]:
    """(line, its bytes); (None, bytes) for one of more than `most`, of which no more is held, and (None, -1) for a cut end."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        if part is None:
            yield None, -1
            return
        start = 0
        while (end := part.find(b"\n", start)) >= 0:
            size += end - start
            yield (b"".join([*held, part[start:end]]), size) if size <= most else (None, size)
            held, size, start = [], 0, end + 1
        size += len(part) - start
        if size <= most:
            held.append(part[start:])
        else:
            held = []
    if size:
        yield (b"".join(held), size) if size <= most else (None, size)


def parquet_types(path: str, columns: Mapping[str, str]) -> dict[str, str]:
    """The type of each mapped column: string, int64, double or bool. Raises UsageError for a column that is none of them."""
    schema = _opened(path).schema_arrow
    out = {}
    for name, place in columns.items():
        kind = _type_at(schema, place)
        tests = (
            ("string", pa.types.is_string),
            ("string", pa.types.is_large_string),
            ("bool", pa.types.is_boolean),
            ("double", pa.types.is_floating),
            ("int64", pa.types.is_integer),
            ("string", pa.types.is_null),
        )
        found = next((t for t, test in tests if kind is not None and test(kind)), None)
        if found is None:
            what = "is not there" if kind is None else f"is {kind}, no text, number or truth value"
            raise UsageError(f"column `{place}` of {path} {what}", hint=f"columns: {', '.join(schema.names[:40])}")
        out[name] = found
    return out


def _opened(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except pa.ArrowException as error:
        raise FormatError(f"{path} is no Parquet file: {error}") from error


def _type_at(schema: pa.Schema, place: str) -> pa.DataType | None:
    if place in schema.names:
        return schema.field(place).type
    head, *rest = place.split(".")
    kind = schema.field(head).type if head in schema.names else None
    for part in rest:
        if kind is None or not pa.types.is_struct(kind):
            return None
        at = kind.get_field_index(part)
        kind = kind.field(at).type if at >= 0 else None
    return kind


def no_column(path: str, place: str, known: Sequence[str]) -> InputError:
    """The error of a file without a mapped column. `known`: those that it has, nested ones dotted."""
    near = difflib.get_close_matches(place, known, 1, 0.6)
    return InputError(
        f"{path} has no column `{place}`; has {', '.join(f'`{name}`' for name in known[:40]) or 'none'}",
        hint=f"did you mean `{near[0]}`?" if near else "`columns` of the import names the file's columns",
    )


def _places(fields: Iterable[pa.Field], prefix: str = "") -> list[str]:
    """Columns, and the fields of structs, dotted."""
    out: list[str] = []
    for field in fields:
        nested = pa.types.is_struct(field.type)
        out += _places(field.type, f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]
    return out


def _bounded(file: pq.ParquetFile, path: str) -> None:
    """Raises FormatError where a column says that it grows more than MAX_RATIO times; a lie about it is Arrow's to find."""
    for i in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(i)
        for j in range(group.num_columns):
            chunk = group.column(j)
            if chunk.total_uncompressed_size > max(FREE_BYTES, MAX_RATIO * chunk.total_compressed_size):
                raise FormatError(
                    f"{path} grows more than {MAX_RATIO} times when unpacked", hint="write it uncompressed"
                )


def parquet_rows(path: str, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a Parquet file, of the columns that are asked for.

    Raises InputError when the file lacks one of them, FormatError on a damaged file.
    """
    file = _opened(path)
    names = file.schema_arrow.names
    for place in columns:
        if _type_at(file.schema_arrow, place) is None:
            raise no_column(path, place, _places(file.schema_arrow))
    wanted = sorted({c if c in names else c.split(".")[0] for c in columns} & set(names))
    _bounded(file, path)
    try:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
            for row in batch.to_pylist() if wanted else [{}] * len(batch):
                yield row, None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    finally:
        file.close()
