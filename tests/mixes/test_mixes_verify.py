"""`mix verify` on sound datasets, and on datasets with one planted fault each: the code that names it, and where."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mix_line import MIXTURE, WARM, damage, folder_of, line

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PROVENANCE_SCHEMA, PackedDataset
from gristmill.mixes import verify_repeats
from gristmill.mixes.order import interleave
from gristmill.mixes.verify import check

WIDE = {**MIXTURE, "stages": [MIXTURE["stages"][0]]}  # type: ignore[index]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    line(root, MIXTURE)
    return root


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A root of this test's own, and its dataset folder; the files are copies, not links."""
    mine = Path(shutil.copytree(root, tmp_path / "root"))
    return mine, next((mine / "stages" / "shards").glob("*/manifest.json")).parent


def codes(folder: Path, root: Path | None = None, digests: bool = False) -> dict[str, str]:
    return {p.code: p.where for p in check(folder, root, digests=digests).problems}


def rewrite(folder: Path, shard: str, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Change the provenance of a shard as a faulty writer would have: the manifest's digest goes with it."""
    path = folder / f"{shard}.prov.parquet"
    columns = pq.read_table(path).to_pydict()
    change(columns)
    path.unlink()
    pq.write_table(pa.table(columns).cast(PROVENANCE_SCHEMA), path)
    body = orjson.loads((folder / "manifest.json").read_bytes())
    for phase in body["phases"]:
        for entry in phase["shards"]:
            if entry["file"] == f"{shard}.bin":
                entry["sha256"]["prov.parquet"] = sha256_file(path)
    damage(folder, "manifest.json", lambda _: orjson.dumps(body))


def test_a_sound_dataset_and_its_counts(root: Path) -> None:
    folder = next((root / "stages" / "shards").glob("*/manifest.json")).parent
    report = check(folder, root)
    dataset = PackedDataset(folder)
    assert report.to_json()["problems"] == []
    assert report.to_json()["ok"] is True
    assert report.counts["rows"] == sum(p.rows for p in dataset.manifest.phases)
    assert report.counts["files_hashed"] == 3 * report.counts["shards"] > 9
    assert report.counts["stores_read"] == 3
    assert report.counts["heldout_clusters"] >= 2
    assert 0 < report.counts["prefix_error_rows"] < 1
    assert report.counts["pieces"] > report.counts["rows"]


def test_hashes_and_missing_files(copied: tuple[Path, Path]) -> None:
    root, folder = copied
    damage(folder, "warm/00001.bnd.npy", lambda b: b[:-1] + b"\x01")
    assert codes(folder, root, digests=True)["hash"] == "warm/00001.bnd.npy"
    (folder / "warm/00000.bin").unlink()
    assert codes(folder, root, digests=True)["missing"] == "warm/00000.bin"
    docs = next((root / "stages" / "tokens").glob("*/docs.parquet"))
    docs.unlink()
    assert codes(folder, root)["store"].endswith(f"{docs.parent.name}/docs.parquet")


def test_a_held_out_document_is_named_by_its_row(copied: tuple[Path, Path]) -> None:
    root, folder = copied
    held = bytes.fromhex(pq.read_table(folder / "heldout.parquet")["id"][0].as_py())

    def leak(columns: dict[str, list[Any]]) -> None:
        columns["id"][3] = held

    rewrite(folder, "warm/00001", leak)
    row = pq.read_table(folder / "warm/00001.prov.parquet")["row"][3].as_py()
    assert codes(folder, root)["heldout.id"] == f"warm:{row}"


def test_a_cluster_of_a_held_out_document_may_not_leak(copied: tuple[Path, Path]) -> None:
    """The other half of a held-out pair is trained on: no id of a held-out document gives it away."""
    root, folder = copied
    held = pq.read_table(folder / "heldout.parquet").to_pylist()
    docs = [pq.read_table(root / s["path"]) for s in PackedDataset(folder).manifest.stores]
    victim = next(h for h in held if h["length"] > 1)
    twin = victim["doc"] ^ 1  # pairs share a cluster; both are held out
    kept = [h for h in held if (h["store"], h["doc"]) != (victim["store"], twin)]
    damage(folder, "heldout.parquet", lambda b: b)
    pq.write_table(pa.Table.from_pylist(kept), folder / "heldout.parquet")
    identity = docs[victim["store"]]["id"][twin].as_py()

    def leak(columns: dict[str, list[Any]]) -> None:
        columns["id"][0], columns["store"][0], columns["doc"][0] = bytes.fromhex(identity), victim["store"], twin

    rewrite(folder, "anneal/00000", leak)
    found = codes(folder, root)
    assert found["heldout.cluster"] == "anneal:0"
    assert "heldout.id" not in found
    assert "heldout.cluster" not in codes(folder)  # without the root nobody knows the clusters


def test_a_row_twice_in_an_epoch_across_phases(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = copied
    first = pq.read_table(folder / "warm/00000.prov.parquet").to_pydict()

    def again(columns: dict[str, list[Any]]) -> None:
        same = next(i for i, s in enumerate(columns["source"]) if s == first["source"][0])
        for name in ("id", "doc_start", "epoch"):
            columns[name][same] = first[name][0]

    rewrite(folder, "anneal/00001", again)
    assert codes(folder, root)["twice"].startswith("anneal:")
    monkeypatch.setattr(verify_repeats, "BUCKET_PIECES", 16)  # many buckets, by way of files
    assert codes(folder, root)["twice"].startswith("anneal:")

    def later(columns: dict[str, list[Any]]) -> None:
        columns["epoch"] = [e + 40 for e in columns["epoch"]]

    rewrite(folder, "anneal/00001", later)
    assert "twice" not in codes(folder, root)


def test_stretches_that_overlap() -> None:
    """Cut at other places, equal, inside one another; another epoch, source or document is none of their business."""
    made = np.zeros(8, verify_repeats.RECORD)
    made["start"] = [0, 5, 4, 0, 0, 0, 5, 9]
    made["end"] = [5, 9, 6, 9, 9, 9, 9, 12]
    made["draw"] = [0, 0, 0, 1, 1 << 16, 2, 2, 2]
    made["low"] = [0, 0, 0, 0, 0, 1, 0, 0]
    assert sorted(verify_repeats.repeats(made).tolist()) == [1, 2]
    assert verify_repeats.repeats(made[[0, 1, 3, 4, 5, 6, 7]]).tolist() == []
    assert len(verify_repeats.repeats(np.concatenate([made[:1]] * 3))) == 2
    assert verify_repeats.repeats(made[:0]).tolist() == []


def test_proportions_at_every_prefix(tmp_path: Path) -> None:
    """The rows of two sources swapped far apart: totals and shares stay, one prefix is off by more than a row."""
    root = tmp_path / "root"
    folder = folder_of(line(root, WIDE, shard_bytes=1 << 20))
    assert codes(folder, root) == {}
    table = pq.read_table(folder / "warm/00000.prov.parquet").to_pylist()
    rows = [[p for p in table if p["row"] == r] for r in range(PackedDataset(folder).manifest.phases[0].rows)]
    full = [r for r, pieces in enumerate(rows) if sum(p["length"] for p in pieces) == 17]
    by_source = {name: [r for r in full if rows[r][0]["source"] == name] for name in ("english", "other")}
    pairs = list(
        zip(by_source["other"][-2:], [r for r in by_source["english"] if r < by_source["other"][0]], strict=False)
    )
    if not pairs:
        pairs = [(by_source["other"][-1], by_source["english"][0]), (by_source["other"][-2], by_source["english"][1])]

    def swap(columns: dict[str, list[Any]]) -> None:
        for one, two in pairs:
            columns["source"] = [
                rows[two][0]["source"] if r == one else rows[one][0]["source"] if r == two else s
                for r, s in zip(columns["row"], columns["source"], strict=True)
            ]

    rewrite(folder, "warm/00000", swap)
    assert codes(folder, root)["prefix"] == "warm"


def test_prefixes_of_the_interleave_itself(tmp_path: Path) -> None:
    """The real schedule of uneven sources passes; the same rows sorted by source do not."""
    from gristmill.core.tokshards import PackedPhase
    from gristmill.mixes.verify_prefix import Prefix

    counts = {"a": 7, "b": 1, "c": 40_000, "d": 133, "e": 20_011}
    total = sum(counts.values())
    shares = {n: {"target": c / total} for n, c in counts.items()}
    phase = PackedPhase("p", 16, total, 1, total, {}, shares)
    for order, codes_ in (
        (interleave(list(counts.values())), []),
        (np.sort(interleave(list(counts.values()))), ["prefix"]),
    ):
        prefix = Prefix.of(phase, {"sources": {n: {"rows": c} for n, c in counts.items()}})
        assert prefix is not None
        for part in np.array_split(order, 7):
            prefix.add(list(counts), part)
        assert [code for code, _ in prefix.faults()] == codes_
        assert (prefix.worst < 1) == (not codes_)


def test_other_faults_have_their_codes(copied: tuple[Path, Path]) -> None:
    root, folder = copied

    def mixed(columns: dict[str, list[Any]]) -> None:
        at = next(i for i in range(1, len(columns["row"])) if columns["row"][i] == columns["row"][i - 1])
        columns["source"][at] = {"english": "other", "other": "english"}[columns["source"][at]]

    rewrite(folder, "warm/00000", mixed)
    assert codes(folder, root)["mixed_row"].startswith("warm:")
    rewrite(folder, "warm/00002", lambda c: c["row_start"].__setitem__(-1, c["row_start"][-1] + 1))
    assert codes(folder, root)["pieces"] == "warm/00002.bin"
    damage(folder, "anneal/00000.bin", lambda b: b"\xff\xff" + b[2:])
    assert codes(folder, root)["vocabulary"] == "anneal/00000.bin"
    damage(folder, "tokenizer.json", lambda b: b + b" ")
    assert codes(folder, root)["manifest.tokenizer"] == "tokenizer.json"


def test_weights_of_documents_are_no_repeats(tmp_path: Path) -> None:
    """Documents drawn twice in an epoch, as `rehydrate` says, by a source and by the child of one: sound in verify's eyes."""
    sources = {
        "english": {"filter": "language == 'en'", "rehydrate": {"1": 2}},
        "other": {"filter": "language != 'en'", "split_by": "language", "rehydrate": {"1": 3}},
    }
    stage = {**WARM, "mix": {"english": {"epochs": 1.4}, "other.de": {"epochs": 1.5}}}
    mixture = {**MIXTURE, "sources": sources, "stages": [stage]}
    folder = folder_of(line(tmp_path, mixture))
    assert codes(folder, tmp_path, digests=True) == {}


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = orjson.loads((folder / "manifest.json").read_bytes())
    change(data)
    damage(folder, "manifest.json", lambda _: orjson.dumps(data))


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("warm", "lr", {"phase": "full"}),
        ("warm", "loss_weights", {"english": 100}),
        ("warm", "chain", "0" * 64),
        ("warm", "spec", {"seed": 1}),
        ("warm", "until_rows", 4),
        ("warm", "batch_rows", 2),
        ("manifest.json", "seed", 99),
        ("manifest.json", "special_ids", {"pad": 3, "eos": 1}),
    ],
)
def test_a_field_that_is_not_the_locks(copied: tuple[Path, Path], where: str, key: str, value: object) -> None:
    folder = copied[1]
    edited(folder, lambda m: (m if where == "manifest.json" else m["phases"][0]).update({key: value}))
    assert ("manifest.field", where) in {(p.code, p.where) for p in check(folder, digests=False).problems}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../x"},
        {"name": "/tmp/x"},
        {"name": ""},
        {"name": "anneal"},
        {"rows": "x"},
        {"rows": -1},
        {"batch_rows": 0},
        {"rows_per_shard": 0},
        {"seq_len": True},
        {"shards": [{"file": "warm/00000.bin", "rows": -4, "sha256": {}}]},
    ],
    ids=str,
)
def test_a_manifest_that_cannot_be_read_is_refused_by_name(copied: tuple[Path, Path], change: dict[str, Any]) -> None:
    folder = copied[1]
    edited(folder, lambda m: m["phases"][0].update(change))
    with pytest.raises(FormatError, match="is damaged"):
        check(folder, digests=False)


def test_a_store_is_below_the_root(copied: tuple[Path, Path]) -> None:
    for path in ("/etc/docs.parquet", "stages/../../docs.parquet"):

        def moved(manifest: dict[str, Any], to: str = path) -> None:
            manifest["stores"][0]["path"] = to

        edited(copied[1], moved)
        with pytest.raises(FormatError, match="outside the root"):
            check(copied[1], digests=False)
