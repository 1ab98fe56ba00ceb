"""JSON lines of files that a user names: plain, gzip or Zstandard, told by their bytes; one bounded line at a time."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import orjson

from gristmill.core.errors import FormatError
from gristmill.curate.imports_files import ZSTD, is_skippable

MAX_LINE = 16 << 20
_GZIP = b"\x1f\x8b"


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not empty.

    Raises FormatError with the line's number on a line that is no JSON object or has more than 16 MiB, and on damage.
    """
    import zstandard

    number = 0
    with open(path, "rb") as raw:
        file = _opened(raw)
        try:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise FormatError(f"{path}:{number}: a line of more than {MAX_LINE >> 20} MiB")
                if not line.strip():
                    continue
                try:
                    value = orjson.loads(line)
                except ValueError as error:
                    raise FormatError(f"{path}:{number}: no JSON: {error}", hint="one JSON object a line") from error
                if not isinstance(value, dict):
                    raise FormatError(f"{path}:{number}: no JSON object", hint="one JSON object a line")
                yield number, value
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise FormatError(f"{path} is damaged after line {number}: {error}", hint="get the file again") from error


def _opened(raw: IO[bytes]) -> IO[bytes]:
    head = raw.read(4)
    raw.seek(0)
    if head.startswith(_GZIP):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if head == ZSTD or is_skippable(head):
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
    return raw
