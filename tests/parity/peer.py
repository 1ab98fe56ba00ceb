"""Answers what datatrove's own classes say of texts and URLs: JSON lines in, JSON lines out, in order.

Runs on the peer's interpreter: `.venv-parity/bin/python tests/parity/peer.py < questions > answers`. A question names its
kind in `do`: filters, language, url or vector; an answer to one that raised is {"error": its class and message}.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from parity.peer_setup import offline, quiet

OWN = {"min_stop_words": None}
"""For other languages than English: datatrove's list of stop words is English whatever `language` says."""


@cache
def blocks() -> Any:
    from datatrove.pipeline import filters

    return filters


@cache
def document() -> Any:
    from datatrove.data import Document

    return Document


@cache
def chain(tokenizer: str) -> dict[str, Any]:
    """The four filters of FineWeb with its settings; without C4 and stop words for other languages.

    `tokenizer` is what datatrove calls the language, or `spacy:CODE` for one of spaCy's pipelines by its own name.
    """
    from datatrove.utils.word_tokenizers import SpaCyTokenizer

    named: Any = SpaCyTokenizer(tokenizer.removeprefix("spacy:")) if tokenizer.startswith("spacy:") else tokenizer
    steps = {
        "repetition": blocks().GopherRepetitionFilter(language=named),
        "quality": blocks().GopherQualityFilter(language=named, **({} if tokenizer == "en" else OWN)),
        "fineweb": blocks().FineWebQualityFilter(language=named),
    }
    if tokenizer == "en":  # last: datatrove keeps the parts of five texts, and C4 asks for each line's sentences
        steps["c4"] = blocks().C4QualityFilter(filter_no_terminal_punct=False)
    return steps


def verdict_of(step: Any, doc: Any) -> str | None:
    """The reason to drop, None to keep. A filter's exception is its verdict: the whole task would fail."""
    try:
        answer = step.filter(doc)
    except Exception as error:
        return f"error: {type(error).__name__}: {error}"
    if isinstance(answer, tuple):
        return str(answer[1])
    return None if answer else step.name


def filters(question: dict[str, Any]) -> dict[str, Any]:
    """Each filter alone on the text, and the first of the chain: only C4 changes a text, so each filter runs once, but
    FineWeb's twice."""
    text = question["text"]
    steps = chain(question.get("tokenizer", "en"))
    alone: dict[str, str | None] = {}
    rewritten = text
    for name, step in steps.items():
        doc = document()(text=text, id="")
        alone[name] = verdict_of(step, doc)
        if name == "c4":
            rewritten = doc.text
    before = [name for name in ("repetition", "quality", "c4") if alone.get(name) is not None]
    if before:
        first: str | None = before[0]
        reason = alone[before[0]]
    else:
        reason = alone["fineweb"]
        if rewritten != text:
            reason = verdict_of(steps["fineweb"], document()(text=rewritten, id=""))
        first = None if reason is None else "fineweb"
    out: dict[str, Any] = {"alone": alone, "first": first, "reason": reason}
    if "c4" in steps and alone["c4"] is None:
        out["c4_text"] = rewritten
    return out


@cache
def language_filter() -> Any:
    return blocks().LanguageFilter(languages=["en"])


def language(question: dict[str, Any]) -> dict[str, Any]:
    """Label and score of the whole text, and whether LanguageFilter(languages=["en"]) keeps it."""
    doc = document()(text=question["text"], id="")
    kept = language_filter().filter(doc) is True
    return {"label": doc.metadata["language"], "score": doc.metadata["language_score"], "kept": kept}


@cache
def url_filter() -> Any:
    return offline(blocks().URLFilter())


def url(question: dict[str, Any]) -> dict[str, Any]:
    return {"reason": verdict_of(url_filter(), document()(text="", id="", metadata={"url": question["url"]}))}


def vector(question: dict[str, Any]) -> dict[str, Any]:
    """A conformance vector: see gristmill.curate.rules.conformance for the fields."""
    from parity.peer_vectors import answer

    return answer(question, blocks(), document(), verdict_of)


KINDS = {"filters": filters, "language": language, "url": url, "vector": vector}


def main() -> None:
    quiet()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            found = KINDS[question["do"]](question)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
