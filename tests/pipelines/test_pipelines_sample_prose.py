"""The sample's prose: docstrings read without importing, cleaned, and fit for the rules it is meant to pass."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gristmill.pipelines.sample import Truth, languages, write_sample
from gristmill.pipelines.sample.articles import Article, articles, jaccard, shingles, words
from gristmill.pipelines.sample.blocks import Block, clean_inline, parse
from gristmill.pipelines.sample.copies import near_copy
from gristmill.pipelines.sample.draw import Draw
from gristmill.pipelines.sample.plan import LEVELS

NUMPY_STYLE = """Fold the values of an array.

The fold is taken along one axis, see `~pkg.other` and :func:`pkg.more`,
which keeps *all* of them.

Parameters
----------
a : array_like
    The values to be folded,
    in any order.
axis : int, optional
    The axis.

See Also
--------
unfold : The inverse.

Notes
-----
.. versionadded:: 1.2

A note [1]_ with ``code`` in it:

* one item
  over two lines
* another item

Examples
--------
>>> fold([1, 2])
3
"""


def test_numpy_style_docstring() -> None:
    assert parse(NUMPY_STYLE) == [
        Block("p", ("Fold the values of an array.",)),
        Block("p", ("The fold is taken along one axis, see pkg.other and pkg.more, which keeps all of them.",)),
        Block("h", ("Parameters",)),
        Block("dl", ("a : array_like\tThe values to be folded, in any order.", "axis : int, optional\tThe axis.")),
        Block("h", ("Notes",)),
        Block("p", ("A note with code in it:",)),
        Block("ul", ("one item over two lines", "another item")),
        Block("h", ("Examples",)),
        Block("pre", (">>> fold([1, 2])", "3")),
    ]


def test_google_style_docstring_and_topics() -> None:
    text = (
        "Open it.\n\nArgs:\n    path (str): Where it\n        stands.\n    mode: How.\n\nReturns:\n    The open file.\n"
    )
    assert parse(text) == [
        Block("p", ("Open it.",)),
        Block("h", ("Args",)),
        Block("dl", ("path (str)\tWhere it stands.", "mode\tHow.")),
        Block("h", ("Returns",)),
        Block("p", ("The open file.",)),
    ]
    topic = "The loop\n********\n\nIt is written so:\n\n   loop_stmt ::= x\n\n+---+-----+\n| a | b   |\n|   | c   |\n+---+-----+\n"
    assert parse(topic) == [
        Block("h", ("The loop",)),
        Block("p", ("It is written so:",)),
        Block("pre", ("loop_stmt ::= x",)),
        Block("table", ("a\tb c",)),
    ]


@pytest.mark.parametrize(
    "text", ["Returns\n-------\n...\n", "..", "::", ">>>", "- ", "+--+\n", "====  ====\nx", "\t\n \n", "a\n===\n===\n"]
)
def test_odd_text_ends(text: str) -> None:
    assert isinstance(parse(text), list)


def test_inline_markup() -> None:
    assert (
        clean_inline("see :class:`Name <pkg.Name>` and `text <http://x.example>`_ for *args::")
        == "see Name and text for *args:"
    )


def test_reading_imports_nothing() -> None:
    code = (
        "import sys\nfrom gristmill.pipelines.sample.sources import topics, docstrings\n"
        "n = sum(1 for _ in topics()); m = sum(1 for _, r in zip(range(3000), docstrings()))\n"
        "assert n > 60 and m > 2000, (n, m)\n"
        "print([x for x in ('dask', 'spacy', 'scipy', 'click', 'turtle', 'tkinter', 'pydoc_data.topics') if x in sys.modules])"
    )
    src = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(src), "PATH": ""},
    )
    assert done.stdout.strip() == "[]"


def test_articles_are_bounded_and_unlike_each_other() -> None:
    found = articles(seed=3, count=60)
    assert len(found) == 60 == len({a.key for a in found})
    owner: dict[tuple[str, ...], list[int]] = {}
    sizes = []
    for i, article in enumerate(found):
        assert 100 <= len(words(article.text())) <= 1300
        assert "{" not in article.text()
        grams = shingles(article.text())
        sizes.append(len(grams))
        for gram in grams:
            owner.setdefault(gram, []).append(i)
    shared: Counter[tuple[int, int]] = Counter()
    for who in owner.values():
        shared.update((a, b) for k, a in enumerate(who) for b in who[k + 1 :])
    closest = max((n / (sizes[a] + sizes[b] - n) for (a, b), n in shared.items()), default=0.0)
    assert closest < 0.4
    assert [a.key for a in articles(seed=4, count=60)] != [a.key for a in found]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level[0])
def test_near_copies_reach_their_level(level: tuple[str, float, float, float]) -> None:
    line = " ".join(f"word{i}" for i in range(80))
    base = Article("p", "k", "t", tuple(Block("p", (line.replace("word", f"w{p}x"),)) for p in range(5)))
    copy, similarity = near_copy(base, *level[1:], Draw(0, "t"))
    assert level[2] <= similarity <= level[3]
    assert similarity == jaccard(base.text(), copy.text())
    assert len(words(copy.text())) == len(words(base.text()))


def test_foreign_pages_differ() -> None:
    for language in languages.UTF8:
        sets = [set(c) for c in languages.combos(language)]
        assert len(sets) == 14
        assert max(len(a & b) for i, a in enumerate(sets) for b in sets[:i]) <= 2
    for charset, language in languages.CHARSETS:
        for text in languages.paragraphs(language):
            assert text.encode(charset).decode(charset) == text


def _texts(folder: Path, truth: Truth) -> dict[str, str]:
    """URL → text by trafilatura, through fastwarc: neither is gristmill's own reader."""
    import trafilatura
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    html = {(p.file, p.url) for p in truth.pages if p.expect not in ("skip", "quarantine") and p.encoding is None}
    out = {}
    for file in sorted(truth.records):
        with open(folder / file, "rb") as stream:
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
                url = record.headers["WARC-Target-URI"]
                if (file, url) in html:
                    out[url] = trafilatura.extract(record.reader.read(), fast=True, include_comments=False) or ""
    return out


def _datatrove() -> list[Any]:
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    c4 = C4QualityFilter(filter_no_terminal_punct=False)
    return [GopherRepetitionFilter(), GopherQualityFilter(), c4, FineWebQualityFilter()]


def _check(folder: Path, truth: Truth) -> None:
    """Extraction finds the main text, and datatrove's own rules keep and drop what the truth says."""
    from datatrove.data import Document

    texts = _texts(folder, truth)
    filters = _datatrove()
    kept: dict[str, list[bool]] = {}
    for page in truth.pages:
        if (
            page.url in texts
            and (page.language == "en" or page.expect == "drop")
            and page.kind not in ("url_blocked", "revisit")
        ):
            document = Document(text=texts[page.url], id=page.url)
            verdicts = (f.filter(document) for f in filters)
            kept.setdefault(page.kind, []).append(
                bool(texts[page.url]) and all(v is True or v == (True,) for v in verdicts)
            )
    good = [k for kind in ("prose", "email", "broken") for k in kept[kind]]
    assert sum(good) >= 0.85 * len(good), {k: (sum(v), len(v)) for k, v in kept.items()}
    for kind in ("exact_base", "exact_copy", "near_base", "near_copy"):
        assert all(kept[kind]), kind
    for kind in ("spam", "repeated", "lorem", "braces", "short", "boilerplate"):
        assert not any(kept[kind]), kind
    recalls = []
    for page in truth.of_kind("prose"):
        recalls.append(min(1.0, len(words(texts[page.url])) / page.words))
        assert len(words(texts[page.url])) <= 1.6 * page.words + 60, f"{page.url}: boilerplate in the text"
    assert sum(recalls) / len(recalls) > 0.95
    groups = truth.groups()
    for members in groups.values():
        base, *copies = members
        for copy in copies:
            if copy.kind == "exact_copy":
                assert texts[copy.url] == texts[base.url]
            else:
                assert jaccard(texts[base.url], texts[copy.url]) == pytest.approx(copy.jaccard, abs=1e-6)


def test_extraction_and_datatroves_rules_agree_with_the_truth(tmp_path: Path) -> None:
    truth = write_sample(tmp_path, seed=0, pages=150, files=2)
    _check(tmp_path, truth)


@pytest.mark.slow
def test_the_default_sample(tmp_path: Path) -> None:
    truth = write_sample(tmp_path)
    assert len(truth.pages) == 2000
    assert truth.kinds()["prose"] >= 900
    assert 2_500_000 <= truth.expected["planted_chars"] <= 6_000_000
    assert sum(f.bytes for f in truth.files) < 20_000_000
    _check(tmp_path, truth)
