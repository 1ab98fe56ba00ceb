"""The judgement against numpy, its window over resumes, losses per piece, heartbeats and slow ranks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from spiked import make_spiked  # noqa: E402

from gristmill.core.errors import FormatError  # noqa: E402
from gristmill.trainer import events, heartbeat, pieces  # noqa: E402
from gristmill.trainer.data import IGNORE  # noqa: E402
from gristmill.trainer.guard_schema import Guards  # noqa: E402
from gristmill.trainer.guards import VALUES, Judge  # noqa: E402
from gristmill.trainer.health import Health  # noqa: E402
from gristmill.trainer.losses_ring import LossRing  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402

CPU = torch.device("cpu")


def guards(**changes: Any) -> Guards:
    return Guards.model_validate({"window": 16, "min_steps": 8} | changes)


def judged(judge: Judge, loss: float, norm: float) -> tuple[bool, list[float]]:
    ok, numbers = judge(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm))
    assert ok.shape == ()
    assert ok.dtype == torch.bool
    assert numbers.shape == (VALUES,)
    return bool(ok), numbers.tolist()


def course(seed: int, n: int) -> list[tuple[float, float]]:
    """Losses and norms with spikes and values that are not finite in between."""
    rng = np.random.default_rng(seed)
    out = [(float(3 + 0.1 * rng.standard_normal()), float(np.float32(1 + 0.2 * rng.random()))) for _ in range(n)]
    for at, bad in ((20, (9.0, 1.0)), (27, (3.0, 30.0)), (33, (float("nan"), 1.0)), (34, (3.0, float("inf")))):
        out[at] = bad
    return out


@pytest.mark.parametrize("on_spike", ["warn", "skip_update"])
@pytest.mark.parametrize("watch", [["loss", "grad_norm"], ["loss"], []])
def test_the_judge_agrees_with_numpy(on_spike: str, watch: list[str]) -> None:
    settings = guards(on_spike=on_spike, watch=watch)
    judge = Judge(settings, CPU)
    accepted: list[tuple[float, float]] = []
    refused: list[tuple[float, float]] = []
    for step, now in enumerate(course(0, 60)):
        window = np.array(accepted[-16:]).reshape(-1, 2)
        limit = np.full(2, np.inf)
        if len(window) >= 8:
            limit = window.mean(0) + 6 * window.std(0, ddof=1)
            limit[[name not in watch for name in ("loss", "grad_norm")]] = np.inf
        good = bool(np.isfinite(now).all()) and (on_spike == "warn" or bool((np.array(now) <= limit).all()))
        ok, numbers = judged(judge, *now)
        assert ok == good, step
        assert numbers[2:4] == pytest.approx(limit.tolist(), rel=1e-12)
        assert numbers[8] == len(window)
        (accepted if good else refused).append(now)
    assert len(refused) == 2 + (on_spike != "warn") * len(watch)
    assert judge.state_dict()["count"] == len(accepted)


def test_a_resumed_judge_goes_on_bit_for_bit() -> None:
    whole, parts = Judge(guards(on_spike="defer"), CPU), Judge(guards(on_spike="defer"), CPU)
    for i, now in enumerate(course(1, 60)):
        assert judged(whole, *now)[1][2:] == judged(parts, *now)[1][2:]
        if i in (3, 15, 16, 29, 41):  # before the window is full, at its edge, and after it wrapped
            state = json.loads(json.dumps(parts.state_dict()))
            parts = Judge(guards(on_spike="defer"), CPU)
            parts.load_state_dict(state)
            assert parts.state_dict() == state


@pytest.mark.parametrize("size", [8, 12, 40])
def test_a_window_of_another_size_keeps_the_latest_values(size: int) -> None:
    old = Judge(guards(), CPU)
    for i in range(21):
        judged(old, float(i), float(-i))
    new = Judge(guards(window=size), CPU)
    new.load_state_dict(old.state_dict())
    kept = min(size, 16)
    assert sorted(new.state_dict()["loss"]) == [float(i) for i in range(21 - kept, 21)]
    judged(new, 99.0, 0.0)
    assert sorted(new.state_dict()["loss"]) == [*(float(i) for i in range(21 - min(kept, size - 1), 21)), 99.0]


def test_the_settings_name_what_does_not_fit() -> None:
    with pytest.raises(ValidationError, match="min_steps 32 is more than the window's 16"):
        Guards(window=16)
    with pytest.raises(ValidationError, match="longer than heartbeat_seconds"):
        Guards(heartbeat_seconds=60)
    assert (Guards().on_spike, Guards().on_nonfinite, Guards().sigma, Guards().window) == ("warn", "stop", 6.0, 128)


# --- losses per piece


def test_piece_losses_equal_a_sum_over_documents(tmp_path: Path) -> None:
    spiked = make_spiked(tmp_path, main=6, anneal=1, step=3)
    dataset, rng = spiked.dataset, np.random.default_rng(0)
    ring = LossRing(steps=2)
    want: dict[tuple[int, str, int, int], list[float]] = {}
    for step in (1, 2, 3):
        rows = [("main", 8 * (step - 1) + i) for i in range(8)]
        for micro in (rows[:3], rows[3:6], rows[6:]):
            nll_BT = rng.random((3, 32)).astype(np.float32)  # the last one has a row that only fills
            labels_BT = np.full((3, 32), IGNORE)
            for i, (phase, row) in enumerate(micro):
                tokens, starts = dataset.row(phase, row)
                labels_BT[i] = tokens[1:]
                labels_BT[i, starts[1:] - 1] = IGNORE
                labels_BT[i, 5] = IGNORE  # a Goldfish mask, say
                for t in range(32):  # position t belongs to the last piece that starts at or before it
                    if labels_BT[i, t] != IGNORE:
                        start = int(starts[starts <= t][-1])
                        want.setdefault((step, phase, row, start), []).append(float(nll_BT[i, t]))
            ring.add(step, micro, torch.from_numpy(nll_BT), torch.from_numpy(labels_BT))
        ring.close(step, accepted=step != 3)
    table = pieces.piece_losses(pieces.Pieces(dataset), ring.read(3))
    assert set(table["step"].to_pylist()) == {2, 3}, "the ring holds two steps"
    found = {(r["step"], r["phase"], r["row"], r["row_start"]): r for r in table.to_pylist()}
    assert found.keys() == {key for key in want if key[0] > 1}
    for key, record in found.items():
        assert record["tokens"] == len(want[key])
        assert record["loss_sum"] == pytest.approx(sum(want[key]), rel=1e-12)
        assert (record["fired"], record["accepted"]) == (key[0] == 3, key[0] == 2)
    assert {r["id"] for r in table.to_pylist() if r["row"] in range(16, 20)} == spiked.garbage


def test_the_ring_is_bounded_and_knows_a_step_that_was_tried_twice() -> None:
    ring = LossRing(steps=8, max_bytes=3 * 4 * 16)
    labels = torch.zeros(1, 16, dtype=torch.int64)
    for step in range(1, 6):
        ring.add(step, [("main", step)], torch.rand(1, 16), labels)
        ring.close(step, accepted=True)
    assert [t.step for t in ring.read(5)] == [3, 4, 5]
    ring.add(6, [("main", 6)], torch.rand(1, 16), labels)
    ring.close(6, accepted=False)
    ring.add(6, [("main", 9)], torch.full((1, 16), float("nan")), labels)
    tries = ring.read(6)
    assert [(t.step, t.rows[0][1], t.fired) for t in tries] == [(5, 5, False), (6, 6, False), (6, 9, True)]
    ring.clear()
    assert ring.read(6) == []
    off = LossRing(steps=0)
    off.add(1, [("main", 0)], torch.rand(1, 16), labels)
    assert off.read(1) == []


# --- events


def test_events_are_cut_back_to_what_the_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / events.FILE
    log = events.EventLog(path, 0)
    for number in (1, 2, 3):
        log.write({"event": number, "step": 10 - number})
    log.close()
    with open(path, "ab") as file:
        file.write(b'{"event": 4, "st')
    assert [e["event"] for e in events.read_events(tmp_path)] == [1, 2, 3]
    events.EventLog(path, 2).close()
    assert [e["event"] for e in events.read_events(tmp_path)] == [1, 2]
    with pytest.raises(FormatError, match="2 of the 3 events"):
        events.EventLog(path, 3)
    path.write_bytes(b"{}\n")
    with pytest.raises(FormatError, match=r"events\.jsonl:1 is no event"):
        events.read_events(tmp_path)


def test_rows_as_ranges_and_back() -> None:
    rows = [("a", 3), ("a", 4), ("a", 7), ("b", 8), ("b", 0), ("b", 1)]
    assert events.row_ranges(rows) == [["a", 3, 2], ["a", 7, 1], ["b", 8, 1], ["b", 0, 2]]
    assert events.rows_in(events.row_ranges(rows)) == rows


# --- ranks that are slow or stalled


def test_slow_ranks_and_throughput() -> None:
    assert heartbeat.slow_ranks([1.0, 1.1, 0.9, 1.6], 1.5) == [3]
    assert heartbeat.slow_ranks([1.0, 2.0], 1.5) == [1]
    assert heartbeat.slow_ranks([1e-6, 5e-6, 1e-6], 1.5, least=1e-3) == []
    assert heartbeat.slow_ranks([5.0], 1.5) == []
    assert heartbeat.throughput_dropped(40, [100, 90, 110], 0.5) is None, "too early to say"
    assert heartbeat.throughput_dropped(40, [100, 90, 110, 100], 0.5) == 100
    assert heartbeat.throughput_dropped(60, [100, 90, 110, 100], 0.5) is None


def test_a_silent_rank_is_named_before_one_that_is_behind(tmp_path: Path) -> None:
    hearts = [heartbeat.Heartbeat(tmp_path, rank, every=0.02) for rank in range(3)]
    for heart in hearts:
        heart.at(7, "compute")
    hearts[1].at(7, "batch")
    time.sleep(0.3)
    now = time.time()
    assert [(s.rank, s.step, s.place) for s in heartbeat.stalled(tmp_path, now, 60)] == [(1, 7, "batch")]
    hearts[2]._closed.set()  # as if the process were stopped: its file stays
    hearts[2]._thread.join()
    found = heartbeat.stalled(tmp_path, now + 30, 20)
    assert [s.rank for s in found] == [0, 1, 2], "all are silent for someone who looks much later"
    path = tmp_path / heartbeat.FOLDER / "2"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"time": now - 90}))
    [silent] = heartbeat.stalled(tmp_path, time.time(), 60)
    assert silent.rank == 2
    assert 89 < silent.silent < 100
    assert f"rank 2 on {data['host']}: step 7, compute" in str(silent)
    hearts[0].close()
    hearts[1].close()
    assert [s.rank for s in heartbeat.stalled(tmp_path, time.time(), 60)] == [2]
    with pytest.raises(ValueError, match="no place"):
        hearts[0].at(1, "lunch")
    path.write_bytes(b"[1, 2")
    assert heartbeat.stalled(tmp_path, time.time(), 60) == []
    heartbeat.remove_heartbeats(tmp_path, ranks=3)
    assert os.listdir(tmp_path / heartbeat.FOLDER) == ["2"]
    heartbeat.remove_heartbeats(tmp_path, ranks=2)
    assert os.listdir(tmp_path / heartbeat.FOLDER) == []


def wait_for(told: list[heartbeat.Stalled], number: int) -> None:
    end = time.monotonic() + 20
    while len(told) < number and time.monotonic() < end:
        time.sleep(0.05)


def test_the_watchdog_tells_once_of_a_rank_that_hangs_and_of_one_that_is_gone(tmp_path: Path) -> None:
    hearts = [heartbeat.Heartbeat(tmp_path, rank, every=0.02) for rank in range(3)]
    told: list[heartbeat.Stalled] = []
    for heart in hearts:
        heart.at(4, "batch")
    for heart in hearts[:2]:
        heart.at(4, "compute")  # and wait there for rank 2, which is alive in its own code
    dog = heartbeat.Watchdog(tmp_path, hearts[0], older_than=1.0, tell=told.append)
    time.sleep(0.3)
    assert told == [], "nothing has lasted long enough"
    wait_for(told, 1)
    time.sleep(0.6)  # time to tell twice
    assert [(s.rank, s.step, s.place) for s in told] == [(2, 4, "batch")]
    hearts[2].at(4, "compute")
    hearts[1]._closed.set()
    hearts[1]._thread.join()
    wait_for(told, 2)
    dog.close()
    assert [(s.rank, s.place) for s in told] == [(2, "batch"), (1, "compute")]
    assert told[1].silent > 1.0
    for heart in hearts[::2]:
        heart.close()


def test_health_tells_a_throughput_drop_and_a_slow_rank(tmp_path: Path) -> None:
    said: list[str] = []
    health = Health(guards(health_every=2), World(CPU), tmp_path, said.append)
    for step in range(1, 13):
        health.step(step, seconds=1.0 if step < 11 else 4.0, tokens=100, waited=0.0)
    health.close()
    [event] = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert (event["kind"], event["step"], event["tokens_per_second"], event["median"]) == (
        "throughput_drop",
        12,
        25,
        100,
    )
    assert said == ["step 12: throughput fell to 25 tokens/s, the median so far is 100"]
    health.hosts = ["a", "b", "c"]
    of_ranks = [[1.0, 0.001, 0.01, 100.0], [1.0, 0.3, 0.01, 100.0], [1.0, 0.001, 0.03, 100.0]]
    found = health._compare(14, of_ranks)
    assert [(e["rank"], e["host"], e["measure"]) for e in found] == [(1, "b", "batch_wait"), (2, "c", "probe")]
    assert "rank 1 on b is slow: it waits for its batches 300 ms" in found[0]["reason"]
