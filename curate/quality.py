"""The fastText quality model: train it from labelled JSONL, load it safely, score texts.

Training is Hogwild (threads race on one matrix), so two trainings differ; a model enters a run by its sha256.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from gristmill.core.errors import InputError, UsageError
from gristmill.core.hashing import hash64, seed_of, sha256_file

TRAIN_THREADS = 11
"""fastText cuts its input matrix into tenths, rounded down, and thread i initialises the i-th: fewer than 10 threads leave
whole tenths unset, 10 leave the last (size mod 10) numbers; what stood there in memory becomes "Encountered NaN"."""

MAGIC = (793712314).to_bytes(4, "little")  # first bytes of every fastText model
MAX_VERSION = 12
HELD_OUT = 10  # one in ten
_LABEL = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_RESERVED = re.compile(r"__label__|</s>")  # words that fastText reads as a label and as the end of the line


def one_line(text: str) -> str:
    """The form that the model is trained on and scores: lower case, single spaces, no fastText control words."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join(_RESERVED.sub(" ", text.lower()).split())


def read_labels(path: str | Path, positive: str = "hq", negative: str = "lq") -> Iterator[tuple[str, str]]:
    """(label, text) of each line of a JSONL file with `text` and `label`; 1/0 and true/false become hq/lq.

    Raises InputError naming the line when one is not such an object.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
                label, text = row["label"], row["text"]
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{path}:{number}: not a labelled text", hint='write {"text": "…", "label": 1} on each line'
                ) from error
            if label in (0, 1):  # True and False too
                label = positive if label else negative
            if not isinstance(text, str) or not isinstance(label, str) or not _LABEL.fullmatch(label):
                raise InputError(f"{path}:{number}: label {label!r} is not 0, 1 or a short word")
            yield label, one_line(text)


def train_quality(
    labels_jsonl: str | Path,
    out_path: str | Path,
    *,
    dim: int = 16,
    word_ngrams: int = 2,
    bucket: int = 200_000,
    epochs: int = 5,
    lr: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a supervised fastText model and write it to `out_path` (.bin); returns a report.

    One text in ten, chosen by a hash of (seed, text), is held out; the report has its `accuracy` beside
    `majority` (the share of its commonest label), the counts, the parameters and the model's `sha256`. Raises
    InputError on faulty lines and when there are fewer than two labels or nothing to hold out, UsageError on another
    suffix than .bin.
    """
    out_path = Path(out_path)
    if out_path.suffix != ".bin":
        raise UsageError(f"{out_path}: a trained model is written as .bin", hint="name it quality.bin")
    # In hash order: a file sorted by label would end on one label only.
    rows = sorted({(hash64(text, seed_of("quality", seed)), label, text) for label, text in read_labels(labels_jsonl)})
    train = [(label, text) for h, label, text in rows if h % HELD_OUT]
    test = [(label, text) for h, label, text in rows if h % HELD_OUT == 0]
    counts = Counter(label for label, _ in train)
    if len(counts) < 2 or not test:
        raise InputError(
            f"{labels_jsonl}: {len(rows)} distinct texts with {len(counts)} labels are too few to train and test",
            hint="label at least some dozen texts, good and bad",
        )
    out_path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"dim": dim, "wordNgrams": word_ngrams, "bucket": bucket, "epoch": epochs, "lr": lr}
    with tempfile.TemporaryDirectory(dir=out_path.parent, prefix=".tmp-quality-") as folder:
        lines = Path(folder) / "train.txt"
        lines.write_text("".join(f"__label__{label} {text}\n" for label, text in train), encoding="utf-8")
        model = _fit(lines, seed, settings)
        written = Path(folder) / "model.bin"
        model.save_model(str(written))
        digest = sha256_file(written)
        scorer = Scorer(written, next(iter(sorted(counts))))
        right = sum(scorer.best(text) == label for label, text in test)
        os.replace(written, out_path)
    return {
        "accuracy": right / len(test),
        "majority": max(Counter(label for label, _ in test).values()) / len(test),
        "trained_on": len(train),
        "tested_on": len(test),
        "labels": dict(sorted(counts.items())),
        "settings": {**settings, "seed": seed, "thread": TRAIN_THREADS},
        "sha256": digest,
        "bytes": out_path.stat().st_size,
    }


def _fit(lines: Path, seed: int, settings: dict[str, Any]) -> Any:
    import fasttext

    try:
        return fasttext.train_supervised(
            input=str(lines), minCount=1, thread=TRAIN_THREADS, seed=seed, verbose=0, **settings
        )
    except RuntimeError as error:  # "Encountered NaN."
        raise InputError(f"fastText training failed: {error}", hint="try a lower learning rate") from error


def model_digest(path: str | Path) -> str:
    """sha256 of a model file, once it is a plain file that begins like a fastText model. Raises InputError."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{path} is not a plain file", hint="name a fastText .bin or .ftz file")
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise InputError(
            f"cannot read the quality model {path}: {error.strerror}", hint="train one: gristmill quality train"
        ) from error
    if head[:4] != MAGIC or int.from_bytes(head[4:8], "little") > MAX_VERSION:
        raise InputError(f"{path} is not a fastText model", hint="train one: gristmill quality train")
    return sha256_file(path)


class Scorer:
    """Probabilities of one label by a fastText model file. Raises InputError when the file is not one or lacks the label."""

    def __init__(self, path: str | Path, label: str = "hq", *, sha256: str | None = None) -> None:
        found = model_digest(path)
        if sha256 is not None and found != sha256:
            raise InputError(
                f"{path} has changed: sha256 {found[:12]}…, the run began with {sha256[:12]}…",
                hint="run the same command again to score with the new model",
            )
        import fasttext

        fasttext.FastText.eprint = lambda *_: None  # it prints a warning on every load
        try:
            model = fasttext.load_model(str(path))
            labels = list(model.get_labels())
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{path} cannot be loaded: {error}") from error
        self.label = f"__label__{label}"
        if self.label not in labels:
            names = ", ".join(sorted(name.removeprefix("__label__") for name in labels[:20]))
            raise InputError(f"{path} has no label {label!r}", hint=f"its labels: {names}")
        self._model = model
        self._predict = model.f.predict

    def best(self, line: str) -> str:
        """The most probable label of a text that `one_line` made."""
        found = self._predict(line + "\n", 1, 0.0, "strict")
        return str(found[0][1]).removeprefix("__label__") if found else ""

    def score(self, texts: Sequence[str] | Iterable[str]) -> NDArray[np.float32]:
        """(D,) float32 in 0..1. Raises InputError when the model gives no number."""
        scores = [self._one(one_line(text)) for text in texts]
        out = np.clip(np.array(scores, np.float32), 0, 1)  # fastText's softmax may say 1.00001
        if np.isnan(out).any():
            raise InputError("the quality model gives NaN", hint="train it again")
        return out

    def _one(self, line: str) -> float:
        for probability, label in self._predict(line + "\n", -1, 0.0, "strict"):
            if label == self.label:
                return float(probability)
        return 0.0
