"""Hashes that decide output bytes: stable across Python versions, machines, worker counts and processes.

Three kinds, one purpose each: sha256 for content (files, configs), a 128-bit document identity, and the
64-bit mixer that stands in for a random generator (randomness is a hash of (seed, id), never a stream).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

U64 = np.uint64


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces. Raises TypeError on a value JSON cannot hold."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def digest(value: Any) -> str:
    """sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """sha256 (hex) of a local file, read in 1 MiB pieces."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def document_id(warc_name: str, member_offset: int, inner_offset: int = 0) -> str:
    """A document's identity: 128-bit xxh3 (32 hex digits) of where its record stands.

    `warc_name` is the input-relative file name, `member_offset` the compressed offset of the gzip member
    (or the record's offset in an uncompressed file), `inner_offset` the offset inside that member. Adding
    or removing a file renumbers nothing.
    """
    return xxhash.xxh3_128_hexdigest(f"{warc_name}\0{member_offset}\0{inner_offset}".encode())


def hash64(text: str | bytes, seed: int = 0) -> int:
    """64-bit xxh3 of a string (UTF-8; lone surrogates pass)."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return xxhash.xxh3_64_intdigest(data, seed=seed & 0xFFFFFFFFFFFFFFFF)


def hash128_bytes(text: str) -> bytes:
    """16-byte xxh3 of a text, the key of exact deduplication."""
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def mix64(x: np.ndarray | int, seed: int = 0) -> np.ndarray:
    """A bijective 64-bit mixer (splitmix64's finaliser, Stafford variant 13) of `x` xor a seed's own mix.

    `x` is any integer array; the result is uint64 of the same shape. Bijective, so sorting by it has no ties
    among distinct inputs.
    """
    with np.errstate(over="ignore"):
        h = np.asarray(x).astype(U64)
        if seed:
            h = h ^ mix64(np.asarray([seed & 0xFFFFFFFFFFFFFFFF], U64))[0]
        h = h + U64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> U64(27))) * U64(0x94D049BB133111EB)
        return h ^ (h >> U64(31))


def seed_of(*parts: object) -> int:
    """A 64-bit seed from a tuple of names and numbers, for `mix64` and `hash64`."""
    return hash64("\0".join(map(str, parts)))
