"""The `curate:` block: every threshold has its range, numbers are numbers, languages are labels of the model."""

from __future__ import annotations

import pytest

from gristmill.core.errors import ConfigError
from gristmill.core.settings import parse, validate
from gristmill.curate.schema import LID_LABELS, Curate, FineWeb, Gopher
from gristmill.pipelines.schema import Input, load_recipe


def faults(text: str) -> dict[str, str]:
    _, problems = validate(parse(text, "t.yaml"), Curate)
    assert all(p.hint for p in problems)
    return {p.path: f"{p.message} [{p.hint}]" for p in problems}


GOPHER = [name for name, info in Gopher.model_fields.items() if "ngram" not in name]
COUNTS = {"min_words", "max_words", "min_stop_words"}
AVERAGES = {"min_avg_word_length", "max_avg_word_length"}


@pytest.mark.parametrize("name", GOPHER)
def test_gopher_thresholds_have_ranges_and_null_switches_them_off(name: str) -> None:
    path = f"rules.gopher@datatrove.{name}"
    bad = ["-1", "true", ".inf", "nan", "'5'"]
    bad += ["2.5"] if name in COUNTS else [] if name in AVERAGES else ["1.01"]
    for value in bad:
        assert list(faults(f"rules: {{gopher@datatrove: {{{name}: {value}}}}}")) == [path], value
    assert not faults(f"rules: {{gopher@datatrove: {{{name}: null}}}}")


@pytest.mark.parametrize("name", sorted(FineWeb.model_fields))
def test_fineweb_thresholds_have_ranges(name: str) -> None:
    bad = ["-0.1", "true", "1e999", *([] if name == "max_newlines_per_word" else ["1.5"])]
    for value in bad:
        assert list(faults(f"rules: {{fineweb@datatrove: {{{name}: {value}}}}}")) == [f"rules.fineweb@datatrove.{name}"]


def test_values_at_the_ends_of_ranges_are_good() -> None:
    assert not faults(
        "rules:\n  fineweb@datatrove: {max_newlines_per_word: 1.5, short_line_chars: 1, max_short_lines: 1}\n"
        "  gopher@datatrove: {max_dup_lines: 0, min_words: 7, max_words: 7, max_avg_word_length: 40, min_stop_words: 8}\n"
        "  c4@datatrove: {min_sentences: null}\nlanguage: {keep: [en, ceb, 'no'], min_scores: {zh: 1}}\n"
    )
    assert "short_line_chars" in next(iter(faults("rules: {fineweb@datatrove: {short_line_chars: 0}}")))


def test_limits_that_drop_everything_are_faults_at_the_upper_one() -> None:
    found = faults(
        "rules: {gopher@datatrove: {min_words: 60, max_words: 50, min_avg_word_length: 5, max_avg_word_length: 4.5}}"
    )
    at = "rules.gopher@datatrove."
    assert list(found) == [at + "max_words", at + "max_avg_word_length"]
    assert found[at + "max_words"].startswith("max_words 50 is less than min_words 60")


def test_ngram_tables_are_checked_key_by_key() -> None:
    found = faults(
        "rules: {gopher@datatrove: {max_top_ngram_chars: {2: 1.5, 5: 0.1, x: 0.1}, max_dup_ngram_chars: {4: 1}}}"
    )
    assert sorted(path.rpartition(".gopher@datatrove.")[2] for path in found) == [
        "max_dup_ngram_chars.4", "max_top_ngram_chars.2", "max_top_ngram_chars.5", "max_top_ngram_chars.x",
    ]  # fmt: skip
    assert "[use 2 to 4]" in found["rules.gopher@datatrove.max_top_ngram_chars.5"]


@pytest.mark.parametrize(
    ("label", "hint"),
    [("English", "`en`"), ("EN", "`en`"), ("en-US", "`en`"), ("nb", "`no`"), ("dee", "`de`"), ("klingon", "ISO 639")],
)
def test_languages_are_labels_of_the_model(label: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRISTMILL_LID_MODEL", raising=False)
    found = faults(f"language: {{keep: [de, {label}], min_scores: {{{label}: 0.5, fr: 1.5}}}}")
    assert list(found) == ["language.keep[1]", f"language.min_scores.{label}", "language.min_scores.fr"]
    assert hint in found["language.keep[1]"]


def test_another_language_model_has_other_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRISTMILL_LID_MODEL", "glot.bin")
    assert not faults("language: {keep: [eng_Latn]}")


def test_the_labels_are_the_models_own() -> None:
    from gristmill.core.errors import UsageError
    from gristmill.curate.language import find_model

    assert len(LID_LABELS) == 176
    fasttext = pytest.importorskip("fasttext")
    try:
        path = find_model()
    except UsageError:
        pytest.skip("no lid.176.ftz on this machine")
    assert {label.removeprefix("__label__") for label in fasttext.load_model(str(path)).get_labels()} == LID_LABELS


def test_keep_names_a_language() -> None:
    assert list(faults("language: {keep: []}")) == ["language.keep"]
    assert list(faults("language: {keep: english}")) == ["language.keep"]
    assert not faults("language: {keep: all}")


def test_counts_elsewhere() -> None:
    found = faults(
        "c4: {min_words_per_line: -1, max_word_chars: 0}\nrules: {c4@datatrove: {min_sentences: -2}}\n"
        "dedup: {minhash: {bands: true, seed: -1, verify: 2}}\nquality: {model: ''}\nextract: {min_chars: 1.0}\n"
    )
    assert sorted(found) == [
        "c4.max_word_chars", "c4.min_words_per_line", "dedup.minhash.bands", "dedup.minhash.seed",
        "dedup.minhash.verify", "extract.min_chars", "quality.model", "rules.c4@datatrove.min_sentences",
    ]  # fmt: skip


@pytest.mark.parametrize("source", ["''", "a b", "a/b", "-x", "[a]"])
def test_a_source_is_a_simple_name(source: str) -> None:
    value, problems = validate(parse(f"source: {source}\n", "t.yaml"), Input)
    assert value is None
    assert [p.path for p in problems] == ["source"]


@pytest.mark.parametrize("name", ["web", "demo"])
def test_packaged_recipes_are_valid(name: str) -> None:
    assert load_recipe(name).recipe.gristmill == 1


def test_set_faults_of_a_recipe_and_its_files_are_numbered_as_given() -> None:
    sets = ["curate.foo=1", "train.seed=-1", "novalue", "mixture.seed=x", "curate.dedup.exact=!t 3", "input.source="]
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", sets)
    assert [(p.file, p.path) for p in caught.value.problems] == [
        ("--set:1", "curate.foo"),
        ("--set:2", "seed"),
        ("--set:3", ""),
        ("--set:4", "seed"),
        ("--set:5", "curate.dedup.exact"),
        ("--set:5", "curate.dedup.exact"),
        ("--set:6", "input.source"),
    ]
