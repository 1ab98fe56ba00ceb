"""Labels of other models: which language rules take them for, what a recipe may name, and where a model's own come from."""

from __future__ import annotations

import csv
import random
from importlib.resources import files
from pathlib import Path

import pytest
from language_models import WORDS, sentence, train

from gristmill.core.errors import ConfigError, UsageError
from gristmill.curate.fasttext_file import model_labels
from gristmill.curate.identify import Identifier
from gristmill.curate.labels import LID_LABELS, label_hint, rules_language
from gristmill.curate.language import model_digest
from gristmill.curate.measure import measure_batch
from gristmill.curate.pages import Pages
from gristmill.curate.schema import C4Rewrite
from gristmill.curate.tokenizers import tokenizer_of
from gristmill.pipelines.graph import build
from gristmill.pipelines.schema import load_recipe


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("lid") / "glot.bin")


@pytest.mark.parametrize(
    ("label", "language"),
    [
        ("en", "en"),
        ("eng", "en"),
        ("eng_Latn", "en"),
        ("en-Latn", "en"),
        ("ENG_latn", "en"),
        ("cmn_Hani", "zh"),
        ("zho_Hant", "zh"),
        ("zh-Hans", "zh"),
        ("yue_Hant", "yue"),
        ("jpn_Jpan", "ja"),
        ("nob_Latn", "no"),
        ("nno_Latn", "nn"),
        ("arb_Arab", "ar"),
        ("arz_Arab", "arz"),
        ("srp_Latn", "sr"),
        ("srp_Cyrl", "sr"),
        ("als", "als"),  # lid.176's Alemannic
        ("als_Latn", "sq"),  # ISO 639-3's Tosk Albanian
        ("gsw_Latn", "als"),
        ("jpn_Latn", "jpn_Latn"),  # romanised: not ja's words
        ("ja_Latn", "ja_Latn"),
        ("eng_Cyrl", "eng_Cyrl"),
        ("shn_Mymr", "my"),  # unspaced: no words without a segmenter
        ("nod_Thai", "th"),
        ("nan_Hani", "zh"),
        ("xyz_Latn", "xyz_Latn"),
        ("und", "und"),
        ("pt-BR", "pt-BR"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_language_that_rules_know(label: str | None, language: str) -> None:
    assert rules_language(label) == language


def test_every_label_of_lid_176_is_itself() -> None:
    assert {rules_language(label) for label in LID_LABELS} == LID_LABELS


def test_codes_agree_with_the_peers_table() -> None:
    """datatrove's table of ISO 639 codes: where both know a code in a script, both mean the same two-letter language."""
    table = files("datatrove") / "assets" / "tokenizer_assignment.csv"
    other = {"nb": "no", "sh": "sr"}  # names for the same, which lid.176 lists apart
    lines = table.read_text(encoding="utf-8").splitlines()
    rows = [row for row in csv.DictReader(lines) if row["code_1"] and row["script"]]
    compared = 0
    for row in rows:
        ours = rules_language(f"{row['code_3']}_{row['script']}")
        if len(ours) == 2 and row["code_1"] in LID_LABELS and ours == rules_language(row["code_3"]):
            same = {ours, other.get(ours, ours)} & {row["code_1"], other.get(row["code_1"], row["code_1"])}
            assert same, (row["code_3"], row["script"], ours, row["code_1"])
            compared += 1
    assert compared >= 140


def test_words_and_tables_follow_the_language() -> None:
    assert [tokenizer_of(x) for x in ("eng_Latn", "deu_Latn", "cmn_Hani", "jpn_Latn", "tha_Thai")] == [
        "en",
        "de",
        None,
        "xx",
        None,
    ]
    text = "The library of the old town opens at nine. It closes at six on every day.\n" * 3
    a, b = (measure_batch([text], [label], C4Rewrite(), 30) for label in ("en", "eng_Latn"))
    assert a.equals(b)
    assert a["raw.stop_words"].to_pylist() == [2]
    assert a["c4.text"].to_pylist() != [None]


@pytest.mark.parametrize(
    ("label", "labels", "hint"),
    [
        ("en", ("eng_Latn", "deu_Latn"), "did you mean `eng_Latn`?"),
        ("eng_Latn", LID_LABELS, "did you mean `en`?"),
        ("english", ("eng_Latn", "deu_Latn"), "did you mean `eng_Latn`?"),
        ("ENG_LATN", ("eng_Latn", "deu_Latn"), "did you mean `eng_Latn`?"),
        ("sr", ("srp_Cyrl", "srp_Latn", "eng_Latn"), "did you mean `srp_Cyrl` or `srp_Latn`?"),
        ("eng_Ltn", ("eng_Latn", "deu_Latn"), "did you mean `eng_Latn`?"),
        ("de-DE", LID_LABELS, "did you mean `de`?"),
        ("nb", LID_LABELS, "did you mean `no`?"),
        ("klingon", ("eng_Latn",), ""),
    ],
)
def test_hints(label: str, labels: tuple[str, ...], hint: str) -> None:
    assert label_hint(label, labels) == hint


def test_labels_are_read_without_loading_the_model(own: Path) -> None:
    import fasttext

    assert set(model_labels(own)) == set(WORDS)
    listed = fasttext.FastText._FastText(model_path=str(own)).get_labels()
    assert [f"__label__{label}" for label in model_labels(own)] == listed


@pytest.mark.parametrize("cut", [0, 4, 80, 200])
def test_a_file_that_is_no_language_model(own: Path, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(own.read_bytes()[:cut])
    with pytest.raises(UsageError, match=r"cut\.bin"):
        model_labels(path)
    path.write_bytes(b"no model at all" * 100)
    with pytest.raises(UsageError, match="not a fastText model"):
        model_labels(path)
    with pytest.raises(UsageError, match="not a plain file"):
        model_labels(tmp_path)


def test_an_own_model_names_its_own_labels(own: Path) -> None:
    rng = random.Random(1)
    texts = {label: sentence(label, rng, 40) for label in WORDS}
    found = Identifier(own).identify(list(texts.values()))
    assert [label for label, _ in found] == list(texts)


def recipe(tmp_path: Path, keep: str, extra: str = "") -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(
        f"gristmill: 1\ncurate:\n  language:\n    keep: {keep}\n    model: glot.bin\n{extra}", encoding="utf-8"
    )
    return path


def test_a_recipe_with_its_own_model(own: Path, tmp_path: Path) -> None:
    (tmp_path / "glot.bin").write_bytes(own.read_bytes())
    extra = "    min_scores: {deu_Latn: 0.9}\n"
    nodes = {node.name: node for node in build(load_recipe(str(recipe(tmp_path, "[eng_Latn, deu_Latn]", extra))))}
    pages = nodes["curate.pages"].stage
    assert isinstance(pages, Pages)
    assert pages.config["language"]["model"] == str(tmp_path / "glot.bin")
    assert pages.config["wanted"] == ["deu_Latn", "eng_Latn"]
    assert pages.uses()["lid_model"] == model_digest(own)
    decide = nodes["curate.decide"].stage.config["language"]
    assert decide == {"keep": ["eng_Latn", "deu_Latn"], "min_score": 0.65, "min_scores": {"deu_Latn": 0.9}}


def test_labels_that_the_model_lacks_are_named_with_their_places(own: Path, tmp_path: Path) -> None:
    (tmp_path / "glot.bin").write_bytes(own.read_bytes())
    path = recipe(tmp_path, "[eng_Latn, de]", "    min_scores: {fra_Latn: 0.5}\n")
    with pytest.raises(ConfigError) as caught:
        build(load_recipe(str(path)))
    problems = {p.path: p for p in caught.value.problems}
    assert set(problems) == {"curate.language.keep[1]", "curate.language.min_scores.fra_Latn"}
    faulty = problems["curate.language.keep[1]"]
    assert (faulty.line, faulty.hint) == (4, "did you mean `deu_Latn`?")
    assert "glot.bin" in faulty.message
    with pytest.raises(UsageError, match=r"no language model at .*absent\.bin"):
        build(load_recipe(str(path), ["curate.language.model=absent.bin"]))
