"""Edits of a run's data order, as data: rows skipped or deferred, documents blocked, a batch ramp changed. No torch.

They are the only way in which a run leaves the order that its manifest and settings give. The list only grows; it is
part of every checkpoint, and a run that begins with the list of another one repeats it. order.py says what they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson
from pydantic import ValidationError

from gristmill.core.blocklist import ID, read_blocklist
from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import digest
from gristmill.trainer.data_schema import Data, RampStep

FORMAT = "gristmill-edits-1"
FILE = "edits.json"  # in a run's folder
MAX_BYTES = 1 << 28  # 256 MiB: 7 million blocked documents
MAX_REASON = 1000  # characters
LARGEST = 1 << 62  # rows, steps and samples stay int64 when added


@dataclass(frozen=True)
class Skip:
    """Rows first_row.. of a packed phase are not trained. `at_step` is the first step that the edit may change."""

    kind: ClassVar[str] = "skip"
    phase: str
    first_row: int
    rows: int
    at_step: int
    reason: str = ""


@dataclass(frozen=True)
class Defer:
    """Rows first_row.. of a packed phase move to the end of its trained rows; those behind them move up."""

    kind: ClassVar[str] = "defer"
    phase: str
    first_row: int
    rows: int
    at_step: int
    reason: str = ""


@dataclass(frozen=True)
class Block:
    """Tokens of these documents (ids of 32 hex digits) teach nothing in samples from `from_sample` on."""

    kind: ClassVar[str] = "block"
    documents: tuple[str, ...]
    from_sample: int
    reason: str = ""


@dataclass(frozen=True)
class Ramp:
    """From `at_step` on this batch ramp holds, in place of the one before. Empty: the phases' own batches."""

    kind: ClassVar[str] = "ramp"
    steps: tuple[RampStep, ...]
    at_step: int
    reason: str = ""


Edit = Skip | Defer | Block | Ramp
KINDS: dict[str, type[Edit]] = {kind.kind: kind for kind in (Skip, Defer, Block, Ramp)}


@dataclass(frozen=True)
class Edits:
    """The edits of a run in the order they were made."""

    items: tuple[Edit, ...] = ()

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def plus(self, *more: Edit) -> Edits:
        return Edits((*self.items, *more))

    @property
    def digest(self) -> str:
        """sha256 (hex) of the list: with the manifest's digest and the position it is the state of the data."""
        return digest(self.to_json())

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data, one object an edit, its `kind` among the keys; `from_json` is the inverse."""
        return [edit_to_json(edit) for edit in self.items]

    @staticmethod
    def from_json(data: Any) -> Edits:
        """Raises FormatError, with the edit's number from 0, on anything that `to_json` does not give."""
        if not isinstance(data, list):
            raise FormatError("the edits are no list", hint="a list of objects with `kind`")
        return Edits(tuple(edit_from_json(item, f"edit {i}") for i, item in enumerate(data)))


def edit_to_json(edit: Edit) -> dict[str, Any]:
    data: dict[str, Any] = {"kind": edit.kind, **vars(edit)}
    if isinstance(edit, Ramp):
        data["steps"] = [step.model_dump(mode="json", exclude_none=True) for step in edit.steps]
    if isinstance(edit, Block):
        data["documents"] = list(edit.documents)
    return data


def edit_from_json(data: Any, place: str = "edit") -> Edit:
    """One edit from plain data. Raises FormatError that begins with `place` on unknown or missing keys and bad values."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise FormatError(f"{place}: kind is {str(kind)[:40]!r}", hint=f"one of {', '.join(KINDS)}")
    names = [field.name for field in dataclasses.fields(KINDS[kind])]
    wrong = [k for k in data if k not in names and k != "kind"] or [n for n in names if n not in data]
    if wrong:
        raise FormatError(f"{place}: {kind} and the key {str(wrong[0])[:40]!r}", hint=f"its keys: {', '.join(names)}")
    return KINDS[kind](**{name: _value(name, data[name], f"{place}: {name}") for name in names})


def _value(name: str, value: Any, place: str) -> Any:
    if name in ("phase", "reason"):
        if not isinstance(value, str) or len(value) > MAX_REASON:
            raise FormatError(f"{place} is no text of at most {MAX_REASON} characters")
        return value
    if name == "documents":
        if not isinstance(value, list) or not value or len(set(map(str, value))) != len(value):
            raise FormatError(f"{place} is no list of different document ids")
        for document in value:
            if not isinstance(document, str) or not ID.fullmatch(document):
                raise FormatError(f"{place}: {str(document)[:40]!r} is no document id", hint="32 hex digits")
        return tuple(value)
    if name == "steps":
        try:
            return Data.model_validate({"batch_ramp": value}).batch_ramp
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            raise FormatError(
                f"{place}: {fault['msg'].removeprefix('Value error, ').partition(' hint: ')[0]}"
            ) from error
    least = {"at_step": 1, "rows": 1}.get(name, 0)
    if type(value) is not int or not least <= value <= LARGEST:
        raise FormatError(f"{place} is {str(value)[:40]!r}, not a whole number from {least} on")
    return value


def write_edits(path: str | Path, edits: Edits) -> None:
    """Write edits.json, whole or not at all: it may be written right before a run dies."""
    path = Path(path)
    data = {"format": FORMAT, "edits": edits.to_json()}
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    temporary.replace(path)


def read_edits(path: str | Path) -> Edits:
    """Raises UsageError when the file cannot be read, FormatError when it is no edits.json of this version."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path} is larger than {MAX_BYTES >> 20} MiB")
        data = orjson.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the edits {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise FormatError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict) or data.keys() != {"format", "edits"} or data["format"] != FORMAT:
        raise FormatError(f"{path} holds no edits of the format {FORMAT}")
    try:
        return Edits.from_json(data["edits"])
    except FormatError as error:
        raise FormatError(f"{path}: {error.message}", hint=error.hint) from error


def edits_at_launch(
    data: Data, saved: Edits | None, *, step: int = 0, sample: int = 0, ramp: tuple[RampStep, ...] | None = None
) -> Edits:
    """The edits a launch goes on with: those of a new run (`saved` None), or a checkpoint's and what changed since.

    A new run begins with `data.edits` and blocks `data.blocklist` from sample 0. A resumed one keeps its checkpoint's
    list; `step` and `sample` are the steps done and the samples consumed there, `ramp` the data.batch_ramp of its last
    launch. Documents that the blocklist gained are blocked from `sample` on; a changed ramp holds from step + 1 on.
    Documents taken off a blocklist stay blocked. Raises UsageError or FormatError when a file cannot be read.
    """
    if saved is None:
        saved = read_edits(data.edits) if data.edits else Edits()
        sample = 0
    elif ramp is not None and ramp != data.batch_ramp:
        if not any(isinstance(edit, Ramp) for edit in saved):
            saved = saved.plus(Ramp(ramp, 1, "data.batch_ramp as the run began"))
        saved = saved.plus(Ramp(data.batch_ramp, step + 1, "data.batch_ramp changed"))
    if data.blocklist:
        blocked = {document for edit in saved if isinstance(edit, Block) for document in edit.documents}
        new = tuple(document for document in read_blocklist(data.blocklist) if document not in blocked)
        if new:
            saved = saved.plus(Block(new, sample, "data.blocklist"))
    return saved
