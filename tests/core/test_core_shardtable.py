"""The compact list of shards is the list that was written: entries, slices, equality, digests, and what is no shard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from gristmill.core.hashing import sha256_bytes
from gristmill.core.shardtable import PackedShard, ShardTable
from gristmill.core.tokshards import PackedManifest, PackedPhase, read_manifest, write_manifest


def shards(n: int = 7) -> list[PackedShard]:
    suffixes = ("bin", "bnd.npy", "prov.parquet")
    made = [
        PackedShard(f"é/{i:05d}.bin", 10 + i, {s: sha256_bytes(f"{i}{s}".encode()) for s in suffixes[: 3 - i % 2]})
        for i in range(n)
    ]
    return [*made, PackedShard("", 0, {})]


def test_entries_are_those_that_went_in() -> None:
    want = shards()
    table = ShardTable([asdict(s) for s in want])
    assert list(table) == want
    assert table == want
    assert table[-1] == want[-1]
    assert table[2:5] == want[2:5]
    assert table[::-2] == want[::-2]
    assert len(table) == len(want)
    assert table != want[1:]
    assert table != [*want[1:], want[0]]
    assert len(ShardTable([])) == 0
    for bad in (len(want), -len(want) - 1):
        with pytest.raises(IndexError):
            table[bad]


def test_a_manifest_read_and_written_again_is_the_same(tmp_path: Path) -> None:
    phase = PackedPhase("a", 8, 10, 2, 4, {}, {}, shards=shards())
    manifest = PackedManifest("<u2", 9, {}, "", 0, "", [phase], [])
    first = write_manifest(tmp_path, manifest).read_bytes()
    again = read_manifest(tmp_path)
    assert isinstance(again.phases[0].shards, ShardTable)
    assert again.digest == manifest.digest
    assert write_manifest(tmp_path, again).read_bytes() == first


@pytest.mark.parametrize("entry", [{"file": "a"}, {"file": "a", "rows": 1, "sha256": {}, "more": 1}, {}])
def test_what_is_no_shard(entry: dict[str, object]) -> None:
    with pytest.raises((TypeError, KeyError)):
        ShardTable([entry])
