"""`gristmill drops --doc`: every rule's value against its threshold for one document, stage by stage, kept or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.docshards import read_batches
from gristmill.core.errors import UsageError
from gristmill.core.manifest import Manifest
from gristmill.core.stage import Receipt
from gristmill.curate.final_text import STEPS, cluster_file
from gristmill.curate.measure import MEASURE_SCHEMA
from gristmill.curate.rules.explain import explain
from gristmill.curate.schema import Rules
from gristmill.curate.schema_language import Wanted
from gristmill.pipelines.fates import FATE_SCHEMA, PAGES, Fates
from gristmill.pipelines.views import manifests

MARKS = {"pass": " ", "drop": "✗", "off": "·", "not_applied": "–"}


def explain_document(root: Path, what: str, chars: int = 300) -> list[dict[str, Any]]:
    """Documents whose id or URL is `what`, each with its fate, the heads of its text versions and one row per rule.

    {"id", "url", "file", "language", "fate": {"stage", "reason", "value", "threshold"}, "rules": [explain.Row as a dict],
    "cluster": row of `curate.clusters` or null, "quality": score or null, "texts": {version: first `chars` characters}}.
    Rules are empty for a page that had no text. Raises UsageError where there is none.
    """
    found = Fates(root)
    known = manifests(root)
    out = []
    for file in found.files():
        table = found.table(file)
        hit = pc.or_(pc.equal(table["id"], what), pc.fill_null(pc.equal(table["url"], what), False))
        rows = table.filter(hit).to_pylist()
        told = tell(known, file, {row["id"] for row in rows}, chars)
        out += [{**told[row["id"]], **_head(row, file)} for row in rows]
    if not out:
        raise UsageError(f"no document {what!r} in {root}", hint="an id is 32 hex digits; a URL is as the WARC has it")
    return out


def _head(row: dict[str, Any], file: str) -> dict[str, Any]:
    fate = {name: row[name] for name in ("stage", "reason", "value", "threshold")}
    return {**{n: row[n] for n in FATE_SCHEMA.names if n not in fate}, "file": file, "fate": fate}


def tell(known: dict[str, Manifest], file: str, ids: set[str], chars: int) -> dict[str, dict[str, Any]]:
    """By id: "rules", "cluster", "quality" and "texts" of documents of one input file, read in one pass over its outputs."""
    if not ids:
        return {}
    pages, measured, decided, scored = (
        _receipt(known, stage, file) for stage in (PAGES, "curate.measure", "curate.decide", "curate.quality")
    )
    clustered = _receipt(known, "curate.clusters", None)
    page = _pick(pages, "pages.parquet", ids, ["id", "text"])
    page |= _pick(_receipt(known, STEPS, file), "pages.parquet", ids, ["id", "text"])  # what the steps made is measured
    measures = _pick(measured, "measures.parquet", ids)
    cluster = _pick(clustered, cluster_file(file), ids)
    score = _pick(scored, "quality.parquet", ids)
    told = {}
    for identity in ids:
        row: dict[str, Any] = {"rules": [], "cluster": None, "quality": None, "texts": {}}
        if identity in cluster:
            row["cluster"] = {k: v for k, v in cluster[identity].to_pylist()[0].items() if k != "id"}
        if identity in score:
            row["quality"] = score[identity]["score"][0].as_py()
        if identity in page:
            row["texts"]["raw"] = page[identity]["text"][0].as_py()[:chars]
        if identity in measures and decided is not None:
            measure = _all_columns(measures[identity])
            for name in measure.column_names:
                if name.endswith(".text") and (text := measure[name][0].as_py()) is not None:
                    row["texts"][name.removesuffix(".text")] = text[:chars]
            rules = Rules.model_validate(decided.config["rules"])
            language = Wanted.model_validate(decided.config["language"])
            row["rules"] = [vars(r) for r in explain(measure, rules, language)]
        told[identity] = row
    return told


def _all_columns(measure: pa.Table) -> pa.Table:
    """With the columns that an older version of `curate.measure` did not write, as nulls."""
    for field in MEASURE_SCHEMA:
        if field.name not in measure.column_names:
            measure = measure.append_column(field, pa.nulls(1, field.type))
    return measure


def _receipt(known: dict[str, Manifest], stage: str, file: str | None) -> Receipt | None:
    """A stage's receipt for an input file; for None, of its only task."""
    receipts = known[stage].receipts if stage in known else []
    return next((r for r in receipts if file is None or r.key == file), None)


def _pick(receipt: Receipt | None, name: str, ids: set[str], columns: list[str] | None = None) -> dict[str, pa.Table]:
    """One-row tables of some documents by id, from an output that may not be there. Memory: one batch and the rows."""
    shard = next((s for s in receipt.outputs if s.name == name), None) if receipt else None
    out: dict[str, pa.Table] = {}
    for batch in read_batches(shard, columns) if shard else ():
        found = pa.Table.from_batches([batch]).filter(pc.is_in(batch["id"], value_set=pa.array(sorted(ids))))
        out.update({identity: found.slice(i, 1) for i, identity in enumerate(found["id"].to_pylist())})
    return out


def texts_judged(
    root: Path, wanted: list[tuple[str, str, str]], chars: int
) -> dict[tuple[str, str], tuple[str | None, str]]:
    """(text version, head of that text) that each document's reason was decided on, by (file, id).

    `wanted` are (file, id, reason). The version is null for a page without a text, "raw" for a reason that is no rule.
    """
    known = manifests(root)
    out: dict[tuple[str, str], tuple[str | None, str]] = {}
    for file in dict.fromkeys(f for f, _, _ in wanted):
        reasons = {identity: reason for f, identity, reason in wanted if f == file}
        for identity, told in tell(known, file, set(reasons), chars).items():
            judged = [r["text_version"] for r in told["rules"] if r["rule"] == reasons[identity] and r["text_version"]]
            version = judged[0] if judged else "raw"
            text = told["texts"].get(version)
            out[file, identity] = (None, "") if text is None else (version, text)
    return out


def render(document: dict[str, Any], *, every: bool = False) -> str:
    """One document for a terminal; rules that are off only with `every`."""
    fate, d = document["fate"], document
    verdict = f"dropped by {fate['stage']}: {fate['reason']}{_against(fate)}" if fate["reason"] else "kept"
    lines = [f"{d['id']}  {d['url']}", f"  {d['file']}  {d['language'] or 'language unknown'}  {verdict}"]
    if d["cluster"]:
        c = d["cluster"]
        alike = "" if c["estimate"] is None else f", estimated Jaccard {c['estimate']:.3f}"
        lines.append(f"  cluster of {c['cluster_size']}, kept for it: {c['keeper']}{alike}")
    if d["quality"] is not None:
        lines.append(f"  quality {d['quality']:.4f}")
    shown = [r for r in d["rules"] if every or r["verdict"] != "off"]
    width = max((len(r["rule"]) for r in shown), default=0)
    for r in shown:
        value = "n/a" if r["value"] is None else f"{r['value']:.6g}"
        limit = "" if r["threshold"] is None else f" {r['threshold']:.6g}"
        first = "  ← the reason" if r["rule"] == fate["reason"] else ""
        test = f"drops if {r['operator']}{limit}"
        lines.append(f"  {MARKS[r['verdict']]} {r['rule']:<{width}}  {value:>10}  {test:<22} {r['metric']}{first}")
    if shown:
        lines.append("  ✗ fails  – does not apply to the language" + ("  · off" if every else ""))
    for version, text in d["texts"].items():
        lines.append(f"  {version}: {' '.join(text.split())}")
    return "\n".join(lines)


def _against(fate: dict[str, Any]) -> str:
    if fate["value"] is None:
        return ""
    return f" {fate['value']:.6g}" + (f" against {fate['threshold']:.6g}" if fate["threshold"] is not None else "")
