"""isal inflates as zlib does: the same records and the same damage from sound, cut and broken gzip members."""

from __future__ import annotations

import gzip
import io
import random
import zlib

import pytest

from gristmill.curate import warc_codecs
from gristmill.curate.warc import Damage, Record, read_records


def archive(rng: random.Random) -> bytes:
    out = b""
    for n in range(12):
        block = bytes(rng.choices(b"abcdefgh <>\n", k=rng.choice((0, 40, 3_000, 400_000))))
        head = f"WARC/1.0\r\nWARC-Type: resource\r\nWARC-Target-URI: http://site/{n}\r\nContent-Length: {len(block)}\r\n\r\n"
        out += gzip.compress(head.encode() + block + b"\r\n\r\n", rng.choice((1, 6, 9)))
    return out


def outcome(data: bytes) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for row in read_records(io.BytesIO(data), "x"):
        assert isinstance(row, Record | Damage)
        where = (row.offset, row.inner, row.length, row.url)
        rows.append(
            (*where, row.reason, row.message) if isinstance(row, Damage) else (*where, row.block, row.truncated)
        )
    return rows


def damaged(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    junk = rng.randbytes(rng.randrange(1, 30))
    cut = rng.randrange(1, 40)
    return rng.choice((data[:at], data[:at] + data[at + cut :], data[:at] + junk + data[at:], data[:at] + junk + data[at + len(junk) :]))  # fmt: skip


def test_isal_and_zlib_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    isal = pytest.importorskip("isal.isal_zlib", reason="isal is not installed")
    rng = random.Random(5)
    sound = archive(rng)
    faults = 0
    for data in [sound, *(damaged(sound, rng) for _ in range(120))]:
        monkeypatch.setattr(warc_codecs, "_INFLATER", isal)
        fast = outcome(data)
        monkeypatch.setattr(warc_codecs, "_INFLATER", zlib)
        assert outcome(data) == fast
        faults += any(isinstance(row[4], str) for row in fast)
    assert faults > 60


def test_members_with_a_header_checksum_are_left_to_zlib() -> None:
    assert warc_codecs.Gzip.quick(b"\x1f\x8b\x08\x02").z.__class__ is zlib.decompressobj().__class__
    assert warc_codecs.Gzip.quick(b"\x1f\x8b\x08\x80").z.__class__ is zlib.decompressobj().__class__
