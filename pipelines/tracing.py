"""From a training step or a token back to WARC records, and from a document forward to where it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute as pc

from gristmill.core.docshards import read_table
from gristmill.core.errors import GristmillError, UsageError
from gristmill.core.manifest import all_receipts, read_manifest, stage_folder
from gristmill.core.tokshards import PackedDataset
from gristmill.pipelines.inputs import input_places
from gristmill.pipelines.views import manifests


def dataset_folder(root: Path) -> Path:
    """The root's current packed dataset. Raises UsageError when there is none."""
    manifest = read_manifest(root, "shards")
    if manifest is None or not manifest.receipts:
        raise UsageError(f"{root} has no packed shards", hint="gristmill run RECIPE --root DIR --to shards")
    return Path(manifest.receipts[0].output("manifest.json").path).parent


def run_dataset(root: Path, run_id: str | None) -> PackedDataset:
    """The dataset that a training run reads: the named run's, else the latest run's, else the current one.

    A run is named by its task id or a prefix of it, finished or not. Raises UsageError on an unknown or ambiguous one.
    """
    runs = training_runs(root)
    if run_id is not None:
        runs = [r for r in runs if r["id"].startswith(run_id)]
        if len(runs) != 1:
            raise UsageError(
                f"{'no' if not runs else 'more than one'} training run {run_id!r} in {root}",
                hint="runs: " + (", ".join(r["id"][:12] for r in training_runs(root)) or "none"),
            )
    if runs:
        folder = Path(runs[-1]["dataset"])
        if not (folder / "manifest.json").exists():
            raise UsageError(f"the packed shards of run {runs[-1]['id'][:12]} are gone: {folder}")
        return PackedDataset(folder)
    return PackedDataset(dataset_folder(root))


def training_runs(root: Path) -> list[dict[str, Any]]:
    """Training runs of a root, oldest first, finished or interrupted: {"id", "dataset", "finished"}."""
    shards = {}
    for receipt in all_receipts(root, "shards"):
        manifest = next((s for s in receipt.outputs if s.name == "manifest.json"), None)
        if manifest is not None:
            shards[manifest.sha256] = Path(manifest.path).parent
    finished = {r.task: r for r in all_receipts(root, "train")}
    out: list[dict[str, Any]] = []
    base = stage_folder(root, "train")
    for folder in sorted(base.iterdir()) if base.is_dir() else []:
        if not folder.is_dir():
            continue
        done = finished.get(folder.name)
        dataset: Path | None = None
        if done is not None:
            digests = {name: sha for name, sha in done.inputs.get("shards", [])}
            dataset = shards.get(digests.get("manifest.json", ""))
        else:
            try:
                dataset = Path(orjson.loads((folder / "work" / "launch.json").read_bytes())["dataset"])
            except (OSError, ValueError, KeyError):
                continue
        if dataset is not None:
            out.append(
                {
                    "id": folder.name,
                    "dataset": str(dataset),
                    "finished": done.finished if done else None,
                    "at": folder.stat().st_mtime,
                }
            )
    out.sort(key=lambda r: r["at"])
    return out


def trace_step(root: Path, step: int, run_id: str | None = None) -> list[dict[str, Any]]:
    """Every piece of every row of a step's global batch, in row order."""
    from gristmill.mixes.tracing import trace_rows
    from gristmill.trainer.order import rows_of_step

    dataset = run_dataset(root, run_id)
    return _openable(root, trace_rows(dataset, root, rows_of_step(dataset, step)))


def trace_token(root: Path, address: str, run_id: str | None = None) -> dict[str, Any]:
    """The document behind PHASE:ROW:POS. Raises UsageError on a malformed address."""
    from gristmill.mixes import tracing as trace

    phase, _, rest = address.rpartition(":")
    phase, _, row = phase.rpartition(":")
    if not phase or not row.isdigit() or not rest.isdigit():
        raise UsageError(f"{address!r} is not PHASE:ROW:POS", hint="for example warm:17:40")
    dataset = run_dataset(root, run_id)
    if phase not in [p.name for p in dataset.manifest.phases]:
        raise UsageError(f"no phase {phase!r}", hint=f"phases: {', '.join(p.name for p in dataset.manifest.phases)}")
    return _openable(root, [trace.trace_token(dataset, root, phase, int(row), int(rest))])[0]


def show_row(root: Path, phase: str, row: int) -> dict[str, Any]:
    """The pieces and the decoded text of one packed row."""
    from gristmill.mixes.tracing import trace_rows
    from gristmill.tokenize.codec import Codec

    dataset = PackedDataset(dataset_folder(root))
    tokens, _ = dataset.row(phase, row)
    text = Codec(dataset.folder / "tokenizer.json").decode(tokens)
    return {"pieces": _openable(root, trace_rows(dataset, root, [(phase, row)])), "text": text}


def _openable(root: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`warc_file` as a path or URL that opens; the name that the curated Parquet holds stays as `warc_name`."""
    places = input_places(root)
    for row in rows:
        row["warc_name"] = row["warc_file"]
        row["warc_file"] = places.get(row["warc_file"], row["warc_file"])
    return rows


def verify(root: Path, rows: Sequence[dict[str, Any]], run_id: str | None = None, *, with_text: bool = False) -> None:
    """Prove each piece: cut its WARC range, extract, rewrite and encode it again, compare with the row's tokens.

    Sets `verified` and `text_version` on each row ("c4" where the C4 line rules rewrote the extracted text), and with
    `with_text` the document's whole `text`. Raises GristmillError at the first difference.
    """
    from gristmill.tokenize.codec import Codec

    dataset = run_dataset(root, run_id)
    codec = Codec(dataset.folder / "tokenizer.json")
    known = manifests(root)
    settings = known["curate.pages"].receipts[0].config
    c4 = known["curate.measure"].receipts[0].config["c4"]
    versions = _text_versions(root, {row["id"] for row in rows})
    texts: dict[str, str] = {}
    encoded: dict[str, list[int]] = {}
    for row in rows:
        if row["id"] not in encoded:
            text = texts[row["id"]] = _rebuild(row, settings, c4, versions[row["id"]])
            encoded[row["id"]] = [*codec.encode_batch([text])[0].tolist(), codec.eos]
        row["text_version"] = versions[row["id"]][0]
        if with_text:
            row["text"] = texts[row["id"]]
        length = row["length"]
        want = encoded[row["id"]][row["doc_start"] : row["doc_start"] + length]
        tokens, _ = dataset.row(row["phase"], row["row"])
        got = tokens[row["row_start"] : row["row_start"] + length].tolist()
        row["verified"] = got == want
        if got != want:
            raise GristmillError(f"row {row['phase']}:{row['row']} differs from {row['url']} extracted again")


def _rebuild(
    row: dict[str, Any], settings: dict[str, Any], c4: dict[str, Any] | None, version: tuple[str, str, int]
) -> str:
    from gristmill.curate.pages import text_of_range
    from gristmill.curate.schema import C4Rewrite, Extract

    extract = Extract(**settings["extract"])
    place = (row["warc_file"], row["warc_offset"], row["warc_length"])
    text = text_of_range(*place, extract, row["warc_name"], inner=version[2])
    if version[0] == "raw":
        return text
    from gristmill.curate.measure import measure_batch

    measured = measure_batch([text], [version[1]], C4Rewrite(**(c4 or {})), 30)
    return str(measured["c4.text"][0].as_py())


def _text_versions(root: Path, ids: set[str]) -> dict[str, tuple[str, str, int]]:
    """Document id -> (text version, language, offset inside its gzip member), from the curated Parquet."""
    found: dict[str, tuple[str, str, int]] = {}
    for receipt in manifests(root)["curate"].receipts:
        table = read_table(receipt.output("documents.parquet"), ["id", "text_version", "language", "warc_inner"])
        for r in table.filter(pc.is_in(table["id"], _strings(ids))).to_pylist():
            found[r["id"]] = (r["text_version"], r["language"], r["warc_inner"])
    missing = ids - found.keys()
    if missing:
        raise UsageError(
            f"{len(missing)} traced documents are not in the current curated Parquet",
            hint="the root was rerun with other settings since",
        )
    return found


def _strings(ids: set[str]) -> Any:
    import pyarrow as pa

    return pa.array(sorted(ids), pa.string())


def find(root: Path, what: str) -> dict[str, Any]:
    """A document's fate at every stage and each place it is trained on, by id or URL."""
    documents: dict[str, dict[str, Any]] = {}
    known = manifests(root)
    places = input_places(root)
    column = "id" if len(what) == 32 and all(c in "0123456789abcdef" for c in what) else "url"

    def look(stage: str, name: str, fate: str | None) -> None:
        for receipt in known[stage].receipts if stage in known else []:
            shard = next((s for s in receipt.outputs if s.name == name), None)
            if shard is None:
                continue
            names = ["id", "url", "warc_file", "warc_offset", "warc_length"]
            table = read_table(shard, names if fate else [*names, "reason", "value", "threshold"])
            for row in table.filter(pc.equal(table[column], what)).to_pylist():
                text = fate
                if text is None:
                    text = f"dropped by {stage}: {row['reason']}"
                    if row["value"] is not None and row["threshold"] is not None:
                        text += f" ({row['value']:.6g} against {row['threshold']:.6g})"
                key = row["id"] or f"{row['warc_file']}@{row['warc_offset']}"
                documents[key] = {**{n: row[n] for n in names}, "fate": text}

    look("curate.pages", "drops.parquet", None)
    look("curate.pages", "pages.parquet", "extracted")
    _decided(known, documents)
    look("curate", "drops.parquet", None)
    look("curate", "documents.parquet", "kept")
    trained: list[dict[str, Any]] = []
    if "shards" in known:
        from gristmill.mixes.tracing import find_document
        from gristmill.trainer.order import step_of_row

        dataset = PackedDataset(dataset_folder(root))
        for doc in documents.values():
            if doc["fate"] == "kept":
                places_here = find_document(dataset, doc["id"], root)
                trained += [{**p, "step": step_of_row(dataset, p["phase"], p["row"])} for p in places_here]
    for doc in documents.values():
        doc["warc_file"] = places.get(doc["warc_file"], doc["warc_file"])
    return {"format": "gristmill-find-1", "documents": list(documents.values()), "places": trained}


def _decided(known: Any, documents: dict[str, dict[str, Any]]) -> None:
    for receipt in known["curate.decide"].receipts if "curate.decide" in known else []:
        if not any(d["fate"] == "extracted" for d in documents.values()):
            return
        table = read_table(receipt.output("verdicts.parquet"), ["id", "reason", "value", "threshold"])
        for row in table.filter(pc.is_in(table["id"], _strings(set(documents)))).to_pylist():
            if row["reason"] is not None:
                against = (
                    f" ({row['value']:.6g} against {row['threshold']:.6g})"
                    if row["value"] is not None and row["threshold"] is not None
                    else ""
                )
                documents[row["id"]]["fate"] = f"dropped by curate.decide: {row['reason']}{against}"


def render(row: dict[str, Any]) -> str:
    """One traced piece on two lines."""
    where = f"{row['phase']}:{row['row']}:{row['row_start']}"
    span = f"{row['length']} tokens from token {row['doc_start']} of {row['id'][:12]}"
    proof = "  verified" if row.get("verified") else ""
    return f"{where:<20} {row['source']:<10} {span}{proof}\n    {row['url']}\n    {row['warc_file']} {row['warc_offset']}+{row['warc_length']}"
