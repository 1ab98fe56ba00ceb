"""Exports read back with the consumers' own readers, and an import of what Megatron's own builder wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helper import REPO
from mix_line import MIXTURE, folder_of, line

from gristmill.core.tokshards import PackedDataset
from gristmill.core.tokstore import TokenStore
from gristmill.mixes.exports import export

READERS = REPO / ".venv-parity" / "readers"


@pytest.fixture(scope="module")
def readers() -> Path:
    """The folder with megatron-core, made when missing. Fails, never skips."""
    if not (READERS / "megatron").is_dir():
        built = subprocess.run(["make", "readers"], cwd=REPO, capture_output=True, text=True)
        if built.returncode:
            pytest.fail(f"`make readers` failed:\n{built.stdout[-2000:]}\n{built.stderr[-4000:]}", pytrace=False)
    return READERS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PackedDataset, list[TokenStore]]:
    root = tmp_path_factory.mktemp("root")
    done = line(root, MIXTURE)
    stores = [TokenStore(r.output("tokens.bin").path, r.output("docs.parquet").path) for r in done["tokens"]]
    return root, PackedDataset(folder_of(done)), stores


def read(readers: Path, *arguments: str) -> Any:
    command = [sys.executable, str(Path(__file__).with_name("peer_readers.py")), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(readers), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-4000:]
    return json.loads(found.stdout.strip().splitlines()[-1])


def test_megatron_reads_every_document(readers: Path, world: Any, tmp_path: Path) -> None:
    root, dataset, stores = world
    export("megatron", dataset.folder, root, tmp_path / "out")
    found = read(readers, "megatron", str(tmp_path / "out"))
    import pyarrow.parquet as pq

    held = set(pq.read_table(dataset.folder / "heldout.parquet")["id"].to_pylist())
    assert set(found) == {"english", "other"}
    for name, got in found.items():
        want = [
            store.tokens(i).tolist()
            for store in stores
            for i, (document, language) in enumerate(
                zip(store.docs["id"].to_pylist(), store.docs["language"].to_pylist(), strict=True)
            )
            if document not in held and (language == "en") == (name == "english")
        ]
        assert got["documents"] == want
        assert got["marks"] == list(range(len(want) + 1))
        assert got["dtype"] == "uint16"


def test_datatrove_reads_the_rows_in_order(readers: Path, world: Any, tmp_path: Path) -> None:
    root, dataset, _ = world
    export("datatrove", dataset.folder, root, tmp_path / "out")
    for phase in dataset.manifest.phases:
        rows = read(readers, "datatrove", str(tmp_path / "out" / phase.name), str(phase.seq_len), "2")
        assert len(rows) == phase.rows
        for i, row in enumerate(rows):
            tokens, starts = dataset.row(phase.name, i)
            place = np.arange(len(tokens))
            assert row["input_ids"] == tokens.tolist()
            assert row["positions"] == (place - starts[np.searchsorted(starts, place, "right") - 1]).tolist()


def test_gristmill_reads_what_megatron_wrote(readers: Path, tmp_path: Path) -> None:
    from gristmill.tokenize.imports_tokens import read_megatron

    want = read(readers, "write-megatron", str(tmp_path))["documents"]
    found = read_megatron(tmp_path / "made.idx", tmp_path / "made.bin")
    assert [found.data[f : f + n].tolist() for f, n in zip(found.first, found.length, strict=True)] == want
