"""The find index against a scan of every provenance file, and the commands find, trace and `mix show` over one root."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from mix_line import MIXTURE, damage, folder_of, line

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.manifest import write_manifest
from gristmill.core.tokshards import PackedDataset
from gristmill.mixes import index
from gristmill.mixes.tracing import find_document, pieces_of, trace_rows
from gristmill.pipelines.cli.main import cli


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    done = line(root, MIXTURE)
    for stage, receipts in done.items():
        write_manifest(root, stage, receipts, True)
    return root


@pytest.fixture(scope="module")
def dataset(root: Path) -> PackedDataset:
    return PackedDataset(next((root / "stages" / "shards").glob("*/manifest.json")).parent)


def answer(*arguments: str) -> Any:
    found = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def refused(*arguments: str) -> bool:
    return isinstance(CliRunner().invoke(cli, arguments).exception, UsageError)


def scan(dataset: PackedDataset) -> dict[str, list[tuple[str, int, int]]]:
    """Every place of every document, from the provenance alone."""
    places: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for phase in dataset.manifest.phases:
        for row in range(phase.rows):
            for piece in pieces_of(dataset, phase.name, row):
                places[piece.id].append((phase.name, row, piece.row_start))
    return places


@pytest.mark.parametrize("bucket", [1 << 20, 8])
def test_every_document_is_found_where_a_scan_finds_it(
    root: Path, dataset: PackedDataset, bucket: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "BUCKET_RECORDS", bucket)
    docs = [root / s["path"] for s in dataset.manifest.stores]
    index.build(dataset, docs, {name: tmp_path / name for name in index.NAMES})
    found = index.FindIndex(tmp_path, sha256_file(dataset.folder / "manifest.json"))
    names = [p.name for p in dataset.manifest.phases]
    want = scan(dataset)
    for document, places in want.items():
        rows = list(dict.fromkeys((phase, row) for phase, row, _ in places))
        assert [(names[p], r) for p, r in found.rows(document)] == rows
    assert found.rows("f" * 32) == []
    urls = {u: (i, d) for i, p in enumerate(docs) for d, u in enumerate(pq.read_table(p)["url"].to_pylist())}
    assert {u: found.documents(u) for u in urls} == {u: [place] for u, place in urls.items()}
    records = np.fromfile(tmp_path / "find.ids", index.RECORD)
    assert (np.diff(records["key"].astype(object)) >= 0).all()


def test_the_same_bytes_from_any_bucket_size(
    root: Path, dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = [root / s["path"] for s in dataset.manifest.stores]
    for name, size in (("a", 1 << 20), ("b", 5)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(index, "BUCKET_RECORDS", size)
        index.build(dataset, docs, {n: tmp_path / name / n for n in index.NAMES})
    for n in index.NAMES:
        assert (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes()
        assert [p.name for p in sorted((tmp_path / "b").iterdir())] == sorted(index.NAMES)  # no bucket is left


def test_built_once_and_again_when_the_dataset_is_another(root: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(root, tmp_path / "root"))
    here = PackedDataset(next((mine / "stages" / "shards").glob("*/manifest.json")).parent)
    for name in index.NAMES:  # as a dataset of an earlier version, which has none beside it
        (here.folder / name).unlink(missing_ok=True)
    document = pieces_of(here, "warm", 0)[0].id
    want = find_document(here, document, mine)
    cached = next((mine / "cache" / "find").iterdir())
    before = (cached / "find.ids").stat().st_mtime_ns
    assert find_document(here, document, mine) == want
    assert (cached / "find.ids").stat().st_mtime_ns == before
    damage(cached, "find.ids", lambda b: b[:-1])  # cut: it is built again
    assert find_document(here, document, mine) == want
    damage(here.folder, "manifest.json", lambda b: b + b"\n")
    assert find_document(PackedDataset(here.folder), document, mine) == want
    assert len(list((mine / "cache" / "find").iterdir())) == 2
    with pytest.raises(FormatError, match="another dataset"):
        index.FindIndex(cached, "0" * 64)


def test_find_doc_by_id_and_url(root: Path, dataset: PackedDataset) -> None:
    want = scan(dataset)
    document = max(want, key=lambda d: len(want[d]))
    found = answer("find", "--doc", document, "--root", str(root))
    places = [(p["stage"], p["row"], p["row_start"]) for p in found["places"]]
    assert places == want[document]
    first = {p.name: sum(q.batches for q in dataset.manifest.phases[:i]) for i, p in enumerate(dataset.manifest.phases)}
    for place in found["places"]:
        phase = dataset.manifest.phase(place["stage"])
        assert place["position"] == place["row"]  # no run has edited the order
        assert place["step"] == first[phase.name] + place["row"] // phase.batch_rows + 1
        assert place["run"] is None
    assert [d["id"] for d in found["documents"]] == [document]
    assert answer("find", "--doc", found["documents"][0]["url"], "--root", str(root)) == found
    assert answer("find", "--doc", document.upper(), "--root", str(root)) == found
    for more in ((), ("--json",)):  # one exit code, whatever is printed
        assert refused("find", "--doc", "http://nowhere.example/", "--root", str(root), *more)
        assert refused("find", "http://nowhere.example/", "--root", str(root), *more)
    nothing = CliRunner().invoke(cli, ["find", "--doc", "f" * 32, "--root", str(root), "--json"])
    assert json.loads(nothing.stdout)["documents"] == []
    text = CliRunner().invoke(cli, ["find", "--doc", document, "--root", str(root)]).stdout
    first_place = found["places"][0]
    where = f"(planned) step {first_place['step']}, phase {first_place['stage']} row {first_place['row']}"
    assert f"trained on: {where} token {first_place['row_start']} (" in text  # no run has trained
    assert refused("find", "--doc", "x" * 32, "--root", str(root))
    assert refused("find", "--root", str(root))


def test_trace_by_row_position_and_token(root: Path, dataset: PackedDataset) -> None:
    rows = answer("trace", "--row", "anneal:3", "--root", str(root))
    want = trace_rows(dataset, root, [("anneal", 3)])
    assert [{k: r[k] for k in w} for r, w in zip(rows, want, strict=True)] == want
    assert {r["position"] for r in rows} == {3}
    assert answer("trace", "--position", "anneal:3", "--root", str(root)) == rows
    step = rows[0]["step"]
    assert rows == [
        {k: v for k, v in r.items() if k != "trained"}
        for r in answer("trace", "--step", str(step), "--root", str(root))
        if r["row"] == 3
    ]
    [token] = answer("trace", "--token", f"anneal:3:{rows[-1]['row_start']}", "--root", str(root))
    assert {k: token[k] for k in rows[-1]} == rows[-1]
    assert token["document_position"] == rows[-1]["doc_start"]
    for bad in (["--row", "anneal"], ["--row", "anneal:9999"], ["--position", "no:1"], ["--row", "a:1", "--step", "1"]):
        assert refused("trace", *bad, "--root", str(root)), bad


class Letters:
    """Stands in for the codec: the made-up tokenizer has no model that the library would load."""

    def __init__(self, path: Path) -> None:
        assert path.name == "tokenizer.json"

    def decode(self, ids: np.ndarray) -> str:
        return " ".join(map(str, ids.tolist()))


def test_show_by_row_position_and_batch(root: Path, dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gristmill.tokenize.codec.Codec", Letters)
    size = dataset.manifest.phase("warm").batch_rows
    one = answer("mix", "show", "warm", "--row", str(size + 1), "--root", str(root))
    assert one["text"] == one["rows"][0]["text"]
    assert one["pieces"][0]["row"] == size + 1
    batch = answer("mix", "show", "warm", "--batch", "2", "--root", str(root))
    assert [r["row"] for r in batch["rows"]] == list(range(size, 2 * size))
    assert batch["rows"][1] == one["rows"][0]
    assert answer("mix", "show", "warm", "--batch", "2", "--position", "1", "--root", str(root)) == one
    assert answer("mix", "show", "warm", "--position", str(size + 1), "--root", str(root)) == one
    for bad in ([], ["--row", "1", "--batch", "1"], ["--batch", "99"], ["--batch", "1", "--position", "99"]):
        assert refused("mix", "show", "warm", *bad, "--root", str(root)), bad


def test_verify_prints_json_and_its_exit_code(root: Path, tmp_path: Path) -> None:
    found = answer("mix", "verify", "--root", str(root))
    assert found["ok"] is True
    assert found["problems"] == []
    assert found["counts"]["stores_read"] == 3
    mine = Path(shutil.copytree(root, tmp_path / "root"))
    damage(next((mine / "stages" / "shards").glob("*/warm")), "00000.bin", lambda b: b[:-4] + b"\1\0\1\0")
    again = CliRunner().invoke(cli, ["mix", "verify", "--root", str(mine), "--json"])
    assert again.exit_code == 1
    assert json.loads(again.stdout)["problems"][0] == {
        "code": "hash",
        "where": "warm/00000.bin",
        "what": "differs from the manifest",
    }


def test_folder_of_is_the_current_dataset(root: Path, dataset: PackedDataset, tmp_path: Path) -> None:
    done = line(tmp_path, MIXTURE)
    assert (folder_of(done) / "manifest.json").read_bytes() == (dataset.folder / "manifest.json").read_bytes()


def test_verify_sees_a_damaged_find_index(root: Path, tmp_path: Path) -> None:
    """An index whose bytes changed answers wrongly without a word: only its digests tell."""
    mine = Path(shutil.copytree(root, tmp_path / "root"))
    folder = next((mine / "stages" / "shards").glob("*/manifest.json")).parent
    for name in ("find.ids", "find.urls"):
        damage(folder, name, lambda b: bytes(255 - c for c in b))
    found = CliRunner().invoke(cli, ["mix", "verify", "--root", str(mine), "--json"])
    assert found.exit_code == 1
    assert json.loads(found.stdout)["problems"] == [
        {"code": "hash", "where": name, "what": "differs from find.json"} for name in ("find.ids", "find.urls")
    ]
    damage(folder, "find.json", lambda b: b[:-9])
    found = CliRunner().invoke(cli, ["mix", "verify", "--root", str(mine), "--json"])
    assert [p["where"] for p in json.loads(found.stdout)["problems"]] == ["find.json"]


def test_a_held_out_document_is_found_as_one(root: Path, dataset: PackedDataset) -> None:
    held = pq.read_table(dataset.folder / "heldout.parquet").to_pylist()[0]
    found = answer("find", "--doc", held["id"], "--root", str(root))
    assert found["places"] == []
    [document] = found["documents"]
    store = pq.read_table(root / dataset.manifest.stores[held["store"]]["path"]).to_pylist()[held["doc"]]
    names = ("id", "url", "warc_offset", "warc_length")
    assert {n: document[n] for n in names} == {n: store[n] for n in names}
    assert document["heldout"] is True
    assert answer("find", "--doc", document["url"], "--root", str(root)) == found
    assert "  held out\n" in CliRunner().invoke(cli, ["find", "--doc", held["id"], "--root", str(root)]).stdout
    trained = pieces_of(dataset, "warm", 0)[0].id
    [document] = answer("find", "--doc", trained, "--root", str(root))["documents"]
    assert document["heldout"] is False


def test_control_characters_of_the_data_are_written_out(root: Path, tmp_path: Path) -> None:
    """A URL that clears the screen, rings or starts a line of its own is shown as Python writes it."""
    mine = Path(shutil.copytree(root, tmp_path / "root"))
    here = PackedDataset(next((mine / "stages" / "shards").glob("*/manifest.json")).parent)
    for store in here.manifest.stores:
        table = pq.read_table(mine / store["path"])
        urls = pa.array(["http://a/\x1b[2J\x07\0\n\x9b" if i % 2 else None for i in range(len(table))], pa.string())
        (mine / store["path"]).unlink()
        pq.write_table(table.set_column(table.column_names.index("url"), "url", urls), mine / store["path"])
    text = CliRunner().invoke(cli, ["trace", "--step", "1", "--root", str(mine)], catch_exceptions=False).stdout
    assert r"    http://a/\x1b[2J\x07\x00\n\x9b" in text
    assert not set(text) & set("\x1b\x07\0\x9b")
    assert "    -\n" in text
    assert "None" not in text
    for piece in pieces_of(here, "warm", 0):
        found = CliRunner().invoke(cli, ["find", "--doc", piece.id, "--root", str(mine)], catch_exceptions=False).stdout
        assert not set(found) & set("\x1b\x07\0\x9b")
        assert "None" not in found
