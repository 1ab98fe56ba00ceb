"""YAML text to nodes, going on after a syntax fault so that one fault never hides the others.

A faulty line is mended where the intent is plain (a missing colon, an unclosed bracket or quote) and blanked with the
lines nested below it otherwise; the text is then parsed again, up to MAX_FAULTS times.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node

from gristmill.core.errors import Problem

MAX_FAULTS = 10
MAX_MENDED_CHARS = 1 << 18  # every fault parses the text a few times again; ruamel reads about 100 KB/s
MAX_DEPTH = 64

CONFLICT = ("<<<<<<<", "|||||||", "=======", ">>>>>>>")
_NO_COLON = re.compile(r"^(\s*(?:- )?)([^\W\d][\w@.-]*)(\s+[^:#]*\S)?\s*$")


@dataclass
class Composed:
    """The root node (None for an empty text), the syntax faults, and whether lines had to be blanked."""

    node: Node | None = None
    problems: list[Problem] = field(default_factory=list)
    blanked: bool = False


def compose(text: str, name: str) -> Composed:
    """Parse YAML text to nodes. Collects the faults of syntax; raises nothing."""
    out = Composed()
    lines = text.splitlines()
    work = list(lines)
    node, error = _attempt(text)
    while error is not None and len(out.problems) < MAX_FAULTS:
        if isinstance(error, RecursionError):
            out.problems.append(_too_deep(lines, name))
            out.blanked = True
            return out
        if not isinstance(error, MarkedYAMLError):  # a character that YAML forbids
            at = next((i for i, line in enumerate(work) if _forbidden(line)), None)
            if at is None:
                out.problems.append(Problem(name, 1, 1, "", str(error), "write plain YAML 1.2 in UTF-8"))
                out.blanked = True
                return out
            column = _forbidden(work[at])
            hint = "remove this invisible control character"
            out.problems.append(Problem(name, at + 1, column, "", f"character {work[at][column - 1]!a}", hint))
            work[at] = "".join(" " if _forbidden(c) else c for c in work[at])
            node, error = _attempt("\n".join(work) + "\n")
            continue
        conflict = [i for i, line in enumerate(work) if line.startswith(CONFLICT)]
        if conflict:
            first = conflict[0]
            hint = "a merge conflict marker: settle the conflict and remove the marker lines"
            out.problems.append(Problem(name, first + 1, 1, "", "unsettled merge conflict", hint, lines[first]))
            for i in conflict:
                work[i] = ""
            node, error = _attempt("\n".join(work) + "\n")
            continue
        place, hint = _explain(error, work)
        best: tuple[tuple[bool, int], list[str], bool, int] | None = None
        tried = _candidates(error, work) if len(text) <= MAX_MENDED_CHARS else []
        for patched, blanked, at in tried:
            node, failure = _attempt("\n".join(patched) + "\n")
            reach = _line(failure) if failure is not None else len(work) + 1
            if best is None or (failure is None, reach) > best[0]:
                best = ((failure is None, reach), patched, blanked, at)
                found, after = node, failure
            if failure is None:
                break
        line, column = place
        if best is not None and not best[2] and best[3] != line - 1:  # mended elsewhere: that is the place
            line, opened = best[3] + 1, error.context_mark
            column = len(work[line - 1]) - len(work[line - 1].lstrip()) + 1
            if opened is not None and opened.line == line - 1:
                column = opened.column + 1
            else:
                hint = _COLON_HINT
        source = lines[line - 1] if 0 < line <= len(lines) else None
        message = " ".join(str(error.problem or error.context).split())
        out.problems.append(Problem(name, line, column, "", message, hint, source))
        if best is None:
            out.blanked = True
            return out
        out.blanked |= best[2]
        work, node, error = best[1], found, after
    if error is not None:
        out.blanked = True
        return Composed(None, out.problems, True)
    out.node = node
    return out


class _Shallow(Composer):
    """Gives up far below MAX_DEPTH, at the same depth whatever the process's recursion limit is."""

    depth = 0

    def compose_node(self, parent: Node | None, index: object) -> Node | None:
        self.depth += 1
        if self.depth > 3 * MAX_DEPTH:  # some 600 Python frames
            raise RecursionError
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _attempt(text: str) -> tuple[Node | None, Exception | None]:
    yaml = YAML(typ="rt", pure=True)
    yaml.Composer = _Shallow
    yaml.allow_duplicate_keys = True  # found by the caller, with the place of the second one
    try:
        return yaml.compose(io.StringIO(text)), None
    except (YAMLError, RecursionError) as error:
        return None, error


def _forbidden(text: str) -> int:
    """Column (from 1) of the first control character that YAML forbids, or 0."""
    for i, c in enumerate(text, 1):
        if (c < " " and c != "\t") or "\x7f" <= c <= "\x9f" or c in "\ufffe\uffff" or "\ud800" <= c <= "\udfff":
            return i
    return 0


def _too_deep(lines: list[str], name: str) -> Problem:
    message, hint = f"nested deeper than {MAX_DEPTH} levels", "settings need fewer than 8 levels: close the brackets"
    depth = 0
    for i, line in enumerate(lines):
        for j, c in enumerate(line):
            depth += (c in "[{") - (c in "]}")
            if depth > MAX_DEPTH:
                return Problem(name, i + 1, j + 1, "", message, hint)
    return Problem(name, 1, 1, "", message, hint)


def _line(error: Exception | None) -> int:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return int(mark.line) if mark is not None else 0


_COLON_HINT = "a colon is missing: write `key: value`, with a space after the colon"


def _explain(error: MarkedYAMLError, work: list[str]) -> tuple[tuple[int, int], str]:
    """Line and column (from 1) at which to report, and what to do."""
    mark = error.problem_mark or error.context_mark
    place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    opened = (error.context_mark.line + 1, error.context_mark.column + 1) if error.context_mark else place
    text, context = str(error.problem or ""), str(error.context or "")
    line = work[place[0] - 1] if 0 < place[0] <= len(work) else ""
    if "expected ':'" in text:
        return opened, _COLON_HINT
    if "flow" in context:
        return place, f"the bracket opened at line {opened[0]} is not closed, or a comma is missing"
    if "quoted scalar" in context:
        return opened, "the quote opened here is not closed"
    if "'\\t'" in text:
        return place, "indent with spaces: YAML forbids tabs"
    if "cannot start" in text:
        return place, 'put the value in quotes, for example "%x"'
    if "mapping values" in text:
        if line.count(": ") > 1:
            return place, "one `key: value` a line; put a text that has a colon in quotes"
        return place, "bad indentation: give a key the same indentation as its neighbours"
    if "']'" in text or "'}'" in text:
        return place, "a closing bracket too many, or its opening one is missing"
    if "<block end>" in text or "<block" in text:
        return place, "bad indentation: give a key the same indentation as its neighbours"
    if "another document" in text:
        return place, "one file holds one document: remove this `---`"
    if "alias" in text:
        return place, "`*` names an anchor (`&name`) written earlier; put a text that starts with `*` in quotes"
    return place, "check the indentation, colons, quotes and brackets of this line and of the one before"


def _candidates(error: MarkedYAMLError, work: list[str]) -> list[tuple[list[str], bool, int]]:
    """Ways to go on: (lines, whether some were blanked, index of the changed line), likeliest first."""
    at = min(_line(error), len(work) - 1)
    opened = min(error.context_mark.line, len(work) - 1) if error.context_mark else at
    before = max((i for i in range(at) if work[i].strip()), default=at)
    context = str(error.context or "")
    inside = any(word in context for word in ("flow", "quoted", "simple key"))
    out: list[tuple[list[str], bool, int]] = []

    def mend(i: int, line: str | None) -> None:
        if line is not None:
            out.append(([*work[:i], line, *work[i + 1 :]], False, i))

    if "expected ':'" in str(error.problem):
        mend(opened, _with_colon(work[opened]))
    elif inside:
        mend(opened, _closed(work[opened], "quoted" in context))
    elif "mapping values" in str(error.problem):
        mend(before, _with_colon(work[before]))
    elif "'\\t'" in str(error.problem):
        spaced = [line[: -len(rest)].expandtabs(2) + rest if (rest := line.lstrip()) else "" for line in work]
        out.append((spaced, False, at))
    order = (opened, before, at) if inside else (at, before, opened)
    for i in dict.fromkeys(order):
        if work[i].strip():
            out.append((_without(work, i), True, i))
    return out


def _with_colon(line: str) -> str | None:
    match = _NO_COLON.match(line)
    return f"{match[1]}{match[2]}:{match[3] or ''}" if match else None


def _closed(line: str, quoted: bool) -> str | None:
    """The line with its open quote or brackets closed; the fault is reported all the same."""
    if quoted:
        quote = next((c for c in line if c in "'\""), None)
        return line + quote if quote else None
    open_: list[str] = []
    for c in line:
        if c in "[{":
            open_.append({"[": "]", "{": "}"}[c])
        elif open_ and c == open_[-1]:
            open_.pop()
    return line.rstrip().rstrip(",") + "".join(reversed(open_)) if open_ and "#" not in line else None


def _without(work: list[str], at: int) -> list[str]:
    """The lines with one blanked, and those nested below it: they would else land in another block."""
    out = list(work)
    indent = len(work[at]) - len(work[at].lstrip())
    out[at] = ""
    for i in range(at + 1, len(work)):
        stripped = work[i].strip()
        if stripped and len(work[i]) - len(work[i].lstrip()) <= indent:
            break
        out[i] = ""
    return out
