"""Deciding: order, thresholds, languages without a table, and the two stages run on files as the runner runs them."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from gristmill.core.document import PAGE_SCHEMA
from gristmill.core.hashing import canonical_json, sha256_file
from gristmill.core.stage import Outbox, Receipt, Shard, Task
from gristmill.curate.decide import VERDICT_SCHEMA, Decide, decide_table
from gristmill.curate.final_text import kept_documents
from gristmill.curate.measure import MEASURE_SCHEMA, METRIC_SCHEMA, Measure, measure_batch
from gristmill.curate.rules import NEEDS, RULES
from gristmill.curate.rules.engine import active, columns_of
from gristmill.curate.schema import C4, C4Rewrite, FineWeb, Gopher, GopherDclm, Language, RefinedWeb, Rules

PEER = [rule for rule in RULES if rule.set.endswith("@datatrove")]
ALL = Rules.model_validate({"gopher@datatrove": Gopher(), "c4@datatrove": C4(), "fineweb@datatrove": FineWeb()})
OFF: dict[str, Any] = {
    name: ({} if name.endswith("ngram_chars") else None) for name in Gopher.model_fields if name != "min_words"
}


MODELS: dict[str, Any] = {
    "gopher@datatrove": Gopher,
    "c4@datatrove": C4,
    "fineweb@datatrove": FineWeb,
    "gopher@dclm": GopherDclm,
    "refinedweb@dclm": RefinedWeb,
}


def measured(**columns: list[Any]) -> pa.Table:
    """A table of measures: the given columns, all others null."""
    n = len(next(iter(columns.values())))
    arrays = {
        field.name: pa.array(columns.get(field.name.replace(".", "__"), [None] * n), field.type)
        for field in MEASURE_SCHEMA
    }
    arrays["id"] = pa.array([f"{i:032x}" for i in range(n)])
    return pa.table(arrays)


def reasons(table: pa.Table, language: Language, rules: Rules) -> list[str | None]:
    return decide_table(table, language, rules)[0].column("reason").to_pylist()


def test_language_comes_first() -> None:
    table = measured(
        language=["en", "en", "de", "fr", None, "de"],
        language_score=[0.9, 0.65, 0.5, 0.9, 0.9, None],
        raw__nonsymbol_words=[10, 10, 100, 100, 100, 100],
    )
    rules = Rules.model_validate({"gopher@datatrove": Gopher(**OFF)})
    some = Language(keep=["en", "de"], min_score=0.25, min_scores={"en": 0.7})
    verdicts, _ = decide_table(table, some, rules)
    assert verdicts.schema == VERDICT_SCHEMA
    low, unwanted = "language.low_score", "language.not_kept"
    assert verdicts.column("reason").to_pylist() == ["gopher.too_few_words", low, None, unwanted, unwanted, low]
    assert verdicts.column("threshold").to_pylist() == [50, 0.7, None, None, None, 0.25]
    value = verdicts.column("value").to_pylist()
    assert value[0] == 10
    assert value[1] == pytest.approx(0.65)
    assert value[3] is None
    assert value[5] == 0


def test_a_score_must_be_greater_than_its_threshold() -> None:
    table = measured(language=["en"] * 3, language_score=[0.5, 0.5000001, 0.25])
    assert reasons(table, Language(min_score=0.5), Rules()) == ["language.low_score", None, "language.low_score"]


def test_thresholds_are_kept_at_equality_and_off_at_null() -> None:
    table = measured(language=["en"] * 3, language_score=[0.9] * 3, raw__nonsymbol_words=[49, 50, 0])

    def on(min_words: int | None) -> Rules:
        return Rules.model_validate({"gopher@datatrove": Gopher(**OFF, min_words=min_words)})

    assert reasons(table, Language(), on(50)) == ["gopher.too_few_words", None, "gopher.too_few_words"]
    assert reasons(table, Language(), on(None)) == [None] * 3
    # datatrove reads 0 as off, and so does its set here; DCLM's is a threshold like any other
    zero = Rules.model_validate({"gopher@datatrove": Gopher(**{**OFF, "max_hash_ratio": 0.0}, min_words=None)})
    hashes = measured(language=["en"] * 2, language_score=[0.9] * 2, raw__hash_ratio=[0.01, 0.0])
    assert reasons(hashes, Language(), zero) == [None, None]
    dclm = Rules.model_validate({"gopher@dclm": GopherDclm(min_words=None, max_symbol_ratio=0.0)})
    symbols = measured(language=["en"] * 2, language_score=[0.9] * 2, raw__dclm_symbol_ratio=[0.01, 0.0])
    assert reasons(symbols, Language(), dclm) == ["dclm.symbols", None]


def test_first_rule_of_the_order_names_the_drop() -> None:
    columns: dict[str, list[Any]] = {"language": ["en"], "language_score": [0.9]}
    fails: dict[str, Any] = {"<": -1e9, ">": 1e9, "set": 1, "empty": 0}
    for rule in reversed(PEER):  # make one more rule fail, from the last to the first: each time that one decides
        if rule.name.endswith(".empty"):
            continue
        for prefix in ("raw", "c4") if rule.metric.startswith("*.") else ("",):
            name = rule.metric.replace("*", prefix).replace(".", "__")
            kind = METRIC_SCHEMA.field(name.replace("__", ".")).type
            columns[name] = [int(fails[rule.operator]) if kind == pa.int64() else float(fails[rule.operator])]
        columns.setdefault("c4__sentences", [100])
        table = measured(**columns)
        if rule.name == "gopher.too_few_words":  # both bounds read one column
            assert reasons(table, Language(), ALL) == ["gopher.too_few_words"]
        else:
            assert reasons(table, Language(), ALL) == [rule.name]


def test_fineweb_reads_the_rewritten_text_only_where_c4_applies() -> None:
    table = measured(
        language=["en", "de"],
        language_score=[0.9] * 2,
        raw__line_punctuation=[0.0, 0.0],
        c4__line_punctuation=[1.0, None],
        c4__sentences=[9, None],
    )
    with_c4 = Rules.model_validate({"c4@datatrove": C4(), "fineweb@datatrove": FineWeb()})
    verdicts, notes = decide_table(table, Language(), with_c4)
    assert verdicts.column("reason").to_pylist() == [None, "fineweb.few_punctuated_lines"]
    assert verdicts.column("text_version").to_pylist() == ["c4", "raw"]
    assert notes["rule_not_applied.c4.too_few_sentences"] == 1
    without = Rules.model_validate({"fineweb@datatrove": FineWeb()})
    verdicts, _ = decide_table(table, Language(), without)
    assert verdicts.column("reason").to_pylist() == ["fineweb.few_punctuated_lines"] * 2
    assert verdicts.column("text_version").to_pylist() == ["raw"] * 2


def test_document_rules_of_c4_can_be_off() -> None:
    table = measured(
        language=["en"] * 3,
        language_score=[0.9] * 3,
        c4__sentences=[9] * 3,
        c4__lorem_ipsum_line=[2, None, 5],
        c4__curly_bracket_line=[2, 4, 3],
    )

    def on(**settings: Any) -> list[str | None]:
        return reasons(table, Language(), Rules.model_validate({"c4@datatrove": C4(**settings)}))

    lorem, curly = "c4.lorem_ipsum", "c4.curly_bracket"
    assert on() == [lorem, curly, curly]
    assert on(drop_curly_bracket=False) == [lorem, None, lorem]
    assert on(drop_lorem_ipsum=False) == [curly, curly, curly]
    assert on(drop_curly_bracket=False, drop_lorem_ipsum=False, min_sentences=10) == ["c4.too_few_sentences"] * 3


TEXT = {
    "de": "Der Müller öffnete das Tor vor dem Morgen.\nNiemand hatte so viel Korn gesehen.",
    "zh": "磨坊主在黎明前打开了闸门。\n山谷里没有人见过这么多粮食。",
    "en": "The miller opened the gate before dawn.\nNobody had seen so much grain.",
}


def test_rules_without_a_table_are_not_applied_and_counted() -> None:
    languages = ["en", "de", "zh", "zh", "fr"]
    texts = [TEXT[x] for x in ("en", "de", "zh", "zh", "de")]
    table = measure_batch(texts, languages, C4Rewrite(), 30)
    table = table.append_column("id", pa.array(list("abcde"))).append_column("language", pa.array(languages))
    table = table.append_column("language_score", pa.array([0.9] * 5))
    ngrams_off = Gopher(max_top_ngram_chars={}, max_dup_ngram_chars={})
    rules = Rules.model_validate(
        {"gopher@datatrove": ngrams_off, "c4@datatrove": C4(), "fineweb@datatrove": FineWeb(max_short_lines=None)}
    )
    verdicts, notes = decide_table(table, Language(keep=["en", "de", "zh"]), rules)
    few = "gopher.too_few_words"
    assert verdicts.column("reason").to_pylist() == [few, few, None, None, "language.not_kept"]
    assert notes["rule_not_applied.gopher.too_few_words"] == 2  # zh; fr is not kept
    assert notes["rule_not_applied.gopher.too_few_stop_words"] == 3  # de, zh
    assert notes["rule_not_applied.c4.too_few_sentences"] == 3
    assert notes["rule_not_applied.fineweb.newlines"] == 2
    assert not any("lines" in name and "newlines" not in name for name in notes)  # line rules need nothing
    assert set(notes) <= {f"rule_not_applied.{rule.name}" for rule in RULES}


def test_registry_is_sound() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        for prefix in ("raw", "c4") if rule.metric.startswith("*.") else ("",):
            assert METRIC_SCHEMA.field(rule.metric.replace("*", prefix))
        model: Any = MODELS[rule.set]
        assert rule.setting is None or rule.setting in model.model_fields
        assert (rule.setting is None) == (rule.operator == "empty")
    every = {(rule.set, rule.setting) for rule in RULES if rule.setting is not None}
    known = {(name, setting) for name, model in MODELS.items() for setting in model.model_fields}
    assert every == known - {("fineweb@datatrove", "short_line_chars")}
    assert set(NEEDS) == {rule.needs for rule in RULES} - {None}
    assert [rule for rule, _ in active(ALL)] == PEER
    dclm = Rules.model_validate({"gopher@dclm": {}, "refinedweb@dclm": {}})
    assert [rule for rule, _ in active(dclm)] == [rule for rule in RULES if rule not in PEER]
    assert active(Rules()) == []


def test_an_unmeasured_ngram_size_is_refused() -> None:
    with pytest.raises(ValidationError, match="n-grams of 7 words are not measured"):
        Gopher.model_validate({"max_top_ngram_chars": {"7": 0.1}})


def shard(path: Path) -> Shard:
    return Shard(str(path), path.name, sha256_file(path), path.stat().st_size)


def receipt(stage: str, shards: list[Shard]) -> Receipt:
    return Receipt(stage, 1, "t", "a.warc.gz", {}, {}, {}, shards, 0, 0, {}, 0, {}, 0.0, "", "")


def run(stage: Any, upstream: str, inputs: Path, folder: Path) -> tuple[Path, Any]:
    stage = pickle.loads(pickle.dumps(stage))
    (task,) = stage.tasks({upstream: [receipt(upstream, [shard(inputs)])]})
    assert task.key == "a.warc.gz"
    assert len(task.id) == 32
    out = Outbox(folder, "1")
    counters = stage.run(task, out)
    counters.check(stage.name)
    (path,) = out.files.values()
    return path, counters


def test_stages_on_files(tmp_path: Path) -> None:
    long = "\n".join(f"The miller and {a} went to {b} with what he had to sell of it." for a in "abcde" for b in "xyz")
    texts = [TEXT[x] for x in ("en", "de", "zh")] + [None, long, "{ of the and " * 3, "…"]
    languages = ["en", "de", "zh", "en", "en", "en", None]
    n = len(texts)
    rows: dict[str, list[Any]] = {name: [None] * n for name in PAGE_SCHEMA.names}
    rows |= {"id": [f"{i:032x}" for i in range(n)], "text": texts, "language": languages, "language_score": [0.9] * n}
    pages = tmp_path / "pages.parquet"
    pq.write_table(pa.table(rows, schema=PAGE_SCHEMA), pages)
    measure = Measure({"c4": C4Rewrite().model_dump(), "short_line_chars": 30})
    path, counters = run(measure, "curate.pages", pages, tmp_path / "1")
    assert (counters.rows_in, counters.rows_out, counters.drops) == (n, n, Counter())
    measures = pq.read_table(path)
    assert measures.schema.equals(MEASURE_SCHEMA)
    assert measures.column("id").to_pylist() == rows["id"]
    assert measures.column("text_version_available").to_pylist() == ["c4", "raw", "raw", "c4", "c4", "c4", "raw"]
    again, _ = run(measure, "curate.pages", pages, tmp_path / "2")
    assert again.read_bytes() == path.read_bytes()

    settings = {"language": {"keep": ["en", "zh"]}, "rules": ALL.model_dump(by_alias=True, mode="json")}
    canonical_json(settings)  # as the runner hashes it
    measures_file = path.rename(path.with_name("measures.parquet"))
    verdict_file, counters = run(Decide(settings), "curate.measure", measures_file, tmp_path / "3")
    verdicts = pq.read_table(verdict_file)
    assert verdicts.schema.equals(VERDICT_SCHEMA)
    assert verdicts.column("id").to_pylist() == rows["id"]
    dropped = Counter(r for r in verdicts.column("reason").to_pylist() if r)
    assert counters.drops == dropped
    assert counters.rows_out == n - sum(dropped.values())
    assert dropped["language.not_kept"] == 2
    assert dropped["gopher.empty"] == 1
    assert counters.notes["rule_not_applied.gopher.too_few_words"] == 1


def test_refinedweb_text_is_what_stays(tmp_path: Path) -> None:
    prose = "\n".join(f"The miller and {a} went to {b} with what he had to sell of it." for a in "abcde" for b in "xyz")
    texts = [prose + "\n3 likes", prose, "3 likes\n12 shares", prose]
    rows: dict[str, list[Any]] = {name: [None] * 4 for name in PAGE_SCHEMA.names}
    rows |= {"id": list("abcd"), "text": texts, "language": ["en"] * 3 + ["de"], "language_score": [0.9] * 4}
    pages = tmp_path / "pages.parquet"
    pq.write_table(pa.table(rows, schema=PAGE_SCHEMA), pages)
    config: dict[str, Any] = {
        "families": ["dclm", "refinedweb"],
        "c4": None,
        "short_line_chars": 30,
        "refinedweb": {},
        "stop_words": {},
    }
    path, _ = run(Measure(config), "curate.pages", pages, tmp_path / "1")
    measures = path.rename(path.with_name("measures.parquet"))
    assert pq.read_table(measures)["text_version_available"].to_pylist() == ["refinedweb"] * 3 + ["raw"]
    settings: dict[str, Any] = {"language": {}, "rules": {"refinedweb@dclm": {}}}
    verdict_file, counters = run(Decide(settings), "curate.measure", measures, tmp_path / "2")
    verdicts = pq.read_table(verdict_file)
    assert verdicts["reason"].to_pylist() == [None, None, "refinedweb.empty", None]
    assert verdicts["text_version"].to_pylist() == ["refinedweb"] * 3 + ["raw"]
    assert counters.notes["rule_not_applied.refinedweb.words_removed"] == 1
    verdict_file = verdict_file.rename(verdict_file.with_name("verdicts.parquet"))
    inputs = {
        "curate.pages": (shard(pages),),
        "curate.measure": (shard(measures),),
        "curate.decide": (shard(verdict_file),),
    }
    kept = pa.concat_tables(kept_documents(Task("x", 1, "a", 0, {}, {}, inputs)))
    assert kept["text"].to_pylist() == [prose, prose, prose]
    assert kept["text_version"].to_pylist() == ["refinedweb", "refinedweb", "raw"]


def test_measure_without_c4(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {name: [None] for name in PAGE_SCHEMA.names}
    rows |= {"id": ["0"], "text": [TEXT["en"]], "language": ["en"], "language_score": [0.9]}
    pages = tmp_path / "pages.parquet"
    pq.write_table(pa.table(rows, schema=PAGE_SCHEMA), pages)
    path, _ = run(Measure({"c4": None, "short_line_chars": 40}), "curate.pages", pages, tmp_path / "1")
    row = pq.read_table(path).to_pylist()[0]
    assert row["text_version_available"] == "raw"
    assert row["raw.short_lines"] == 1.0
    assert all(value is None for name, value in row.items() if name.startswith("c4."))


def test_empty_shard(tmp_path: Path) -> None:
    pages = tmp_path / "pages.parquet"
    pq.write_table(PAGE_SCHEMA.empty_table(), pages)
    path, counters = run(Measure({"c4": None, "short_line_chars": 30}), "curate.pages", pages, tmp_path / "1")
    assert counters.rows_in == pq.read_table(path).num_rows == 0
    settings: dict[str, Any] = {"language": {}, "rules": {}}
    measures = path.rename(path.with_name("measures.parquet"))
    path, counters = run(Decide(settings), "curate.measure", measures, tmp_path / "2")
    assert counters.rows_in == counters.rows_out == pq.read_table(path).num_rows == 0


def test_only_needed_columns_are_read() -> None:
    assert "c4.text" not in columns_of(ALL)
    assert set(columns_of(ALL)) <= set(METRIC_SCHEMA.names)
    only = columns_of(Rules.model_validate({"fineweb@datatrove": FineWeb(max_short_lines=None)}))
    assert not any(name.endswith("short_lines") or "gram" in name for name in only)
