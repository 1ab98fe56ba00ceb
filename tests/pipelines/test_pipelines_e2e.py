"""The whole line on the sample web: the truth file against the ledger, the same bytes from 1 or 2 workers and after kills."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_helper import shared_data
from worlds import gristmill, shown, start

from gristmill.core.tokshards import PackedDataset
from gristmill.pipelines.sample import read_truth, write_sample
from gristmill.pipelines.tracing import dataset_folder
from gristmill.tokenize.codec import Codec

pytestmark = pytest.mark.slow

PAGES = 260


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    write_sample(out, seed=0, pages=PAGES, files=3)
    return out


def arguments(sample: Path, root: Path, *more: str) -> list[str]:
    return [
        "run",
        "demo",
        "--root",
        str(root),
        "--set",
        f"input.paths={json.dumps([str(sample / '*.warc.gz')])}",
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    done = gristmill(*arguments(sample, root, "--cluster", "local:1", "--to", "shards"), timeout=900)
    assert done.returncode == 0, done.stderr
    return root


def digests(root: Path) -> dict[str, str]:
    return {name: stage["digest"] for name, stage in shown(root).items()}


def test_every_ledger_balances_for_every_file(undisturbed: Path) -> None:
    done = gristmill("show", "--root", str(undisturbed), "--json", "--by", "file")
    view = json.loads(done.stdout)
    checked = 0
    for stage in view["stages"]:
        for row in [stage, *stage["files"]]:
            if row["drops"] is not None:
                assert row["rows_in"] == row["rows_out"] + sum(row["drops"].values()) + row["quarantined"], (
                    stage["stage"],
                    row,
                )
                checked += 1
    assert checked > 12
    by_name = {s["stage"]: s for s in view["stages"]}
    assert by_name["curate.decide"]["rows_in"] == by_name["curate.pages"]["rows_out"]
    assert by_name["curate"]["rows_in"] == by_name["curate.decide"]["rows_out"]
    assert by_name["tokens"]["rows_in"] == by_name["curate"]["rows_out"]


def test_two_workers_write_the_same_bytes(sample: Path, undisturbed: Path, tmp_path: Path) -> None:
    done = gristmill(*arguments(sample, tmp_path, "--cluster", "local:2", "--to", "shards"), timeout=900)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(undisturbed)


def test_kill_9_at_random_moments_and_the_same_command_gives_the_same_bytes(
    sample: Path, undisturbed: Path, tmp_path: Path
) -> None:
    root, rng = tmp_path / "root", random.Random(7)
    for _ in range(3):
        process = start(*arguments(sample, root, "--cluster", "local:2", "--to", "shards"), log=tmp_path / "log")
        time.sleep(rng.uniform(3, 9))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = gristmill(*arguments(sample, root, "--cluster", "local:2", "--to", "shards"), timeout=900)
    assert done.returncode == 0, done.stderr
    assert digests(root) == digests(undisturbed)


@pytest.mark.parametrize("step", ["before_rename", "before_receipt"])
def test_a_worker_killed_inside_a_commit_changes_nothing(
    sample: Path, undisturbed: Path, tmp_path: Path, step: str
) -> None:
    marker = tmp_path / "killed"
    done = gristmill(
        *arguments(sample, tmp_path / "root", "--cluster", "local:2", "--to", "curate"),
        env={"GRISTMILL_TEST_KILL": f"curate.decide:{step}:{marker}"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert marker.exists()
    mine, theirs = digests(tmp_path / "root"), digests(undisturbed)
    assert {k: theirs[k] for k in mine} == mine


def test_the_truth_file_agrees_with_the_ledger(sample: Path, undisturbed: Path) -> None:
    expected, stages = read_truth(sample).expected, shown(undisturbed)
    pages = stages["curate.pages"]
    assert pages["rows_in"] == expected["rows"]
    assert pages["quarantined"] == expected["quarantined"]
    assert {reason: pages["drops"].get(reason, 0) for reason in expected["ledger"]} == expected["ledger"]
    assert sum(n for r, n in pages["drops"].items() if r.startswith("url.")) == expected["url_blocked"]
    kept = expected["html"] - expected["url_blocked"]
    assert pages["rows_out"] == kept - sum(n for r, n in pages["drops"].items() if r.startswith("extract."))
    assert stages["curate"]["drops"]["dedup.exact"] >= 0.8 * expected["exact"]["copies"]


def test_copies_go_and_distant_texts_stay(sample: Path, undisturbed: Path) -> None:
    truth = read_truth(sample)
    kept: dict[str, Any] = {}
    for path in shown(undisturbed)["curate"]["outputs"]:
        if path.endswith("documents.parquet"):
            for row in pq.read_table(path, columns=["id", "url", "dup_cluster", "dup_cluster_size"]).to_pylist():
                kept[row["url"]] = row
    near = [(p, p.jaccard) for p in truth.pages if p.kind == "near_copy" and p.jaccard is not None]
    assert {j >= 0.95 for _, j in near} == {True, False}
    bases = {p.group: p.url for p in truth.pages if p.kind == "near_base"}
    for p, jaccard in near:
        base = bases[p.group]
        if base not in kept and p.url not in kept:
            pytest.fail(f"both {base} and {p.url} are gone")
        if jaccard >= 0.95:
            assert not (p.url in kept and base in kept), (p.url, jaccard)
        elif jaccard <= 0.4:
            assert p.url in kept, (p.url, jaccard)
            assert base in kept, (base, jaccard)
    chars = 0
    for path in shown(undisturbed)["curate"]["outputs"]:
        if path.endswith("documents.parquet"):
            table = pq.read_table(path, columns=["text", "language"])
            chars += sum(
                len(t)
                for t, x in zip(table["text"].to_pylist(), table["language"].to_pylist(), strict=True)
                if x == "en"
            )
    assert chars >= truth.expected["min_surviving_chars"]


def test_a_changed_threshold_reruns_only_deciding_and_what_depends_on_it(sample: Path, undisturbed: Path) -> None:
    change = ["--set", "curate.rules.gopher@datatrove.min_words=40"]
    args = arguments(sample, undisturbed, *change)
    done = gristmill("plan", *args[1:], "--json", "--to", "curate")
    plans = {p["stage"]: p for p in json.loads(done.stdout)["stages"]}
    assert plans["curate.pages"]["run"] == plans["curate.measure"]["run"] == 0
    assert plans["curate.decide"]["run"] == 3
    assert plans["curate.decide"]["why"] == ["config curate.rules.gopher@datatrove.min_words 50 → 40 (--set:2)"]
    assert plans["curate.signatures"]["run"] is None


def test_real_pages_go_from_warc_to_parquet(tmp_path: Path) -> None:
    folder = shared_data("warc/pages")
    done = gristmill(
        "run", "web", "--root", str(tmp_path), "--to", "curate", "--cluster", "local:2", "--set",
        f"input.paths={json.dumps([str(folder / 'pages-00000.warc.gz'), str(folder / 'pages-00003.warc.gz')])}",
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stages = shown(tmp_path)
    assert stages["curate.pages"]["rows_in"] >= 2 * 327 * 3
    kept = [p for p in stages["curate"]["outputs"] if p.endswith("documents.parquet")]
    table = pq.read_table(kept)
    assert 80 < table.num_rows < 654
    for column in (
        "id",
        "text",
        "url",
        "date",
        "warc_file",
        "warc_offset",
        "warc_length",
        "language",
        "language_score",
    ):
        assert table[column].null_count == 0, column


def test_a_trained_row_traces_back_to_its_warc_record(sample: Path, undisturbed: Path) -> None:
    done = gristmill("trace", "--root", str(undisturbed), "--step", "2", "--text", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    dataset = PackedDataset(dataset_folder(undisturbed))
    codec = Codec(dataset.folder / "tokenizer.json")
    assert len(rows) >= dataset.manifest.phases[0].batch_rows
    for row in rows:
        with open(row["warc_file"], "rb") as file:
            file.seek(row["warc_offset"])
            record = gzip.decompress(file.read(row["warc_length"]))
        assert f"WARC-Target-URI: {row['url']}\r\n".encode() in record.split(b"\r\n\r\n", 1)[0] + b"\r\n"
        ids = [*codec.encode(row["text"]).tolist(), codec.eos]
        tokens, _ = dataset.row(row["phase"], row["row"])
        piece = tokens[row["row_start"] : row["row_start"] + row["length"]].tolist()
        assert ids[row["doc_start"] : row["doc_start"] + row["length"]] == piece
    one = rows[0]
    address = f"{one['phase']}:{one['row']}:{one['row_start']}"
    done = gristmill("trace", "--root", str(undisturbed), "--token", address, "--json")
    assert [r["id"] for r in json.loads(done.stdout)] == [one["id"]]


def test_every_curated_document_survives_the_tokenizer(undisturbed: Path) -> None:
    stages = shown(undisturbed)
    assert stages["tokens"]["quarantined"] == 0
    assert stages["tokens"]["rows_out"] == stages["curate"]["rows_out"] > 0


def test_the_tokenizer_report_finds_everything_in_the_root(undisturbed: Path) -> None:
    done = gristmill("tokenizer", "report", "--root", str(undisturbed), "--segmenter", "runs", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    own = found["tokenizers"][0]
    assert own["name"] == undisturbed.name
    assert found["documents"]["available"] == shown(undisturbed)["curate"]["rows_out"]
    assert own["all"]["lossless"] == 1.0
    dataset = PackedDataset(dataset_folder(undisturbed))
    codec = Codec(dataset.folder / "tokenizer.json")
    rows = [dataset.row(p.name, r)[0] for p in dataset.manifest.phases for r in range(p.rows)]
    kept = ~np.isin(np.concatenate(rows), codec.free_ids)
    assert own["model_mix"]["tokens"] == int(kept.sum())


def test_an_existing_scheduler_runs_the_tasks(sample: Path, undisturbed: Path, tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        done = gristmill(
            *arguments(sample, tmp_path / "root", "--cluster", address, "--to", "curate.pages"), timeout=600
        )
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "root")["curate.pages"] == digests(undisturbed)["curate.pages"]


def test_a_missing_file_fails_the_run_and_its_return_completes_it(sample: Path, tmp_path: Path) -> None:
    paths = [str(sample / "sample-00000.warc.gz"), str(tmp_path / "late.warc.gz")]
    args = ["run", "demo", "--root", str(tmp_path / "root"), "--set", f"input.paths={json.dumps(paths)}"]
    args += ["--to", "curate.decide", "--cluster", "local:1"]
    first = gristmill(*args)
    assert first.returncode == 1, first.stderr
    assert "late.warc.gz: no such file" in first.stderr
    assert "resume: gristmill run demo" in first.stderr
    assert set(shown(tmp_path / "root")) == {"curate.pages"}
    (tmp_path / "late.warc.gz").write_bytes((sample / "sample-00001.warc.gz").read_bytes())
    second = gristmill(*args)
    assert second.returncode == 0, second.stderr
    assert set(shown(tmp_path / "root")) == {"curate.pages", "curate.measure", "curate.decide"}
