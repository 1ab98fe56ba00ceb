"""Exports against the packed rows and the token stores they come from, read by readers written here from the layouts.

tests/parity reads the same exports with the consumers' own readers.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from mix_line import MIXTURE, folder_of, line

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PackedDataset
from gristmill.core.tokstore import TokenStore
from gristmill.mixes.exports import export
from gristmill.mixes.tracing import pieces_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[TokenStore]]:
    root = tmp_path_factory.mktemp("root")
    done = line(root, MIXTURE)
    stores = [TokenStore(r.output("tokens.bin").path, r.output("docs.parquet").path) for r in done["tokens"]]
    return root, folder_of(done), stores


def idx(path: Path) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Megatron's index by its layout: (type code, lengths, pointers, document indices)."""
    raw = path.read_bytes()
    magic, version, code, count, documents = struct.unpack_from("<9sQBQQ", raw)
    assert (magic, version) == (b"MMIDIDX\0\0", 1)
    at = struct.calcsize("<9sQBQQ")
    lengths = np.frombuffer(raw, "<i4", count, at)
    pointers = np.frombuffer(raw, "<i8", count, at + lengths.nbytes)
    indices = np.frombuffer(raw, "<i8", documents, at + lengths.nbytes + pointers.nbytes)
    assert at + lengths.nbytes + pointers.nbytes + indices.nbytes == len(raw)
    return code, lengths, pointers, indices


def test_megatron_has_every_document_of_each_source(world: Any, tmp_path: Path) -> None:
    root, folder, stores = world
    facts = export("megatron", folder, root, tmp_path / "out")
    held = set(pq.read_table(folder / "heldout.parquet")["id"].to_pylist())
    for source in ("english", "other"):
        want = [
            store.tokens(d).tolist()
            for store in stores
            for d, (i, language) in enumerate(
                zip(store.docs["id"].to_pylist(), store.docs["language"].to_pylist(), strict=True)
            )
            if i not in held and (language == "en") == (source == "english")
        ]
        code, lengths, pointers, indices = idx(tmp_path / "out" / f"{source}.idx")
        tokens = np.fromfile(tmp_path / "out" / f"{source}.bin", "<u2")
        got = [tokens[p // 2 : p // 2 + n].tolist() for n, p in zip(lengths, pointers, strict=True)]
        assert (code, got) == (8, want)
        assert indices.tolist() == list(range(len(want) + 1))
        assert facts["sources"][source] == {"file": source, "documents": len(want), "tokens": sum(map(len, want))}
        assert (tmp_path / "out" / f"{source}.idx").stat().st_size == 34 + 20 * len(want) + 8
    blend = (tmp_path / "out" / "warm.data_path").read_text().split()
    assert blend[0] == "--data-path"
    assert blend[2::2] == ["english", "other"]
    shares = PackedDataset(folder).manifest.phase("warm").shares
    assert [float(w) for w in blend[1::2]] == pytest.approx([s["target"] for s in shares.values()])


def test_megatron_indexes_a_document_as_often_as_it_is_drawn(tmp_path: Path) -> None:
    """A `rehydrate` weight repeats the entry, not the tokens."""
    from gristmill.mixes.export_megatron import _Source

    class Store:
        lengths, offsets, data = np.array([3, 2, 4]), np.array([0, 3, 5]), np.arange(9, dtype="<u2")

    source = _Source(tmp_path / "a", "<i4")
    source.add(Store(), np.array([0, 2]), np.array([2, 1]))  # type: ignore[arg-type]
    assert source.close() == {"file": "a", "documents": 3, "tokens": 10}
    code, lengths, pointers, _ = idx(tmp_path / "a.idx")
    assert (code, lengths.tolist(), pointers.tolist()) == (4, [3, 3, 4], [0, 0, 12])
    assert np.fromfile(tmp_path / "a.bin", "<i4").tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert not (tmp_path / "a.entries").exists()


def test_datatrove_is_the_rows_in_order(world: Any, tmp_path: Path) -> None:
    root, folder, _ = world
    dataset = PackedDataset(folder)
    facts = export("datatrove", folder, root, tmp_path / "out")
    for phase in dataset.manifest.phases:
        row = 0
        for path in sorted((tmp_path / "out" / phase.name).glob("*.ds")):
            tokens = np.fromfile(path, "<u2").reshape(-1, phase.seq_len + 1)
            ends = np.fromfile(f"{path}.index", "<u8").tolist()
            want = []
            for i, got in enumerate(tokens):
                mine, starts = dataset.row(phase.name, row)
                assert got.tolist() == mine.tolist()
                want += [i * (phase.seq_len + 1) + e for e in [*starts[1:].tolist(), phase.seq_len + 1]]
                row += 1
            assert ends == want
            name, count, _ = Path(f"{path}.metadata").read_text().split("\n")
            assert (name, int(count)) == ("tokenizer.json|2", tokens.size)
        assert row == phase.rows
    assert facts["tokens"] == sum(p.rows * (p.seq_len + 1) for p in dataset.manifest.phases)


def test_parquet_is_the_rows_in_order(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder, _ = world
    dataset = PackedDataset(folder)
    monkeypatch.setattr("gristmill.mixes.export_rows.BATCH_TOKENS", 70)  # several row groups a file
    export("parquet", folder, root, tmp_path / "out", ["anneal"])
    assert not (tmp_path / "out" / "warm").exists()
    rows = [r for p in sorted((tmp_path / "out" / "anneal").iterdir()) for r in pq.read_table(p).to_pylist()]
    assert len(rows) == dataset.manifest.phase("anneal").rows
    for i, row in enumerate(rows):
        tokens, starts = dataset.row("anneal", i)
        pieces = pieces_of(dataset, "anneal", i)
        assert row["input_ids"] == tokens.tolist()
        assert row["seq_lengths"] == np.diff([*starts.tolist(), len(tokens)]).tolist()
        assert row["source"] == pieces[0].source
    assert set(row) == {"input_ids", "seq_lengths", "source"}


def test_export_json_names_every_file(world: Any, tmp_path: Path) -> None:
    root, folder, _ = world
    for kind in ("megatron", "datatrove", "parquet"):
        out = tmp_path / kind
        facts = export(kind, folder, root, out)
        body = orjson.loads((out / "export.json").read_bytes())
        assert body == facts
        files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} - {"export.json"}
        assert set(body["files"]) == files
        assert "tokenizer.json" in files
        assert all(sha256_file(out / n) == f["sha256"] for n, f in body["files"].items())
        assert Counter(p.name.startswith(".tmp") for p in tmp_path.iterdir())[True] == 0


def test_what_an_export_refuses(world: Any, tmp_path: Path) -> None:
    root, folder, _ = world
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    with pytest.raises(UsageError, match="exists"):
        export("parquet", folder, root, tmp_path / "full")
    assert (tmp_path / "full" / "mine").read_text() == "kept"
    with pytest.raises(UsageError, match="no stage 'late'"):
        export("parquet", folder, root, tmp_path / "new", ["late"])
    with pytest.raises(UsageError, match="no export format"):
        export("pickle", folder, root, tmp_path / "new")
    with pytest.raises(FormatError, match="token store"):
        export("megatron", folder, tmp_path, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]  # nothing half written is left


def test_names_that_would_leave_the_folder() -> None:
    from gristmill.mixes.export_megatron import file_name

    assert file_name("fw2.fra") == "fw2.fra"
    odd = [file_name(n) for n in ("web.../../etc/x", "web.a b", "web.a_b", "web.é")]
    assert len(set(odd)) == 4
    assert all("/" not in n and " " not in n for n in odd)
