"""The stage `curate.decide`: who stays and, if not, why, from measured columns alone.

Order: language, Gopher repetition, Gopher quality, C4, FineWeb; the first rule that fails names the drop. A changed
threshold reruns only this stage and what depends on it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from gristmill.core.docshards import read_table, write_table
from gristmill.core.stage import Counters, Outbox, Stage, Task
from gristmill.curate.rules import engine
from gristmill.curate.schema import Language, Rules

VERDICT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("reason", pa.string()),  # null: kept
        ("value", pa.float64()),  # the measured value that failed; null where the reason has none
        ("threshold", pa.float64()),
        ("text_version", pa.string()),  # "c4" where the C4 set is on and applies to the language, else "raw"
    ]
)
"""One row per page, in the order of `curate.measure`."""


def decide_table(measures: pa.Table, language: Language, rules: Rules) -> tuple[pa.Table, Counter[str]]:
    """Verdicts (VERDICT_SCHEMA, same rows, same order) and notes.

    `measures` needs id, language, language_score and `engine.columns_of(rules)`. Notes count, per rule that is on, the
    documents of a kept language that has no table or segmenter for it: `rule_not_applied.RULE`.
    """
    outcome = engine.Outcome.undecided(measures.num_rows)
    _languages(measures, language, outcome)
    notes = engine.apply(measures, rules, outcome)
    c4 = engine.rewritten(measures, rules)
    columns = [
        measures.column("id").combine_chunks().cast(pa.string()),
        outcome.reason,
        pa.array(outcome.value, mask=np.isnan(outcome.value)),
        pa.array(outcome.threshold, mask=np.isnan(outcome.threshold)),
        pa.array(np.where(c4, "c4", "raw"), pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=VERDICT_SCHEMA), notes


def _languages(measures: pa.Table, settings: Language, outcome: engine.Outcome) -> None:
    """The language rules. A score must be greater than its threshold (FineWeb's test is exclusive); null counts as 0."""
    dictionary = measures.column("language").combine_chunks().dictionary_encode()
    labels: list[str | None] = [*dictionary.dictionary.to_pylist(), None]  # the last one is for null
    codes = dictionary.indices.fill_null(len(labels) - 1).to_numpy(zero_copy_only=False).astype(np.int64)
    if settings.keep != "all":
        unwanted = np.array([label not in settings.keep for label in labels], bool)
        outcome.drop(unwanted[codes], "language.not_kept")
    limits = np.array([settings.min_scores.get(label or "", settings.min_score) for label in labels])[codes]
    score = np.nan_to_num(engine.column(measures, "language_score"))
    outcome.drop(score <= limits, "language.low_score", score, limits)


class Decide(Stage):
    """Decides each page. Config: `language` and `rules`, the recipe's blocks (rules by alias, null where a set is off)."""

    name = "curate.decide"
    version = 1
    upstream = ("curate.measure",)

    def _rules(self) -> Rules:
        return Rules.model_validate(self.config["rules"])

    def run(self, task: Task, out: Outbox) -> Counters:
        rules = self._rules()
        language = Language.model_validate(self.config["language"])
        names = dict.fromkeys(["id", "language", "language_score", *engine.columns_of(rules)])
        measures = read_table(task.shard("curate.measure", "measures.parquet"), list(names))
        verdicts, notes = decide_table(measures, language, rules)
        write_table(out.path("verdicts.parquet"), verdicts)
        counters = Counters(rows_in=verdicts.num_rows, notes=notes)
        for reason, n in Counter(verdicts.column("reason").to_pylist()).items():
            if reason is None:
                counters.rows_out = n
            else:
                counters.drop(reason, n)
        return counters
