"""The stage `curate.decide`: who stays and, if not, why, from measured columns alone.

Order: takedowns, opt-outs, language, the rule sets as the registry or the recipe orders them, the user's rules; the
first that fails names the drop. A changed threshold reruns only this stage and what depends on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.core.docshards import read_table, write_table
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
from gristmill.curate.final_text import STEPS, kept_files, pages_shard, per_file_tasks, same_ids
from gristmill.curate.policy import COLUMNS, Policy
from gristmill.curate.rules import engine
from gristmill.curate.rules.explain import minimum
from gristmill.curate.schema import Rules
from gristmill.curate.schema_language import Wanted

VERDICT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("reason", pa.string()),  # null: kept
        ("value", pa.float64()),  # the measured value that failed; null where the reason has none
        ("threshold", pa.float64()),
        (
            "text_version",
            pa.string(),
        ),  # "c4" or "refinedweb" where that set is on and applies to the language, else "raw"
    ]
)
"""One row per page, in the order of `curate.measure`."""


def decide_table(
    measures: pa.Table, language: Wanted, rules: Rules, outcome: engine.Outcome | None = None
) -> tuple[pa.Table, Counter[str]]:
    """Verdicts (VERDICT_SCHEMA, same rows, same order) and notes.

    `measures` needs id, language, language_score and `engine.columns_of(rules)`. Notes count, per rule that is on, the
    documents of a kept language that has no table or segmenter for it: `rule_not_applied.RULE`. What `outcome` already
    drops keeps its reason.
    """
    outcome = outcome or engine.Outcome.undecided(measures.num_rows)
    _languages(measures, language, rules, outcome)
    notes = engine.apply(measures, rules, outcome)
    columns = [
        measures.column("id").combine_chunks().cast(pa.string()),
        outcome.reason,
        pa.array(outcome.value, mask=np.isnan(outcome.value)),
        pa.array(outcome.threshold, mask=np.isnan(outcome.threshold)),
        pa.array(engine.text_versions(measures, rules), pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=VERDICT_SCHEMA), notes


def _languages(measures: pa.Table, settings: Wanted, rules: Rules, outcome: engine.Outcome) -> None:
    """The language rules. A score must be greater than its threshold (FineWeb's test is exclusive); null counts as 0."""
    dictionary = measures.column("language").combine_chunks().dictionary_encode()
    labels: list[str | None] = [*dictionary.dictionary.to_pylist(), None]  # the last one is for null
    codes = dictionary.indices.fill_null(len(labels) - 1).to_numpy(zero_copy_only=False).astype(np.int64)
    if settings.keep != "all":
        unwanted = np.array([label not in settings.keep for label in labels], bool)
        outcome.drop(unwanted[codes], "language.not_kept")
    limits = np.array([minimum(settings, rules, label) for label in labels])[codes]
    score = np.nan_to_num(engine.column(measures, "language_score"))
    outcome.drop(score <= limits, "language.low_score", score, limits)


class Decide(Stage):
    """Decides each page. Config: `language` and `rules`, the recipe's blocks (rules by alias, null where a set is off),
    and where they are on `takedown` (a path) and `optout` (schema.Optout): then the pages' own columns are read too.
    """

    name = "curate.decide"
    version = 2
    upstream: tuple[str, ...] = ("curate.measure",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.policy = Policy(self.config)
        if self.policy:
            self.upstream = ("curate.measure", STEPS if self.config.get("steps") else "curate.pages")

    def uses(self) -> Mapping[str, str]:
        return self.policy.uses()

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        settings = {**{k: self.config[k] for k in ("language", "rules")}, **self.policy.settings}
        files = kept_files(self.config)
        return per_file_tasks(self, settings, inputs, {name: files[name] for name in self.upstream})

    def _rules(self) -> Rules:
        return Rules.model_validate(self.config["rules"])

    def run(self, task: Task, out: Outbox) -> Counters:
        rules = self._rules()
        language = Wanted.model_validate(self.config["language"])
        names = dict.fromkeys(["id", "language", "language_score", *engine.columns_of(rules)])
        measures = read_table(task.shard("curate.measure", "measures.parquet"), list(names))
        outcome = engine.Outcome.undecided(measures.num_rows)
        if self.policy:
            pages = read_table(pages_shard(task), list(COLUMNS))
            same_ids(pages_shard(task), measures["id"], pages["id"])
            self.policy.apply(pages, outcome, task.uses)
        verdicts, notes = decide_table(measures, language, rules, outcome)
        write_table(out.path("verdicts.parquet"), verdicts)
        counters = Counters(rows_in=verdicts.num_rows, notes=notes)
        for reason, n in Counter(verdicts.column("reason").to_pylist()).items():
            if reason is None:
                counters.rows_out = n
            else:
                counters.drop(reason, n)
        return counters
