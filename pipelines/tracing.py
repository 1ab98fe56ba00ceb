"""From a training step, a packed row or a token back to WARC records. The way forward is in finding.py."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import read_table
from gristmill.core.errors import FormatError, GristmillError, UsageError
from gristmill.core.manifest import all_receipts, read_manifest, stage_folder
from gristmill.core.printable import printable
from gristmill.core.tokshards import PackedDataset
from gristmill.pipelines.imported import Imported
from gristmill.pipelines.inputs import input_places

if TYPE_CHECKING:
    from gristmill.trainer.edits import Edits
    from gristmill.trainer.order import DataOrder


def dataset_folder(root: Path) -> Path:
    """The root's current packed dataset. Raises UsageError when there is none."""
    manifest = read_manifest(root, "shards")
    if manifest is None or not manifest.receipts:
        raise UsageError(f"{root} has no packed shards", hint="gristmill run RECIPE --root DIR --to shards")
    return Path(manifest.receipts[0].output("manifest.json").path).parent


def run_dataset(root: Path, run_id: str | None) -> tuple[str | None, PackedDataset]:
    """(id, dataset) of a training run: the named one, else the latest, else (None, the current packed dataset).

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
    if not runs:
        return None, PackedDataset(dataset_folder(root))
    if runs[-1]["dataset"] is None:
        raise UsageError(f"the packed shards of training run {runs[-1]['id'][:12]} are gone")
    return runs[-1]["id"], PackedDataset(runs[-1]["dataset"])


def run_order(root: Path, run_id: str | None) -> tuple[str | None, PackedDataset, DataOrder]:
    """`run_dataset` and the data order of that run: its batch ramp and the edits of its newest checkpoint or its output.

    Without a training run it is the order of the packed dataset. Raises FormatError on damaged edits.
    """
    from gristmill.trainer.data_schema import Data
    from gristmill.trainer.order import DataOrder

    run, dataset = run_dataset(root, run_id)
    if run is None:
        return None, dataset, DataOrder(dataset.manifest)
    folder = stage_folder(root, "train") / run
    settings = _json(folder / "work" / "run.json")
    if settings is None:
        settings = next(r.config["run"] for r in all_receipts(root, "train") if r.task == run)
    try:
        data = Data.model_validate(settings.get("data", {}))
    except ValueError as error:
        raise FormatError(f"{folder} holds no settings that this version reads: {error}") from error
    return run, dataset, DataOrder(dataset.manifest, data.batch_ramp, _edits(folder))


def _edits(folder: Path) -> Edits:
    """The edits of a run's folder, finished or not: of its newest complete checkpoint, else those it wrote at its end."""
    from gristmill.trainer.edits import Edits, read_edits

    checkpoints = folder / "work" / "checkpoints"
    names = sorted((p.name for p in checkpoints.iterdir() if p.name.isdigit()) if checkpoints.is_dir() else [])
    for name in reversed(names):
        state = _json(checkpoints / name / "state.json")
        if state is not None:
            return Edits.from_json(state.get("edits", []))
    written = [p for p in (folder / "edits.json", folder / "work" / "edits.json") if p.exists()]
    return read_edits(written[0]) if written else Edits()


def _json(path: Path) -> dict[str, Any] | None:
    """None when there is no such file or it is damaged."""
    try:
        data = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def training_runs(root: Path) -> list[dict[str, Any]]:
    """Training runs of a root, the latest last, finished or interrupted: {"id", "dataset", "finished"}.

    The latest is the one that the stage's manifest names, unless an unfinished one has trained since it finished.
    """
    datasets: dict[str, Path] = {}
    for receipt in all_receipts(root, "shards"):
        shard = next((s for s in receipt.outputs if s.name == "manifest.json"), None)
        if shard is not None and Path(shard.path).exists():
            datasets[shard.sha256] = Path(shard.path).parent
    runs: list[dict[str, Any]] = []
    for receipt in all_receipts(root, "train"):
        digests = {name: sha for name, sha in receipt.inputs.get("shards", [])}
        dataset = datasets.get(digests.get("manifest.json", ""))
        runs.append({"id": receipt.task, "dataset": dataset, "finished": receipt.finished, "at": receipt.finished})
    known = {run["id"] for run in runs}
    base = stage_folder(root, "train")
    for folder in sorted(base.iterdir()) if base.is_dir() else []:
        try:
            launch = orjson.loads((folder / "work" / "launch.json").read_bytes())
            trained = (folder / "work" / "metrics.jsonl").stat().st_mtime
        except (OSError, ValueError):
            continue
        if folder.name not in known:
            at = datetime.datetime.fromtimestamp(trained, datetime.UTC).isoformat(timespec="seconds")
            dataset = datasets.get(str(launch.get("manifest_sha256")))
            runs.append({"id": folder.name, "dataset": dataset, "finished": None, "at": at})
    manifest = read_manifest(root, "train")
    current = {r.task for r in manifest.receipts} if manifest else set()
    newest = max((r["at"] for r in runs if r["id"] in current), default="")
    runs.sort(key=lambda r: (r["id"] in current or (r["finished"] is None and r["at"] > newest), r["at"], r["id"]))
    return runs


def trace_step(root: Path, step: int, run_id: str | None = None) -> list[dict[str, Any]]:
    """Every piece of every row of a step's global batch, in row order, those that the run skips last.

    `trained` is false where a piece was skipped or its document blocked. Steps are those of the run.
    """
    from gristmill.mixes.tracing import trace_rows

    run, dataset, order = run_order(root, run_id)
    pairs = order.samples_of_step(step)
    samples = {row: sample for sample, row in pairs}
    rows = trace_rows(dataset, root, [*order.rows_of_step(step), *order.skipped(step)])
    for row in rows:
        sample = samples.get(row["row"])
        row["trained"] = sample is not None and sample < order.blocked.get(row["id"], sample + 1)
        row["stage"], row["step"] = row["phase"], step
        row["position"] = order.position_of_row(row["phase"], row["row"])
    return _openable(root, run, rows)


def trace_token(root: Path, address: str, run_id: str | None = None) -> dict[str, Any]:
    """The document behind PHASE:ROW:POS. Raises UsageError on a malformed address."""
    from gristmill.mixes import tracing as trace

    phase, row, at = _address(address, 2, "PHASE:ROW:POS", "warm:17:40")
    run, dataset, order = run_order(root, run_id)
    _check_row(dataset, phase, row)
    return numbered(order, _openable(root, run, [trace.trace_token(dataset, root, phase, row, at)]))[0]


def trace_row(root: Path, address: str, run_id: str | None = None, *, position: bool = False) -> list[dict[str, Any]]:
    """Every piece of a packed row PHASE:ROW, or of the row at PHASE:POSITION of the phase's order in the run."""
    from gristmill.mixes.tracing import trace_rows

    phase, at = _address(address, 1, "PHASE:POSITION" if position else "PHASE:ROW", "warm:17")
    run, dataset, order = run_order(root, run_id)
    row = rows_at(dataset, order, phase, at)[0] if position else at
    _check_row(dataset, phase, row)
    return numbered(order, _openable(root, run, trace_rows(dataset, root, [(phase, row)])))


def show_rows(
    root: Path,
    phase: str,
    *,
    row: int | None = None,
    position: int | None = None,
    batch: int | None = None,
    run_id: str | None = None,
) -> list[dict[str, Any]]:
    """Packed rows with their pieces and decoded text, in the order of the phase: {"phase", "row", "position", "pieces", "text"}.

    By stored `row`; by `position` in the phase's order, which a run's edits may change; all rows of a global `batch` of
    the phase (from 1), or with `position` the one that many places into it. Raises UsageError where there is none.
    """
    from gristmill.mixes.tracing import trace_rows
    from gristmill.tokenize.codec import Codec

    run, dataset, order = run_order(root, run_id)
    known = {p.name: p for p in dataset.manifest.phases}
    if phase not in known:
        raise UsageError(f"no phase {phase!r}", hint=f"phases: {', '.join(known)}")
    size = known[phase].batch_rows
    if batch is not None and not 1 <= batch <= known[phase].batches:
        raise UsageError(f"phase {phase!r} has no batch {batch}", hint=f"its batches are 1..{known[phase].batches}")
    if batch is not None and position is not None and position >= size:
        raise UsageError(f"a batch of phase {phase!r} has no position {position}", hint=f"0..{size - 1}")
    if batch is not None:
        rows = rows_at(dataset, order, phase, (batch - 1) * size + (position or 0), size if position is None else 1)
    else:
        rows = [row] if row is not None else rows_at(dataset, order, phase, position or 0)
    codec = Codec(dataset.folder / "tokenizer.json")
    out = []
    for number in rows:
        _check_row(dataset, phase, number)
        tokens, _ = dataset.row(phase, number)
        pieces = numbered(order, _openable(root, run, trace_rows(dataset, root, [(phase, number)])))
        place = order.position_of_row(phase, number)
        out.append(
            {
                "phase": phase,
                "row": number,
                "position": place,
                "pieces": pieces,
                "text": codec.decode(np.asarray(tokens)),
            }
        )
    return out


def rows_at(dataset: PackedDataset, order: DataOrder, phase: str, position: int, count: int = 1) -> list[int]:
    """The rows that stand at positions of a phase's order. Raises UsageError outside the phase."""
    rows = {p.name: p.rows for p in dataset.manifest.phases}
    if phase not in rows:
        raise UsageError(f"no phase {phase!r}", hint=f"phases: {', '.join(rows)}")
    if position + count > rows[phase]:
        raise UsageError(f"phase {phase!r} has no position {position + count - 1}", hint=f"0..{rows[phase] - 1}")
    return order.rows_at(phase, position, count)


def _address(address: str, numbers: int, form: str, example: str) -> tuple[Any, ...]:
    """(phase, number, …) of PHASE:N or PHASE:N:N. Raises UsageError on another form."""
    phase, *parts = address.rsplit(":", numbers)
    if not phase or len(parts) != numbers or not all(re.fullmatch(r"[0-9]{1,18}", part) for part in parts):
        raise UsageError(f"{address!r} is not {form}", hint=f"for example {example}")
    return phase, *map(int, parts)


def _check_row(dataset: PackedDataset, phase: str, row: int) -> None:
    rows = {p.name: p.rows for p in dataset.manifest.phases}
    if phase not in rows:
        raise UsageError(f"no phase {phase!r}", hint=f"phases: {', '.join(rows)}")
    if row >= rows[phase]:
        raise UsageError(f"phase {phase!r} has no row {row}", hint=f"its rows are 0..{rows[phase] - 1}")


def numbered(order: DataOrder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `position`, the row's place in its phase's order, and `step`, null in rows that no step trains."""
    for row in rows:
        row["stage"] = row["phase"]
        row["position"] = order.position_of_row(row["phase"], row["row"])
        row["step"] = order.step_of_row(row["phase"], row["row"])
    return rows


def _openable(root: Path, run: str | None, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`warc_file` as a path or URL that opens; the name that the curated Parquet holds stays as `warc_name`."""
    places = input_places(root)
    for row in rows:
        row["run"] = run
        row["warc_name"] = row["warc_file"]
        row["warc_file"] = places.get(row["warc_file"], row["warc_file"])
    return rows


def verify(root: Path, rows: Sequence[dict[str, Any]], run_id: str | None = None, *, with_text: bool = False) -> None:
    """Prove each piece: cut its WARC range, extract, rewrite, clean of addresses and encode it again, compare its tokens.

    Imported documents are read again from their files. Sets `verified` and `text_version` on each row ("c4" or "refinedweb"
    where those line rules rewrote the extracted text, "imported"), and with `with_text` the document's whole `text`. Raises GristmillError at the first difference.
    """
    from gristmill.pipelines.views import manifests
    from gristmill.tokenize.codec import Codec

    _, dataset = run_dataset(root, run_id)
    codec = Codec(dataset.folder / "tokenizer.json")
    known = manifests(root)
    imported = Imported(known, codec)
    curated = {row["id"] for row in rows if row["warc_name"] not in imported.files}
    versions = {row["id"]: ("imported", "", 0) for row in rows}
    if curated:
        settings = known["curate.pages"].receipts[0].config
        measured = known["curate.measure"].receipts[0].config
        steps = known["curate.steps"].receipts[0].config["steps"] if "steps" in measured else []
        pii = known["curate"].receipts[0].config.get("pii")
        versions |= _text_versions(root, curated)
    texts: dict[str, str] = {}
    encoded: dict[str, list[int]] = {}
    for row in rows:
        if row["id"] not in encoded and row["id"] not in curated:
            texts[row["id"]], encoded[row["id"]] = imported.document(row)
        elif row["id"] not in encoded:
            text = _rebuild(row, settings, steps, measured, versions[row["id"]])
            text = texts[row["id"]] = _without_addresses(text, row["id"], pii)
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
            raise GristmillError(
                f"row {row['phase']}:{row['row']} differs from {row['url'] or row['id']} extracted again"
            )


def _rebuild(
    row: dict[str, Any],
    settings: dict[str, Any],
    steps: list[dict[str, Any]],
    measured: dict[str, Any],
    version: tuple[str, str, int],
) -> str:
    from gristmill.curate.pages import text_of_range
    from gristmill.curate.schema import Extract

    try:
        extract = Extract(**settings["extract"])
    except ValueError as error:  # a user's own engine that is not installed here
        raise UsageError(f"this machine cannot extract as the run did: {error}") from error
    place = (row["warc_file"], row["warc_offset"], row["warc_length"])
    if "reader" in settings:
        from gristmill.curate.reader_pages import text_of_row

        text = text_of_row(row["warc_file"], settings["reader"], row["warc_offset"])
    else:
        text = text_of_range(*place, extract, row["warc_name"], inner=version[2])
    if steps:
        from gristmill.curate.steps import rewritten

        text = rewritten(steps, {**{name: row[name] for name in ("id", "url", "date", "language")}, "text": text})
    if version[0] == "raw":
        return text
    from gristmill.curate.final_text import REWRITTEN
    from gristmill.curate.measure import Plan, measure_batch

    plan = Plan.of({**measured, "families": [version[0]]})
    again = measure_batch([text], [version[1]], None, plan.short_line_chars, plan)
    return str(again[REWRITTEN[version[0]]][0].as_py())


def _without_addresses(text: str, document: str, pii: dict[str, Any] | None) -> str:
    from gristmill.curate.pii import clean

    return text if pii is None else clean(text, document, **pii).text


def _text_versions(root: Path, ids: set[str]) -> dict[str, tuple[str, str, int]]:
    """Document id -> (text version, language, offset inside its gzip member), from the curated Parquet."""
    from gristmill.pipelines.views import manifests

    found: dict[str, tuple[str, str, int]] = {}
    for receipt in manifests(root)["curate"].receipts:
        table = read_table(receipt.output("documents.parquet"), ["id", "text_version", "language", "warc_inner"])
        for r in table.filter(pc.is_in(table["id"], pa.array(sorted(ids), pa.string()))).to_pylist():
            found[r["id"]] = (r["text_version"], r["language"], r["warc_inner"])
    missing = ids - found.keys()
    if missing:
        raise UsageError(
            f"{len(missing)} traced documents are not in the current curated Parquet",
            hint="the root was rerun with other settings since",
        )
    return found


def whose_step(step: int, run: str | None) -> str:
    """Which run a traced step belongs to, in words: nobody may have named one."""
    return (
        f"step {step} of training run {run[:12]}" if run else f"step {step} of the packed dataset (no training run yet)"
    )


def render(row: dict[str, Any]) -> str:
    """One traced piece on two lines."""
    where = f"{row['phase']}:{row['row']}:{row['row_start']}"
    span = f"{row['length']} tokens from token {row['doc_start']} of {row['id'][:12]}"
    proof = "  verified" if row.get("verified") else ""
    proof += "" if row.get("trained", True) else "  not trained"
    url, file = printable(row["url"] or "-"), printable(row["warc_file"] or "-")
    source = printable(row["source"])
    return f"{where:<20} {source:<10} {span}{proof}\n    {url}\n    {file} {row['warc_offset']}+{row['warc_length']}"
