"""Receipts and manifests on disk: commit a task's files, find finished tasks, sum receipts into a stage manifest.

ROOT/stages/STAGE/TASK/{files, receipt.json}   and   ROOT/stages/STAGE/manifest.json. Files are written to temporary names,
digested, renamed; the receipt comes last. No receipt, not done. A manifest is the sum of receipts.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import FormatError
from gristmill.core.hashing import digest, sha256_file
from gristmill.core.stage import Counters, Outbox, Receipt, Shard, Stage, Task

MANIFEST_FORMAT = "gristmill-manifest-1"
REWRITE = "gristmill run RECIPE --root DIR writes it again"


def stage_folder(root: Path, stage: str) -> Path:
    return root / "stages" / stage


def task_folder(root: Path, task: Task) -> Path:
    return stage_folder(root, task.stage) / task.id


def write_atomic(path: Path, data: bytes) -> None:
    """Write, flush to disk, rename: readers see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{time.monotonic_ns()}")
    with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def run_task(stage: Stage, task: Task, root: Path, at: Callable[[str], None] = lambda _: None) -> Receipt:
    """Run one task and commit it. `at` is called with the name of each step of the commit (tests kill there).

    Raises whatever the stage raises; AssertionError when its ledger does not balance.
    """
    folder = task_folder(root, task)
    folder.mkdir(parents=True, exist_ok=True)
    out = Outbox(folder, f"{os.getpid()}-{time.monotonic_ns()}")
    started = time.monotonic()
    try:
        counters = stage.run(task, out)
        counters.check(f"{task.stage} {task.key}")
        at("before_rename")
        outputs = []
        for name, temporary in sorted(out.files.items()):
            final = folder / name
            final.parent.mkdir(parents=True, exist_ok=True)
            shard = Shard(str(final), name, sha256_file(temporary), temporary.stat().st_size)
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
            os.replace(temporary, final)
            outputs.append(shard)
        at("before_receipt")
        receipt = make_receipt(task, outputs, counters, time.monotonic() - started)
        for left in folder.glob(".tmp-*"):  # of attempts that were killed; a twin still at work only loses time
            if left.name != f".tmp-{out.attempt}":
                shutil.rmtree(left, ignore_errors=True)
        write_atomic(folder / "receipt.json", orjson.dumps(encode(receipt), option=orjson.OPT_INDENT_2))
        at("after_receipt")
        return receipt
    finally:
        shutil.rmtree(folder / f".tmp-{out.attempt}", ignore_errors=True)


def make_receipt(task: Task, outputs: list[Shard], counters: Counters, seconds: float) -> Receipt:
    return Receipt(
        stage=task.stage,
        version=task.version,
        task=task.id,
        key=task.key,
        config=dict(task.config),
        uses=dict(task.uses),
        inputs={name: [[s.name, s.sha256] for s in shards] for name, shards in task.inputs.items()},
        outputs=outputs,
        rows_in=counters.rows_in,
        rows_out=counters.rows_out,
        drops=dict(sorted(counters.drops.items())) if counters.drops is not None else None,
        quarantined=counters.quarantined,
        notes=dict(sorted(counters.notes.items())),
        seconds=round(seconds, 3),
        host=socket.gethostname(),
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def encode(receipt: Receipt) -> dict[str, Any]:
    """JSON form; output paths are left out, since a root may be moved."""
    data = asdict(receipt)
    del data["ordinal"]
    for shard in data["outputs"]:
        del shard["path"]
    return data


def read_receipt(folder: Path, *, check_files: bool = True) -> Receipt | None:
    """The receipt of a task folder; None when absent, damaged, or when an output's size is wrong."""
    try:
        data = orjson.loads((folder / "receipt.json").read_bytes())
        outputs = [Shard(path=str(folder / s["name"]), **s) for s in data.pop("outputs")]
        receipt = Receipt(outputs=outputs, **data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if check_files:
        for shard in receipt.outputs:
            try:
                if os.stat(shard.path).st_size != shard.bytes:
                    return None
            except OSError:
                return None
    return receipt


def find_receipt(root: Path, task: Task) -> Receipt | None:
    """The receipt of a finished task, else None. Costs one small read and a stat per output."""
    receipt = read_receipt(task_folder(root, task))
    if receipt is None or receipt.task != task.id:
        return None
    return replace(receipt, key=task.key, ordinal=task.ordinal)


def all_receipts(root: Path, stage: str) -> Iterator[Receipt]:
    """Every receipt of a stage, current or stale, in folder order."""
    folder = stage_folder(root, stage)
    if folder.is_dir():
        for child in sorted(folder.iterdir()):
            if child.is_dir() and (receipt := read_receipt(child, check_files=False)):
                yield receipt


@dataclass(frozen=True)
class Manifest:
    """The sum of a stage's receipts, in task order."""

    stage: str
    receipts: list[Receipt]
    complete: bool

    @property
    def digest(self) -> str:
        """sha256 over the content of all receipts: no times, no paths."""
        return digest([r.content for r in self.receipts])

    def total(self) -> dict[str, Any]:
        drops: Counter[str] | None = Counter()
        for r in self.receipts:
            drops = None if r.drops is None or drops is None else drops + Counter(r.drops)
        notes: Counter[str] = Counter()
        for r in self.receipts:
            notes.update(r.notes)
        return {
            "stage": self.stage,
            "digest": self.digest,
            "complete": self.complete,
            "tasks": len(self.receipts),
            "rows_in": sum(r.rows_in for r in self.receipts),
            "rows_out": sum(r.rows_out for r in self.receipts),
            "drops": dict(sorted(drops.items())) if drops is not None else None,
            "quarantined": sum(r.quarantined for r in self.receipts),
            "notes": dict(sorted(notes.items())),
            "seconds": round(sum(r.seconds for r in self.receipts), 3),
            "outputs": [s.path for r in self.receipts for s in r.outputs],
        }


def write_manifest(root: Path, stage: str, receipts: Sequence[Receipt], complete: bool) -> Manifest:
    ordered = sorted(receipts, key=lambda r: r.ordinal)
    manifest = Manifest(stage, list(ordered), complete)
    body = {
        "format": MANIFEST_FORMAT,
        **manifest.total(),
        "receipts": [{"task": r.task, "key": r.key} for r in ordered],
    }
    body["outputs"] = [os.path.relpath(p, root) for p in body["outputs"]]
    write_atomic(stage_folder(root, stage) / "manifest.json", orjson.dumps(body, option=orjson.OPT_INDENT_2))
    return manifest


def read_manifest(root: Path, stage: str) -> Manifest | None:
    """The stage's manifest with its receipts, or None when the stage has not run here.

    Raises FormatError when a receipt it names is gone or damaged.
    """
    path = stage_folder(root, stage) / "manifest.json"
    try:
        body = orjson.loads(path.read_bytes())
    except OSError:
        return None
    except ValueError as error:
        raise FormatError(f"{path} is damaged: {error}", hint=REWRITE) from error
    found = body.get("format") if isinstance(body, dict) else None
    if found != MANIFEST_FORMAT or not isinstance(body.get("receipts"), list):
        raise FormatError(f"{path} has format {found!r}; this version reads {MANIFEST_FORMAT!r}", hint=REWRITE)
    receipts = []
    for i, entry in enumerate(body["receipts"]):
        if not isinstance(entry, dict) or not {"task", "key"} <= entry.keys():
            raise FormatError(f"{path} is damaged", hint=REWRITE)
        receipt = read_receipt(stage_folder(root, stage) / entry["task"], check_files=False)
        if receipt is None:
            raise FormatError(
                f"{stage}: the receipt of {entry['key']} is gone",
                hint=REWRITE,
            )
        receipts.append(replace(receipt, key=entry["key"], ordinal=i))
    return Manifest(stage, receipts, bool(body["complete"]))


def drop_manifest(root: Path, stage: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        (stage_folder(root, stage) / "manifest.json").unlink()
