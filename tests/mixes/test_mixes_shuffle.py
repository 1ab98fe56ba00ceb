"""The shuffle: both ways give the same bytes, whatever is spilled, killed or run where; damage is named; prefixes are even."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mix_line import MIXTURE, FakeTokenizer, FakeTokens, folder_of, line

from gristmill.core.errors import FormatError
from gristmill.core.manifest import read_manifest, run_task
from gristmill.core.stage import Receipt
from gristmill.core.tokshards import PackedDataset
from gristmill.core.tokstore import TokenStore
from gristmill.mixes import draw, sources, write
from gristmill.mixes.api import verify_dataset
from gristmill.mixes.buckets import Buckets
from gristmill.mixes.catalogue import PIECE
from gristmill.mixes.stages import ShardsBuckets, ShardsWrite
from gristmill.mixes.write import STRETCH, collect, gather, read_records, scatter
from gristmill.pipelines import runner
from gristmill.pipelines.graph import Node, load_class

TESTS = Path(__file__).resolve().parents[1]
STAGES = ("mixture", "shards.buckets", "shards.write", "shards")


def content(done: dict[str, list[Receipt]], *stages: str) -> list[Any]:
    return [r.content for name in stages or ("shards.write", "shards") for r in done[name]]


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Receipt]]:
    return line(tmp_path_factory.mktemp("gather"), MIXTURE, shuffle="gather")


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Receipt]]:
    return line(tmp_path_factory.mktemp("buckets"), MIXTURE, shuffle="buckets", part_bytes=900)


def test_gathering_and_two_passes_write_the_same_bytes(gathered: Any, spread: Any, tmp_path: Path) -> None:
    assert gathered["shards.buckets"] == []
    assert len(spread["shards.buckets"]) > 8
    assert content(spread) == content(gathered)
    auto = line(tmp_path / "auto", MIXTURE)
    assert content(auto) == content(gathered)
    assert auto["shards.buckets"] == []  # so little is gathered
    one_part = line(tmp_path / "one", MIXTURE, shuffle="buckets", backwards=True)
    assert content(one_part) == content(gathered)
    assert len(one_part["shards.buckets"]) == 2  # one per phase


def test_a_task_of_pass_one_reads_its_part_of_the_stores_only(spread: Any) -> None:
    for receipt in spread["shards.buckets"]:
        names = [name for name, _ in receipt.inputs["tokens"]]
        assert names in (["docs.parquet", "tokens.bin"], ["docs.parquet", "tokens.bin"] * 2)  # a part may cross an edge


def test_what_is_spilled_changes_no_byte(
    gathered: Any, spread: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources, orders and pieces in many small runs on disk, and pass one in many runs."""
    monkeypatch.setattr(draw, "PART", 8)
    monkeypatch.setattr(sources, "BATCH", 7)
    monkeypatch.setattr(write, "RUN_BYTES", (300, 300))
    original = Buckets.__init__
    monkeypatch.setattr(Buckets, "__init__", lambda self, path, dtype: original(self, path, dtype, 1000))
    done = line(tmp_path, MIXTURE, shuffle="buckets", part_bytes=900)
    assert content(done) == content(gathered)
    assert content(done, "mixture") == content(spread, "mixture")
    index = read_records(Path(done["shards.buckets"][0].output("warm/part-00000.index.npy").path), STRETCH)
    assert len(np.unique(index["shard"])) < len(index)  # a shard has a stretch in each of several runs
    assert not list(tmp_path.glob("stages/*/*/spill"))
    assert not list(tmp_path.glob("stages/*/*/.tmp-*"))


def test_sources_are_even_at_every_prefix(spread: Any) -> None:
    """Through the packed rows: after any number of them each source is within one row of its share."""
    dataset = PackedDataset(folder_of(spread))
    for phase in dataset.manifest.phases:
        names = sorted(phase.shares)
        of_row = np.full(phase.rows, -1)
        for i in range(len(phase.shards)):
            reader, _ = dataset.locate(phase.name, i * phase.rows_per_shard)
            table = reader.provenance()
            of_row[table["row"].to_numpy()] = [names.index(s) for s in table["source"].to_pylist()]
        for number in range(len(names)):
            seen = np.cumsum(of_row == number)
            error = seen * phase.rows - np.arange(1, phase.rows + 1) * int(seen[-1])
            assert np.abs(error).max() < phase.rows


@pytest.mark.parametrize("packs", [("bfd", "concat"), ("concat", "bfd"), ("concat", "concat")])
def test_every_phase_goes_on_where_the_last_one_ended(packs: tuple[str, str], tmp_path: Path) -> None:
    """Three phases of other lengths and packing: together a prefix of each source's stream, no token lost or doubled."""
    part = {"english": {"epochs": 0.55}, "other": {"epochs": 0.45}}
    stages = [
        {"name": f"p{i}", "seq_len": length, "global_batch": length * 2, "mix": part, "pack": packs[i % 2]}
        for i, length in enumerate((16, 40, 9))
    ]
    done = line(tmp_path, {**MIXTURE, "stages": stages}, shuffle="buckets", part_bytes=2000)
    dataset = PackedDataset(folder_of(done))
    assert verify_dataset(dataset.folder) == []
    seen: Counter[tuple[str, int, bytes, int]] = Counter()
    for phase in dataset.manifest.phases:
        for i in range(len(phase.shards)):
            reader, _ = dataset.locate(phase.name, i * phase.rows_per_shard)
            for p in reader.provenance().to_pylist():
                seen.update((p["source"], p["epoch"], p["id"], p["doc_start"] + t) for t in range(p["length"]))
    assert set(seen.values()) == {1}
    lengths = {
        bytes.fromhex(i): int(n)
        for r in done["tokens"]
        for s in [TokenStore(r.output("tokens.bin").path, r.output("docs.parquet").path)]
        for i, n in zip(s.docs["id"].to_pylist(), s.lengths, strict=True)
    }
    for source in ("english", "other"):
        whole: Counter[tuple[int, bytes]] = Counter((e, i) for s, e, i, _ in seen if s == source)
        partly = [key for key, n in whole.items() if n != lengths[key[1]]]
        assert len(partly) <= 1  # the document that the cursor stands in
        first = {i for e, i in whole if e == 0}
        again = {i for e, i in whole if e == 1}
        assert again <= first or not again
        assert {e for e, _ in whole} <= {0, 1}


def made(seed: int, dtype: str, folder: Path) -> tuple[np.ndarray, dict[str, Any], dict[int, Path], list[np.ndarray]]:
    """Random stores and pieces that fill most of each row of a phase."""
    rng = np.random.default_rng(seed)
    capacity, rows, per_shard = int(rng.integers(3, 40)), int(rng.integers(1, 60)), int(rng.integers(1, 20))
    stores = [rng.integers(0, 1 << 15, int(n)).astype(dtype) for n in rng.integers(50, 400, 3)]
    paths = {}
    for i, tokens in enumerate(stores):
        paths[i] = folder / f"{seed}-{i}.bin"
        tokens.tofile(paths[i])
    pieces = []
    for row in range(rows):
        at = 0
        while at < capacity and (at == 0 or rng.random() < 0.9):
            length = int(rng.integers(1, capacity - at + 1))
            store = int(rng.integers(0, 3))
            begin = int(rng.integers(0, len(stores[store]) - length + 1))
            pieces.append((row, begin, rng.bytes(16), at, length, 0, store, int(rng.integers(0, 9)), 0, 0))
            at += length
    layout = {"seq_len": capacity - 1, "rows": rows, "rows_per_shard": per_shard, "dtype": dtype, "pad": 7}
    layout |= {"sources": ["web"], "tokens": [len(s) for s in stores], "phase": "p"}
    found = np.array(pieces, PIECE)
    return found[rng.permutation(len(found))], layout, paths, stores


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["<u2", "<u4"]), st.integers(100, 4000))
def test_scatter_then_collect_is_gather_is_plain_copying(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dtype: str, run: int
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    pieces, layout, paths, stores = made(seed, dtype, folder)
    ordered = pieces[np.lexsort((pieces["row"], pieces["begin"], pieces["store"]))]
    cut = len(ordered) // 2
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "RUN_BYTES", (run, run))
        for i, some in enumerate((ordered[:cut], ordered[cut:])):
            path = folder / f"{seed}.{i}.bucket"
            parts.append((path, scatter(some, layout, paths, path)))
            assert path.stat().st_size == int(parts[-1][1]["bytes"].sum())
    for number in range(-(-layout["rows"] // layout["rows_per_shard"])):
        mine = pieces[pieces["row"] // layout["rows_per_shard"] == number]
        first = number * layout["rows_per_shard"]
        count = min(layout["rows_per_shard"], layout["rows"] - first)
        want = np.full((count, layout["seq_len"] + 1), 7, dtype)
        for p in mine:
            start, n = int(p["row_start"]), int(p["length"])
            want[p["row"] - first, start : start + n] = stores[p["store"]][p["begin"] : p["begin"] + n]
        one, other = gather(mine, layout, number, paths), collect(layout, number, parts)
        for rows in (one, other):
            found, pointers, starts = rows.finish()
            assert (rows.tokens == want).all()
            assert len(found) == len(mine)
            for row in range(count):
                at = sorted(mine["row_start"][mine["row"] == first + row].tolist())
                end = int((mine["row_start"] + mine["length"])[mine["row"] == first + row].max())
                tail = [end] if end <= layout["seq_len"] else []
                assert starts[pointers[row] : pointers[row + 1]].tolist() == at + tail
        assert one.provenance(one.finish()[0]).equals(other.provenance(other.finish()[0]))


def rerun(done: dict[str, list[Receipt]], stage: Any, root: Path) -> None:
    run_task(stage, stage.tasks({s: done[s] for s in stage.upstream})[0], root)


def test_damage_is_named(tmp_path: Path) -> None:
    done = line(tmp_path, MIXTURE, shuffle="buckets", part_bytes=900)
    files = {s.name: Path(s.path) for r in done["shards.buckets"] for s in r.outputs}
    bucket, index = files["warm/part-00000.bucket"], files["warm/part-00000.index.npy"]
    shard = int(read_records(index, STRETCH)["shard"][0])
    stage = ShardsWrite({})
    task = next(t for t in stage.tasks({s: done[s] for s in stage.upstream}) if t.key == f"warm/{shard:05d}")
    good = bucket.read_bytes()
    for bad in (bytes([good[60] ^ 1, *good[1:60], *good[60:]]), good[:40]):
        bucket.write_bytes(bad)
        with pytest.raises(FormatError, match="differs from its index"):
            run_task(stage, task, tmp_path)
    bucket.write_bytes(good)
    run_task(stage, task, tmp_path)
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(FormatError, match="differs from its receipt"):
        run_task(stage, task, tmp_path)
    tokens = Path(done["tokens"][0].output("tokens.bin").path)
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(FormatError, match="differs from its receipt"):
        rerun(done, ShardsBuckets({}), tmp_path)
    done["tokens"].reverse()
    with pytest.raises(FormatError, match="not those of the mixture"):
        rerun(done, ShardsBuckets({}), tmp_path)


def test_pieces_outside_their_store_or_row_are_refused(tmp_path: Path) -> None:
    pieces, layout, paths, _ = made(5, "<u2", tmp_path)
    mine = pieces[pieces["row"] < layout["rows_per_shard"]]
    for field, value, text in (
        ("begin", 1000, "beyond its store"),
        ("begin", -1, "beyond its store"),
        ("row", 10**6, "beyond its row"),
        ("row_start", layout["seq_len"] + 1, "beyond its row"),
        ("store", 9, "names store 9"),
    ):
        bad = mine.copy()
        bad[field][0] = value
        with pytest.raises(FormatError, match=text):
            gather(bad, layout, 0, paths)
    with pytest.raises(FormatError, match="uint32 tokens, the dataset uint16"):
        write.open_store(paths[0], layout["tokens"][0] // 2, "<u2")
    np.save(tmp_path / "other.npy", np.zeros(3))
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    for name in ("other.npy", "pickled.npy", "none.npy"):
        with pytest.raises(FormatError):
            read_records(tmp_path / name, PIECE)


def given_stores(root: Path) -> dict[str, list[Receipt]]:
    tokens, tokenizer = FakeTokens({}), FakeTokenizer({})
    found = {"tokens": [run_task(tokens, t, root) for t in tokens.tasks({})]}
    return {**found, "tokenizer": [run_task(tokenizer, t, root) for t in tokenizer.one_task({})]}


def nodes() -> list[Node]:
    config = {"mixture": MIXTURE, "shard_bytes": 700, "shuffle": "buckets", "part_bytes": 900}
    return [Node(name, load_class(name)(config if name == "mixture" else {}), {}) for name in STAGES]


def digests(root: Path) -> list[Any]:
    found = [read_manifest(root, name) for name in STAGES]
    assert all(m is not None and m.complete for m in found)
    return [m.digest for m in found if m is not None]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["", "shards.buckets:before_rename", "shards.buckets:before_receipt"])
def test_workers_and_kills_change_no_byte(where: str, spread: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """One process, two worker processes, and two of which one is killed inside a commit."""
    marker = tmp_path / "killed"
    if where:
        monkeypatch.setenv("GRISTMILL_TEST_KILL", f"{where}:{marker}")
    (tmp_path / "root").mkdir()
    root = tmp_path / "root"
    outcome = runner.run(nodes(), root, [], cluster="local:2", given=given_stores(root), say=lambda _: None)
    assert outcome.exit_code == 0, outcome.failures
    assert marker.exists() == bool(where)
    assert [r.content for n in STAGES for r in outcome.manifests[n].receipts] == content(spread, *STAGES)
    again = runner.run(nodes(), root, [], cluster="local:2", given=given_stores(root), say=lambda _: None)
    assert (again.exit_code, again.ran) == (0, 0)


@pytest.mark.slow
def test_kill_9_of_driver_and_workers_amid_either_pass(spread: Any, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from mixes.test_mixes_shuffle import given_stores, nodes
        from gristmill.pipelines import runner
        if __name__ == "__main__":
            root = Path(sys.argv[1])
            outcome = runner.run(nodes(), root, [], cluster="local:2", given=given_stores(root), say=lambda _: None)
            sys.exit(outcome.exit_code)
        """
    )
    path = tmp_path / "drive.py"
    path.write_text(script)
    command = [sys.executable, str(path), str(root), str(TESTS)]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"}
    for stage, receipts in (("shards.buckets", 3), ("shards.buckets", 9), ("shards.write", 2)):
        with open(tmp_path / "log", "ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 120
        while time.monotonic() < until and len(list(root.glob(f"stages/{stage}/*/receipt.json"))) < receipts:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert read_manifest(root, stage) is None
    done = subprocess.run(command, env=environment, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    want = [digest_of(spread, name) for name in STAGES]
    assert digests(root) == want
    assert not [p for p in root.glob("stages/*/*/.tmp-*/**/*") if p.is_file()]  # an empty folder may stay


def digest_of(done: dict[str, list[Receipt]], stage: str) -> str:
    from gristmill.core.hashing import digest

    return digest([r.content for r in done[stage]])
