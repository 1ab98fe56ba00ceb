"""The stage `curate.steps`: datatrove blocks over the pages of one file, every row accounted for by its id.

A file is rank 0 of 1 to the blocks, which are built anew for it. What a filter drops is `datatrove.BLOCK.REASON`
(`.dropped` where it gives none), what a block loses without a word `datatrove.BLOCK.lost`. The text, the language and its
score are taken back from the blocks; other metadata is theirs alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import pyarrow as pa

from gristmill.core.docshards import TableWriter, read_batches
from gristmill.core.document import DROP_SCHEMA, PAGE_SCHEMA
from gristmill.core.errors import GristmillError, UsageError
from gristmill.core.stage import Counters, Outbox, Stage, Task
from gristmill.curate.blocks import build, hidden_state
from gristmill.curate.schema import Block, Step

BATCH_ROWS = 256
_METADATA = ("url", "date", "language", "language_score", "title", "warc_file")
_DROP = tuple(name for name in DROP_SCHEMA.names if name not in ("reason", "value", "threshold"))


class Steps(Stage):
    """Config: `{"steps": [schema.Step, …]}`, not empty. Writes `pages.parquet` and `drops.parquet` as `curate.pages` does."""

    name: ClassVar[str] = "curate.steps"
    version: ClassVar[int] = 1
    upstream: tuple[str, ...] = ("curate.pages",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.blocks = [Step.model_validate(step).datatrove for step in self.config["steps"]]

    def uses(self) -> Mapping[str, str]:
        return {"datatrove": version("datatrove")}

    def run(self, task: Task, out: Outbox) -> Counters:
        """Raises GristmillError when a block raises, or gives back a document that it was not given or gave before."""
        counters = Counters()
        for block in self.blocks:
            state = hidden_state(block)
            if state is not None:
                counters.notes[f"not_reproducible.{_name(block)}"] += 1
        with (
            TableWriter(out.path("pages.parquet"), PAGE_SCHEMA) as pages,
            TableWriter(out.path("drops.parquet"), DROP_SCHEMA) as drops,
        ):
            ends: dict[str, list[dict[str, Any]]] = {"kept": [], "gone": []}
            line = Line(self.blocks)
            for row, reason in line.run(_rows(task)):
                counters.rows_in += 1
                if reason is None:
                    ends["kept"].append(row)
                    counters.rows_out += 1
                else:
                    ends["gone"].append({**{name: row[name] for name in _DROP}, "reason": reason})
                    counters.drop(reason)
                if len(ends["kept"]) >= BATCH_ROWS or len(ends["gone"]) >= BATCH_ROWS:
                    _flush(ends, pages, drops)
            _flush(ends, pages, drops)
        return counters


class Line:
    """A chain of blocks. `run` gives every row back, in the order of the input, with the reason that it went for."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.names = [_name(block) for block in blocks]
        self.steps = [build(block) for block in blocks]
        self._given: set[str] = set()
        self._waiting: dict[str, dict[str, Any]] = {}  # rows not given back yet, in order
        self._passed: dict[str, int] = {}  # how many blocks a waiting row has come out of
        self._ended: dict[str, str | None] = {}  # waiting rows that are done: None or the reason
        for number, step in enumerate(self.steps):
            if hasattr(step, "exclusion_writer"):
                step.exclusion_writer = _Collector(self, number)

    def run(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Memory: rows that the blocks hold back. One that a block loses holds those after it to the end of the file."""
        documents: Any = self._feed(rows)
        for number, step in enumerate(self.steps):
            documents = self._watched(step.run(documents, rank=0, world_size=1), number)
        for document in documents:
            self._take(document)
            yield from self._done()
        for identity in [i for i in self._waiting if i not in self._ended]:
            self._ended[identity] = f"datatrove.{self.names[self._passed[identity]]}.lost"
        yield from self._done()

    def _feed(self, rows: Iterable[dict[str, Any]]) -> Iterator[Any]:
        from datatrove.data import Document

        for row in rows:
            identity = row["id"]
            if identity in self._given:
                raise GristmillError(f"two pages have the id {identity}", hint="is one input file listed twice?")
            self._given.add(identity)
            self._waiting[identity], self._passed[identity] = row, 0
            metadata = {name: row[name] for name in _METADATA if row[name] is not None}
            yield Document(text=row["text"], id=identity, metadata=metadata)

    def _watched(self, documents: Iterator[Any], number: int) -> Iterator[Any]:
        name = self.names[number]
        while True:
            try:
                document = next(documents)
            except StopIteration:
                return
            except (GristmillError, MemoryError):
                raise
            except Exception as error:  # a fault of the block: the run says which one
                raise GristmillError(f"datatrove's {name} raised {type(error).__name__}: {error}") from error
            passed = self._passed.get(document.id)
            if passed is None or passed > number:
                what = "one document twice" if document.id in self._given else "a document that it was not given"
                raise GristmillError(f"datatrove's {name} gave {what}: {document.id}", hint="it can't stand as a step")
            self._passed[document.id] = number + 1
            yield document

    def _take(self, document: Any) -> None:
        row = self._waiting[document.id]
        if not isinstance(document.text, str):
            raise GristmillError(f"datatrove's {self.names[-1]} left no text in {document.id}")
        row["text"] = document.text
        language, score = document.metadata.get("language"), document.metadata.get("language_score")
        if isinstance(language, str):
            row["language"] = language
        if isinstance(score, int | float):
            row["language_score"] = float(score)
        self._ended[document.id] = None

    def drop(self, document: Any, number: int) -> None:
        reason = document.metadata.get("filter_reason")
        self._ended[document.id] = f"datatrove.{self.names[number]}.{reason or 'dropped'}"

    def _done(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        while self._waiting:
            identity = next(iter(self._waiting))
            if identity not in self._ended:
                return
            self._passed.pop(identity)
            yield self._waiting.pop(identity), self._ended.pop(identity)


class _Collector:
    """Stands where a filter expects a writer for what it drops."""

    def __init__(self, line: Line, number: int) -> None:
        self.line, self.number = line, number

    def __enter__(self) -> _Collector:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Any, rank: int = 0, **_: Any) -> None:
        self.line.drop(document, self.number)


def rewritten(steps: Sequence[Mapping[str, Any]], row: dict[str, Any]) -> str:
    """The text that the steps make of one page by itself, as `trace --verify` needs it.

    Raises UsageError where a block's hidden state makes that unknowable, GristmillError where the steps drop the page.
    """
    blocks = [Step.model_validate(step).datatrove for step in steps]
    for block in blocks:
        state = hidden_state(block)
        if state is not None:
            raise UsageError(f"{row['id']} can't be made again: {_name(block)} is not reproducible: {state}")
    ((done, reason),) = Line(blocks).run([{**dict.fromkeys(PAGE_SCHEMA.names), **row}])
    if reason is not None:
        raise GristmillError(f"the steps drop {row['id']} now: {reason}", hint="datatrove has another version here?")
    return str(done["text"])


def _rows(task: Task) -> Iterator[dict[str, Any]]:
    for batch in read_batches(task.shard("curate.pages", "pages.parquet"), PAGE_SCHEMA.names, BATCH_ROWS):
        yield from batch.to_pylist()


def _flush(ends: dict[str, list[dict[str, Any]]], pages: TableWriter, drops: TableWriter) -> None:
    pages.write(pa.Table.from_pylist(ends["kept"], PAGE_SCHEMA))
    drops.write(pa.Table.from_pylist(ends["gone"], DROP_SCHEMA))
    ends["kept"], ends["gone"] = [], []


def _name(block: Block) -> str:
    return block.block.rpartition(".")[2]
