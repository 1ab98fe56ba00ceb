"""`gristmill trace --spike`: which documents a guard's report blames, beside their source's average, with text and WARC range."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from gristmill.core.blocklist import append_blocklist
from gristmill.core.errors import FormatError, GristmillError, UsageError
from gristmill.core.manifest import stage_folder
from gristmill.core.tokshards import PackedDataset
from gristmill.pipelines import tracing
from gristmill.pipelines.inputs import input_places
from gristmill.trainer.events import FILE, Event, read_events
from gristmill.trainer.pieces import DATASET_FILE, FOLDER, read_report

FORMAT = "gristmill-spike-1"
SHRINK = 16
"""Tokens of average loss added to each document before ranking: the mean of two tokens scatters by nats, that of 200 does not."""
LEAST_PIECES = 8  # of a source before their spread says anything
EXCERPT_TOKENS, EXCERPT_CHARS = 120, 240
METRICS_STEPS = 16  # averaged where the report holds no earlier step


@dataclass(frozen=True)
class Run:
    """A training run's folder, its task id if it is a root's, and the packed dataset it reads."""

    folder: Path
    id: str | None
    dataset: PackedDataset


def find_run(run: str | None, root: Path | None, dataset: Path | None = None) -> Run:
    """The run named by its folder, or by its task id or the beginning of it; None: the root's latest.

    `dataset` overrides where the packed dataset lies. Raises UsageError when there is no such run or dataset.
    """
    if run is not None and Path(run).is_dir():
        folder = Path(run) / "work" if (Path(run) / "work").is_dir() else Path(run)
        return Run(folder, None, _dataset(folder, dataset))
    if root is None:
        raise UsageError(
            f"no run folder {run!r}" if run else "which run?", hint="give --root DIR, or --run with the run's folder"
        )
    identity, found = tracing.run_dataset(root, run) if dataset is None else (_run_id(root, run), None)
    if identity is None:
        raise UsageError(f"{root} has no training run", hint="gristmill train run RUN --root DIR")
    folder = stage_folder(root, "train") / identity / "work"
    return Run(folder, identity, found if found is not None else _dataset(folder, dataset))


def _run_id(root: Path, run: str | None) -> str | None:
    runs = [r["id"] for r in tracing.training_runs(root) if run is None or r["id"].startswith(run)]
    if run is not None and len(runs) != 1:
        raise UsageError(f"{'more than one' if runs else 'no'} training run {run!r} in {root}")
    return runs[-1] if runs else None


def _dataset(folder: Path, given: Path | None) -> PackedDataset:
    """The given dataset, else the one that the run's reports name. Raises UsageError when it is another or gone, or no report names one."""
    hint = "give --dataset DIR, the folder with its manifest.json"
    path = folder / FOLDER / DATASET_FILE
    try:
        named = orjson.loads(path.read_bytes())
        where, digest = Path(named["dataset"]), str(named["digest"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        if given is None:
            find_event(folder, None)  # without a report no dataset is named; it says which of the two is missing
            raise UsageError(f"{folder} does not say which packed dataset it trained on", hint=hint) from error
        return PackedDataset(given)
    if given is None and not (where / "manifest.json").is_file():
        raise UsageError(f"the packed dataset {where} of this run is gone", hint=hint)
    dataset = PackedDataset(given or where)
    if dataset.manifest.digest != digest:
        raise UsageError(
            f"{dataset.folder} is not the dataset of this run: digest {dataset.manifest.digest[:12]}, not {digest[:12]}",
            hint=hint,
        )
    return dataset


def find_event(folder: Path, step: int | None) -> Event:
    """The latest event of a run that has a report, or the latest such event of a step. Raises UsageError without one."""
    events = read_events(folder)
    if not events:
        raise UsageError(f"no guard acted in this run: {folder / FILE} has no event")
    steps = list(dict.fromkeys(e["step"] for e in events if e.get("report")))
    found = [e for e in events if e.get("report") and step in (None, e["step"])]
    if not found:
        what = f"of step {step}" if step is not None else "of this run"
        shown = ", ".join(map(str, steps[-20:]))
        raise UsageError(
            f"no event {what} has a report",
            hint=f"steps with one: {shown}" if steps else "guards.ring_steps: 16 keeps the losses for reports",
        )
    return found[-1]


def trace_spike(run: Run, step: int | None, root: Path | None, top: int) -> dict[str, Any]:
    """What a guard saw: {"format", "run", "folder", "event", "batch", "sources", "documents"}.

    `documents` are the `top` first of the batch (of all edited batches, for a rewind), ranked by `excess`: nats a token
    above the source's average, with 16 tokens of average loss added so that short pieces do not lead. `sigma` counts
    the source's standard deviations between pieces, null where too few are known. `text` is null without a tokenizer;
    url and WARC range are null, with the reason in `unknown`, where no token store is at hand.
    """
    event = find_event(run.folder, step)
    report = read_report(run.folder, event["report"])
    first = min([event["step"], *(e["at_step"] for e in event["edits"] if event["action"] == "rewind")])
    blamed = np.asarray(report["fired"]) | (
        (np.asarray(report["step"]) >= first) & (np.asarray(report["step"]) < event["step"])
    )
    earlier = ~blamed & np.asarray(report["accepted"]) & (np.asarray(report["step"]) < first)
    batch = report.filter(pa.array(blamed))
    if not batch.num_rows:
        raise FormatError(f"the report {event['report']} holds no losses of step {event['step']}")
    sources = averages(report.filter(pa.array(earlier)), batch, _metrics(run.folder, first))
    documents = rank(batch, sources)
    shown = documents[:top]
    _describe(shown, run.dataset, root)
    totals = {
        "documents": len(documents),
        "tokens": sum(d["tokens"] for d in documents),
        "loss": sum(d["loss"] * d["tokens"] for d in documents) / sum(d["tokens"] for d in documents),
    }
    event = {key: value for key, value in event.items() if key != "document_ids"}
    return {
        "format": FORMAT,
        "run": run.id,
        "folder": str(run.folder),
        "event": event,
        "batch": totals,
        "sources": sources,
        "documents": shown,
    }


def averages(earlier: pa.Table, batch: pa.Table, metrics: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Per source of the batch {"average": nats a token, "std": between pieces or null, "pieces", "from"}.

    From the steps before it in the report ("report"); where they lack the source, from the run's metrics ("metrics"), else
    the median piece of the batch itself ("batch"), which holds while most of it is sound.
    """
    out: dict[str, dict[str, Any]] = {}
    known = np.asarray(earlier["source"].to_pylist(), dtype=object)
    for source in sorted(set(batch["source"].to_pylist())):
        part = earlier.filter(pa.array(known == source)) if len(known) else earlier
        tokens = part["tokens"].to_numpy().astype(np.float64)
        means = part["loss_sum"].to_numpy() / np.maximum(tokens, 1)
        good = np.isfinite(means)
        means, tokens = means[good], tokens[good]
        std = None
        if len(means):
            average, origin = float(np.average(means, weights=tokens)), "report"
            if len(means) >= LEAST_PIECES:
                std = float(np.sqrt(np.average((means - average) ** 2, weights=tokens)))
        elif source in metrics:
            average, origin = metrics[source], "metrics"
        else:
            of_source = np.asarray([s == source for s in batch["source"].to_pylist()])
            here = (batch["loss_sum"].to_numpy() / batch["tokens"].to_numpy())[of_source]
            here = here[np.isfinite(here)]
            average, origin = float(np.median(here)) if len(here) else 0.0, "batch"
        out[source] = {"average": average, "std": std, "pieces": len(means), "from": origin}
    return out


def rank(batch: pa.Table, sources: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every document of the batch, the worst first; what is not finite comes before all, equals in the order of ids."""
    documents: dict[str, dict[str, Any]] = {}
    for piece in batch.to_pylist():
        found = documents.setdefault(
            piece["id"], {"id": piece["id"], "source": piece["source"], "sum": 0.0, "tokens": 0, "places": []}
        )
        found["sum"] += piece["loss_sum"]
        found["tokens"] += piece["tokens"]
        found["places"].append({key: piece[key] for key in ("step", "phase", "row", "row_start", "length")})
    ranked = []
    for document in documents.values():
        total, tokens = document.pop("sum"), document["tokens"]
        source = sources[document["source"]]
        finite = bool(np.isfinite(total))
        mean = total / tokens
        ranked.append(
            {
                "id": document["id"],
                "source": document["source"],
                "loss": mean,
                "average": source["average"],
                "sigma": (mean - source["average"]) / source["std"] if source["std"] and finite else None,
                "excess": (total - tokens * source["average"]) / (tokens + SHRINK),
                "tokens": tokens,
                "places": document["places"],
            }
        )
    ranked.sort(key=lambda d: (-d["excess"] if np.isfinite(d["excess"]) else -np.inf, d["id"]))
    return ranked


def _metrics(folder: Path, step: int) -> dict[str, float]:
    """{source: mean loss} over the last steps before `step` in metrics.jsonl; empty where it holds none."""
    sums: dict[str, list[float]] = {}
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            record = orjson.loads(line)
            if step - METRICS_STEPS <= int(record["step"]) < step:
                for source, loss in (record.get("source_loss") or {}).items():
                    sums.setdefault(source, []).append(float(loss))
        except (ValueError, TypeError, KeyError):
            continue  # a line that is being written
    return {source: sum(losses) / len(losses) for source, losses in sums.items()}


def _describe(documents: list[dict[str, Any]], dataset: PackedDataset, root: Path | None) -> None:
    """Add each document's `text` (an excerpt), url, date, language and WARC range."""
    from gristmill.mixes.tracing import trace_token
    from gristmill.tokenize.codec import Codec

    codec: Codec | None = None
    if (dataset.folder / "tokenizer.json").is_file():
        codec = Codec(dataset.folder / "tokenizer.json")
    places = input_places(root) if root is not None else {}
    for document in documents:
        place = document["places"][0]
        tokens, _ = dataset.row(place["phase"], place["row"])
        begin, length = place["row_start"], min(place["length"], EXCERPT_TOKENS)
        document["text"] = codec.decode(tokens[begin : begin + length])[:EXCERPT_CHARS] if codec else None
        names = ("url", "date", "language", "warc_file", "warc_offset", "warc_length")
        unknown: str | None = "no root was given, the WARC records are found through its token stores"
        traced: dict[str, Any] = {}
        if root is not None:
            try:
                traced, unknown = trace_token(dataset, root, place["phase"], place["row"], begin), None
            except GristmillError as error:
                unknown = error.message
        document.update({name: traced.get(name) for name in names}, unknown=unknown)
        document["warc_file"] = places.get(document["warc_file"], document["warc_file"])


def block(path: Path, found: dict[str, Any]) -> int:
    """Append the documents shown to a blocklist, each with why. Returns how many are new."""
    event = found["event"]
    return append_blocklist(
        path,
        [
            (d["id"], f"step {event['step']}: loss {d['loss']:.4g}, {d['source']} {d['average']:.4g}")
            for d in found["documents"]
        ],
    )


def render(found: dict[str, Any]) -> str:
    """For people: the event, then three or four lines a document."""
    event, batch = found["event"], found["batch"]
    lines = [
        f"event {event['event']}, step {event['step']} of the run, phase {event['phase']}: {event['reason']}",
        f"action: {event['action']}; batch of {batch['documents']} documents, {batch['tokens']:,} tokens, loss {batch['loss']:.4g}",
    ]
    for name, source in found["sources"].items():
        spread = f" ± {source['std']:.3g} between {source['pieces']} pieces" if source["std"] is not None else ""
        lines.append(f"  {name}: average loss {source['average']:.4g}{spread} (from the {_ORIGIN[source['from']]})")
    for number, d in enumerate(found["documents"], 1):
        sigma = f", {d['sigma']:+.1f} sigma" if d["sigma"] is not None else ""
        place = d["places"][0]
        more = f" and {len(d['places']) - 1} more" if len(d["places"]) > 1 else ""
        lines.append(
            f"{number:>3}. {d['id']}  {d['source']}  loss {d['loss']:.3f}, average {d['average']:.3f}{sigma}, {d['tokens']} tokens"
        )
        lines.append(
            f"     step {place['step']}, {place['phase']}:{place['row']}:{place['row_start']}{more}"
            + (f"  {d['url']}" if d["url"] else "")
        )
        if d["warc_file"] is not None:
            lines.append(f"     {d['warc_file']} {d['warc_offset']}+{d['warc_length']}")
        else:
            lines.append(f"     WARC record unknown: {d['unknown']}")
        if d["text"] is not None:
            lines.append(f"     {' '.join(d['text'].split())[:160]}")
    return "\n".join(lines)


_ORIGIN = {"report": "steps before", "metrics": "run's metrics", "batch": "batch's median piece"}
