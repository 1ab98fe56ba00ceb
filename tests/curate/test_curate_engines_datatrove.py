"""datatrove's extractors as engines: the block's own text, the same after any other pages, named and checked in the recipe."""

from __future__ import annotations

import warnings

import pytest

from gristmill.core.settings import parse, validate
from gristmill.curate.engines import engine_uses, load_engine
from gristmill.curate.extract import extract_text, page_text
from gristmill.curate.schema import Extract

SENTENCE = "The library of the old town opens at nine and closes at six on every working day. "
REPEATED = (
    "A sentence that stands on every page of this site, long enough for the duplicate test of the extractor. " * 2
)


def page(n: int) -> str:
    body = f"<p>Page {n}. {SENTENCE * 3}</p><p>{REPEATED}</p><p>And more of page {n}. {SENTENCE * 2}</p>"
    return f"<html><head><title>{n}</title></head><body><article><h1>Page {n}</h1>{body}</article></body></html>"


def problems(engine: str) -> list[tuple[int, str]]:
    _, found = validate(parse(f"tables: true\nengine: {engine}\n", "r.yaml"), Extract)
    return [(p.line, f"{p.message} [{p.hint}]") for p in found]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("{datatrove: {block: filters.RegexFilter}}", "should match pattern"),
        ("{datatrove: {block: extractors.Nothing}}", "has no block extractors.Nothing"),
        ("{datatrove: {block: extractors.base.BaseExtractor}}", "is the base of blocks"),
        ("{datatrove: {block: extractors.Trafilatura, args: {timeout: 1}}}", "cpu_seconds"),
        ("{datatrove: {block: extractors.Trafilatura, args: {deduplicate: perhaps}}}", "valid boolean"),
        ("{other: 1}", "an engine is a name or a block"),
        ("'datatrove:os.system'", "no extractor is called `datatrove:os.system`"),
    ],
)
def test_faulty_blocks_have_a_place(engine: str, message: str) -> None:
    ((line, said),) = problems(engine)
    assert line == 2
    assert message in said


def test_the_blocks_own_text() -> None:
    from datatrove.pipeline.extractors import Trafilatura

    for args in ({}, {"favour_precision": False, "deduplicate": False}):
        settings = Extract.model_validate({"engine": {"datatrove": {"block": "extractors.Trafilatura", "args": args}}})
        assert Extract.model_validate(settings.model_dump()) == settings  # as a worker gets it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert extract_text(page(1), settings) == Trafilatura(**args).extract(page(1))
        done = page_text(page(2).encode(), "text/html; charset=utf-8", settings)
        assert "Page 2." in done.text
        assert set(engine_uses(settings.engine)) == {"datatrove", "trafilatura", "lxml", "jusText"}


def test_pages_before_change_nothing() -> None:
    from datatrove.pipeline.extractors import Trafilatura

    name = Extract.model_validate({"engine": {"datatrove": {"block": "extractors.Trafilatura"}}}).engine
    ours = load_engine(name)
    texts = [ours(page(n), tables=True, comments=False, favor="balanced") for n in range(6)]
    assert all(REPEATED.strip() in (text or "") for text in texts)
    theirs = [Trafilatura().extract(page(n)) for n in range(6)]
    assert any(REPEATED.strip() not in (text or "") for text in theirs)  # its cache takes the paragraph for a duplicate
    assert [ours(page(n), tables=True, comments=False, favor="balanced") for n in range(6)] == texts
