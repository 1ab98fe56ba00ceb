"""Measured columns: the table of formulas is what is measured, and docs/metrics.md prints it.

`python tests/curate/test_curate_columns.py` writes docs/metrics.md anew.
"""

from __future__ import annotations

from pathlib import Path

from gristmill.curate.columns import COLUMNS, FAMILY, METRIC_SCHEMA, versions
from gristmill.curate.kernels import DUP_SIZES, TOP_SIZES
from gristmill.curate.measure import Plan, measure_batch
from gristmill.curate.metrics import LayoutMetrics, LineMetrics, WordMetrics
from gristmill.curate.metrics_dclm import DclmMetrics
from gristmill.curate.metrics_refinedweb import RefinedText
from gristmill.curate.rules.registry import GROUPS, RULES
from gristmill.curate.schema import C4Rewrite

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

INTRO = """# Metrics and rules

`curate.measure` stores one row per page; `curate.decide` compares its columns with a recipe's thresholds. This page is
written from the code (`python tests/curate/test_curate_columns.py`).

The first part of a column's name says which text a value describes: `raw` the extracted text, `c4` and `refinedweb` what
the line rules of those sets leave. Only the families that a recipe's sets and rules read are measured; other columns are
null. Null also says that a metric has no meaning there (no segmenter or word list for the language, too few words); a
null passes every rule.

## Rules of your own

```yaml
curate:
  rules:
    gopher@datatrove: {}
    mine:
      - {name: mine.short, drop_if: "raw.words < 80 and language == 'de'"}
```

An expression compares columns below, `language` and `language_score` with constants or with each other: `== != < <= > >=`,
`in [..]`, `is None`, `and`, `or`, `not`, parentheses. A comparison with a null is false. The rules decide after the sets,
in their order; where one is a single comparison with a number, the ledger keeps value and threshold.

## What differs by language

`rules.per_language` names a table: packaged (`fineweb2`), a `.yaml`, `.json` or `.csv` file, or the entries themselves. An
entry may set `language_score`, `stop_words` (for `gopher@datatrove`) and any setting of any set; what it does not set
stays the recipe's, `null` switches a rule off, and settings of a set that the recipe does not switch on are not used. A
label finds its own entry, else the one of lid.176's label for the same language (`fra_Latn` finds `fr`).

```yaml
gristmill: 1
languages:
  fr:
    language_score: 0.824
    stop_words: [de, la, le, et]
    gopher@datatrove: {max_dup_lines: 0.264, max_top_ngram_chars: {2: 0.161}}
```

```csv
language,language_score,gopher@datatrove.max_dup_lines,gopher@datatrove.max_top_ngram_chars.2,stop_words
fr,0.824,0.264,0.161,de la le et
```

In CSV an empty cell changes nothing and `off` is null. `gristmill rules fit` makes a table from a sample.

## Columns
"""


def page() -> str:
    """docs/metrics.md."""
    parts = [INTRO, "| column | family | formula |", "|---|---|---|"]
    parts += [f"| `{c.name}` | {c.family} | {c.formula} |" for c in COLUMNS]
    parts += ["", "## Rules", "", "In the order in which they decide unless `rules.order` gives another."]
    for group in GROUPS:
        parts += ["", f"### `{group}`", "", "| reason | drops if | setting | the peer's name |", "|---|---|---|---|"]
        for rule in RULES:
            if rule.group == group:
                metric = rule.metric.replace("*.", "raw. or c4.")
                test = {"set": "is set", "empty": "= 0"}.get(rule.operator, f"{rule.operator} threshold")
                setting = f"`{rule.setting}`" if rule.setting else "on with the set"
                size = f", n = {rule.size}" if rule.size else ""
                parts.append(f"| `{rule.name}` | `{metric}` {test} | {setting}{size} | {rule.datatrove} |")
    return "\n".join(parts) + "\n"


def test_the_page_is_written_from_the_code() -> None:
    assert PAGE.read_text() == page(), "run `python tests/curate/test_curate_columns.py`"


def names(prefix: str, fields: tuple[str, ...]) -> list[str]:
    return [f"{prefix}.{field}" for field in fields]


def test_values_stand_in_the_order_in_which_they_are_measured() -> None:
    listed = [column.name for column in COLUMNS]
    measured = ["raw.chars", *names("raw", LineMetrics._fields), *names("raw", WordMetrics._fields)]
    measured += [*names("raw", LayoutMetrics._fields), "c4.chars", "c4.words", *names("c4", LayoutMetrics._fields)]
    measured += ["c4.sentences", "c4.lorem_ipsum_line", "c4.curly_bracket_line", "c4.text"]
    measured += [*names("raw", DclmMetrics._fields), *names("refinedweb", RefinedText._fields)]
    assert listed == measured == METRIC_SCHEMA.names
    assert versions() == ["raw", "c4", "refinedweb"]
    grams = [f"top_{n}gram_chars" for n in TOP_SIZES] + [f"dup_{n}gram_chars" for n in DUP_SIZES]
    assert [*WordMetrics._fields[-9:]] == grams
    assert [*DclmMetrics._fields[-9:]] == [f"dclm_{name}" for name in grams]


def test_only_what_is_asked_for_is_measured() -> None:
    text = "The miller and the baker have a mill.\nAnd that is all of it to be with."
    everything = {column.family for column in COLUMNS} - {"size"}
    whole = measure_batch([text], ["en"], None, 30, Plan(families=frozenset(everything), c4=C4Rewrite())).to_pylist()[0]
    assert all(whole[name] is not None for name in METRIC_SCHEMA.names if not name.endswith("_line"))
    for family in sorted(everything):
        part = measure_batch([text], ["en"], None, 30, Plan(families=frozenset({family}), c4=C4Rewrite())).to_pylist()[
            0
        ]
        there = {name for name, value in part.items() if value is not None}
        assert all(part[name] == whole[name] for name in there)
        wanted = {name for name, of in FAMILY.items() if of == family and not name.endswith("_line")}
        assert wanted <= there
        if family != "ngrams":  # they are measured with the words
            assert there - wanted <= {"raw.chars", "raw.newlines_per_word"}


if __name__ == "__main__":
    PAGE.write_text(page())
