"""The conformance suite: texts that pin what each rule measures and decides, to be put to any tool.

A vector (`vectors/SEMANTICS.jsonl`, one JSON object a line) is a question with its answer. Fields of the question: `id`,
`semantics` (rule set @ whose meaning), `rule` (that rule alone, or null: the whole set with its published thresholds),
`language` (fastText label), `text`, `threshold` (of that rule; null where it has none or is switched off) and
`settings` (what else differs from the published configuration). Fields of the answer: `verdict` (keep or drop), `value`
(the metric that is compared, null where the semantics give none), `reason` (of whole sets: the first rule that fails)
and `text_after` (of rewriting sets). `why` says which corner it is.

The values come from counting by hand by the published code's rules and, for datatrove, from datatrove itself.
A tool is a callable of questions, or a command that reads them as JSON lines on stdin and writes one answer a line.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from typing import Any, Literal

from gristmill.core.errors import FormatError, UsageError

VERSION = 1
"""Of the suite: raised when a vector changes its answer; new vectors alone do not raise it."""
REWRITE = "rewrite"
"""The rule name of vectors that compare `text_after`."""
KEEP, DROP = "keep", "drop"

Question = dict[str, Any]
Answer = dict[str, Any]
"""{"id", "verdict", optional "value", "reason", "text_after"}, or {"id", "unsupported": why}."""
Tool = Callable[[Sequence[Question]], Sequence[Answer]]


@dataclass(frozen=True)
class Vector:
    """One question with its answer; see the module."""

    id: str
    semantics: str
    rule: str | None
    language: str
    text: str
    verdict: Literal["keep", "drop"]
    why: str
    threshold: float | None = None
    value: float | None = None
    reason: str | None = None
    text_after: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> Question:
        """What a tool is told."""
        asked = ("id", "semantics", "rule", "language", "text", "threshold", "settings")
        return {name: getattr(self, name) for name in asked}


@dataclass(frozen=True)
class Failure:
    """An answer that is not the vector's: which field, what was wanted and what came."""

    id: str
    what: str
    wanted: Any
    found: Any
    why: str


@dataclass
class Report:
    """Outcome per semantics: vectors passed, failed and unsupported."""

    passed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unsupported: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        names = sorted({*self.passed, *self.failed, *self.unsupported})
        counts = ("passed", "failed", "unsupported")
        return {
            "version": VERSION,
            "semantics": {name: {count: getattr(self, count)[name] for count in counts} for name in names},
            "failures": [asdict(failure) for failure in self.failures],
        }


def vectors(semantics: Sequence[str] = ()) -> list[Vector]:
    """The suite, or those of some semantics. Raises UsageError for a name it lacks, FormatError for a broken row."""
    folder = files("gristmill.curate.rules") / "vectors"
    found = sorted((f for f in folder.iterdir() if f.name.endswith(".jsonl")), key=lambda f: f.name)
    names = [f.name.removesuffix(".jsonl") for f in found]
    if unknown := sorted(set(semantics) - set(names)):
        raise UsageError(f"no vectors for {', '.join(unknown)}", hint=f"there are some for {', '.join(names)}")
    out: list[Vector] = []
    for name, file in zip(names, found, strict=True):
        if semantics and name not in semantics:
            continue
        for number, line in enumerate(file.read_text("utf-8").split("\n"), 1):
            if line:
                out.append(_vector(line, f"{file.name}:{number}", name))
    return out


def _vector(line: str, where: str, semantics: str) -> Vector:
    try:
        row = json.loads(line)
        vector = Vector(**{"semantics": semantics, **row})
    except (ValueError, TypeError) as error:
        raise FormatError(f"{where} is no vector: {error}", hint="reinstall gristmill") from error
    if (
        vector.verdict not in (KEEP, DROP)
        or vector.semantics != semantics
        or set(row) - {f.name for f in fields(Vector)}
    ):
        raise FormatError(f"{where} is no vector of {semantics}", hint="reinstall gristmill")
    return vector


def run(tool: Tool, suite: Sequence[Vector]) -> Report:
    """Put a suite to a tool. Raises FormatError when it does not give one answer per question, in order."""
    answers = list(tool([vector.question for vector in suite]))
    if [answer.get("id") for answer in answers] != [vector.id for vector in suite]:
        raise FormatError(
            f"the tool gave {len(answers)} answers to {len(suite)} questions, or in another order",
            hint="write one JSON object a line, with the question's id, in the order of the questions",
        )
    report = Report()
    for vector, answer in zip(suite, answers, strict=True):
        if "unsupported" in answer:
            report.unsupported[vector.semantics] += 1
        elif failures := list(_failures(vector, answer)):
            report.failed[vector.semantics] += 1
            report.failures += failures
        else:
            report.passed[vector.semantics] += 1
    return report


def _failures(vector: Vector, answer: Answer) -> list[Failure]:
    """A verdict must be there; values, reasons and texts are compared where both sides have one."""
    found = []
    for what in ("verdict", "value", "reason", "text_after"):
        wanted, got = getattr(vector, what), answer.get(what)
        if what == "verdict":
            same = got == wanted
        elif wanted is None or got is None:
            same = True
        elif what == "value":
            same = isinstance(got, int | float) and math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-12)
        else:
            same = got == wanted
        if not same:
            found.append(Failure(vector.id, what, wanted, got, vector.why))
    return found


def command(line: str) -> Tool:
    """A tool behind a command line (split as a shell would, run without one). The tool raises UsageError when it cannot
    be started, FormatError when it fails or writes something else than JSON objects."""
    arguments = shlex.split(line)

    def tool(questions: Sequence[Question]) -> list[Answer]:
        asked = "".join(json.dumps(question) + "\n" for question in questions)
        try:
            done = subprocess.run(arguments, input=asked, capture_output=True, text=True, encoding="utf-8")
        except (OSError, IndexError) as error:
            raise UsageError(f"`{line}` cannot be run: {error}", hint="give a command that is on your PATH") from error
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it wrote no message"]
            raise FormatError(f"`{line}` ended with {done.returncode}: {last[0]}")
        answers = []
        for number, row in enumerate(filter(None, done.stdout.split("\n")), 1):
            try:
                answer = json.loads(row)
            except ValueError as error:
                raise FormatError(f"line {number} of `{line}` is no JSON: {row[:80]!r}") from error
            if not isinstance(answer, dict):
                raise FormatError(f"line {number} of `{line}` is no JSON object: {row[:80]!r}")
            answers.append(answer)
        return answers

    return tool
