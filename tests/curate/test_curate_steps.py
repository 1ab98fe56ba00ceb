"""datatrove's blocks as steps: named safely, checked at load, every row accounted for, drops in the ledger by their reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from curated_files import Page, prose, upstream

from gristmill.core.document import PAGE_SCHEMA
from gristmill.core.errors import ConfigError, GristmillError, UsageError
from gristmill.core.manifest import run_task
from gristmill.core.settings import parse, validate
from gristmill.core.stage import Receipt
from gristmill.curate import steps
from gristmill.curate.blocks import find, hidden_state
from gristmill.curate.final_text import kept_documents
from gristmill.curate.schema import Block, Curate, Step

QUALITY = {"datatrove": {"block": "filters.GopherQualityFilter", "args": {"min_doc_words": 60, "min_stop_words": 0}}}
SYMBOLS = {"datatrove": {"block": "formatters.SymbolLinesFormatter"}}
NO_MENU = {"datatrove": {"block": "filters.RegexFilter", "args": {"regex_exp": "menu"}}}


def faults(text: str) -> dict[str, str]:
    _, problems = validate(parse(text, "t.yaml"), Curate)
    assert all(p.hint and p.line for p in problems)
    return {f"{p.line}:{p.column} {p.path}": f"{p.message} [{p.hint}]" for p in problems}


@pytest.mark.parametrize(
    ("step", "place", "message"),
    [
        ("{block: os.system, args: {}}", "steps[0].datatrove.block", "should match pattern"),
        ("{block: filters.os, args: {}}", "steps[0].datatrove.block", "should match pattern"),
        ("{block: filters.url_filter.TLDExtract}", "steps[0].datatrove.block", "has no block"),
        ("{block: filters.base_filter.Document}", "steps[0].datatrove.block", "has no block"),
        ("{block: filters.nothing.Here}", "steps[0].datatrove.block", "no module filters.nothing"),
        ("{block: filters.GopherQualityFilterr}", "steps[0].datatrove.block", "has no block"),
        ("{block: filters.base_filter.BaseFilter}", "steps[0].datatrove.block", "is the base of blocks"),
        ("{block: writers.JsonlWriter}", "steps[0].datatrove.block", "should match pattern"),
        ("{block: filters.GopherQualityFilter, args: {min_words: 3}}", "args.min_words", "no argument 'min_words'"),
        ("{block: filters.GopherQualityFilter, args: {min_doc_words: many}}", "args.min_doc_words", "valid integer"),
        (
            "{block: filters.GopherQualityFilter, args: {exclusion_writer: x}}",
            "args.exclusion_writer",
            "can't be given",
        ),
        ("{block: filters.RegexFilter}", "steps[0].datatrove.args", "needs regex_exp"),
        ("{block: filters.LambdaFilter}", "steps[0].datatrove.args", "a Python function"),
        ("{block: filters.LambdaFilter, args: {filter_function: print}}", "args.filter_function", "callable"),
    ],
)
def test_faulty_blocks_are_found_at_load(step: str, place: str, message: str) -> None:
    found = faults(f"steps: [{{datatrove:           {step}}}]")
    ((where, said),) = found.items()
    assert place in where
    assert message in said


def test_every_filter_and_formatter_of_datatrove_can_be_named() -> None:
    import datatrove.pipeline.filters as filters
    import datatrove.pipeline.formatters as formatters

    names = [f"filters.{n}" for n in vars(filters) if n.endswith("Filter")]
    names += [f"formatters.{n}" for n in vars(formatters) if n.endswith("Formatter")]
    assert len(names) >= 15
    assert all(find(name).__name__ == name.partition(".")[2] for name in names)
    with pytest.raises(UsageError, match="has no block"):
        find("filters.PipelineStep2")


def through(
    root: Path, pages: list[Page], *chosen: dict[str, Any]
) -> tuple[Receipt, list[dict[str, Any]], list[dict[str, Any]]]:
    stage = steps.Steps({"steps": [Step.model_validate(s).model_dump(mode="json") for s in chosen]})
    (task,) = stage.tasks(upstream(root, {"f": pages}))
    done = run_task(stage, task, root)
    tables = (pq.read_table(done.output(name).path).to_pylist() for name in ("pages.parquet", "drops.parquet"))
    return (done, *tables)


def test_drops_and_texts(tmp_path: Path) -> None:
    pages: list[Page] = [
        {"text": prose(1)},
        {"text": "too short"},
        {"text": prose(2) + "\n=====\n" + prose(3)},
        {"text": prose(4) + " menu"},
        {"text": "# " * 100 + prose(5, 100)},
    ]
    done, kept, gone = through(tmp_path, pages, SYMBOLS, NO_MENU, QUALITY)
    assert [row["warc_offset"] // 1000 for row in kept] == [0, 2]
    assert kept[0]["text"] == prose(1)
    assert kept[1]["text"] == prose(2) + "\n" + prose(3)
    names = {"url", "date", "warc_file", "warc_record_id", "charset", "language"}
    assert all(kept[0][name] is not None for name in names)
    assert done.drops == {
        "datatrove.GopherQualityFilter.gopher_short_doc": 1,
        "datatrove.RegexFilter.dropped": 1,
        "datatrove.GopherQualityFilter.gopher_too_many_hashes": 1,
    }
    assert [row["url"][-1] for row in gone] == ["1", "3", "4"]
    assert {row["reason"] for row in gone} == set(done.drops)
    assert list(done.uses) == ["datatrove"]


def test_the_same_verdicts_as_the_block_alone(tmp_path: Path) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherRepetitionFilter

    texts = [prose(i, 80) + "\n" + "\n".join([prose(i % 3, 6)] * (i % 7)) for i in range(40)]
    done, _, gone = through(
        tmp_path, [{"text": t} for t in texts], {"datatrove": {"block": "filters.GopherRepetitionFilter"}}
    )
    theirs = [GopherRepetitionFilter().filter(Document(text=t, id=str(i))) for i, t in enumerate(texts)]
    wanted = {i: f"datatrove.GopherRepetitionFilter.{v[1]}" for i, v in enumerate(theirs) if v is not True}
    assert {row["warc_offset"] // 1000: row["reason"] for row in gone} == wanted
    assert 5 < len(wanted) < 40
    assert done.rows_out == 40 - len(wanted)


class _Bad:
    """A block that misbehaves in one way."""

    def __init__(self, how: str) -> None:
        self.how = how

    def run(self, documents: Iterator[Any], rank: int, world_size: int) -> Iterator[Any]:
        assert (rank, world_size) == (0, 1)
        held = []
        for i, document in enumerate(documents):
            if self.how == "reorder":
                held.append(document)
                continue
            if self.how == "lose" and i % 2:
                continue
            if self.how == "raise" and i == 3:
                raise ZeroDivisionError("a fault")
            if self.how == "rename" and i == 3:
                document.id = "another"
            if self.how == "untext" and i == 3:
                document.text = None
            yield document
            if self.how == "twice" and i == 3:
                yield document
        yield from reversed(held)


def run_bad(monkeypatch: pytest.MonkeyPatch, how: str, n: int = 6) -> list[tuple[str, str | None]]:
    monkeypatch.setattr(steps, "build", lambda block: _Bad(how))
    rows = [{**dict.fromkeys(PAGE_SCHEMA.names), "id": f"{i:032x}", "text": f"text {i}"} for i in range(n)]
    line = steps.Line([Block.model_validate(QUALITY["datatrove"])])
    return [(row["id"][-1], reason) for row, reason in line.run(iter(rows))]


def test_rows_are_reconciled_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = "datatrove.GopherQualityFilter.lost"
    assert run_bad(monkeypatch, "lose") == [(str(i), lost if i % 2 else None) for i in range(6)]
    assert run_bad(monkeypatch, "reorder") == [(str(i), None) for i in range(6)]
    for how, message in (
        ("twice", "gave one document twice"),
        ("rename", "gave a document that it was not given: another"),
        ("raise", "raised ZeroDivisionError: a fault"),
        ("untext", "left no text"),
    ):
        with pytest.raises(GristmillError, match=message):
            run_bad(monkeypatch, how)


def test_hidden_state_is_marked_and_not_traced(tmp_path: Path) -> None:
    pii = {"datatrove": {"block": "formatters.PIIFormatter"}}
    done, kept, _ = through(tmp_path, [{"text": "a@b.co c@d.co"}], pii)
    assert done.notes == {"not_reproducible.PIIFormatter": 1}
    assert "a@b.co" not in kept[0]["text"]
    with pytest.raises(UsageError, match="PIIFormatter is not reproducible"):
        steps.rewritten([Step.model_validate(pii).model_dump()], {"id": "x", "text": "a"})

    def state(name: str, **args: Any) -> str | None:
        return hidden_state(Block(block=f"filters.{name}", args=args))

    assert "without a seed" in (state("SamplerFilter") or "")
    assert state("SamplerFilter", seed=1) == "it draws a number a document"
    assert state("GopherQualityFilter") is None


def test_a_page_is_rewritten_alone_as_in_its_file() -> None:
    chosen = [Step.model_validate(s).model_dump() for s in (SYMBOLS, NO_MENU)]
    assert steps.rewritten(chosen, {"id": "x", "text": "one\n***\ntwo", "url": "u"}) == "one\ntwo"
    with pytest.raises(GristmillError, match="the steps drop x now"):
        steps.rewritten(chosen, {"id": "x", "text": "menu"})


def test_later_stages_read_what_the_steps_left(tmp_path: Path) -> None:
    from gristmill.curate.curated import Curated
    from gristmill.curate.decide import Decide
    from gristmill.curate.measure import Measure
    from gristmill.curate.signatures import Signatures

    config = {"steps": True, "dedup": {"exact": True}, "language": {}, "rules": {}, "takedown": "x", "c4": None}
    for later in (Curated(config), Signatures(config), Measure(config), Decide(config)):
        assert "curate.steps" in later.upstream
        assert "curate.pages" not in later.upstream
    receipts = upstream(tmp_path, {"f": [{"text": prose(1)}]})
    stage = steps.Steps({"steps": [QUALITY]})
    receipts["curate.steps"] = [run_task(stage, task, tmp_path) for task in stage.tasks(receipts)]
    (task,) = Signatures({**config, "dedup": {"exact": True, "minhash": None}}).tasks(receipts)
    assert [t["text"].to_pylist() for t in kept_documents(task)] == [[prose(1)]]


def test_the_graph_has_the_stage_only_when_asked(tmp_path: Path) -> None:
    from gristmill.pipelines.graph import build
    from gristmill.pipelines.schema import load_recipe

    path = tmp_path / "r.yaml"
    path.write_text(
        "gristmill: 1\ncurate:\n  steps:\n    - datatrove: {block: filters.RegexFilter, args: {regex_exp: a}}\n"
    )
    names = [node.name for node in build(load_recipe(str(path)))]
    assert names[:3] == ["curate.pages", "curate.steps", "curate.measure"]
    path.write_text("gristmill: 1\ncurate:\n  steps:\n    - datatrove:\n        block: filters.Nothing\n")
    with pytest.raises(ConfigError, match=r"r.yaml:5:16: error: curate.steps\[?\.?0"):
        load_recipe(str(path))
