"""The stage `imports.text`: documents of JSONL and Parquet files in the columns of curated ones, ready for `tokens`.

Files are untrusted: lines, texts and the growth of compressed files are bounded, and what is malformed is quarantined
with its reason. Nothing is rewritten or judged: whoever wants rules reads such files with `input.reader`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from gristmill.core.document import CURATED_SCHEMA, DROP_SCHEMA
from gristmill.core.imports import KNOWN_COLUMNS
from gristmill.core.printable import printable
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task

MAX_CHARS = 20_000_000
"""Longer texts are dropped as `import.too_large` (characters), as web pages of so many bytes are."""
BATCH_ROWS = 512
BATCH_CHARS = 8 << 20
TYPES = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}
MALFORMED = frozenset(
    {"import.bad_json", "import.not_an_object", "import.line_too_long", "import.bad_column", "import.truncated"}
)
"""Reasons that quarantine a row; the others (`import.no_text`, `import.too_large`) drop it."""


class ImportsText(Stage):
    """One file to one documents.parquet (CURATED_SCHEMA, `import_id`, extra columns) and drops.parquet (DROP_SCHEMA).

    Config: {"imports": {NAME: `Import.for_task`}}; a task has its own import's settings alone.
    """

    name: ClassVar[str] = "imports.text"
    version: ClassVar[int] = 2
    upstream: tuple[str, ...] = ("imports",)

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        found: list[Task] = []
        for receipt in inputs["imports"]:
            spec = self.config["imports"].get(receipt.config["import"])
            if spec is not None:
                config = {"import": receipt.config["import"], **spec}
                shards = {"imports": tuple(receipt.outputs)}
                found.append(Task(self.name, self.version, receipt.key, len(found), config, {}, shards))
        return found

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.core.docshards import TableWriter

        source = _Reader(task.config, task.inputs["imports"][0].path, task.inputs["imports"][0].name)
        counters = Counters()
        with (
            TableWriter(out.path("documents.parquet"), source.schema) as documents,
            TableWriter(out.path("drops.parquet"), DROP_SCHEMA) as drops,
        ):
            held: list[dict[str, Any]] = []
            lost: list[dict[str, Any]] = []
            chars = 0
            for row, fault in source.rows():
                counters.rows_in += 1
                if fault is not None:
                    reason, value, threshold = fault
                    lost.append({**row, "reason": reason, "value": value, "threshold": threshold})
                    counters.notes[reason] += 1
                    if reason in MALFORMED:
                        counters.quarantined += 1
                    else:
                        counters.drop(reason)
                else:
                    held.append(row)
                    chars += len(row["text"])
                if len(held) >= BATCH_ROWS or chars >= BATCH_CHARS or len(lost) >= BATCH_ROWS:
                    documents.write(pa.Table.from_pylist(held, source.schema))
                    drops.write(pa.Table.from_pylist(lost, DROP_SCHEMA))
                    held, lost, chars = [], [], 0
            documents.write(pa.Table.from_pylist(held, source.schema))
            drops.write(pa.Table.from_pylist(lost, DROP_SCHEMA))
        counters.rows_out = documents.rows
        return counters


def text_of_row(config: Mapping[str, Any], path: str, name: str, number: int) -> str:
    """The text of one row again, as the stage stored it. Raises FormatError when the file has no such row."""
    from gristmill.core.errors import FormatError

    for i, (row, fault) in enumerate(_Reader(config, path, name).rows()):
        if i == number:
            if fault is None:
                return str(row["text"])
            break
    raise FormatError(f"{path} has no text in row {number}", hint="the file changed since the run")


Fault = tuple[str, float | None, float | None]
"""(reason, measured value, threshold)."""


class _Reader:
    """Rows of one file as documents or as faults, and the schema of the documents."""

    def __init__(self, config: Mapping[str, Any], path: str, name: str) -> None:
        from gristmill.core.imports import Import

        spec = {k: v for k, v in config.items() if k not in ("import", "format")}
        self.spec = Import.model_validate({config["format"]: path, **spec})
        self.path, self.name = path, name
        self.columns = {"text": "text", **self.spec.columns}
        fields = [pa.field(name, TYPES[kind]) for name, kind in self._types().items()]
        self.schema = pa.schema([*CURATED_SCHEMA, pa.field("import_id", pa.string()), *fields])

    def _types(self) -> dict[str, str]:
        from gristmill.curate.imports_files import parquet_types

        constant = {n: _kind(v) for n, v in self.spec.constants.items() if n not in KNOWN_COLUMNS}
        mapped = [n for n in self.spec.extra if n not in constant]
        if self.spec.format == "parquet":
            found = parquet_types(self.path, {n: self.columns[n] for n in mapped})
        else:
            found = {n: self.spec.types.get(n, "string") for n in mapped}
        return {n: {**constant, **found}[n] for n in self.spec.extra}

    def rows(self) -> Iterator[tuple[dict[str, Any], Fault | None]]:
        """Raises InputError at the end of a JSONL file in which no object has the text's key: a typo, no lack of texts."""
        from gristmill.core.hashing import document_id
        from gristmill.curate.imports_files import jsonl_rows, no_column, parquet_rows

        keyed, keys = False, list[str]()  # whether any object has the text's key; else the keys of the first
        if self.spec.format == "parquet":
            source = parquet_rows(self.path, list(self.columns.values()))
        else:
            source = jsonl_rows(self.path, self.spec.max_line_bytes)
        for number, (data, fault) in enumerate(source):
            row: dict[str, Any] = {
                "id": document_id(self.name, number),
                "warc_file": self.name,
                "warc_offset": number,
                "warc_length": 0,
                "warc_inner": 0,
            }
            if fault is None:
                keyed = keyed or _at(data, self.columns["text"], _MISSING) is not _MISSING
                keys = keys or _keys(data)
                try:
                    fault = self._fill(row, data)
                except (TypeError, ValueError, OverflowError):
                    fault = ("import.bad_column", None, None)
            yield row, fault
        if keys and not keyed:
            raise no_column(self.path, self.columns["text"], keys)

    def _fill(self, row: dict[str, Any], data: Mapping[str, Any]) -> Fault | None:
        """Set a document's columns. Raises TypeError or ValueError when a value does not fit its column."""
        text = _at(data, self.columns["text"])
        if not isinstance(text, str) or not text:
            return "import.no_text", 0.0, 1.0
        if len(text) > MAX_CHARS:
            return "import.too_large", float(len(text)), float(MAX_CHARS)
        values = {n: _at(data, path) for n, path in self.columns.items() if n != "text"} | self.spec.constants
        row |= {"text": text, "text_version": "raw"}
        for name in ("url", "date", "language", "dup_cluster"):
            row[name] = _cast(values.get(name), "string")
        row["import_id"] = _cast(values.get("id"), "string")
        row["quality"] = _cast(values.get("quality"), "double")
        row["dup_cluster_size"] = _cast(values.get("dup_count"), "int64")
        if not -(2**31) <= (row["dup_cluster_size"] or 0) < 2**31:
            raise ValueError("dup_count is an int32")
        types = {f.name: f.type for f in self.schema}
        names = {kind: name for name, kind in TYPES.items()}
        for name in self.spec.extra:
            row[name] = _cast(values.get(name), names[types[name]])
        return None


def _kind(value: Any) -> str:
    """The column type of a constant: a truth value is no number."""
    kinds: tuple[tuple[type, str], ...] = ((bool, "bool"), (int, "int64"), (float, "double"))
    return next((kind for t, kind in kinds if isinstance(value, t)), "string")


_MISSING = object()


def _keys(data: Mapping[str, Any]) -> list[str]:
    """An object's keys, those of objects in it dotted; printable and short, for a message."""
    nested = ([f"{k}.{n}" for n in v] if isinstance(v, Mapping) and v else [k] for k, v in data.items())
    return [printable(name[:80]) for names in nested for name in names][:40]


def _at(data: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """A column, by its whole name or else along the dots; `default` where there is none."""
    if path in data:
        return data[path]
    value: Any = data
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def _cast(value: Any, kind: str) -> Any:
    """A scalar in a column's type. Raises TypeError or ValueError where it does not fit: nothing is guessed."""
    import orjson

    if value is None:
        return None
    if kind == "string":
        if isinstance(value, str):
            return value
        if isinstance(value, float) and abs(value) >= 2**63:  # a whole number beyond 64 bits, rounded by the parser
            raise ValueError("a number that is not kept to the last digit")
        if isinstance(value, bool | int | float):
            return orjson.dumps(value).decode()
    elif kind == "bool" and isinstance(value, bool):
        return value
    elif kind == "int64" and not isinstance(value, bool) and isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return value
    elif kind == "double" and not isinstance(value, bool) and isinstance(value, int | float):
        return float(value)
    raise TypeError(f"{type(value).__name__} in a column of {kind}")
