"""Watching a whole run: the metrics are those of a run nobody watched, and a killed run's rows and samples are the same."""

from __future__ import annotations

import orjson
import pytest

torch = pytest.importorskip("torch")

from gristmill.trainer import loop  # noqa: E402
from gristmill.trainer.journal import read_journal  # noqa: E402


class Killed(Exception):
    pass


def rule(start, words):
    """Words in the order that the toy data mostly follow."""
    ids = [start]
    while len(ids) < words:
        ids.append((5 * ids[-1] + 7) % 94)
    return [f"w{i + 3}" for i in ids]


def kill_at(step):
    def report(record):
        if record["step"] == step:
            raise Killed

    return report


@pytest.fixture(scope="module")
def watched(toy, run_maker, tmp_path_factory):
    """(run, folder, said) of 12 watched steps."""
    folder = tmp_path_factory.mktemp("watched")
    texts = [" ".join(rule(7 * n, n % 9 + 6)) for n in range(12)]
    (folder / "own.jsonl").write_bytes(b"\n".join(orjson.dumps({"text": t}) for t in texts))
    rows = [{"context": f"w{3 + n}", "choices": [" w8 w9", " w40"], "gold": n % 2} for n in range(6)]
    (folder / "task.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    evaluate = {
        "every_steps": 4,
        "heldout": [{"name": "own", "path": str(folder / "own.jsonl")}],
        "tasks": [{"name": "choice", "path": str(folder / "task.jsonl")}],
    }
    gallery = {"prompts": ["w5 w9"], "tokens": 5}
    run = run_maker(max_steps=12, evaluate=evaluate, gallery=gallery)
    said: list[str] = []
    loop.train(run, toy, folder / "run", say=said.append, tokenizer=toy.folder / "tokenizer.json")
    return run, folder / "run", said


def samples(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").iterdir())}


def test_a_watched_run_trains_as_one_that_nobody_watches(watched, toy, tmp_path):
    run, folder, said = watched
    loop.train(run, toy, tmp_path)  # without a tokenizer nothing is evaluated or sampled
    assert not (tmp_path / "evaluations.jsonl").exists()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    rows = read_journal(folder / "evaluations.jsonl")
    assert [(r["step"], r["phase"]) for r in rows] == [(4, "main"), (8, "main"), (12, "main")]
    bits = [r["heldout"]["own"]["bits_per_byte"] for r in rows]
    assert bits[0] > bits[-1] > 0
    assert sum(text.startswith("evaluation after step") for text in said) == 3
    assert list(samples(folder)) == ["00000005.json", "00000010.json", "00000012.json"]
    timing = read_journal(folder / "timings.jsonl")[-1]
    assert {"seconds", "tokens_per_second", "tflops", "memory_bytes", "data_wait"} <= set(timing)
    assert "mfu" not in timing  # no peak of a CPU is known


@pytest.mark.parametrize("killed_at", [7, 11])
def test_a_killed_run_leaves_the_same_rows_and_samples(killed_at, watched, toy, tmp_path):
    run, folder, _ = watched
    tokenizer = toy.folder / "tokenizer.json"
    with pytest.raises(Killed):
        loop.train(run, toy, tmp_path, report=kill_at(killed_at), tokenizer=tokenizer)
    loop.train(run, toy, tmp_path, tokenizer=tokenizer)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert samples(tmp_path) == samples(folder)
