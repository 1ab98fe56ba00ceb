"""XPath expressions over elements' own attributes, answered from memory: the same elements in the same order.

trafilatura's lists read `.//*[self::div or …][re:test(@class, '…') or @role='…' or …]`. libxml2 evaluates that anew for
every element, with calls into Python and an alternation of up to a hundred words for each; that was half of a page's
time. Here one walk visits the elements of these tags, and each attribute value is tested once. What is not of that form
stays an XPath.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from lxml import etree

MEMO = 4_096
"""Values remembered of each attribute; four times as many were no faster over 1,235 pages."""
MAX_VALUE = 100
"""Longer ones are tested each time: with eleven attributes and sets of them, memory stays below some 30 MB."""
NAMESPACES = {"re": "http://exslt.org/regular-expressions"}

_STEP = re.compile(r"\s*\.//(\*|[a-z][a-z0-9]*)\s*((?:\[.*\])?)\s*", re.DOTALL)
_FIRST = re.compile(r"\s*\((.*)\)\s*\[1\]\s*", re.DOTALL)
_TAGS = re.compile(r"\s*self::[a-z][a-z0-9]*(\s+or\s+self::[a-z][a-z0-9]*)*\s*")
_ATTRIBUTES = r"(@[\w-]+(?:\s*\|\s*@[\w-]+)*)"
_TEXT = r"('[^']*'|\"[^\"]*\")"
_HAS = re.compile(_ATTRIBUTES)
_IS = re.compile(rf"{_ATTRIBUTES}\s*=\s*{_TEXT}")
_TEST = re.compile(rf"re:test\(\s*{_ATTRIBUTES}\s*,\s*{_TEXT}\s*(?:,\s*'(i?)'\s*)?\)")
_HOLDS = re.compile(
    rf"(contains|starts-with)\(\s*(?:{_ATTRIBUTES}|translate\(\s*{_ATTRIBUTES}\s*,\s*{_TEXT}\s*,\s*{_TEXT}\s*\))\s*,\s*{_TEXT}\s*\)"
)
_KNOWN, _TRUE = 1, 2
"""Bits of a remembered answer. A higher one is a test of the first of several attributes, and true if this is the first."""

Test = Callable[[str], bool]
_rows: dict[str, dict[str, bytearray]] = {}
"""Attribute, value: an answer for each column."""
_n_columns = 0


class NotUnderstood(Exception):
    """An expression that stays an XPath."""


def from_memory(old: etree.XPath) -> Any:
    """The same as a function of the context element; the expression itself where its form is not understood."""
    path, first = old.path, False
    if found := _FIRST.fullmatch(path):
        path, first = found[1], True
    try:
        return Walk(old, [_Step(part) for part in cut(path, "|")], first=first)
    except NotUnderstood:
        return old


class _Column:
    """The tests of one step on one attribute."""

    def __init__(self, name: str) -> None:
        global _n_columns
        self.name = name
        self.index, _n_columns = _n_columns, _n_columns + 1
        self.tests: list[tuple[int, Test]] = []
        self.rows = _rows.setdefault(name, {})
        for rows in _rows.values():
            rows.clear()  # they are too short now

    def judge(self, value: str) -> int:
        answer = _KNOWN
        for bit, test in self.tests:
            if not answer & bit and test(value):
                answer |= bit
        row = self.rows.get(value)
        if row is None:
            if len(value) > MAX_VALUE:
                return answer
            if len(self.rows) >= MEMO:
                self.rows.clear()
            row = self.rows[value] = bytearray(_n_columns)
        row[self.index] = answer
        return answer


class _Step:
    """`.//tag[tests][further]`: whether an element of these `tags` (none: any) passes the tests of its attributes."""

    def __init__(self, path: str) -> None:
        step = _STEP.fullmatch(path)
        if step is None:
            raise NotUnderstood
        predicates = _predicates(step[2])
        self.tags: tuple[str, ...] = () if step[1] == "*" else (step[1],)
        if not self.tags and predicates and _TAGS.fullmatch(predicates[0]):
            self.tags = tuple(re.findall(r"self::(\w+)", predicates.pop(0)))
        self.alone = bool(predicates) and predicates[-1].strip() == "1"
        if self.alone:
            predicates.pop()
        self.columns: dict[str, _Column] = {}
        self.ordered: list[tuple[int, tuple[str, ...], Test]] = []
        tests = [_test(one) for one in cut(predicates[0], " or ")] if predicates else []
        for names, test in tests:
            bit = _TRUE
            if len(names) > 1:
                bit <<= len(self.ordered) + 1
                self.ordered.append((bit, names, test))
            for name in names:
                if name not in self.columns:
                    self.columns[name] = _Column(name)
                self.columns[name].tests.append((bit, test))
        self.always = not tests
        if len(self.ordered) > 6 or not (tests or self.tags):
            raise NotUnderstood
        self.further = _further(predicates[1:]) if predicates[1:] else None
        if not self.tags:
            self.any = _Column("|".join(f".//@{name}" for name in self.columns))
            self.any.tests = [(_TRUE, test) for _, test in tests]
            self.values = etree.XPath(self.any.name, smart_strings=False)

    def possible(self, context: Any) -> bool:
        """Whether some value below the context passes a test: False is sure, True is not."""
        rows, index, judge = self.any.rows, self.any.index, self.any.judge
        for value in set(self.values(context)):
            row = rows.get(value)
            if ((row and row[index]) or judge(value)) > _KNOWN:
                return True
        return False

    def below(self, context: Any) -> Iterator[Any]:
        """The context's descendants of these tags that pass."""
        elements = context.iterdescendants(*(self.tags or ("*",)))
        columns = [(one.name, one.rows, one.index, one.judge) for one in self.columns.values()]
        further = self.further
        for element in elements:
            get, seen = element.get, _KNOWN
            for name, rows, index, judge in columns:
                value = get(name)
                if value is not None:
                    row = rows.get(value)
                    seen |= (row and row[index]) or judge(value)
            if (
                seen > _KNOWN
                and (seen & _TRUE or self._first_of_several(element))
                and (not further or further(element))
            ):
                yield element

    def _first_of_several(self, element: Any) -> bool:
        keys = element.keys()
        for _, names, test in self.ordered:
            first = next((key for key in keys if key in names), None)
            if first is not None and test(element.get(first)):
                return True
        return False


class Walk:
    """A union of steps below a context element. `first`: no more than the first element."""

    def __init__(self, old: etree.XPath, steps: list[_Step], *, first: bool) -> None:
        if len(steps) > 1 and (first or any(step.alone or step.further for step in steps)):
            raise NotUnderstood
        if all(step.always for step in steps):
            raise NotUnderstood  # libxml2 is faster
        self.path = old.path
        self.first = first
        self.steps = [step for step in steps if not step.always]
        self.always = frozenset(tag for step in steps if step.always for tag in step.tags)
        self.tags = (*self.always, *(tag for step in self.steps for tag in step.tags))

    def __call__(self, context: Any) -> list[Any]:
        if self.always or len(self.steps) > 1:
            return self._union(context)
        step = self.steps[0]
        found = step.below(context)
        if self.first:
            return list(islice(found, 1))
        return _first_children(found) if step.alone else list(found)

    def _union(self, context: Any) -> list[Any]:
        passing: set[Any] = set()
        tags = self.tags
        for step in self.steps:
            if step.tags:
                passing.update(step.below(context))
            elif step.possible(context) and (found := list(step.below(context))):
                passing.update(found)
                tags = ("*",)
        always = self.always
        return [one for one in context.iterdescendants(*tags) if one in passing or one.tag in always] if tags else []


def _first_children(elements: Iterable[Any]) -> list[Any]:
    """Of each parent's elements the first."""
    found: dict[Any, Any] = {}
    for element in elements:
        found.setdefault(element.getparent(), element)
    return list(found.values())


def _test(text: str) -> tuple[tuple[str, ...], Test]:
    """One test of attributes: their names, and what is asked of the first of them in the element."""
    text = text.strip()
    if found := _HAS.fullmatch(text):
        return _names(found[1]), lambda value: True
    if found := _IS.fullmatch(text):
        wanted = found[2][1:-1]
        if len(names := _names(found[1])) > 1:
            raise NotUnderstood  # any of them, not the first
        return names, lambda value: value == wanted
    if found := _TEST.fullmatch(text):
        search = re.compile(found[2][1:-1], re.IGNORECASE if found[3] else 0).search
        if search(""):
            raise NotUnderstood  # true without the attribute
        return _names(found[1]), lambda value: search(value) is not None
    if found := _HOLDS.fullmatch(text):
        held = found[6][1:-1]
        if not held:
            raise NotUnderstood
        return _names(found[2] or found[3]), _holds(found, held)
    raise NotUnderstood


def _holds(found: re.Match[str], held: str) -> Test:
    contains = found[1] == "contains"
    if found[2]:
        return (lambda value: held in value) if contains else (lambda value: value.startswith(held))
    source, target = found[4][1:-1], found[5][1:-1]
    table = {ord(char): (target[i] if i < len(target) else None) for i, char in reversed(list(enumerate(source)))}
    return lambda value: (held in value.translate(table)) if contains else value.translate(table).startswith(held)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip()[1:] for name in text.split("|"))


def _further(predicates: list[str]) -> Callable[[Any], bool]:
    """Predicates that are neither numbers nor about positions, judged by libxml2 each time."""
    for one in predicates:
        if len(cut(one, " or ")) < 2 or re.search(r"\b(position|last)\(", one):
            raise NotUnderstood
    judge: Callable[[Any], bool] = etree.XPath(
        f"boolean(self::*{''.join(f'[{one}]' for one in predicates)})", namespaces=NAMESPACES
    )
    return judge


def _predicates(text: str) -> list[str]:
    """`[a][b[c]]` as `a` and `b[c]`."""
    found: list[str] = []
    for char, depth, outer in _depths(text):
        if outer == 0:
            if char == "[":
                found.append("")
            elif not char.isspace():
                raise NotUnderstood
        elif depth:
            found[-1] += char
    return found


def cut(text: str, mark: str) -> list[str]:
    """A text cut at the marks that stand in no bracket and no quotes; blanks of a mark may be other white space."""
    parts, since = [""], 0
    for char, depth, outer in _depths(text):
        parts[-1] += char
        since = since + 1 if depth == outer == 0 else 0
        if since >= len(mark) and re.sub(r"\s", " ", parts[-1][-len(mark) :]) == mark:
            parts[-1], since = parts[-1][: -len(mark)], 0
            parts.append("")
    return parts


def _depths(text: str) -> Iterator[tuple[str, int, int]]:
    """Each character with the brackets and quotes open after it, and before it."""
    depth, quote = 0, ""
    for char in text:
        before = depth
        if quote:
            if char == quote:
                quote, depth = "", depth - 1
        elif char in "'\"":
            quote, depth = char, depth + 1
        else:
            depth += (char in "([") - (char in ")]")
        yield char, depth, before
