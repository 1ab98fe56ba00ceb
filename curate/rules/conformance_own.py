"""Our own answers to the conformance suite: each question as a recipe with that rule alone, through measure and decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.curate.columns import Family
from gristmill.curate.decide import decide_table
from gristmill.curate.measure import Plan, measure_batch
from gristmill.curate.rules import engine
from gristmill.curate.rules.conformance import DROP, KEEP, REWRITE, Answer, Question
from gristmill.curate.rules.registry import RULES, Rule
from gristmill.curate.schema import C4Rewrite, Language, Rules

_FAMILIES: dict[str, frozenset[Family]] = {"datatrove": Plan().families, "dclm": frozenset({"dclm", "refinedweb"})}
_TEXTS = {"c4@datatrove": "c4.text", "refinedweb@dclm": "refinedweb.text"}


def answer_all(questions: Sequence[Question]) -> list[Answer]:
    """One answer per question, in order."""
    return [{"id": question["id"], **_answer(question)} for question in questions]


def _answer(question: Question) -> Answer:
    semantics, wanted = question["semantics"], question["rule"]
    known = [rule for rule in RULES if rule.set == semantics]
    named = [rule for rule in known if rule.name.partition(".")[2] == wanted]
    if not known or (wanted not in (None, REWRITE) and not named):
        return {"unsupported": f"no rule {wanted} of {semantics}"}
    rule = named[0] if named else None
    rules = Rules.model_validate({semantics: {} if wanted is None else _alone(known, rule, question["threshold"])})
    plan = Plan(
        _FAMILIES[semantics.partition("@")[2]], C4Rewrite(**question["settings"]) if "c4" in semantics else None
    )
    measures = measure_batch([question["text"]], [question["language"]], None, plan.short_line_chars, plan)
    head = {"id": ["x"], "language": [question["language"]], "language_score": pa.array([1.0], pa.float32())}
    for name, column in head.items():
        measures = measures.append_column(name, pa.array(column))
    reason = decide_table(measures, Language(min_score=0.0), rules)[0].column("reason")[0].as_py()
    if rule is not None and reason != rule.name:
        reason = None  # an empty text has a rule of its own, which is on with the set
    found: Answer = {"verdict": KEEP if reason is None else DROP, "reason": reason and reason.partition(".")[2]}
    if rule is not None and rule.operator in "<>":
        metric = rule.metric.replace("*", "raw")
        value = float(engine.column(measures, metric)[0])
        found["value"] = None if np.isnan(value) else value
    if semantics in _TEXTS and reason is None:
        found["text_after"] = measures.column(_TEXTS[semantics])[0].as_py()
    return found


def _alone(known: Sequence[Rule], rule: Rule | None, threshold: float | None) -> dict[str, Any]:
    """The set's block with every rule but this one off, and this one at the threshold."""
    block: dict[str, Any] = {}
    for other in known:
        if other.setting is not None:
            block[other.setting] = {} if other.size is not None else False if other.operator == "set" else None
    if rule is not None and rule.setting is not None:
        if rule.operator == "set":
            block[rule.setting] = True
        elif rule.size is None:
            whole = threshold is not None and rule.setting in (
                "min_words",
                "max_words",
                "min_stop_words",
                "min_sentences",
            )
            block[rule.setting] = int(threshold or 0) if whole else threshold
        elif threshold is not None:
            block[rule.setting] = {rule.size: threshold}
    return block
