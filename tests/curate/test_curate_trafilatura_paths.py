"""trafilatura's expressions from memory: they match the same elements of any tree, in the same order."""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Iterator

import pytest
from lxml import etree, html

from gristmill.curate.engines import trafilatura_paths
from gristmill.curate.engines.trafilatura_paths import NAMESPACES, Walk, cut, from_memory

TAGS = "article aside div section span p ul ol li list item main header footer nav h1 a table td cite quote form "
TAGS += "details script style svg template fencedframe o:p"
NAMES = "id class style role itemprop data-component aria-hidden data-lp-replacement-content ID xml:lang"
OTHER = [
    "",
    " ",
    "x y",
    "Main",
    "hiddenX",
    "teaser Teaser",
    "n",
    "N",
    "display: none",
    "é",
    "a" * 300,
    "\x01",
    "K",
    "İ",
    "ſ",
]


def originals() -> Iterator[etree.XPath]:
    """Every expression of trafilatura as it ships them, from fresh copies of its modules."""
    for name in ("trafilatura.xpaths", "trafilatura.settings"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for held in vars(module).values():
            yield from (one for one in (held if isinstance(held, list) else [held]) if isinstance(one, etree.XPath))


EXPRESSIONS = list(originals())


def tree(rng: random.Random, words: list[str], size: int = 400) -> html.HtmlElement:
    """Parsed, not built: the parser lets values and names through that lxml's setters refuse."""

    def attributes() -> str:
        names = rng.sample(NAMES.split(), rng.randint(0, 4))
        values = [
            rng.choice(["", "", "a ", "Q-"]) + rng.choice(words) + rng.choice(["", "", " ", "-x", "X"]) for _ in names
        ]
        return "".join(f' {n}="{v}"' for n, v in zip(names, values, strict=True)).replace("\x01", "&#1;")

    open_tags, source = [], ""
    for _ in range(size):
        tag = rng.choice(TAGS.split())
        source += f"<{tag}{attributes()}>{rng.choice(['text', ''])}"
        open_tags.append(tag)
        while open_tags and rng.random() < (0.2 if len(open_tags) < 12 else 0.8):
            source += f"</{open_tags.pop()}>{rng.choice(['tail', ''])}"
    return html.fromstring(f"<html><body class='post'>{source}</body></html>")


@pytest.mark.parametrize("memo", [None, 5])
def test_the_same_elements_in_the_same_order(memo: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if memo:
        monkeypatch.setattr(trafilatura_paths, "MEMO", memo)
    words = sorted({w for one in EXPRESSIONS for w in re.findall(r"[A-Za-z_-]{3,}", one.path)} | set(OTHER))
    rng = random.Random(7)
    trees = [tree(rng, words) for _ in range(6)]
    changed = matched = 0
    for old in EXPRESSIONS:
        new = from_memory(old)
        changed += isinstance(new, Walk)
        for root in trees:
            for start in (root, root[0], root[0][0]):
                want = old(start)
                matched += len(want)
                assert [id(e) for e in new(start)] == [id(e) for e in want], old.path
                assert [id(e) for e in new(start)] == [id(e) for e in want], f"from memory: {old.path}"
    assert changed > 15
    assert matched > 1_000


def test_memory_is_bounded() -> None:
    walk = from_memory(etree.XPath(".//*[contains(@data-bounded, 'ab')]"))
    root = html.Element("body")
    for n in range(3 * trafilatura_paths.MEMO):
        if n % 1_000 == 0:
            root = html.Element("body")
        etree.SubElement(root, "p").set("data-bounded", f"{n}" + "x" * (n % 2 * trafilatura_paths.MAX_VALUE))
        if n % 1_000 == 999:
            assert walk(root) == []
    rows = trafilatura_paths._rows["data-bounded"]
    assert 0 < len(rows) <= trafilatura_paths.MEMO
    assert max(map(len, rows)) <= trafilatura_paths.MAX_VALUE


@pytest.mark.parametrize(
    "path",
    [
        ".//*[re:test(@id, 'a*')]",
        ".//*[re:test(concat(@id, 'x'), 'ab')]",
        ".//*[contains(@id, '')]",
        ".//*[@a|@b='x']",
        ".//*[@id and @class]",
        ".//*[not(@id)]",
        ".//*[@id][2]",
        ".//*[@id][last()]",
        ".//*[@id][count(*)]",
        ".//a[@id]/b[@id]",
        ".//a[@id][1]|.//b",
        "(.//a[@id])[1]|(.//b[@id])[1]",
        "(.//a[@id]|.//b)[1]",
        "(.//a[@id])[2]",
        "//a[@id]",
        ".//a",
        ".//a|.//b",
        "(.//a)[1]",
        ".//*",
    ],
)
def test_what_is_not_understood_stays(path: str) -> None:
    old = etree.XPath(path, namespaces=NAMESPACES)
    assert from_memory(old) is old


@pytest.mark.parametrize(
    "path",
    [
        ".//a[@id]|.//b[contains(@id, '|')]|.//c",
        ".//*[re:test(@id, '[a][bx]') or starts-with(@class, 'x  y')]",
        ".//b[@id='a' or\n\t@class=\"it's\"][not(.//c) or .//a]",
        ".//*[self::a or self::b][contains(translate(@class, 'xab', 'yx'), 'y')][1]",
        "(.//*[starts-with(translate(@id, 'XX', 'xy'), 'xx') or @class])[1]",
        ".//*[re:test(@class|@id, 'A', 'i') or starts-with(@id|@style, 'x')]",
    ],
)
def test_other_forms_that_are_understood(path: str) -> None:
    old = etree.XPath(path, namespaces=NAMESPACES)
    new = from_memory(old)
    assert isinstance(new, Walk)
    rng = random.Random(3)
    matched = 0
    for _ in range(40):
        root = html.Element("body")
        nodes = [root]
        for _ in range(60):
            nodes.append(etree.SubElement(rng.choice(nodes[-9:]), rng.choice("abc")))
            for name in rng.sample(["id", "class", "style"], rng.randint(0, 3)):
                nodes[-1].set(name, rng.choice(["a", "x", "ab", "Xx", "x  y", "it's", "|", "", "yb", "]["]))
        matched += len(old(root))
        assert new(root) == old(root)
    assert matched > 30


def test_cutting_heeds_brackets_and_quotes() -> None:
    assert cut("a or b[c or d] or 'x or y'\nor f(z or z)", " or ") == ["a", "b[c or d]", "'x or y'", "f(z or z)"]
    assert cut(".//a|.//b[contains(@id, '|')]", "|") == [".//a", ".//b[contains(@id, '|')]"]
