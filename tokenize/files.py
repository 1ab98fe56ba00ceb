"""Read a tokenizer's files that somebody else wrote: sizes bounded before and after decompression, nothing executed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import InputError

MOST_BYTES = 256 << 20
"""Of one file, decompressed. The largest published tokenizer.json (262k ids with merges) has some 35 MB."""
MOST_IDS = 1 << 22
"""Ids at or above this are refused: counts per id are arrays, and one id of 2**32 - 1 would ask for 32 GB."""


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file's bytes, gunzipped when it starts with gzip's magic. Raises InputError when missing, too big or damaged."""
    try:
        if path.stat().st_size > most:
            raise InputError(f"{path} is larger than {most:,} bytes", hint="this is no tokenizer file")
        raw = path.read_bytes()
        if raw[:2] != b"\x1f\x8b":
            return raw
        with gzip.open(path) as file:
            data = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} does not read: {error}") from error
    if len(data) > most:
        raise InputError(f"{path} unpacks to more than {most:,} bytes", hint="this is no tokenizer file")
    return data


def read_json(path: Path) -> Any:
    """The JSON value of a bounded file. Raises InputError."""
    return json_of(read_bounded(path), path)


def json_of(raw: bytes, name: object) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{name} is no JSON: {error}") from error


def plain_name(path: Path) -> str:
    """A file's name without the endings that say how it is stored: o200k_base.tiktoken.gz -> o200k_base."""
    name = path.name.removesuffix(".gz")
    for ending in (".json", ".tiktoken", ".tokenizer", ".bpe", ".txt"):
        name = name.removesuffix(ending)
    return name if name not in ("", "tokenizer", "encoder", "vocab") else path.resolve().parent.name
