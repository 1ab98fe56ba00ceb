"""300 steps on text of a seeded grammar against losses written down before, and as many on real text against a bound.

The golden file holds the mean loss of each 20 steps, on one thread. Where a change of the trainer is meant to change
losses, GRISTMILL_WRITE_GOLDEN=1 writes it anew.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import grammar_data as text  # noqa: E402
from data_helper import shared_data  # noqa: E402

from gristmill.trainer import loop  # noqa: E402
from gristmill.trainer.journal import read_journal  # noqa: E402

GOLDEN = Path(__file__).with_name("golden_losses.json")
NEAR = 0.03  # nats, for other CPUs and versions of torch; other threads and micro batches move these means by 1e-4
STEPS, WINDOW = 300, 20
PHASES = [
    ("main", 64, 8, 240, {"phase": "stable", "warmup_steps": 20}),
    ("anneal", 96, 6, 60, {"phase": "decay", "shape": "1-sqrt", "to": 0.0}),
]
MODEL = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 160, "qk_norm": True}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def means(run_maker, documents, folder):
    """Mean loss of each 20 steps."""
    dataset = text.write_dataset(folder / "dataset", PHASES, documents)
    run = run_maker(
        model=MODEL, optimizer={"lr": 6e-3}, micro_batch_rows=8, threads=1, checkpoint={"every_steps": 1000, "keep": 1}
    )
    assert loop.train(run, dataset, folder / "out").finished
    losses = [record["loss"] for record in read_journal(folder / "out" / "metrics.jsonl")]
    assert len(losses) == STEPS
    return [sum(losses[i : i + WINDOW]) / WINDOW for i in range(0, STEPS, WINDOW)]


def test_three_hundred_steps_go_as_before(run_maker, tmp_path):
    found = means(run_maker, text.grammar_documents(1), tmp_path)
    if os.environ.get("GRISTMILL_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps([round(x, 4) for x in found]) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert golden[0] - golden[-1] > 2, "the golden run has learnt"
    assert found == pytest.approx(golden, abs=NEAR)


def test_real_text_is_learnt(run_maker, tmp_path):
    """English prose, a character a token: from ln 98 = 4.6 below the 3.0 that counts of single characters would reach."""
    import zstandard

    path = shared_data("text/en-prose.jsonl.zst")
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as raw:
        lines = io.TextIOWrapper(raw, encoding="utf-8")
        pieces = (json.loads(line)["text"][i : i + 2000] for line in lines for i in (0, 2000, 4000))
        documents = (text.encode(piece) for piece in pieces if piece)
        found = means(run_maker, documents, tmp_path)
    assert found[0] > 3.5
    assert found[-1] < 2.4, found
