"""Rows copied into a kept buffer: every row of every shard, in any order, and files that are not what they should be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gristmill.core import rowcopy
from gristmill.core.errors import FormatError
from gristmill.core.rowcopy import RowCopier
from gristmill.core.tokshards import (
    PROVENANCE_SCHEMA,
    PackedDataset,
    PackedManifest,
    PackedPhase,
    PackedShard,
    write_manifest,
    write_rows,
)

ROWS, PER_SHARD, WIDTH = 23, 5, 9


@pytest.fixture(params=["<u2", "<u4"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> PackedDataset:
    """Row r holds r * 100 + its places."""
    (tmp_path / "a").mkdir()
    shards = []
    for i, first in enumerate(range(0, ROWS, PER_SHARD)):
        n = min(PER_SHARD, ROWS - first)
        rows = (first + np.arange(n))[:, None] * 100 + np.arange(WIDTH)
        base = tmp_path / "a" / f"{i:05d}"
        write_rows(base, rows.astype(request.param), [np.array([0], np.int32)] * n, PROVENANCE_SCHEMA.empty_table())
        shards.append(PackedShard(f"a/{i:05d}.bin", n, {}))
    phase = PackedPhase("a", WIDTH - 1, ROWS, 1, PER_SHARD, {}, {}, shards=shards)
    write_manifest(tmp_path, PackedManifest(request.param, 60_000, {}, "", 0, "", [phase], []))
    return PackedDataset(tmp_path)


def want(rows: list[int]) -> list[list[int]]:
    return [[r * 100 + i for i in range(WIDTH)] for r in rows]


@pytest.mark.parametrize("handles", [1, 256])
def test_any_rows_in_any_order(dataset: PackedDataset, handles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowcopy, "OPEN_FILES", handles)
    before = len(os.listdir("/proc/self/fd"))
    buffer = np.empty((32, WIDTH), dataset.manifest.dtype)
    with RowCopier(dataset) as copier:
        for rows in ([0], [], list(range(ROWS)), [22, 0, 22, 21, 4, 5, 6, 9, 10], [7, 7, 7], list(range(22, -1, -1))):
            got = copier.rows_into("a", rows, buffer)
            assert got.tolist() == want(rows)
            assert got.base is buffer
            assert len(os.listdir("/proc/self/fd")) - before <= handles
    assert len(os.listdir("/proc/self/fd")) == before


def test_neighbours_are_one_read(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read = os.preadv

    def counted(file: int, parts: list[memoryview], where: int) -> int:
        sizes.append(len(parts[0]))
        return read(file, parts, where)

    monkeypatch.setattr("gristmill.core.rowcopy.os.preadv", counted)
    size = WIDTH * np.dtype(dataset.manifest.dtype).itemsize
    with RowCopier(dataset) as copier:
        copier.rows_into("a", [1, 2, 3, 4, 5, 6, 8], np.empty((7, WIDTH), dataset.manifest.dtype))
    assert sizes == [4 * size, 2 * size, size]  # rows 4 and 5 stand in two shards


def test_a_read_that_stops_early_goes_on(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.preadv
    monkeypatch.setattr(
        "gristmill.core.rowcopy.os.preadv", lambda file, parts, where: read(file, [parts[0][:7]], where)
    )
    with RowCopier(dataset) as copier:
        rows = copier.rows_into("a", [3, 4, 11], np.empty((3, WIDTH), dataset.manifest.dtype))
    assert rows.tolist() == want([3, 4, 11])


def test_what_is_refused(dataset: PackedDataset) -> None:
    dtype = np.dtype(dataset.manifest.dtype)
    good = np.empty((4, WIDTH), dtype)
    copier = RowCopier(dataset)
    for rows in ([23], [-1], [0, 99]):
        with pytest.raises(FormatError, match=r"rows 0\.\.22"):
            copier.rows_into("a", rows, good)
    with pytest.raises(FormatError, match="no phase"):
        copier.rows_into("b", [0], good)
    for bad in (np.empty((4, WIDTH), "<i8"), np.empty((1, WIDTH), dtype), np.empty((4, WIDTH - 1), dtype)):
        with pytest.raises(ValueError, match="a buffer of"):
            copier.rows_into("a", [0, 1], bad)
    with pytest.raises(ValueError, match="not contiguous"):
        copier.rows_into("a", [0], np.empty((WIDTH, 4), dtype).T)
    path = dataset.folder / "a" / "00001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="its manifest says"):
        copier.rows_into("a", [6], good)
    path.unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        copier.rows_into("a", [6], good)
    assert copier.rows_into("a", [0], good).tolist() == want([0])
