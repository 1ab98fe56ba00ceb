"""The loader beside a naive one: the same tokens for every number of ranks, ragged batches, blocks, errors, resumes."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from packed_rows import SOURCES, make  # noqa: E402

from gristmill.core.errors import FormatError, UsageError  # noqa: E402
from gristmill.core.tokshards import PackedDataset, PackedManifest  # noqa: E402
from gristmill.trainer import goldfish  # noqa: E402
from gristmill.trainer.data import IGNORE, Batch, RowReader, batch_of_step  # noqa: E402
from gristmill.trainer.data_schema import Data  # noqa: E402
from gristmill.trainer.edits import Block, Ramp, Skip  # noqa: E402
from gristmill.trainer.integrity import ShardCheck  # noqa: E402
from gristmill.trainer.loader import Loader, Micro, StepBatch  # noqa: E402
from gristmill.trainer.order import DataOrder  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return make(tmp_path_factory.mktemp("loader") / "packed")


def document(number: int) -> str:
    return number.to_bytes(16, "big").hex()


def naive(dataset: PackedDataset, order: DataOrder, step: int) -> list[dict[str, list[int]]]:
    """The rows of a step token by token, out of the provenance alone."""
    out = []
    for sample, row in order.samples_of_step(step):
        phase = order.span(step).phase
        tokens = dataset.row(phase.name, row)[0].tolist()
        reader, _ = dataset.locate(phase.name, row)
        pieces = [p for p in reader.provenance().to_pylist() if p["row"] == row]
        owner: list[dict[str, Any] | None] = [None] * len(tokens)
        for piece in pieces:
            owner[piece["row_start"] : piece["row_start"] + piece["length"]] = [piece] * piece["length"]
        found: dict[str, list[int]] = {"tokens": tokens[:-1], "labels": [], "position": [], "source": []}
        padding = sum(p["length"] for p in pieces)
        for t in range(phase.seq_len):
            here, there = owner[t], owner[t + 1]
            found["position"].append(t - (here["row_start"] if here else padding))
            learn = there is not None and here is there and order.blocked.get(there["id"].hex(), sample + 1) > sample
            found["labels"].append(tokens[t + 1] if learn else IGNORE)
            found["source"].append(SOURCES.index(there["source"]) if learn and there else -1)
        out.append(found)
    return out


def run_of(run_maker, micro: int = 3, **changes):
    return run_maker(micro_batch_rows=micro, **changes)


def load(dataset, order, run, dp: int, steps: list[int]) -> list[list[StepBatch]]:
    """[step][rank] batches."""
    ranks = []
    for rank in range(dp):
        with Loader(dataset, order, World(CPU, rank, dp), run, CPU) as loader:
            ranks.append([loader.batch(step) for step in steps])
            loader.finish()
    return [list(column) for column in zip(*ranks, strict=True)]


def joined(batch: StepBatch) -> dict[str, np.ndarray]:
    return {
        name.removesuffix("_BT"): torch.cat([getattr(micro, name) for micro in batch.micros]).numpy()
        for name in Micro.__dataclass_fields__
        if name.endswith("_BT")
    }


def check_ranks(dataset: PackedDataset, order: DataOrder, step: int, ranks: list[StepBatch]) -> None:
    want = naive(dataset, order, step)
    assert [pair for batch in ranks for pair in batch.rows] == order.rows_of_step(step)
    shapes = {tuple(micro.tokens_BT.shape) for batch in ranks for micro in batch.micros}
    assert len(shapes) == len({len(batch.micros) for batch in ranks}) == 1
    got: dict[str, list[list[int]]] = {}
    for batch in ranks:
        arrays = joined(batch)
        for name, values in arrays.items():
            got.setdefault(name, []).extend(values[: len(batch.rows)].tolist())
        assert (arrays["labels"][len(batch.rows) :] == IGNORE).all()
        assert (arrays["source"][len(batch.rows) :] == -1).all()
        assert (arrays["position"][len(batch.rows) :] == np.arange(arrays["tokens"].shape[1])).all()
        assert [t.dtype for n, t in vars(batch.micros[0]).items() if n != "documents"] == [
            *[torch.int64] * 3,
            torch.int16,
        ]
        for micro in batch.micros:
            assert micro.documents == sum(p == 0 for row in micro.position_BT.tolist() for p in row)
        assert batch.valid_tokens == sum(label != IGNORE for row in want for label in row["labels"])
    for name, rows in got.items():
        assert rows == [row[name] for row in want], name


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 9), st.integers(1, 8), st.sampled_from(["plain", "ramp", "edits"]))
def test_every_number_of_ranks_gives_what_a_naive_loader_gives(dataset, run_maker, dp, micro, kind):
    ramp = Data.model_validate(
        {"batch_ramp": [{"rows": 3, "until_samples": 6}, {"rows": 4, "until_samples": 9}]}
    ).batch_ramp
    order = DataOrder(dataset.manifest, ramp if kind == "ramp" else ())
    if kind == "edits":
        order = order.edited(*order.defer(2), Skip("a", 22, 3, 1), Block((document(3), document(8)), 0))
        order = order.edited(*order.skip(4), Block((document(5),), 17))
    steps = [step for step in range(1, order.steps + 1) if order.rows_of_step(step)]
    for step, ranks in zip(steps, load(dataset, order, run_of(run_maker, micro), dp, steps), strict=True):
        check_ranks(dataset, order, step, ranks)
        assert ranks[0].micros[0].tokens_BT.shape[0] <= micro


def stream(dataset, order, run, dp: int, steps: list[int]) -> list[list[int]]:
    """Tokens of all rows in order, rows that only fill left out."""
    rows = []
    for ranks in load(dataset, order, run, dp, steps):
        for batch in ranks:
            rows += joined(batch)["tokens"][: len(batch.rows)].tolist()
    return rows


def test_the_token_stream_is_the_same_after_a_change_of_ranks_and_ramp(dataset, run_maker):
    run = run_of(run_maker)
    plain = DataOrder(dataset.manifest)
    whole = stream(dataset, plain, run, 1, list(range(1, plain.steps + 1)))
    assert len(whole) == plain.samples
    ramp = Data.model_validate(
        {"batch_ramp": [{"rows": 2, "until_samples": 4}, {"rows": 5, "until_samples": 30}]}
    ).batch_ramp
    for at in (2, 4):
        order = plain.edited(Ramp(ramp, at))
        first, rest = list(range(1, at)), list(range(at, order.steps + 1))
        got = stream(dataset, order, run, 3, first) + stream(dataset, order, run_of(run_maker, 2), 2, rest)
        # phase a may train some rows more or fewer, as whole batches fit; what both train is equal, token by token
        mine = sum(s.samples for s in order.spans if s.phase.name == "a")
        theirs = sum(s.samples for s in plain.spans if s.phase.name == "a")
        common = min(mine, theirs)
        assert got[:common] == whole[:common]
        assert got[mine:][: plain.samples - theirs] == whole[theirs:][: order.samples - mine]


def test_resuming_at_any_step_reads_what_follows(dataset, run_maker):
    order = DataOrder(dataset.manifest)
    order = order.edited(*order.skip(3))
    run = run_of(run_maker)
    steps = [1, 2, 4, 5, 6, 7, 8]
    whole = [joined(ranks[0]) for ranks in load(dataset, order, run, 1, steps)]
    for i in range(1, len(steps)):
        again = [joined(ranks[0]) for ranks in load(dataset, order, run, 1, steps[i:])]
        for a, b in zip(whole[i:], again, strict=True):
            assert all(np.array_equal(a[name], b[name]) for name in a)


def test_an_edit_takes_effect_at_once_though_steps_were_read_ahead(dataset, run_maker):
    order = DataOrder(dataset.manifest)
    with Loader(dataset, order, World(CPU), run_of(run_maker), CPU) as loader:
        loader.batch(1)
        first = loader.batch(2)
        edited = order.edited(*order.defer(2), Block((document(3),), 14))
        loader.reset(edited, 2)
        again = loader.batch(2)
        assert loader.order is edited
        assert again.rows == order.rows_of_step(3) != first.rows
        for step in (3, 4, 5, 6):
            check_ranks(dataset, edited, step, [loader.batch(step)])
        check_ranks(dataset, edited, 2, [loader.batch(2)])  # a rewind


def test_steps_are_read_ahead_by_the_thread(dataset, run_maker, monkeypatch):
    read: list[tuple[int, str]] = []
    of_step = RowReader.of_step
    monkeypatch.setattr(
        RowReader,
        "of_step",
        lambda self, step: (read.append((step, threading.current_thread().name)), of_step(self, step))[1],
    )
    with Loader(dataset, DataOrder(dataset.manifest), World(CPU), run_of(run_maker), CPU) as loader:
        loader.batch(1)
        for _, future in loader._ahead:
            future.result()
        assert read == [(step, "loader_0") for step in (1, 2, 3)]
        waited = loader.wait_seconds
        loader.batch(2)
        assert loader.wait_seconds > waited
        assert [step for step, _ in read[:3]] == [1, 2, 3]
        for step in range(3, 9):
            loader.batch(step)
    assert [step for step, _ in read] == list(range(1, 9))


def test_the_goldfish_mask_counts_the_whole_batch(dataset, run_maker):
    run = run_of(run_maker, loss={"goldfish": {"k": 3, "h": 2, "seed": 4}})
    order = DataOrder(dataset.manifest)
    for dp in (1, 3):
        for step, ranks in zip((1, 6), load(dataset, order, run, dp, [1, 6]), strict=True):
            whole = batch_of_step(dataset, step)
            masked = goldfish.mask_labels(whole, run.loss.goldfish)
            assert 0 < masked.valid_tokens < whole.valid_tokens
            assert {batch.valid_tokens for batch in ranks} == {masked.valid_tokens}
            labels = np.concatenate([joined(batch)["labels"][: len(batch.rows)] for batch in ranks])
            sources = np.concatenate([joined(batch)["source"][: len(batch.rows)] for batch in ranks])
            assert np.array_equal(labels, masked.labels_BT)
            assert np.array_equal(sources == -1, labels == IGNORE)


def with_manifest(dataset: PackedDataset, **changes) -> PackedDataset:
    changed = PackedDataset(dataset.folder)
    changed.manifest = dataclasses.replace(dataset.manifest, **changes)
    return changed


def test_errors_of_the_thread_come_with_their_step(tmp_path, run_maker):
    broken = make(tmp_path / "packed")
    path = tmp_path / "packed" / "a" / "00001.bin"  # rows 11..21: step 2 reads row 11
    path.write_bytes(path.read_bytes()[:-2])
    run = run_of(run_maker, verify_shards=False)
    with Loader(broken, DataOrder(broken.manifest), World(CPU), run, CPU) as loader:
        assert loader.batch(1).rows[0] == ("a", 0)
        with pytest.raises(FormatError, match=r"step 2: .*00001\.bin has") as caught:
            loader.batch(2)
        assert caught.value.hint
        assert loader.batch(5).rows[0] == ("a", 28)  # elsewhere it still reads
        with pytest.raises(UsageError, match="step 99: no step 99"):
            loader.batch(99)


@pytest.mark.parametrize("name", ["00000.bnd.npy", "00000.prov.parquet"])
@pytest.mark.parametrize("how", ["cut", "other"])
def test_boundaries_and_provenance_that_are_damaged_are_refused(tmp_path, run_maker, name, how):
    broken = make(tmp_path / "packed")
    path = tmp_path / "packed" / "a" / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name.endswith("npy"):
        bounds = np.load(path)
        bounds[13] = 5  # 11 rows: the first piece of row 0 starts at 0, its second later
        np.save(path, bounds)
    else:
        path.write_bytes((tmp_path / "packed" / "a" / "00001.prov.parquet").read_bytes())
    run = run_of(run_maker, verify_shards=False)
    with (
        Loader(broken, DataOrder(broken.manifest), World(CPU), run, CPU) as loader,
        pytest.raises(FormatError, match=name.split(".")[0]),
    ):
        loader.batch(1)


def test_ids_beyond_the_vocabulary_and_odd_types_are_refused(dataset, run_maker):
    small = with_manifest(dataset, vocab_size=50)
    with (
        Loader(small, DataOrder(small.manifest), World(CPU), run_of(run_maker), CPU) as loader,
        pytest.raises(FormatError, match="step 1: phase 'a' holds token id"),
    ):
        loader.batch(1)
    odd = with_manifest(dataset, dtype="|O")
    with pytest.raises(FormatError, match="tokens of type"):
        Loader(odd, DataOrder(odd.manifest), World(CPU), run_of(run_maker), CPU)


def test_a_step_without_rows_is_refused(dataset, run_maker):
    order = DataOrder(dataset.manifest)
    order = order.edited(*order.skip(2))
    with (
        Loader(dataset, order, World(CPU), run_of(run_maker), CPU) as loader,
        pytest.raises(UsageError, match="step 2: all its rows are skipped"),
    ):
        loader.batch(2)


def finished(loader: Loader) -> None:
    loader.batch(1)  # may find it already
    loader.finish()


@pytest.mark.parametrize("suffix", ["bin", "bnd.npy", "prov.parquet"])
def test_a_changed_byte_is_found_in_the_background(tmp_path, run_maker, suffix):
    changed = make(tmp_path / "packed")
    path = tmp_path / "packed" / "b" / f"00001.{suffix}"  # no step reads it
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    order = DataOrder(changed.manifest)
    with Loader(changed, order, World(CPU), run_of(run_maker), CPU) as loader:
        with pytest.raises(FormatError, match=rf"b/00001\.{suffix} was changed") as caught:
            finished(loader)
        assert caught.value.hint
        with pytest.raises(FormatError, match="was changed"):
            loader.batch(2)
        with pytest.raises(FormatError, match="was changed"):
            loader.check()
    with Loader(changed, order, World(CPU), run_of(run_maker, verify_shards=False), CPU) as loader:
        loader.batch(1)
        loader.finish()
        assert loader.hashes() == {}


def test_ranks_share_the_files_which_begin_at_the_step(dataset):
    order = DataOrder(dataset.manifest)
    want = {
        f"{shard.file.removesuffix('.bin')}.{suffix}": digest
        for phase in dataset.manifest.phases
        for shard in phase.shards
        for suffix, digest in shard.sha256.items()
    }
    parts = []
    for rank in range(4):
        check = ShardCheck(dataset, order, 1, rank, 4)
        check.finish()
        parts.append(check.hashes())
        check.close()
    assert sum(map(len, parts)) == len(want) == 18
    assert {name: digest for part in parts for name, digest in part.items()} == want
    late = ShardCheck(dataset, order, 4)  # row 21
    late.finish()
    assert [*late.hashes()][:4] == ["a/00001.bin", "a/00001.bnd.npy", "a/00001.prov.parquet", "a/00002.bin"]
    assert late.hashes() == want


def test_a_shard_that_is_gone_or_elsewhere_is_told(tmp_path, dataset):
    gone = make(tmp_path / "packed")
    (tmp_path / "packed" / "a" / "00003.bin").unlink()
    check = ShardCheck(gone, DataOrder(gone.manifest), 1)
    with pytest.raises(FormatError, match=r"00003\.bin"):
        check.finish()
    phase = gone.manifest.phases[0]
    outside = [dataclasses.replace(phase.shards[0], file="../other/00000.bin"), *phase.shards[1:]]
    bad = with_manifest(gone, phases=[dataclasses.replace(phase, shards=outside), gone.manifest.phases[1]])
    check = ShardCheck(bad, DataOrder(bad.manifest), 1)
    with pytest.raises(FormatError, match="leaves the dataset folder"):
        check.finish()


def test_closing_leaves_no_thread(dataset, run_maker):
    before = set(threading.enumerate())
    loader = Loader(dataset, DataOrder(dataset.manifest), World(CPU), run_of(run_maker), CPU)
    loader.batch(1)
    assert set(threading.enumerate()) - before
    loader.close()
    assert set(threading.enumerate()) <= before


def test_labels_of_small_cases():
    """Cut documents, one-token pieces and padding, by hand: the naive loader above could share a mistake."""
    from gristmill.trainer.data import Pieces, StepRows

    tokens = np.array([[10, 11, 12, 1, 20, 21, 1, 2, 2], [10, 11, 12, 13, 14, 15, 16, 17, 20]], "<u2")
    pieces = Pieces(
        np.array([3, 2]),
        np.array([0, 4, 7, 0, 8]),
        np.array([4, 3, 2, 8, 1]),
        np.array([1, 0, -1, 2, 1], np.int16),
        np.array([True, True, False, True, True]),
    )
    assert pieces.valid_tokens == 3 + 2 + 7 + 0
    reader = RowReader.__new__(RowReader)
    reader.dataset = type("Fake", (), {"manifest": PackedManifest("<u2", 97, {}, "", 0, "", [], [])})()
    reader._tokens = lambda phase, rows: tokens[rows]  # type: ignore[method-assign]
    batch, source = reader.arrays(StepRows(1, "a", 8, 2, [0, 1], pieces), 0, 2, 3)
    no = IGNORE
    assert batch.tokens_BT.tolist() == [[10, 11, 12, 1, 20, 21, 1, 2], [10, 11, 12, 13, 14, 15, 16, 17], [0] * 8]
    assert batch.labels_BT.tolist() == [[11, 12, 1, no, 21, 1, no, no], [11, 12, 13, 14, 15, 16, 17, no], [no] * 8]
    assert batch.position_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [*range(8)], [*range(8)]]
    assert source.tolist() == [[1, 1, 1, -1, 0, 0, -1, -1], [2] * 7 + [-1], [-1] * 8]
    assert Batch(*(a[:2] for a in vars(batch).values())).valid_tokens == pieces.valid_tokens
