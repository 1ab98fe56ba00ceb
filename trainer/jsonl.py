"""Lines of JSONL files that others wrote, plain or compressed, with bounded memory; a line that is none is counted."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from gristmill.core.errors import UsageError

MAX_LINE = 16 << 20  # bytes; the longest line of the usual task files has some 20 kB, of web text 10 MB
MAX_BYTES = 8 << 30  # decompressed bytes of one file: gzip packs zeros 1,000 : 1
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number from 1, object) of every line that is not blank; None where it is not a JSON object.

    Damage to the compression ends the file with one None. Raises UsageError when there is no such file, its name has
    another ending, or it is longer than 8 GiB decompressed.
    """
    if not path.name.endswith(ENDINGS):
        raise UsageError(f"{path}: not a JSONL file", hint=f"it must end in {', '.join(ENDINGS)}")
    number = total = 0
    try:
        with open(path, "rb") as raw:
            lines = _opened(path, raw)
            while True:
                number += 1
                try:
                    line, size = _line(lines)
                except _damage():
                    yield number, None
                    return
                if not size:
                    return
                total += size
                if total > MAX_BYTES:
                    raise UsageError(f"{path} is longer than {MAX_BYTES >> 30} GiB", hint="cut it into parts")
                if line is None:
                    yield number, None
                elif line.strip():
                    yield number, _object(line)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _line(file: IO[bytes]) -> tuple[bytes | None, int]:
    """The next line and its size; None for one longer than MAX_LINE, which is read past."""
    line = file.readline(MAX_LINE)
    size = len(line)
    if size < MAX_LINE or line.endswith(b"\n"):
        return line, size
    while size <= MAX_BYTES:
        rest = file.readline(MAX_LINE)
        size += len(rest)
        if len(rest) < MAX_LINE or rest.endswith(b"\n"):
            break
    return None, size


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _opened(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))  # type: ignore[arg-type]
    if path.name.endswith(".zst"):
        import zstandard

        # 128 MiB is the widest window that `zstd --ultra` makes without --long
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(reader)
    return raw


def _damage() -> tuple[type[Exception], ...]:
    """What reading damaged compressed bytes raises."""
    import zstandard

    return EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError
