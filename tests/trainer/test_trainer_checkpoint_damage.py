"""Damaged, foreign and hostile checkpoints: passed over or refused with a clear word, and never opened as pickles."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import orjson
import pytest

torch = pytest.importorskip("torch")
import trainer_checkpoint_states as toy  # noqa: E402

from gristmill.core.errors import FormatError  # noqa: E402
from gristmill.core.hashing import sha256_file  # noqa: E402
from gristmill.trainer import checkpoint  # noqa: E402
from gristmill.trainer.checkpoint import MODEL  # noqa: E402
from gristmill.trainer.checkpoint_schema import Checkpoint  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402
from gristmill.trainer.saver import Checkpoints  # noqa: E402

ALONE = World(torch.device("cpu"))


@pytest.fixture
def parts():
    return toy.parts_of(toy.module_of(ALONE))


def saver_of(folder, **settings) -> Checkpoints:
    return Checkpoints(folder, ALONE, Checkpoint(**settings), toy.VOCAB)


@pytest.fixture
def saved(tmp_path, parts):
    """A folder with the checkpoints of steps 5 and 6, and the newest one's folder."""
    for step in (5, 6):
        saver_of(tmp_path).begin(toy.state(step), parts)
    return tmp_path / "00000006"


def reseal(folder: Path) -> None:
    """Make the marker vouch for the files as they are: what an attacker would do."""
    marker = orjson.loads((folder / "state.json").read_bytes())
    for name in marker["files"]:
        marker["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    (folder / "state.json").write_bytes(orjson.dumps(marker))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "index.json", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty"])
def test_a_damaged_file_is_seen_and_passed_over(name, damage, saved):
    path = saved / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 0x10
        path.write_bytes({"cut": data[:-1], "flipped": data, "empty": b""}[damage])
    if (name, damage) == ("state.json", "flipped"):
        path.write_bytes(b"{" + path.read_bytes())  # a flipped digit may be valid JSON; a torn file is not
    with pytest.raises(FormatError):
        checkpoint.read(saved)
    said: list[str] = []
    for found in (checkpoint.latest(saved.parent, said.append), saver_of(saved.parent).latest(said.append)):
        assert found is not None
        assert found.step == 5
    assert len(said) == (0 if (name, damage) == ("state.json", "gone") else 2), "without a marker it is no checkpoint"


class Bomb:
    """A pickle that would write a file when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", [".metadata", "extra.pt", "notes.txt", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_a_planted_pickle_is_refused(name, kind, saved, tmp_path):
    sprung = tmp_path / "sprung"
    if kind == "pickle":
        data = pickle.dumps(Bomb(sprung))
    else:
        torch.save({"x": Bomb(sprung)}, buffer := io.BytesIO())
        data = buffer.getvalue()
    (saved / name).write_bytes(data)
    reseal(saved)
    with pytest.raises(FormatError, match="is a pickle, which"):
        checkpoint.read(saved)
    with pytest.raises(FormatError, match="is a pickle, which"):
        saver_of(saved.parent).open(6)
    found = checkpoint.latest(saved.parent)
    assert found is not None
    assert found.step == 5
    assert not sprung.exists()


def test_a_note_beside_the_files_does_no_harm(saved):
    (saved / "notes.txt").write_text("PKs of this run: none")
    assert checkpoint.read(saved).step == 6


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.pt", "model.safetensors/..", "x\n"])
def test_a_marker_names_files_of_its_folder_only(name, saved):
    marker = orjson.loads((saved / "state.json").read_bytes())
    marker["files"][name] = marker["files"]["model.safetensors"]
    (saved / "state.json").write_bytes(orjson.dumps(marker))
    with pytest.raises(FormatError, match="which is no file of a checkpoint"):
        checkpoint.read(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(shape=[1 << 40, 12]), "not the whole"),
        (lambda e: e.update(shape=[-130, -12]), "cannot be read"),
        (lambda e: e["chunks"][0].__setitem__(0, "other.safetensors"), "impossible box"),
        (lambda e: e["chunks"][0].__setitem__(1, [4, 0]), "impossible box"),
        (lambda e: (e.update(shape=[1 << 20, 12]), e["chunks"][0].__setitem__(2, [1 << 20, 12])), "smaller than"),
        (lambda e: (e.update(shape=[100, 12]), e["chunks"][0].__setitem__(2, [100, 12])), "the index says"),
        (lambda e: e.update(dtype="object"), "cannot be read"),
        (lambda e: e.update(dtype="int32"), "the index says"),
        (lambda e: e.clear(), "cannot be read"),
    ],
)
def test_an_index_that_lies_is_refused(change, message, saved):
    index = orjson.loads((saved / "index.json").read_bytes())
    change(index["tensors"]["model/embed.weight"])
    (saved / "index.json").write_bytes(orjson.dumps(index))
    reseal(saved)
    with pytest.raises(FormatError, match=message):
        checkpoint.read(saved).part(MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("norm.weight"), "that one lacks: norm.weight"),
        (lambda m: m.update(extra=torch.zeros(1)), "that one lacks: extra"),
        (lambda m: m.update({"norm.weight": torch.zeros(4)}), r"norm.weight has the shape \[3\]"),
        (lambda m: m.update({"norm.weight": torch.zeros(3).bfloat16()}), "float32, this run's"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(change, message, saved, parts):
    change(parts[MODEL])
    with pytest.raises(FormatError, match=message):
        saver_of(saved.parent).load(checkpoint.read(saved), {MODEL: parts[MODEL]})
