"""Cloze tasks: which of several answers a model finds likeliest, whole and per character, from JSONL task files.

A line is a context and its possible continuations; context and continuation are encoded together, and scored from the
first token that differs from the context's own. Per character, since longer answers are less likely whatever they say
(Brown et al., arXiv 2005.14165, section 2.4; characters, not tokens, so that tokenizers compare). Standard errors:
sqrt(p (1 - p) / n). Letters: N continuations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from gristmill.core.errors import UsageError
from gristmill.core.hashing import mix64, seed_of, sha256_file
from gristmill.trainer.jsonl import read_jsonl
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.scoring import Scored, score
from gristmill.trainer.watch_schema import ClozeTask, Format

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_CHOICES = 26  # letters; more is a damaged line


@dataclass(frozen=True)
class Item:
    """One line: pairs of (context, continuation) of which number `gold` is right. Each continuation's leading space
    separates it from its context and counts as no character."""

    pairs: tuple[tuple[str, str], ...]
    gold: int

    @property
    def characters(self) -> list[int]:
        return [max(len(continuation.strip()), 1) for _, continuation in self.pairs]


@dataclass(frozen=True)
class Task:
    """A task file ready to be scored: `sequences` holds each item's continuations one after another."""

    name: str
    format: Format
    items: list[Item]
    sequences: list[Scored]
    bad_lines: int
    truncated: int  # continuations whose context was cut on the left to fit the window
    sha256: str  # of the file


def load(settings: ClozeTask, tokenizer: Tokenizer, seq_len: int, say: Callable[[str], None]) -> Task:
    """Read and encode a task file. Raises UsageError when no line of it can be used."""
    path = Path(settings.path)
    items: list[Item] = []
    bad: list[int] = []
    for number, row in read_jsonl(path):
        try:
            if row is None:
                raise ValueError("no JSON object")
            items.append(item(row, settings.format))
        except (ValueError, KeyError, TypeError, IndexError):
            bad.append(number)
    if not items:
        raise UsageError(
            f"evaluate.tasks: no line of {path} can be read as {settings.format!r}",
            hint="the format `cloze` takes {context, choices, gold}",
        )
    if bad:
        say(f"task {settings.name}: {len(bad)} of {len(items) + len(bad)} lines not read, first line {bad[0]}")
    if settings.limit is not None and settings.limit < len(items):
        rank = mix64(np.arange(len(items)), seed_of("task", settings.name))
        items = [items[i] for i in np.sort(np.argsort(rank)[: settings.limit])]
    pairs = [pair for it in items for pair in it.pairs]
    contexts = tokenizer.encode_batch([context for context, _ in pairs], add_special_tokens=False)
    wholes = tokenizer.encode_batch([context + rest for context, rest in pairs], add_special_tokens=False)
    sequences = [scored(c.ids, w.ids, seq_len) for c, w in zip(contexts, wholes, strict=True)]
    truncated = sum(len(w.ids) > seq_len + 1 for w in wholes)
    return Task(settings.name, settings.format, items, sequences, len(bad), truncated, sha256_file(path))


def scored(context: list[int], whole: list[int], seq_len: int) -> Scored:
    """A continuation within a window of `seq_len` predictions: cut on the left, so that its last tokens are kept.

    Scored from the first token that is not the context's, at the latest the last one, at the earliest the second (a
    first token has nothing to be predicted from). A single token is scored as repeated: the same for every answer but
    for the token's own likelihood.
    """
    whole = whole if len(whole) > 1 else (whole or [0]) * 2
    first = next((i for i, (a, b) in enumerate(zip(context, whole, strict=False)) if a != b), len(context))
    first = max(1, min(first, len(whole) - 1))
    cut = max(len(whole) - seq_len - 1, 0)
    return Scored(np.array(whole[cut:]), max(first - cut, 1))


def measure(model: nn.Module, task: Task, rows: int, seq_len: int, world: World) -> dict[str, Any]:
    """Accuracies with their standard errors, the accuracy of guessing, and the right answer's log-likelihood in nats.

    Keys: accuracy (whole log-likelihood), accuracy_per_char, each with _stderr; random; gold_logprob_per_char;
    items, bad_lines, truncated, sha256. `lambada` has accuracy alone: the right word is the likeliest at each token;
    `answer` has none. Collective.
    """
    greedy = task.format == "lambada"
    scores = score(model, task.sequences, rows, seq_len, world, greedy=greedy)
    out: dict[str, Any] = {"items": len(task.items), "bad_lines": task.bad_lines, "truncated": task.truncated}
    right: list[bool] = []
    right_per_char: list[bool] = []
    gold: list[float] = []
    at = 0
    for it in task.items:
        logprob = -scores.nats[at : at + len(it.pairs)]
        per_char = logprob / np.array(it.characters)
        right.append(int(logprob.argmax()) == it.gold)
        right_per_char.append(int(per_char.argmax()) == it.gold)
        gold.append(float(per_char[it.gold]))
        at += len(it.pairs)
    if greedy:
        assert scores.greedy is not None
        out |= _share("accuracy", scores.greedy.tolist())
    elif task.format != "answer":
        out |= _share("accuracy", right) | _share("accuracy_per_char", right_per_char)
        out["random"] = math.fsum(1 / len(it.pairs) for it in task.items) / len(task.items)
    out["gold_logprob_per_char"] = math.fsum(gold) / len(gold)
    out["sha256"] = task.sha256
    return out


def _share(name: str, hits: list[bool]) -> dict[str, float]:
    p = sum(hits) / len(hits)
    return {name: p, f"{name}_stderr": math.sqrt(p * (1 - p) / len(hits))}


def item(row: Mapping[str, Any], form: Format) -> Item:
    """One line of a task file. Raises ValueError, KeyError, TypeError or IndexError on one that is not of the format.

    Beside {question, choices, gold} or {question, answer}, the published files' own names are known: ARC's and
    OpenBookQA's stem, choices with labels and answerKey, HellaSwag's ctx, endings and label, PIQA's goal, sol1 and sol2,
    WinoGrande's sentence, option1 and option2, MMLU's answer as a number or letter, LAMBADA's text.
    """
    if form in ("lambada", "answer"):
        return _open_ended(row, form)
    question, choices, gold = fields(row)
    if not 2 <= len(choices) <= MAX_CHOICES or not 0 <= gold < len(choices):
        raise ValueError(f"{len(choices)} choices, the right one number {gold}")
    if form == "winogrande":
        before, blank, after = question.partition("_")
        if not blank or not after.strip():
            raise ValueError("no blank, or nothing after it")
        # what stands before the blank differs, what is scored is the same: the rest of the sentence
        return Item(tuple((before + choice, after) for choice in choices), gold)
    if form == "cloze":
        return Item(tuple((question, choice) for choice in choices), gold)
    asked = question if form in ("hellaswag", "openbookqa") else f"Question: {question}\nAnswer:"
    return Item(tuple((asked, " " + choice.strip()) for choice in choices), gold)


def _open_ended(row: Mapping[str, Any], form: Format) -> Item:
    if form == "lambada" and "text" in row:
        question, _, answer = _text(row["text"]).rstrip().rpartition(" ")
    else:
        question, answer = _text(row["question"]), _text(row["answer"])
    if not question or not answer:
        raise ValueError("nothing to complete")
    if form == "lambada":
        return Item(((question.rstrip(), " " + answer.strip()),), 0)
    return Item(((f"Question: {question}\nAnswer:", " " + answer.strip()),), 0)


QUESTIONS = ("context", "question", "ctx", "goal", "question_stem", "sentence")
GOLDS = ("gold", "label", "answerKey", "answer")


def fields(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """(question, choices, number of the right one) of a line with choices, by whichever of the known names it has."""
    question: Any = next(row[name] for name in QUESTIONS if name in row) if set(QUESTIONS) & set(row) else None
    options: Any = row.get("choices", row.get("endings"))
    if isinstance(question, Mapping):  # ARC as first published: {"stem", "choices": [{"text", "label"}]}
        question, options = question["stem"], question["choices"]
    labels: list[str] = []
    offset = 0
    if options is None:
        first, second = ("sol1", "sol2") if "sol1" in row else ("option1", "option2")
        options, offset = [row[first], row[second]], int(first == "option1")  # WinoGrande counts from 1
    if isinstance(options, Mapping):
        labels, options = [str(v) for v in options["label"]], options["text"]
    elif options and isinstance(options[0], Mapping):
        labels, options = [str(o["label"]) for o in options], [o["text"] for o in options]
    if not isinstance(options, list):
        raise TypeError("the choices are no list")
    gold = next(row[name] for name in GOLDS if name in row) if set(GOLDS) & set(row) else None
    return _text(question), [_text(o) for o in options], _number(gold, labels) - offset


def _number(gold: Any, labels: list[str]) -> int:
    if isinstance(gold, bool):
        raise TypeError("true is no answer")
    if isinstance(gold, int):
        return gold
    if gold in labels:
        return labels.index(gold)
    text = _text(gold)
    return int(text) if text.isdecimal() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(text)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"expected a text, not {type(value).__name__}")
    return value
