"""Decisions on real pages: not one may differ from datatrove's filters, each alone and all in FineWeb's order."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pyarrow as pa
import pytest
from data_helper import shared_data

from gristmill.curate.decide import decide_table
from gristmill.curate.measure import measure_batch
from gristmill.curate.rules import RULES
from gristmill.curate.schema import C4, C4Rewrite, FineWeb, Gopher, Language, Rules
from gristmill.curate.words import words

SETS: dict[str, Any] = {"gopher@datatrove": Gopher(), "c4@datatrove": C4(), "fineweb@datatrove": FineWeb()}


def pages() -> list[dict[str, Any]]:
    with gzip.open(shared_data("gold/fulltext.jsonl.gz"), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def peers(names: list[str]) -> list[tuple[str, Any]]:
    from datatrove.pipeline import filters as peer

    steps: dict[str, list[Any]] = {
        "gopher@datatrove": [peer.GopherRepetitionFilter(), peer.GopherQualityFilter()],
        "c4@datatrove": [peer.C4QualityFilter(filter_no_terminal_punct=False)],
        "fineweb@datatrove": [peer.FineWebQualityFilter()],
    }
    return [(name.split("@")[0], step) for name in names for step in steps[name]]


@pytest.mark.slow
@pytest.mark.parametrize("names", [list(SETS), *([name] for name in SETS)], ids=lambda names: "+".join(names))
def test_english_pages(names: list[str]) -> None:
    from datatrove.data import Document

    texts = [page["text"] for page in pages() if page["lang"] == "en"]
    texts += [f"{a}\n{b}" for a, b in zip(texts[:40], texts[40:80], strict=True)]
    # broken on purpose, so that more rules fire: cut into lines, repeated, without line ends
    texts += [t.replace(", ", "\n") for t in texts[:60]] + [t[:900] * 2 for t in texts[60:120]]
    texts += [t.replace(".\n", "\n") for t in texts[120:180]] + [t[:60] for t in texts[180:240]]
    n = len(texts)
    assert n >= 500
    rules = Rules.model_validate({name: SETS[name] for name in names})
    measures = measure_batch(texts, ["en"] * n, C4Rewrite(), 30)
    for column, values in (("id", [str(i) for i in range(n)]), ("language", ["en"] * n), ("language_score", [1.0] * n)):
        measures = measures.append_column(column, pa.array(values))
    verdicts, notes = decide_table(measures, Language(), rules)
    assert not notes
    reasons = verdicts.column("reason").to_pylist()
    rewritten = measures.column("c4.text").to_pylist()
    mapped = {(rule.name.split(".")[0], rule.datatrove): rule.name for rule in RULES}
    seen = set()
    for i, text in enumerate(texts):
        doc = Document(text=text, id=str(i))
        expected = None
        for prefix, step in peers_of(names):
            verdict = step.filter(doc)
            if verdict is not True:
                expected = mapped[prefix, verdict[1]]
                break
        seen.add(expected)
        assert reasons[i] == expected, (i, text[:200])
        if expected is None and "c4@datatrove" in names:
            assert rewritten[i] == doc.text
    assert None in seen
    assert len(seen) >= (3 if len(names) == 1 else 8), seen


_STEPS: dict[tuple[str, ...], list[tuple[str, Any]]] = {}


def peers_of(names: list[str]) -> list[tuple[str, Any]]:
    key = tuple(names)
    if key not in _STEPS:
        _STEPS[key] = peers(names)
    return _STEPS[key]


@pytest.mark.slow
def test_words_of_pages_in_other_languages() -> None:
    from datatrove.utils.word_tokenizers import SpaCyTokenizer

    from gristmill.curate.tokenizers import tokenizer_of

    tokenizers: dict[str, Any] = {}
    languages = set()
    for page in pages():
        code = tokenizer_of(page["lang"])
        if code is None or page["lang"] == "en":
            assert code or words(page["text"], page["lang"]) is None
            continue
        tokenizer = tokenizers.setdefault(code, SpaCyTokenizer(code))
        assert words(page["text"], page["lang"]) == tokenizer.word_tokenize(page["text"]), page["id"]
        languages.add(page["lang"])
    assert len(languages) >= 10
