"""Export a packed dataset for other trainers: Megatron's .bin/.idx, datatrove's and nanotron's .ds, Parquet rows.

An export is a folder with export.json beside its files: the dataset's digest, each file's bytes and sha256, and for
Megatron the blends. It appears whole, under its name, or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PackedDataset, PackedPhase

EXPORT_FORMAT = "gristmill-export-1"


def export(kind: str, folder: Path, root: Path, out: Path, stages: Sequence[str] = ()) -> dict[str, Any]:
    """Write a dataset folder as "megatron", "datatrove" or "parquet" to the new folder `out`; returns its export.json.

    `stages`: names of curriculum stages, all when empty. `root` has the token stores (Megatron's documents come from
    them). Raises UsageError when `out` exists with something in it or a stage is unknown, FormatError on damaged input.
    """
    dataset = PackedDataset(folder)
    known = [p.name for p in dataset.manifest.phases]
    if unknown := [s for s in stages if s not in known]:
        raise UsageError(f"no stage {unknown[0]!r}", hint=f"stages: {', '.join(known)}")
    write = _writer(kind)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists", hint="name a new folder, or remove it")
    phases: list[PackedPhase] = [p for p in dataset.manifest.phases if not stages or p.name in stages]
    work = out.absolute().with_name(f".tmp-{out.name}-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        facts = write(dataset, phases, root, work)
        shutil.copyfile(dataset.folder / "tokenizer.json", work / "tokenizer.json")
        files = {
            str(path.relative_to(work)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(work.rglob("*"))
            if path.is_file()
        }
        body = {
            "format": EXPORT_FORMAT,
            "written": kind,
            "dataset_sha256": sha256_file(dataset.folder / "manifest.json"),
            "tokenizer_sha256": dataset.manifest.tokenizer_sha256,
            "vocab_size": dataset.manifest.vocab_size,
            "special_ids": dataset.manifest.special_ids,
            "stages": [p.name for p in phases],
            **facts,
            "files": files,
        }
        (work / "export.json").write_bytes(
            orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
        )
        if out.is_dir():
            out.rmdir()
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return body


def _writer(kind: str) -> Callable[[PackedDataset, Sequence[PackedPhase], Path, Path], dict[str, Any]]:
    if kind == "megatron":
        from gristmill.mixes.export_megatron import write_megatron

        return write_megatron
    from gristmill.mixes.export_rows import write_datatrove, write_parquet

    writers = {"datatrove": write_datatrove, "parquet": write_parquet}
    if kind not in writers:
        raise UsageError(f"no export format {kind!r}", hint=f"formats: megatron, {', '.join(writers)}")
    return writers[kind]
