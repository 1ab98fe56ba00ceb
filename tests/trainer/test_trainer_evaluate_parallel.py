"""Evaluation and sampling by several processes: what one process finds, and training as if nobody had looked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).resolve().parents[1] / "trainer_watch_ranks.py"


def launch(processes, dataset, out, run):
    settings = out.with_suffix(".run.json")
    settings.write_text(json.dumps(run.model_dump(mode="json")))
    ranks = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, *ranks, str(SCRIPT), str(dataset.folder), str(out), str(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return orjson.loads((out / "seen.json").read_bytes())


@pytest.mark.slow
def test_four_processes_see_what_one_sees(toy, run_maker, tmp_path):
    texts = [" ".join([f"w{3 + n % 90} w{4 + n % 80} w{7 + n % 70}"] * (n % 5 + 1)) for n in range(24)]
    (tmp_path / "own.jsonl").write_bytes(b"\n".join(orjson.dumps({"text": t}) for t in texts))
    items = [{"context": f"w{3 + n} w{9 + n}", "choices": [" w8 w9", " w40"], "gold": n % 2} for n in range(11)]
    (tmp_path / "task.jsonl").write_bytes(b"\n".join(map(orjson.dumps, items)))
    (tmp_path / "last.jsonl").write_bytes(orjson.dumps({"question": "w3 w4", "answer": "w5"}))
    evaluate = {
        "heldout": [{"name": "own", "path": str(tmp_path / "own.jsonl")}],
        "tasks": [
            {"name": "choice", "path": str(tmp_path / "task.jsonl")},
            {"name": "last", "path": str(tmp_path / "last.jsonl"), "format": "lambada"},
        ],
    }
    gallery = {"prompts": ["w5 w9", ""], "tokens": 6, "temperature": 0.0}
    common = {"evaluate": evaluate, "gallery": gallery}
    one = launch(1, toy, tmp_path / "one", run_maker(**common))
    four = launch(4, toy, tmp_path / "four", run_maker(parallel={"tp": 2, "zero": 2}, **common))
    assert one["untouched"]
    assert four["untouched"]
    assert four["samples"] == one["samples"]
    for kind, key in (("heldout", "own"), ("tasks", "choice"), ("tasks", "last")):
        found, wanted = four["evaluation"][kind][key], one["evaluation"][kind][key]
        assert found.pop("sha256", None) == wanted.pop("sha256", None)
        assert found == pytest.approx(wanted, rel=1e-5)
    assert one["evaluation"]["heldout"]["own"]["documents"] > 10
    assert four["losses"][1] < four["losses"][0]
    assert (tmp_path / "four" / "evaluations.jsonl").read_bytes().count(b"\n") == 3
