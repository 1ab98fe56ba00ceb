"""Puts questions to the peer's interpreter, in two processes, and our own answers in the peer's words beside them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from data_helper import REPO

from gristmill.curate.decide import decide_table
from gristmill.curate.measure import measure_batch
from gristmill.curate.rules import RULES
from gristmill.curate.schema import C4, C4Rewrite, FineWeb, Gopher, Language, Rules

PROCESSES = 2
FILTERS = {"repetition": "gopher", "quality": "gopher", "c4": "c4", "fineweb": "fineweb"}
"""datatrove's filters in FineWeb's order -> our rule set."""
REASONS: dict[tuple[str, str], str] = {
    (rule.name.split(".")[0], rule.datatrove): rule.name for rule in RULES if rule.set.endswith("@datatrove")
}
"""(our rule set, datatrove's reason) -> our reason; the map is committed in `curate/rules/registry.py`."""

_NO_REPETITION = dict.fromkeys(("max_dup_lines", "max_dup_paragraphs", "max_dup_line_chars", "max_dup_paragraph_chars"))
_REPETITION = {*_NO_REPETITION, "max_top_ngram_chars", "max_dup_ngram_chars"}
_QUALITY = set(Gopher.model_fields) - _REPETITION
ALONE: dict[str, dict[str, Any]] = {
    "repetition": {"gopher@datatrove": Gopher(**dict.fromkeys(_QUALITY))},
    "quality": {"gopher@datatrove": Gopher(**_NO_REPETITION, max_top_ngram_chars={}, max_dup_ngram_chars={})},
    "c4": {"c4@datatrove": C4()},
    "fineweb": {"fineweb@datatrove": FineWeb()},
}
CHAIN: dict[str, Any] = {"gopher@datatrove": Gopher(), "c4@datatrove": C4(), "fineweb@datatrove": FineWeb()}


@dataclass(frozen=True)
class Difference:
    """One document on which the two disagree. `mode` is english, own, language or url."""

    mode: str
    id: str
    what: str
    ours: Any
    peer: Any


def ask(python: Path, questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The peer's answers, in order. Raises AssertionError when its process fails."""
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].get("text", "")))
    hands = [order[i::PROCESSES] for i in range(PROCESSES)]  # each has as much text as the other

    def run(hand: list[int]) -> list[dict[str, Any]]:
        with tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+") as said:
            asked.writelines(json.dumps(questions[i]) + "\n" for i in hand)
            asked.seek(0)
            command = [str(python), str(REPO / "tests" / "parity" / "peer.py")]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, stdin=asked, stdout=said, stderr=subprocess.PIPE, text=True, env=environment)
            assert done.returncode == 0, done.stderr[-4000:]
            said.seek(0)
            return [json.loads(line) for line in said]

    answers: list[dict[str, Any]] = [{}] * len(questions)
    with ThreadPoolExecutor(PROCESSES) as pool:
        for hand, found in zip(hands, pool.map(run, hands), strict=True):
            for i, answer in zip(hand, found, strict=True):
                answers[i] = answer
    return answers


def meanwhile(ask_peer: Callable[[], Any], measure_ours: Callable[[], Any]) -> tuple[Any, Any]:
    """(the peer's, ours), worked out at the same time."""
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(ask_peer)
        ours = measure_ours()
        return theirs.result(), ours


@dataclass(frozen=True)
class Verdicts:
    """Our verdicts on texts: reason per filter alone, first reason of all, and the text after C4 where it applies."""

    alone: dict[str, list[str | None]]
    first: list[str | None]
    c4_text: list[str | None]


def verdicts(texts: Sequence[str], labels: Sequence[str]) -> Verdicts:
    """Ours, each text measured as in its fastText language."""
    tables = [
        measure_batch(texts[i : i + 256], labels[i : i + 256], C4Rewrite(), FineWeb().short_line_chars)
        for i in range(0, len(texts), 256)
    ]
    table = pa.concat_tables(tables)
    n = table.num_rows
    table = table.append_column("id", pa.array([str(i) for i in range(n)]))
    table = table.append_column("language", pa.array(list(labels), pa.string()))
    table = table.append_column("language_score", pa.array([1.0] * n, pa.float32()))

    def reasons(sets: dict[str, Any]) -> list[str | None]:
        verdict, _ = decide_table(table, Language(keep="all"), Rules.model_validate(sets))
        found: list[str | None] = verdict.column("reason").to_pylist()
        return found

    alone = {name: reasons(sets) for name, sets in ALONE.items()}
    return Verdicts(alone, reasons(CHAIN), table.column("c4.text").to_pylist())


def named(filter_name: str, reason: str | None) -> str | None:
    """datatrove's reason under our name; one that the map lacks (an exception, say) as it is."""
    return None if reason is None else REASONS.get((FILTERS[filter_name], reason), f"{filter_name}: {reason}")


def compare(
    mode: str, ids: Sequence[str], texts: Sequence[str], ours: Verdicts, answers: Sequence[dict[str, Any]]
) -> list[Difference]:
    """Where verdicts, first reasons or the text after C4 differ."""
    found = []
    for i, (name, text, answer) in enumerate(zip(ids, texts, answers, strict=True)):
        if "error" in answer:
            found.append(Difference(mode, name, "all", ours.first[i], answer["error"]))
            continue
        pairs = {"first": (ours.first[i], named(answer["first"] or "fineweb", answer["reason"]))}
        for step, reason in answer["alone"].items():
            pairs[step] = (ours.alone[step][i], named(step, reason))
        if not text:  # our gopher set has a reason for it; datatrove's quality filter alone counts its words
            assert pairs.pop("quality") == ("gopher.empty", "gopher.too_few_words")
        if "c4_text" in answer:
            pairs["c4_text"] = (ours.c4_text[i], answer["c4_text"])
        found += [Difference(mode, name, what, a, b) for what, (a, b) in pairs.items() if a != b]
    return found
