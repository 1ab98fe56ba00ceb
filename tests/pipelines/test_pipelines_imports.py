"""A recipe that only imports, text and token stores, from its files to packed shards: found, traced, verified, resumed."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner

from gristmill.core.errors import ConfigError, GristmillError, UsageError
from gristmill.core.manifest import read_manifest
from gristmill.core.tokshards import PackedDataset
from gristmill.core.tokstore import TokenStore
from gristmill.pipelines.cli.main import cli
from gristmill.pipelines.schema import load_recipe
from gristmill.pipelines.tracing import dataset_folder

RECIPE = """
gristmill: 1
imports:
  code:
    jsonl: "*.jsonl.zst"
    columns: {text: content, url: meta.url, id: uid, language: lang, stars: meta.stars}
    types: {stars: int64}
  table: {parquet: c.parquet, columns: {kind: kind}, constants: {language: fr}}
  mega: {megatron: "m.idx", vocab_size: 384}
  trove: {datatrove: "d.ds", vocab_size: 384, constants: {tier: 3}}
tokenizer: {vocab_size: 384, reserved: 20}
mixture: m.yaml
"""
MIXTURE = """
gristmill_mix: 1
seed: 3
sources:
  starry: {filter: "source == 'code' and stars >= 10"}
  table: {filter: "source == 'table'", split_by: kind}
  mega: {filter: "source == 'mega'"}
  trove: {filter: "source == 'trove' and tier == 3"}
heldout: {per_source: {docs: 0.02}}
stages:
  - {name: one, seq_len: 64, global_batch: 256,
     mix: {starry: {epochs: 1}, table: {epochs: 1}, mega: {epochs: 1}, trove: {epochs: 1}}}
"""


def write_files(folder: Path) -> None:
    made = random.Random(5)
    words = ["".join(made.choices("abcdefgh", k=made.randint(2, 8))) for _ in range(300)]
    rows: list[Any] = [
        {
            "content": " ".join(made.choices(words, k=made.randint(20, 90))),
            "meta": {"url": f"https://a.example/{i}", "stars": i},
            "uid": f"u{i}",
            "lang": "en",
        }
        for i in range(60)
    ]
    lines = [json.dumps(row) for row in rows]
    lines.insert(3, "{broken")
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    texts = [" ".join(made.choices(words, k=40)) for _ in range(30)]
    pq.write_table(pa.table({"text": texts, "kind": ["x", "y"] * 15}), folder / "c.parquet")
    ids = [np.array(made.choices(range(6, 300), k=made.randint(1, 80)), "<u2") for _ in range(30)]
    lengths = np.array([len(d) for d in ids])
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 30, 31) + lengths.astype("<i4").tobytes()
    starts = ((np.cumsum(lengths) - lengths) * 2).astype("<i8").tobytes()
    (folder / "m.idx").write_bytes(head + starts + np.arange(31, dtype="<i8").tobytes())
    np.concatenate(ids).tofile(folder / "m.bin")
    np.concatenate(ids).tofile(folder / "d.ds")
    np.cumsum(lengths).astype("<u8").tofile(folder / "d.ds.index")
    (folder / "r.yaml").write_text(RECIPE)
    (folder / "m.yaml").write_text(MIXTURE)


def gristmill(*arguments: Any) -> str:
    found = CliRunner().invoke(cli, [str(a) for a in arguments])
    if isinstance(found.exception, GristmillError):
        raise found.exception
    assert found.exit_code in (0, 3), found.output
    return found.stdout


def run(folder: Path, *more: str) -> str:
    return gristmill("run", folder / "r.yaml", "--root", folder / "mill", "--cluster", "inline", *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imports")
    write_files(folder)
    run(folder)
    return folder


def test_the_line_from_files_to_shards(folder: Path) -> None:
    root = folder / "mill"
    text, tokens = read_manifest(root, "imports.text"), read_manifest(root, "tokens")
    assert text is not None
    assert tokens is not None
    assert [r.key for r in text.receipts] == ["code/a.jsonl.zst", "table/c.parquet"]
    assert text.total()["quarantined"] == 1
    assert [r.rows_out for r in tokens.receipts] == [60, 30, 30, 30]
    assert not (root / "stages" / "curate").exists()
    found = json.loads(gristmill("mix", "verify", "--root", root, "--json"))
    assert found["ok"] is True
    shares = PackedDataset(dataset_folder(root)).manifest.phase("one").shares
    assert set(shares) == {"starry", "table.x", "table.y", "mega", "trove"}


def test_imported_documents_are_found_and_traced(folder: Path) -> None:
    root = folder / "mill"
    found = json.loads(gristmill("find", "--doc", "https://a.example/42", "--root", root, "--json"))
    [document] = found["documents"]
    assert document["warc_name"] == "code/a.jsonl.zst"
    assert document["warc_file"] == str(folder / "a.jsonl.zst")
    assert document["warc_offset"] == 43  # line 43 of the file, from 0: a broken one stands before it
    assert json.loads(gristmill("find", "--doc", "u42", "--root", root, "--json")) == found  # by its own id
    place = found["places"][0]
    traced = json.loads(gristmill("trace", "--row", f"{place['stage']}:{place['row']}", "--root", root, "--json"))
    assert document["id"] in [t["id"] for t in traced]
    shown = json.loads(gristmill("mix", "show", "one", "--row", place["row"], "--root", root, "--json"))
    assert {p["source"] for p in shown["pieces"]} == {"starry"}


def rows_of(root: Path, source: str) -> list[dict[str, Any]]:
    """Pieces of a source, from the first steps that have one."""
    for step in range(1, 40):
        rows = json.loads(gristmill("trace", "--step", step, "--root", root, "--json"))
        if found := [row for row in rows if row["source"] == source]:
            return found
    raise AssertionError(f"no {source} in 40 steps")


def test_traced_tokens_are_proved_from_the_files(folder: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    places = json.loads((mine / "mill" / "inputs.json").read_text())
    moved = {name: place.replace(str(folder), str(mine)) for name, place in places.items()}
    (mine / "mill" / "inputs.json").write_text(json.dumps(moved))
    root = mine / "mill"
    seen = set()
    for step in (1, 2, 3, 9, 12):
        rows = json.loads(gristmill("trace", "--step", step, "--verify", "--text", "--root", root, "--json"))
        assert all(row["verified"] for row in rows)
        assert {row["text_version"] for row in rows} == {"imported"}
        assert all(row["text"] for row in rows)
        seen |= {row["source"] for row in rows}
    assert seen == {"starry", "table.x", "table.y", "mega", "trove"}
    data = np.fromfile(mine / "m.bin", "<u2")
    (data + 1).tofile(mine / "m.bin")
    place = rows_of(root, "mega")[0]
    with pytest.raises(GristmillError, match="differs from"):
        gristmill("trace", "--row", f"one:{place['row']}", "--verify", "--root", root)


def test_find_says_what_became_of_an_imported_document(folder: Path) -> None:
    found = json.loads(gristmill("find", "https://a.example/42", "--root", folder / "mill", "--json"))
    assert [d["fate"] for d in found["documents"]] == ["imported"]
    assert found["places"]
    assert {p["stage"] for p in found["places"]} == {"one"}
    assert json.loads(gristmill("find", "u42", "--root", folder / "mill", "--json")) == found  # by its own id


def test_find_knows_documents_of_imported_token_stores(folder: Path) -> None:
    """No stage writes a row of them: the packed dataset tells."""
    root = folder / "mill"
    for source in ("mega", "trove"):
        row = rows_of(root, source)[0]
        found = json.loads(gristmill("find", row["id"], "--root", root, "--json"))
        [document] = found["documents"]
        assert (document["fate"], document["id"]) == ("imported", row["id"])
        assert Path(document["warc_file"]).name in ("m.bin", "d.ds")
        assert row["row"] in [place["row"] for place in found["places"]]
        assert "imported" in gristmill("find", row["id"], "--root", root)
    with pytest.raises(UsageError, match="no record of"):
        gristmill("find", "0" * 32, "--root", root)


def test_held_out_and_quarantined_documents_are_told(folder: Path) -> None:
    root = folder / "mill"
    held = pq.read_table(dataset_folder(root) / "heldout.parquet").to_pylist()
    texts = [d for d in held if d["source"] == "starry"]
    [document] = json.loads(gristmill("find", texts[0]["id"].upper(), "--root", root, "--json"))["documents"]
    assert document["fate"] == "held out"
    [row] = json.loads(gristmill("drops", "import.bad_json", "--root", root, "--json"))
    assert {n: row[n] for n in ("stage", "file", "row", "reason", "text")} == {
        "stage": "imports.text",
        "file": "code/a.jsonl.zst",
        "row": 3,
        "reason": "import.bad_json",
        "text": "",
    }
    assert "[code/a.jsonl.zst row 3]" in gristmill("drops", "import.bad_json", "--root", root)
    assert ["imports.text", "import.bad_json", 1] in json.loads(gristmill("drops", "--root", root, "--json"))


def test_imported_ids_are_kept_to_the_bit(folder: Path) -> None:
    tokens = read_manifest(folder / "mill", "tokens")
    assert tokens is not None
    data = np.fromfile(folder / "m.bin", "<u2")
    for receipt in tokens.receipts[2:]:
        store = TokenStore(receipt.output("tokens.bin").path, receipt.output("docs.parquet").path)
        got = np.concatenate([store.tokens(i)[:-1] for i in range(len(store))])
        assert got.tolist() == data.tolist()


def test_what_runs_again_after_a_change(folder: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    lines = gristmill("plan", folder / "r.yaml", "--root", folder / "mill", "--check")
    assert "0 tasks to run" in lines or "nothing to do" in lines or "up to date" in lines
    plan = json.loads(
        gristmill(
            "plan", mine / "r.yaml", "--root", folder / "mill", "--json", "--set", "imports.table.constants.language=de"
        )
    )
    states = {s["stage"]: s for s in plan["stages"]}
    assert (states["imports.text"]["fresh"], states["imports.text"]["run"]) == (1, 1)
    assert any(
        "imports.table.constants.language" in why or "language fr" in why for why in states["imports.text"]["why"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("imports.mega.vocab_size=400", "E106 imports.mega"),
        ("imports.mega.megatron=nowhere.idx", "no such file"),
        ("imports.trove.datatrove=c.parquet", "is no .ds file"),
        ("imports.code.jsonl=https://a.example/x.jsonl", "local files"),
    ],
)
def test_imports_that_cannot_be(folder: Path, change: str, message: str, tmp_path: Path) -> None:
    try:
        found = CliRunner().invoke(
            cli,
            [
                "run",
                str(folder / "r.yaml"),
                "--root",
                str(tmp_path / "mill"),
                "--cluster",
                "inline",
                "--set",
                change,
                "--to",
                "tokens",
            ],
        )
    except UsageError as error:  # pragma: no cover
        found = error  # type: ignore[assignment]
    text = f"{found.output} {found.exception}"
    assert found.exit_code != 0
    assert message in text


def test_a_tokenizer_that_there_is_already(folder: Path, tmp_path: Path) -> None:
    """Token stores alone, with the tokenizer.json that made their ids: nothing is trained, no text is read."""
    made = read_manifest(folder / "mill", "tokenizer")
    assert made is not None
    trained = made.receipts[0].output("tokenizer.json")
    mine = Path(shutil.copytree(folder, tmp_path / "mine", ignore=shutil.ignore_patterns("mill")))
    shutil.copy(trained.path, mine / "tok.json")
    recipe = RECIPE.replace("vocab_size: 384}\n  trove", f"tokenizer_sha256: {trained.sha256}}}\n  trove")
    recipe = recipe.replace("tokenizer: {vocab_size: 384, reserved: 20}", "tokenizer: {file: tok.json}")
    lines = recipe.splitlines()
    begin, end = lines.index("  code:"), next(i for i, text in enumerate(lines) if text.startswith("  mega"))
    (mine / "r.yaml").write_text("\n".join(lines[:begin] + lines[end:]))
    mixture = MIXTURE.replace("mix: {starry: {epochs: 1}, table: {epochs: 1}, ", "mix: {")
    keep = [text for text in mixture.splitlines() if not text.startswith(("  starry", "  table"))]
    (mine / "m.yaml").write_text("\n".join(keep))
    run(mine)
    again = read_manifest(mine / "mill", "tokenizer")
    assert again is not None
    assert again.receipts[0].output("tokenizer.json").sha256 == trained.sha256
    assert json.loads(gristmill("mix", "verify", "--root", mine / "mill", "--json"))["ok"] is True
    assert not (mine / "mill" / "stages" / "imports.text").exists()
    with pytest.raises(UsageError, match="no such file"):
        run(mine, "--set", "tokenizer.file=none.json")


def test_token_stores_alone_need_their_tokenizer(folder: Path, tmp_path: Path) -> None:
    """`check` says so: nothing is there that one could be trained on."""
    recipe = tmp_path / "r.yaml"
    stores = "gristmill: 1\nimports:\n  mega: {megatron: m.idx, vocab_size: 384}\n"
    recipe.write_text(stores + "tokenizer: {vocab_size: 384}\n")
    with pytest.raises(ConfigError, match="no text to train a tokenizer on") as error:
        gristmill("check", recipe)
    assert "file: tokenizer.json" in str(error.value)
    for sound in (stores, stores + "tokenizer: {file: tok.json}\n"):
        recipe.write_text(sound)
        load_recipe(str(recipe))
    recipe.write_text(stores + "  text: {jsonl: a.jsonl}\ntokenizer: {vocab_size: 384}\n")
    load_recipe(str(recipe))
