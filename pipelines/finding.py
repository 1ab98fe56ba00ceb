"""From a document forward: what became of it at every stage, and every row, position and step that trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import read_table
from gristmill.core.printable import printable
from gristmill.core.tokshards import PackedDataset
from gristmill.pipelines.inputs import input_places
from gristmill.pipelines.tracing import dataset_folder, numbered, run_order, training_runs

if TYPE_CHECKING:
    from gristmill.trainer.order import DataOrder


def find_places(root: Path, what: str, run_id: str | None = None) -> dict[str, Any]:
    """Every place of a document in the packed dataset, by id or URL, from the find index: no file is scanned.

    Held-out documents, which no row holds, are told from heldout.parquet.

    `documents`: id, url, WARC range and `heldout`; `places`: stage, row, position in the stage's order, first token in the row,
    tokens, epoch, and the step of `run` (the named one, else as `find` has it; null where no step trains the row).
    """
    from gristmill.mixes.tracing import find_document, heldout_documents

    what = as_id(what)
    if run_id is None:
        dataset, run, order = current_order(root)
    else:
        run, dataset, order = run_order(root, run_id)
    places = numbered(order, find_document(dataset, what, root))
    files = input_places(root)
    documents: dict[str, dict[str, Any]] = {}
    for place in places:
        place["run"] = run
        facts = {n: place.pop(n) for n in ("url", "warc_file", "warc_offset", "warc_length", "language", "date")}
        facts["warc_name"], facts["warc_file"] = facts["warc_file"], files.get(facts["warc_file"], facts["warc_file"])
        documents[place["id"]] = {"id": place["id"], **facts, "heldout": False}
    for document in heldout_documents(dataset, what, root):
        name = document["warc_file"]
        documents[document["id"]] = {**document, "warc_name": name, "warc_file": files.get(name, name), "heldout": True}
    return {"format": "gristmill-find-2", "documents": list(documents.values()), "places": places}


def find(root: Path, what: str) -> dict[str, Any]:
    """A document's fate at every stage and each place it is trained on, by id or URL.

    `step` of a place belongs to `run`, the latest training run where it used the current packed dataset; null in rows
    that it skips or does not reach. Without such a run it is the step of a run without ramp and edits.
    """
    from gristmill.mixes.tracing import is_id
    from gristmill.pipelines.views import manifests  # the whole line, which `find --doc` does not need

    documents: dict[str, dict[str, Any]] = {}
    what = as_id(what)
    known = manifests(root)
    places = input_places(root)
    column = "id" if is_id(what) else "url"
    record = ["id", "url", "warc_file", "warc_offset", "warc_length"]

    def look(stage: str, name: str, fate: str | None) -> None:
        for receipt in known[stage].receipts if stage in known else []:
            shard = next((s for s in receipt.outputs if s.name == name), None)
            if shard is None:
                continue
            more = [] if fate else ["reason", "value", "threshold"]
            table = read_table(shard, [*record, *more])
            for row in table.filter(pc.equal(table[column], what)).to_pylist():
                text = fate
                if text is None:
                    text = f"dropped by {stage}: {row['reason']}"
                    if row["value"] is not None and row["threshold"] is not None:
                        text += f" ({row['value']:.6g} against {row['threshold']:.6g})"
                key = row["id"] or f"{row['warc_file']}@{row['warc_offset']}"
                documents[key] = {**{n: row[n] for n in record}, "fate": text}

    look("curate.pages", "drops.parquet", None)
    look("curate.pages", "pages.parquet", "extracted")
    look("curate.steps", "drops.parquet", None)
    _decided(known, documents)
    look("curate", "drops.parquet", None)
    look("curate", "documents.parquet", "kept")
    look("imports.text", "drops.parquet", None)
    look("imports.text", "documents.parquet", "imported")
    trained: list[dict[str, Any]] = []
    if "shards" in known:
        from gristmill.mixes.tracing import find_document, heldout_documents

        dataset, run, order = current_order(root)
        if not documents:  # of a token store, of which no stage writes rows, or one asked for by its own id
            known_here = find_places(root, what)["documents"]
            documents = {d["id"]: {**{n: d[n] for n in record}, "fate": "imported"} for d in known_here}
        for doc in documents.values():
            if doc["fate"] in ("kept", "imported"):
                places_here = find_document(dataset, doc["id"], root)
                trained += [{**p, "run": run} for p in numbered(order, places_here)]
                if heldout_documents(dataset, doc["id"], root):
                    doc["fate"] = "held out"
    for doc in documents.values():
        doc["warc_file"] = places.get(doc["warc_file"], doc["warc_file"])
    return {"format": "gristmill-find-1", "documents": list(documents.values()), "places": trained}


def as_id(what: str) -> str:
    """A document's id in lower case, as the files have it; a URL or an id of its own as it is."""
    from gristmill.mixes.tracing import is_id

    return what.lower() if is_id(what.lower()) else what


def render(found: dict[str, Any]) -> str:
    """What `find` and `find_places` give, for a terminal: two or three lines a document, then a line a place."""
    lines = []
    for d in found["documents"]:
        lines.append(f"{d['id']}  {printable(d['url'] or '-')}")
        lines.append(f"  {printable(d['warc_file'] or '-')} {d['warc_offset']}+{d['warc_length']}")
        fate = d.get("fate", "held out" if d.get("heldout") else None)
        lines += [f"  {printable(fate)}"] if fate else []
    for p in found["places"]:
        planned = "" if p["run"] else "(planned) "
        step = f"{planned}step {p['step']}" if p["step"] else "no step"
        where = f"phase {p['phase']} row {p['row']} token {p['row_start']}"
        lines.append(f"  trained on: {step}, {where} ({p['length']} tokens)")
    return "\n".join(lines)


def current_order(root: Path) -> tuple[PackedDataset, str | None, DataOrder]:
    """The packed dataset, the run whose steps are told and their order: the latest run where it trained on this dataset."""
    from gristmill.trainer.order import DataOrder

    dataset = PackedDataset(dataset_folder(root))
    runs = training_runs(root)
    if runs and runs[-1]["dataset"] == dataset.folder:
        run, _, order = run_order(root, runs[-1]["id"])
        return dataset, run, order
    return dataset, None, DataOrder(dataset.manifest)


def _decided(known: Any, documents: dict[str, dict[str, Any]]) -> None:
    for receipt in known["curate.decide"].receipts if "curate.decide" in known else []:
        if not any(d["fate"] == "extracted" for d in documents.values()):
            return
        table = read_table(receipt.output("verdicts.parquet"), ["id", "reason", "value", "threshold"])
        for row in table.filter(pc.is_in(table["id"], pa.array(sorted(documents), pa.string()))).to_pylist():
            if row["reason"] is not None:
                against = (
                    f" ({row['value']:.6g} against {row['threshold']:.6g})"
                    if row["value"] is not None and row["threshold"] is not None
                    else ""
                )
                documents[row["id"]]["fate"] = f"dropped by curate.decide: {row['reason']}{against}"
