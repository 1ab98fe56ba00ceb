"""Thresholds by language, the order of sets, rules of the user's own, and the explanation of one document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from gristmill.core.errors import ConfigError
from gristmill.curate.decide import decide_table
from gristmill.curate.measure import Plan, measure_batch
from gristmill.curate.rules import explain
from gristmill.curate.rules.engine import active, columns_of, families_of
from gristmill.curate.rules.tables import load_table
from gristmill.curate.schema import Language, Rules

LONG = "\n".join(f"Der Müller {a} und der Bäcker {b} haben heute das Korn gewogen." for a in "abcde" for b in "xyz")
TEXTS = [LONG, LONG, "Kurz und gut.", LONG, LONG]
LABELS = ["de", "fr", "de", "deu_Latn", None]


def measured(rules: Rules, texts: list[str] = TEXTS, labels: list[str | None] = LABELS) -> pa.Table:
    stop_words = {label: own.stop_words for label, own in rules.languages.items() if own.stop_words}
    plan = Plan.of({"families": families_of(rules), "c4": {}, "short_line_chars": 30, "stop_words": stop_words})
    table = measure_batch(texts, labels, None, 30, plan)
    head = {"id": [str(i) for i in range(len(texts))], "language": pa.array(labels, pa.string())}
    for name, values in {**head, "language_score": pa.array([0.8] * len(texts), pa.float32())}.items():
        table = table.append_column(name, pa.array(values))
    return table


def decided(rules: Rules, language: Language | None = None) -> list[tuple[str | None, float | None, float | None]]:
    verdicts, _ = decide_table(measured(rules), language or Language(), rules)
    return [(r["reason"], r["value"], r["threshold"]) for r in verdicts.to_pylist()]


def rules_of(**blocks: Any) -> Rules:
    named = {{"gopher": "gopher@datatrove", "fineweb": "fineweb@datatrove"}.get(k, k): v for k, v in blocks.items()}
    return Rules.model_validate(named)


OFF: dict[str, Any] = {"max_top_ngram_chars": {}, "max_dup_ngram_chars": {}, "max_dup_lines": None}


def test_a_language_has_its_own_thresholds() -> None:
    words = measured(rules_of(gopher=OFF))["raw.nonsymbol_words"].to_pylist()
    few = words[2]
    rules = rules_of(
        gopher={**OFF, "min_words": None}, per_language={"de": {"gopher@datatrove": {"min_words": few + 1}}}
    )
    assert decided(rules) == [
        (None, None, None),
        (None, None, None),
        ("gopher.too_few_words", few, few + 1),
        (None, None, None),
        (None, None, None),
    ]
    # a GlotLID label finds the entry of the same language, a language that is not named keeps the recipe's
    high = rules_of(gopher={**OFF, "min_words": 10}, per_language={"de": {"gopher@datatrove": {"min_words": 10_000}}})
    assert [reason for reason, _, _ in decided(high)] == [
        "gopher.too_few_words", None, "gopher.too_few_words", "gopher.too_few_words", None,
    ]  # fmt: skip
    off = rules_of(
        gopher={**OFF, "min_words": 10_000}, per_language={"deu_Latn": {"gopher@datatrove": {"min_words": None}}}
    )
    assert [reason is None for reason, _, _ in decided(off)] == [False, False, False, True, False]
    assert columns_of(rules) == columns_of(high)


def test_ngram_tables_are_merged_by_size() -> None:
    rules = rules_of(gopher={}, per_language={"fr": {"gopher@datatrove": {"max_top_ngram_chars": {3: 0.05}}}})
    of = {rule.name: limit for rule, limit in active(rules, "fra_Latn")}
    assert (of["gopher.top_2_gram"], of["gopher.top_3_gram"], of["gopher.dup_5_grams"]) == (0.2, 0.05, 0.15)
    again = Rules.model_validate(rules.model_dump(mode="json", by_alias=True))  # as a stage's config
    assert active(again, "fr") == active(rules, "fr")
    assert active(again, "de") == active(rules_of(gopher={}))


def test_language_scores_and_stop_words() -> None:
    table = {"de": {"language_score": 0.9, "stop_words": ["der", "und", "haben", "nie"]}, "fr": {"language_score": 0.1}}
    rules = rules_of(gopher={**OFF, "min_stop_words": 4}, per_language=table)
    assert [(r, t) for r, _, t in decided(rules)] == [
        ("language.low_score", 0.9), (None, None), ("language.low_score", 0.9), ("language.low_score", 0.9), (None, None),
    ]  # fmt: skip
    mine = Language(min_score=0.5, min_scores={"de": 0.2})  # the recipe's own go before the table's
    stops = measured(rules)["raw.stop_words"].to_pylist()
    assert stops == [3, None, 1, 3, None]
    assert [r for r, _, _ in decided(rules, mine)][:2] == ["gopher.too_few_stop_words", None]


def test_the_order_names_the_reason() -> None:
    blocks: dict[str, Any] = {
        "gopher": {**OFF, "min_words": 10_000},
        "fineweb": {"min_line_punctuation": 1.0, "max_dup_line_chars": 0},
    }
    text = LONG + "\nohne Punkt"
    first = []
    for order in ([], ["fineweb@datatrove"], ["fineweb@datatrove", "gopher.quality@datatrove"]):
        rules = rules_of(**blocks, order=order)
        first.append(decide_table(measured(rules, [text], ["de"]), Language(), rules)[0]["reason"][0].as_py())
    assert first == ["gopher.too_few_words", "fineweb.few_punctuated_lines", "fineweb.few_punctuated_lines"]


def test_fineweb_judges_the_raw_text_when_it_comes_before_c4() -> None:
    text = "no end\n" * 2 + "The miller opened the gate before dawn and was content.\n" + "x y\n" * 30
    for order, reason in (([], "c4.too_few_sentences"), (["fineweb@datatrove"], "fineweb.few_punctuated_lines")):
        rules = Rules.model_validate({"c4@datatrove": {}, "fineweb@datatrove": {}, "order": order})
        verdict = decide_table(measured(rules, [text], ["en"]), Language(), rules)[0].to_pylist()[0]
        assert (verdict["reason"], verdict["text_version"]) == (reason, "c4")


def test_rules_of_the_users_own_come_last_in_their_order() -> None:
    mine = [
        {"name": "mine.short", "drop_if": "raw.words < 20 and language == 'de'"},
        {"name": "mine.dense", "drop_if": "20 > raw.newlines_per_word"},
        {"name": "mine.never", "drop_if": "raw.words > 0"},
    ]
    verdicts = decided(rules_of(mine=mine))
    assert verdicts[2] == ("mine.short", None, None)
    reason, value, threshold = verdicts[0]
    assert (reason, threshold) == ("mine.dense", 20)
    assert value is not None
    assert value < 20
    both = decided(rules_of(gopher=OFF, mine=mine))
    assert both[2][0] == "gopher.too_few_words"
    alone = rules_of(mine=[{"name": "mine.c4", "drop_if": "c4.sentences < 3"}])
    assert families_of(alone) == ["c4"]
    verdict = decide_table(measured(alone, ["One sentence stands alone."], ["en"]), Language(), alone)[0].to_pylist()[0]
    assert (verdict["reason"], verdict["value"], verdict["threshold"], verdict["text_version"]) == (
        "mine.c4",
        1,
        3,
        "raw",
    )


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"mine": [{"name": "mine.x", "drop_if": "raw.wrds < 2"}]}, "unknown column `raw.wrds` .column 1"),
        (
            {"mine": [{"name": "mine.x", "drop_if": "raw.words < 2 and c4.text == 'x'"}]},
            "unknown column `c4.text` .column 19",
        ),
        ({"mine": [{"name": "mine.x", "drop_if": "raw.words.__class__ == 2"}]}, "unknown column"),
        ({"mine": [{"name": "mine.x", "drop_if": "open('x')"}]}, "a call is not a condition"),
        ({"mine": [{"name": "gopher.x", "drop_if": "raw.words < 2"}]}, "prefix of your own"),
        ({"mine": [{"name": "x", "drop_if": "raw.words < 2"}]}, "pattern"),
        ({"mine": [{"name": "m.x", "drop_if": "raw.words < 2"}] * 2}, "two rules are named m.x"),
        ({"c4@datatrove": {}, "refinedweb@dclm": {}}, "both rewrite the text"),
        ({"order": ["c4@datatrove", "c4@datatrove"]}, "twice"),
        ({"per_language": {"d": {}}}, "no language label"),
        ({"per_language": {"de": {"fineweb@datatrove": {"short_line_chars": 9}}}}, "measured once"),
        ({"per_language": {"de": {"stop_words": ["w"] * 64}}}, "at most 63"),
    ],
)
def test_refused_when_loaded(block: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Rules.model_validate(block)


def test_tables_as_yaml_json_and_csv(tmp_path: Path) -> None:
    files = {
        "t.yaml": "gristmill: 1\nlanguages:\n  fr: {language_score: 0.5, stop_words: [le, la], gopher@datatrove: "
        "{max_dup_lines: null, max_top_ngram_chars: {2: 0.1}}}\n",
        "t.json": '{"gristmill": 1, "languages": {"fr": {"language_score": 0.5, "stop_words": ["le", "la"], '
        '"gopher@datatrove": {"max_dup_lines": null, "max_top_ngram_chars": {"2": 0.1}}}}}',
        "t.csv": "language,language_score,stop_words,gopher@datatrove.max_dup_lines,"
        "gopher@datatrove.max_top_ngram_chars.2,fineweb@datatrove.max_short_lines\nfr,0.5,le la,off,0.1,\n",
    }
    tables = []
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (entry,) = load_table(tmp_path / name, name).values()
        tables.append((entry.language_score, entry.stop_words, entry.overrides("gopher@datatrove"), entry.fineweb))
    block = {"max_dup_lines": None, "max_top_ngram_chars": {2: 0.1}}
    assert tables == [(0.5, ["le", "la"], block, None)] * 3


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("t.yaml", "gristmill: 1\nlanguages:\n  fr: {gopher@datatrove: {min_word: 3}}\n", {(3, 27)}),
        ("t.csv", "language,language_score\nfr,2\nde,0.5\nde,0.5\nes\n", {(2, 4), (4, 1), (5, 1)}),
        ("t.csv", "lang,language_score\nfr,2\n", {(1, 1), (2, 1)}),
        ("t.csv", "", {(1, 1)}),
    ],
)
def test_faults_of_a_table_have_their_place(tmp_path: Path, name: str, text: str, places: set[tuple[int, int]]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_table(tmp_path / name, name)
    assert {(p.line, p.column) for p in caught.value.problems} == places
    assert all(p.hint for p in caught.value.problems)


def test_every_rule_of_one_document() -> None:
    rules = Rules.model_validate(
        {
            "gopher@datatrove": {"min_words": 400, "max_hash_ratio": None},
            "c4@datatrove": {},
            "fineweb@datatrove": {"max_newlines_per_word": 0.0},
            "mine": [
                {"name": "mine.short", "drop_if": "raw.chars < 10"},
                {"name": "mine.de", "drop_if": "language == 'de'"},
            ],
        }
    )
    table = measured(rules, [LONG, LONG.replace("Müller", "miller of the and to")], ["de", "en"])
    language = Language(keep=["en", "de"], min_scores={"de": 0.85})
    reasons = decide_table(table, language, rules)[0]["reason"].to_pylist()
    for i in range(2):
        rows = explain(table.slice(i, 1), rules, language)
        first = next((row.rule for row in rows if row.verdict == "drop"), None)
        assert first == reasons[i]
        by = {row.rule: row for row in rows}
        assert len(by) == len(rows)
        assert by["gopher.hashes"].verdict == "off"
        assert by["dclm.dup_lines"].verdict == "off"
        assert (by["gopher.too_few_words"].operator, by["gopher.too_few_words"].threshold) == ("<", 400)
        assert by["mine.short"].verdict == "pass"
        assert by["mine.short"].text_version == "raw"
    de, en = (explain(table.slice(i, 1), rules, language) for i in range(2))
    assert {row.rule for row in de if row.verdict == "not_applied"} >= {
        "c4.too_few_sentences",
        "gopher.too_few_stop_words",
    }
    assert {row.text_version for row in en if row.metric.endswith("newlines_per_word")} == {"c4"}
    assert {row.text_version for row in de if row.metric.endswith("newlines_per_word")} == {"raw"}
    assert next(row for row in de if row.rule == "language.low_score").verdict == "drop"
    assert next(row for row in de if row.rule == "mine.de").verdict == "drop"
