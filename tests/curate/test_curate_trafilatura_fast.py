"""trafilatura's expressions rewritten: they match the same elements of any tree, in the same order."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from collections.abc import Iterator

import pytest
from lxml import etree, html

from gristmill.curate.engines.trafilatura_fast import _faster, install, one_walk

TAGS = [
    "article",
    "aside",
    "div",
    "section",
    "span",
    "p",
    "ul",
    "li",
    "list",
    "item",
    "main",
    "header",
    "footer",
    "nav",
    "h1",
    "a",
    "table",
    "td",
    "cite",
    "quote",
    "form",
]
OTHER = ["", " ", "x y", "Main", "hiddenX", "teaser Teaser", "n", "N", "display: none", "é", "a" * 300]


def originals() -> Iterator[etree.XPath]:
    """Every expression of trafilatura as it ships them, from a fresh copy of its module."""
    spec = importlib.util.find_spec("trafilatura.xpaths")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for held in vars(module).values():
        if isinstance(held, list):
            yield from (one for one in held if isinstance(one, etree.XPath))


EXPRESSIONS = list(originals())


def tree(rng: random.Random, words: list[str]) -> html.HtmlElement:
    root = html.Element("body")
    nodes = [root]
    for _ in range(400):
        child = html.Element(rng.choice(TAGS))
        for name in rng.sample(
            ["id", "class", "style", "role", "itemprop", "data-component", "aria-hidden"], rng.randint(0, 3)
        ):
            value = rng.choice(words) + rng.choice(["", "", " ", "-x", "X"])
            child.set(name, rng.choice(["", "", "a ", "Q-"]) + value)
        child.text, child.tail = rng.choice(["text", None]), rng.choice(["tail", None])
        rng.choice(nodes[-30:]).append(child)
        nodes.append(child)
    return root


def test_the_same_elements_in_the_same_order() -> None:
    words = sorted({w for one in EXPRESSIONS for w in re.findall(r"[A-Za-z_-]{3,}", one.path)} | set(OTHER))
    rng = random.Random(7)
    trees = [tree(rng, words) for _ in range(12)]
    changed = matched = 0
    for old in EXPRESSIONS:
        new = _faster(old)
        changed += new is not old
        for root in trees:
            for start in (root, root[0]):
                want = old(start)
                matched += len(want)
                assert [id(e) for e in new(start)] == [id(e) for e in want], old.path
                assert [id(e) for e in new(start)] == [id(e) for e in want], f"from memory: {old.path}"
    assert changed > 10
    assert matched > 1_000


@pytest.mark.parametrize(
    ("path", "one"),
    [
        (".//a|.//b[contains(@id, '|')]", ".//*[self::a or self::b[contains(@id, '|')]]"),
        (".//*[@x]|.//p", ".//*[self::*[@x] or self::p]"),
        ("(.//a)[1]|.//b", None),
        (".//a[2]|.//b", None),
        (".//a[last()]|.//b", None),
        (".//a/b|.//c", None),
        (".//a[@x]/b[@y]|.//c", None),
        (".//a[@x][b[@y]]|.//c", ".//*[self::a[@x][b[@y]] or self::c]"),
        (".//a", None),
        ("//a|.//b", None),
    ],
)
def test_unions_become_one_walk(path: str, one: str | None) -> None:
    assert one_walk(path) == (one or path)


def test_an_expression_that_is_not_understood_stays() -> None:
    odd = etree.XPath(
        ".//*[re:test(concat(@id, 'x'), 'ab')]", namespaces={"re": "http://exslt.org/regular-expressions"}
    )
    assert _faster(odd) is odd
    empty = etree.XPath(".//*[re:test(@id, 'a*')]", namespaces={"re": "http://exslt.org/regular-expressions"})
    assert _faster(empty) is empty, "it matches elements without an id"


def test_installing_rewrites_what_is_in_use() -> None:
    from trafilatura import xpaths

    install()
    before = [*xpaths.OVERALL_DISCARD_XPATH, sys.modules["trafilatura.baseline"].BASIC_CLEAN_XPATH]
    install()
    again = [*xpaths.OVERALL_DISCARD_XPATH, sys.modules["trafilatura.baseline"].BASIC_CLEAN_XPATH]
    assert list(map(id, again)) == list(map(id, before)), "once is enough"
    assert not any("re:test(@" in one.path for one in again)
