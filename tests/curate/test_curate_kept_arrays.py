"""Arrays kept for the next process: found again, never believed when damaged, and never missed when they cannot be kept."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gristmill.curate.kept_arrays import folder, kept_array

ARRAY = np.arange(1_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gristmill"


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return ARRAY.copy()


def test_made_once(cache: Path) -> None:
    make = Maker()
    for _ in range(3):
        found = kept_array("some-name", np.uint64, make)
        assert found.dtype == np.uint64
        assert found.tobytes() == ARRAY.tobytes()
    assert make.calls == 1
    assert os.listdir(cache) == ["some-name"]  # no temporary file is left
    kept_array("other-name", np.uint64, make)
    assert make.calls == 2


@pytest.mark.parametrize("damage", ["cut", "longer", "bit", "empty", "magic", "renamed", "digest"])
def test_a_damaged_file_is_made_again(cache: Path, damage: str) -> None:
    make = Maker()
    kept_array("name", np.uint64, make)
    path = cache / "name"
    whole = path.read_bytes()
    changed = {
        "cut": whole[:-8],
        "longer": whole + b"\0" * 3,
        "bit": whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
        "empty": b"",
        "magic": b"x" + whole[1:],
        "renamed": whole,
        "digest": whole[:17] + bytes([whole[17] ^ 1]) + whole[18:],
    }[damage]
    name = "name2" if damage == "renamed" else "name"
    (cache / name).write_bytes(changed)
    assert kept_array(name, np.uint64, make).tobytes() == ARRAY.tobytes()
    assert make.calls == 2
    assert kept_array(name, np.uint64, make).tobytes() == ARRAY.tobytes()
    assert make.calls == 2


def test_a_file_of_another_user_is_not_believed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, fstat = Maker(), os.fstat
    kept_array("name", np.uint64, make)
    foreign = os.geteuid() + 1
    monkeypatch.setattr(os, "fstat", lambda n: SimpleNamespace(st_uid=foreign, st_size=fstat(n).st_size))
    assert kept_array("name", np.uint64, make).tobytes() == ARRAY.tobytes()
    assert make.calls == 2
    monkeypatch.setattr(os, "fstat", lambda n: SimpleNamespace(st_uid=os.geteuid(), st_size=fstat(n).st_size))
    assert kept_array("name", np.uint64, make).tobytes() == ARRAY.tobytes()
    assert make.calls == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    make = Maker()
    for _ in range(2):
        assert kept_array("name", np.uint64, make).tobytes() == ARRAY.tobytes()
    assert make.calls == 2


def test_a_folder_in_the_place_of_the_file(cache: Path) -> None:
    (cache / "name").mkdir(parents=True)
    make = Maker()
    assert kept_array("name", np.uint64, make).tobytes() == ARRAY.tobytes()
    assert os.listdir(cache) == ["name"]


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder() == tmp_path / "gristmill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert folder() == Path("/home/someone/.cache/gristmill")
