"""The quality model: training on human labels, safe loading, and scores in range."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data_helper import shared_data

from gristmill.core.errors import InputError, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.curate.quality import Scorer, model_digest, one_line, read_labels, train_quality


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("quality")
    labels = [
        {"text": f"{'green leaves on old trees' if i % 2 else 'win cash prize now'} number {i}", "label": bool(i % 2)}
        for i in range(200)
    ]
    model = folder / "q.bin"
    return model, train_quality(write(folder / "labels.jsonl", labels), model, bucket=2000, epochs=10, lr=0.5)


def test_report(trained: tuple[Path, dict[str, object]]) -> None:
    model, report = trained
    assert report["accuracy"] == 1
    assert report["sha256"] == sha256_file(model) == model_digest(model)
    assert report["trained_on"] + report["tested_on"] == 200  # type: ignore[operator]
    assert 5 < report["tested_on"] < 40  # type: ignore[operator]
    assert report["settings"]["thread"] >= 10  # type: ignore[index]
    assert [p.name for p in model.parent.iterdir() if p.name.startswith(".tmp")] == []


def test_scores(trained: tuple[Path, dict[str, object]]) -> None:
    model, _ = trained
    scorer = Scorer(model)
    texts = [
        "Green LEAVES\non old\ttrees",
        "win cash prize now",
        "",
        "\ud800\0",
        "__label__hq __label__lq",
        "x" * 100_000,
    ]
    scores = scorer.score(texts)
    assert scores.dtype == np.float32
    assert scores.shape == (6,)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores[0] > 0.9 > 0.1 > scores[1]
    assert np.array_equal(scores[::-1], scorer.score(texts[::-1])), "a score depends on its text alone"
    other = Scorer(model, "lq").score(texts[:2])
    assert np.allclose(other + scores[:2], 1, atol=1e-3)
    assert scorer.score([]).shape == (0,)


def test_control_words_cannot_speak_to_fasttext(trained: tuple[Path, dict[str, object]]) -> None:
    model, _ = trained
    assert one_line("A __label__HQ </S>\n b") == "a hq b"
    scorer = Scorer(model)
    hidden, shown = scorer.score(["green leaves </s> win cash prize now", "green leaves win cash prize now"])
    assert hidden == shown


def test_faulty_models_are_refused(trained: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    model, _ = trained
    (tmp_path / "text.bin").write_text("not a model at all")
    (tmp_path / "empty.bin").write_bytes(b"")
    newer = tmp_path / "newer.bin"
    newer.write_bytes(model.read_bytes()[:4] + (99).to_bytes(4, "little") + bytes(100))
    for path in (
        tmp_path / "text.bin",
        tmp_path / "empty.bin",
        newer,
        tmp_path / "gone.bin",
        tmp_path,
        Path("/dev/null"),
    ):
        with pytest.raises(InputError):
            Scorer(path)
    with pytest.raises(InputError, match="no label"):
        Scorer(model, "good")
    changed = shutil.copy(model, tmp_path / "q.bin")
    Scorer(changed, sha256=model_digest(model))
    with pytest.raises(InputError, match="has changed"):
        Scorer(changed, sha256="0" * 64)


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        '"x"',
        '{"text": "a"}',
        '{"text": 1, "label": 1}',
        '{"text": "a", "label": 2}',
        '{"text": "a", "label": "two words"}',
        '{"text": "a", "label": null}',
    ],
)
def test_faulty_labels_name_their_line(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path / "labels.jsonl", [{"text": "a", "label": 1}, "", bad])
    with pytest.raises(InputError, match=r"labels\.jsonl:3"):
        list(read_labels(path))


def test_training_needs_two_labels_and_a_bin_name(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.jsonl", [{"text": f"t {i}", "label": 1} for i in range(50)])
    with pytest.raises(InputError, match="too few"):
        train_quality(path, tmp_path / "q.bin")
    with pytest.raises(UsageError):
        train_quality(path, tmp_path / "q.ftz")
    with pytest.raises(InputError):
        train_quality(tmp_path / "none.jsonl", tmp_path / "q.bin")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.jsonl"]


def test_human_labels(tmp_path: Path) -> None:
    """261 texts are few: what must hold is that the model ranks texts better than chance on what it was shown."""
    labels = tmp_path / "labels.jsonl"
    with gzip.open(shared_data("quality/dclm-human-quality.jsonl.gz")) as f:
        labels.write_bytes(f.read())
    report = train_quality(labels, tmp_path / "q.bin", epochs=25, lr=0.5, bucket=20_000)
    assert report["tested_on"] >= 15
    scorer = Scorer(tmp_path / "q.bin")
    shown = list(read_labels(labels))
    scores = scorer.score([text for _, text in shown])
    good = np.array([label == "hq" for label, _ in shown])
    assert np.isfinite(scores).all()
    assert scores[good].mean() > scores[~good].mean() + 0.2
