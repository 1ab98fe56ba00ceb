"""`rules fit`: the sample is seeded, the formulas are the documented ones, dead thresholds are told, tables come back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from gristmill.core.errors import FormatError, UsageError
from gristmill.curate.measure import measure_batch
from gristmill.curate.rules import fit as F
from gristmill.curate.rules.sample import Document, Fields, sample
from gristmill.curate.rules.tables import load_table
from gristmill.curate.rules.write import write_table
from gristmill.curate.words import LEXICONS
from gristmill.pipelines.cli.rules import rules

GERMAN = [
    "der",
    "die",
    "das",
    "und",
    "Müller",
    "Korn",
    "ist",
    "nicht",
    "ein",
    "Sack",
    "mahlt",
    "heute",
    "gut",
    "wieder",
]
ENGLISH = ["the", "of", "and", "to", "mill", "corn", "is", "not", "a", "sack", "grinds", "today", "good", "again"]


def texts(words: list[str], n: int, seed: int) -> list[str]:
    draw = random.Random(seed)

    def line() -> str:
        return " ".join(draw.choices(words, k=draw.randrange(4, 12))) + draw.choice([".", ".", "", " 12 -"])

    return ["\n".join(line() for _ in range(draw.randrange(3, 9))) for _ in range(n)]


@pytest.fixture(scope="module")
def documents() -> dict[str, list[Document]]:
    english, german = texts(ENGLISH, 60, 1), texts(GERMAN, 60, 2)
    return {
        "de": [Document(text, 0.5 + 0.008 * i) for i, text in enumerate(german)],
        "en": [Document(text, None) for text in english],
        "fi": [Document("liian vähän", 0.9)],
        "zh": [Document(f"磨坊主打开了闸门。\n第{i}天", 0.99) for i in range(60)],
    }


def column(sample_: list[Document], label: str, name: str) -> np.ndarray:
    measures = measure_batch([d.text for d in sample_], [label] * len(sample_), None, 30)
    return np.array([v for v in measures[name].to_pylist() if v is not None])


def test_thresholds_follow_the_formulas(documents: dict[str, list[Document]]) -> None:
    de, en = (column(documents[x], x, "raw.alpha_words") for x in ("de", "en"))
    expected = {
        "mean-std": de.mean() + (0.8 - en.mean()) / en.std() * de.std(),
        "quantile": np.quantile(de, np.mean(en < 0.8)),
        "median-ratio": 0.8 * np.median(de) / np.median(en),
        "tail": np.quantile(de, 0.1),
    }
    for method, value in expected.items():
        found = F.fit(documents, method=method, min_documents=50)  # type: ignore[arg-type]
        gopher = found.languages["de"]["gopher@datatrove"]
        assert gopher["min_alpha_words"] == round(float(value), 3), method
        assert all(isinstance(gopher[name], int) for name in F.WHOLE)


def test_scores_words_and_what_cannot_be_fitted(documents: dict[str, list[Document]]) -> None:
    found = F.fit(documents, min_documents=50)
    assert set(found.languages) == {"de", "zh"}
    scores = np.array([d.score for d in documents["de"]])
    assert found.languages["de"]["language_score"] == round(np.median(scores) - scores.std(), 3)
    assert F.score_threshold(np.array([0.99, 0.99])) == 0.9
    assert F.score_threshold(np.array([0.1, 0.2])) == 0.3
    assert set(found.languages["de"]["stop_words"]) == {word.lower() for word in GERMAN}
    told = [str(warning) for warning in found.warnings]
    assert any(text.startswith("fi: all: 1 documents are fewer than 50") for text in told)
    assert any(text.startswith("zh: words: its words need a segmenter") for text in told)
    assert "stop_words" not in found.languages["zh"]
    assert not any("gram" in name for name in found.languages["zh"].get("gopher@datatrove", {}))
    with pytest.raises(ValueError, match="compares with en"):
        F.fit({"de": documents["de"]})
    assert F.fit({"de": documents["de"]}, method="tail", min_documents=50).languages


def test_thresholds_that_never_fire_are_told() -> None:
    plain = [Document(f"Der Müller {i} mahlt das Korn.\nUnd er ist froh {i}.", 0.9) for i in range(60)]
    messy = [
        Document("\n".join(["The mill is here"] * (1 + i % 5) + [f"line {j}" for j in range(6)]), 0.9)
        for i in range(60)
    ]
    found = F.fit({"de": messy, "en": plain}, min_documents=10)
    assert any("kept" in w.message for w in found.warnings if w.setting == "gopher@datatrove.max_dup_lines")
    found = F.fit({"de": plain, "en": messy}, min_documents=10)
    dead = {w.setting: w.message for w in found.warnings}
    assert "fires on none of 60" in dead["gopher@datatrove.max_dup_lines"]
    numbers = [Document("12 13 14 15 " * 5 + "und " * (i % 6), 0.9) for i in range(60)]
    found = F.fit({"de": numbers, "en": texts_documents(ENGLISH)}, min_documents=10)
    dead = {w.setting: w.message for w in found.warnings}
    assert "can never fire: switched off" in dead["gopher@datatrove.min_alpha_words"]
    assert found.languages["de"]["gopher@datatrove"]["min_alpha_words"] is None
    for entry in found.languages.values():
        for block in (entry["gopher@datatrove"], entry["fineweb@datatrove"]):
            assert all(v is None or isinstance(v, dict) or v >= 0 for v in block.values())


def texts_documents(words: list[str]) -> list[Document]:
    return [Document(text, None) for text in texts(words, 60, 3)]


def test_stop_words_go_down_to_the_eight_most_frequent() -> None:
    lexicon = LEXICONS.get("de")
    assert lexicon is not None
    flat = [" ".join(f"w{i}x" for i in range(2000))]
    assert F.stop_words(lexicon, flat) == sorted(f"w{i}x" for i in range(2000))[:8]
    assert F.stop_words(lexicon, ["und " * 5 + "« » 12 ! " * 9]) == ["und"]


def test_the_sample_is_the_same_whatever_the_files_order(tmp_path: Path) -> None:
    german = texts(GERMAN, 80, 4)
    pq.write_table(
        pa.table({"text": german[:40], "language": ["de"] * 40, "language_score": [0.5] * 40}), tmp_path / "a.parquet"
    )
    lines = [json.dumps({"text": text, "language": "de"}) for text in [*german[40:], " "]]
    (tmp_path / "b.jsonl").write_text("\n".join(lines) + "\n")
    files = [tmp_path / "a.parquet", tmp_path / "b.jsonl"]
    one = sample(files, 30, 7)
    assert one == sample(files[::-1], 30, 7)
    assert len(one["de"]) == 30
    assert one != sample(files, 30, 8)
    assert len(sample(files, 1000, 7)["de"]) == 80
    with pytest.raises(UsageError, match="no column lang"):
        sample(files, 30, 7, Fields(language="lang"))
    with pytest.raises(UsageError, match=r"b\.jsonl:1: no text"):
        sample(files[1:], 30, 7, Fields(text="body"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(FormatError, match="no Parquet"):
        sample([tmp_path / "c.parquet"], 30, 7)


@pytest.mark.parametrize("ending", ["yaml", "json", "csv"])
def test_tables_come_back(tmp_path: Path, ending: str, documents: dict[str, list[Document]]) -> None:
    found = F.fit(documents, min_documents=50)
    path = tmp_path / f"t.{ending}"
    write_table(path, found.languages, 'a: "table"')
    table = load_table(path, "t")
    for label, entry in found.languages.items():
        for name in ("gopher@datatrove", "fineweb@datatrove"):
            assert table[label].overrides(name) == entry.get(name, {})
        assert table[label].language_score == entry["language_score"]
        assert table[label].stop_words == entry.get("stop_words", [])


def test_the_command(tmp_path: Path) -> None:
    rows = [("en", text) for text in texts(ENGLISH, 30, 5)] + [("de", text) for text in texts(GERMAN, 30, 6)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps({"body": t, "lang": x}) + "\n" for x, t in rows))
    out = tmp_path / "t.yaml"
    arguments = [
        "fit",
        str(tmp_path / "s.jsonl"),
        "-o",
        str(out),
        "--text",
        "body",
        "--language",
        "lang",
        "--min-documents",
        "9",
    ]
    done = CliRunner().invoke(rules, arguments)
    assert done.exit_code == 0, done.output
    assert "wrote" in done.output
    assert "warning: de: language_score: the sample has no scores" in done.output
    first = out.read_bytes()
    assert CliRunner().invoke(rules, arguments).exit_code == 0
    assert out.read_bytes() == first
    assert set(load_table(out, "t")) == {"de"}
    wrong = CliRunner().invoke(rules, [*arguments[:3], str(tmp_path / "t.txt")])
    assert isinstance(wrong.exception, UsageError)
