"""Checkpoints of one process, dp2 x tp2, tp4, dp4 and tp2 are one format: each is read by the others, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import trainer_checkpoint_states as toy  # noqa: E402

from gristmill.trainer import checkpoint  # noqa: E402
from gristmill.trainer.checkpoint_schema import Checkpoint  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402
from gristmill.trainer.saver import Checkpoints  # noqa: E402

ALONE = World(torch.device("cpu"))


def torchrun(ranks: int, folder: Path) -> None:
    script = Path(__file__).parents[1] / "trainer_checkpoint_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, script, folder],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.slow
def test_every_layout_reads_every_other(tmp_path):
    Checkpoints(tmp_path / "one", ALONE, Checkpoint(), toy.VOCAB).begin(
        toy.state(7), toy.parts_of(toy.module_of(ALONE))
    )
    torchrun(4, tmp_path)
    torchrun(2, tmp_path)
    payload = {}
    for name in ("one", "two", "tp2-zero3", "tp2-zero0", "tp4-zero3", "tp1-zero3"):
        saver = Checkpoints(tmp_path / name, ALONE, Checkpoint(), toy.VOCAB)
        found = saver.latest()
        assert found is not None, name
        parts = toy.parts_of(toy.module_of(ALONE))
        toy.spoil(parts)
        saver.load(found, parts)
        toy.check(parts)
        whole = found.part(checkpoint.MODEL)
        assert {n: t.shape[0] for n, t in whole.items() if n.startswith(("embed", "head"))} == {
            "embed.weight": toy.VOCAB,
            "head.weight": toy.VOCAB,
        }
        files = [p for p in found.folder.iterdir() if p.suffix == ".safetensors"]
        payload[name] = sum(p.stat().st_size - 8 - int.from_bytes(p.read_bytes()[:8], "little") for p in files)
        assert toy.hidden(tmp_path / name) == []
    assert len(set(payload.values())) == 1, f"replicated tensors are written once: {payload}"
    assert len([p for p in (tmp_path / "tp2-zero0" / "00000007").iterdir() if p.name.startswith("model-")]) == 4
    assert toy.hidden(tmp_path / "async") == []
    assert checkpoint.steps_in(tmp_path / "averages") == [2, 3, 4]
