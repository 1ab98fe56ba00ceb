"""`gristmill takedown`: which documents a takedown list holds, what became of them, and the files and rows they are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import read_table
from gristmill.core.stage import Receipt
from gristmill.core.tokshards import PackedDataset
from gristmill.curate.takedown import Takedown
from gristmill.pipelines import finding, tracing
from gristmill.pipelines.fates import PAGES, verdict_file
from gristmill.pipelines.inputs import input_places
from gristmill.pipelines.views import manifests

PLACE = ["id", "url", "warc_file", "warc_offset", "warc_length"]


def find(root: Path, path: Path, run_id: str | None = None) -> dict[str, Any]:
    """The documents of a root that a list holds, each with its fate and its places, and the files that hold any.

    Places are rows of the current packed dataset (with `run_id`: of that training run's), each with its `shard`; `step`
    is the step of the run that trained on the row, null in rows that no step reaches. Documents that only a packed
    dataset still knows count too. Raises UsageError on an unknown run, FormatError on a faulty list.
    """
    held = Takedown.read(path)
    known = manifests(root)
    documents: dict[str, dict[str, Any]] = {}
    files: dict[str, Counter[str]] = {}
    for receipt in known[PAGES].receipts if PAGES in known else []:
        for name, fate in (("pages.parquet", "extracted"), ("drops.parquet", f"dropped by {PAGES}")):
            for row in _held(held, read_table(receipt.output(name), PLACE)):
                key = row["id"] or f"{row['warc_file']}@{row['warc_offset']}"
                documents[key] = {**row, "fate": fate}
    _judge(known, documents)
    for receipt in known["curate"].receipts if "curate" in known else []:
        shard = receipt.output("documents.parquet")
        for row in _held(held, read_table(shard, PLACE)):
            documents.setdefault(row["id"], dict(row))["fate"] = "kept"
            files.setdefault(shard.path, Counter())["documents"] += 1
    places = _places(root, held, documents, files, run_id) if run_id or "shards" in known else []
    warcs = input_places(root)
    for document in documents.values():
        document["warc_file"] = warcs.get(document["warc_file"], document["warc_file"])
    found = sorted(documents.values(), key=lambda d: (d["entry"], d["id"]))
    return {
        "format": "gristmill-takedown-1",
        "list": str(path),
        "entries": len(held),
        "documents": found,
        "places": places,
        "files": [{"file": name, **counts} for name, counts in files.items()],
        "unmatched": held.unmatched(d["entry"] for d in found),
    }


def _held(held: Takedown, table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows that the list holds, each with its `reason` and `entry`."""
    columns = (table[name].to_pylist() for name in ("id", "url"))
    for i, (document, url) in enumerate(zip(*columns, strict=True)):
        match = held.match(document or "", url or "")
        if match is not None:
            row = dict(table.slice(i, 1).select(PLACE).to_pylist()[0])
            yield {**row, "reason": match[0], "entry": match[1]}


def _judge(known: Any, documents: dict[str, dict[str, Any]]) -> None:
    """What the later stages say of documents that were extracted; the first drop counts."""
    for name, manifest in known.items():
        receipts: list[Receipt] = manifest.receipts if name.startswith("curate") and name != PAGES else []
        for receipt in receipts:
            shard = verdict_file(receipt)
            waiting = [i for i, d in documents.items() if d["fate"] == "extracted"]
            if shard is None or not waiting:
                continue
            table = read_table(shard, ["id", "reason"])
            wanted = pc.and_(pc.is_in(table["id"], pa.array(waiting, pa.string())), pc.is_valid(table["reason"]))
            for row in table.filter(wanted).to_pylist():
                documents[row["id"]]["fate"] = f"dropped by {name}: {row['reason']}"


def _places(
    root: Path, held: Takedown, documents: dict[str, dict[str, Any]], files: dict[str, Counter[str]], run_id: str | None
) -> list[dict[str, Any]]:
    from gristmill.mixes.tracing import find_documents, stored_documents

    run, dataset, order = _dataset(root, run_id)
    for path, table in stored_documents(dataset, root):
        for row in _held(held, table):
            documents.setdefault(row["id"], {**row, "fate": "packed, by an earlier configuration of this root"})
            files.setdefault(str(path), Counter())["documents"] += 1
    rows_per_shard = {phase.name: phase.rows_per_shard for phase in dataset.manifest.phases}
    names = {phase.name: phase.shards for phase in dataset.manifest.phases}
    places = []
    seen: set[tuple[str, int]] = set()
    for place in find_documents(dataset, [i for i in documents if len(i) == 32], root):
        phase, row = place["phase"], place["row"]
        shard = str(dataset.folder / names[phase][row // rows_per_shard[phase]].file)
        kept = {name: place[name] for name in ("id", "phase", "row", "row_start", "length")}
        places.append({**kept, "shard": shard, "run": run, "step": order.step_of_row(phase, row)})
        if (phase, row) not in seen:
            seen.add((phase, row))
            files.setdefault(shard, Counter())["rows"] += 1
    return places


def _dataset(root: Path, run_id: str | None) -> tuple[str | None, PackedDataset, Any]:
    if run_id is not None:
        return tracing.run_order(root, run_id)
    dataset, run, order = finding.current_order(root)
    return run, dataset, order


def render(found: dict[str, Any]) -> str:
    """The finding for a terminal: documents with their places, then the files that hold any."""
    by_id: dict[str, list[dict[str, Any]]] = {}
    for place in found["places"]:
        by_id.setdefault(place["id"], []).append(place)
    lines = []
    for d in found["documents"]:
        lines.append(f"{d['id']}  {d['url']}\n  {d['reason']}: {d['entry']}\n  {d['fate']}")
        for p in by_id.get(d["id"], []):
            step = f"step {p['step']}" if p["step"] else "no step"
            lines.append(
                f"  packed: phase {p['phase']} row {p['row']} position {p['row_start']}, {p['length']} tokens, {step}"
            )
    if found["files"]:
        lines.append("files that hold any of them:")
    for file in found["files"]:
        counts = ", ".join(f"{file[name]:,} {name}" for name in ("documents", "rows") if name in file)
        lines.append(f"  {file['file']}  {counts}")
    lines += [f"in no record here: {entry}" for entry in found["unmatched"]]
    total = len(found["documents"]), found["entries"], len(found["places"])
    lines.append("{:,} documents match {:,} entries; {:,} packed pieces".format(*total))
    return "\n".join(lines)
