"""A tiny fastText language model with GlotLID's labels, trained where a test needs one."""

from __future__ import annotations

import random
from pathlib import Path

from gristmill.curate.quality import TRAIN_THREADS

WORDS = {
    "eng_Latn": "the library of old town opens at nine and closes six every working day except when there is holiday",
    "deu_Latn": "die bibliothek der alten stadt öffnet um neun uhr und schließt sechs außer wenn ein feiertag ist jeden",
    "jpn_Jpan": "図書館 は 九時 に 開き 六時 閉まり ます 休日 の 日 を 除く 毎日 町 古い",
    "srp_Cyrl": "библиотека старог града отвара се у девет и затвара шест сваког радног дана осим када је празник",
    "jpn_Latn": "toshokan wa kuji ni hiraki rokuji shimari masu kyuujitsu no hi wo nozoku mainichi machi furui",
}
"""Label -> the words of its sentences."""


def sentence(label: str, rng: random.Random, words: int = 12) -> str:
    return " ".join(rng.choices(WORDS[label].split(), k=words))


def train(path: Path, texts: int = 120) -> Path:
    """Write a supervised model of WORDS' labels to `path` (about 100 kB, a fraction of a second)."""
    import fasttext

    rng = random.Random(0)
    lines = [f"__label__{label} {sentence(label, rng)}" for _ in range(texts) for label in WORDS]
    source = path.with_suffix(".txt")
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # fewer threads leave parts of the input matrix unset: see curate.quality
    settings = {"dim": 8, "epoch": 10, "lr": 0.5, "bucket": 500, "minn": 2, "maxn": 3, "thread": TRAIN_THREADS}
    model = fasttext.train_supervised(input=str(source), minCount=1, verbose=0, **settings)
    model.save_model(str(path))
    return path
