"""benchmarks/tokens.py: the six figures under their names, null where one is left out or fails; and the loader's own parts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gristmill.core.tokshards import PackedDataset
from gristmill.mixes.export_rows import piece_lengths

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
KEYS = {"encode", "end_to_end", "shuffle_of_floor", "pack_docs_per_s", "loader_bytes_per_s", "loader_rss_bytes"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(
    arguments: list[str], answers: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> tuple[Any, int]:
    """What tokens.py prints and its exit code when each benchmark prints its answer."""
    tokens = load("tokens")

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout=answers.get(Path(command[1]).name, ""))

    monkeypatch.setattr(tokens.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["tokens.py", "--json", "--text", "x", *arguments])
    with pytest.raises(SystemExit) as stopped:
        tokens.main()
    return json.loads(capsys.readouterr().out), int(str(stopped.value.code))


ANSWERS = {
    "tokens_encode.py": '{"encode": 12.5}',
    "tokens_end.py": '{"end_to_end": 6}',
    "tokens_shards.py": '{"shuffle_of_floor": 0.7, "pack_docs_per_s": 2e6}',
    "tokens_loader.py": '{"loader_bytes_per_s": 3e9, "loader_rss_bytes": 1000}',
}


def test_the_six_figures(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found, code = printed([], ANSWERS, monkeypatch, capsys)
    assert code == 0
    assert set(found) == KEYS
    assert found["encode"] == 12.5
    assert found["loader_rss_bytes"] == 1000


def test_what_is_left_out_or_fails_is_null(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found, code = printed(["--only", "copy,encode"], {**ANSWERS, "tokens_encode.py": ""}, monkeypatch, capsys)
    assert code == 1
    assert set(found) == KEYS
    assert {name for name, value in found.items() if value is not None} == {"loader_bytes_per_s"}
    found, code = printed(["--only", "copy", "--details"], ANSWERS, monkeypatch, capsys)
    assert (set(found), code) == ({*KEYS, "details"}, 0)


def test_the_loaders_made_shards_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures over shards that a loader would refuse would be worth nothing."""
    loader = load("tokens_loader")
    monkeypatch.setattr(loader, "SHARD_ROWS", 64)
    monkeypatch.setattr(loader, "BATCH", 8)
    loader.made_dataset(tmp_path / "d", 200, range(1, 4), real=False)
    dataset = PackedDataset(tmp_path / "d")
    for shard, rows in ((1, 64), (3, 8)):
        reader, _ = dataset.locate("a", shard * 64)
        counts, lengths = piece_lengths(reader)
        assert (len(counts), int(lengths.sum())) == (rows, rows * loader.WIDTH)
        table = reader.provenance()
        assert table["length"].to_pylist() == lengths.tolist()
        assert np.unique(table["row"].to_numpy()).tolist() == list(range(shard * 64, shard * 64 + rows))
    found = loader.child_reads(tmp_path / "d", 9, 24, 128)
    assert found["samples"] == 128
