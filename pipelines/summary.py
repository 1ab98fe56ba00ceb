"""`gristmill report`: what a root holds, from manifests and outputs alone, so that it can be told again years later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute as pc

from gristmill.core.docshards import read_table
from gristmill.core.stage import Receipt
from gristmill.pipelines.views import manifests

BAR = 28


def collect(root: Path) -> dict[str, Any]:
    """The report's figures. Parts whose stage has not run are absent."""
    known = manifests(root)
    out: dict[str, Any] = {"format": "gristmill-report-1", "root": str(root), "funnel": [], "drops": {}}
    for name, manifest in known.items():
        total = manifest.total()
        if total["drops"] is not None and manifest.receipts:  # a stage without tasks is no step of the funnel
            out["funnel"].append(
                {
                    "stage": name,
                    "rows_in": total["rows_in"],
                    "rows_out": total["rows_out"],
                    "quarantined": total["quarantined"],
                }
            )
            if total["drops"]:
                out["drops"][name] = total["drops"]
    if "curate.contamination" in known:
        out["contamination"] = _contamination(known["curate.contamination"].receipts)
    out["seconds"] = {name: manifest.total()["seconds"] for name, manifest in known.items()}

    def load(stage: str, name: str) -> Any:
        receipts: list[Receipt] = known[stage].receipts if stage in known else []
        for receipt in receipts[:1]:
            for shard in receipt.outputs:
                if shard.name == name:
                    data = Path(shard.path).read_bytes()
                    return orjson.loads(data) if name.endswith(".json") else data.decode("utf-8", "replace")
        return None

    for key, stage, name in (
        ("fertility", "tokenizer", "fertility.json"),
        ("lock", "mixture", "mix.lock.json"),
        ("dataset", "shards", "manifest.json"),
        ("training", "train", "summary.json"),
        ("generated", "train", "generated.txt"),
    ):
        found = load(stage, name)
        if found is not None:
            out[key] = found
    metrics = load("train", "metrics.jsonl")
    if metrics:
        out["loss"] = [orjson.loads(line) for line in metrics.splitlines() if line]
    evaluations = load("train", "evaluations.jsonl")
    if evaluations:
        out["evaluations"] = [orjson.loads(line) for line in evaluations.splitlines() if line]
    return out


def _contamination(receipts: list[Receipt], examples: int = 3) -> dict[str, Any]:
    """Per benchmark: documents whose strongest match is one of its items, the items, and the strongest matches."""
    out: dict[str, Any] = {}
    for receipt in receipts:
        table = read_table(receipt.output("contamination.parquet"))
        for row in table.filter(pc.equal(table["rank"], 0)).to_pylist():
            entry = out.setdefault(row["benchmark"], {"documents": 0, "items": set(), "strongest": []})
            entry["documents"] += 1
            entry["items"].add(row["item"])
            kept = {name: row[name] for name in ("item", "field", "overlap", "matched", "grams", "id", "url", "quote")}
            entry["strongest"] = sorted([*entry["strongest"], kept], key=lambda r: (-r["overlap"], r["id"]))[:examples]
    return {name: {**entry, "items": sorted(entry["items"])} for name, entry in sorted(out.items())}


def render(found: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = ["funnel", f"  {'':<20} {'rows in':>10} {'rows out':>10}"]
    most = max((f["rows_in"] for f in found["funnel"]), default=1) or 1
    for f in found["funnel"]:
        bar = "█" * round(BAR * f["rows_out"] / most)
        extra = f"  {f['quarantined']} quarantined" if f["quarantined"] else ""
        lines.append(f"  {f['stage']:<20} {f['rows_in']:>10,} {f['rows_out']:>10,}  {bar}{extra}")
    for stage, drops in found["drops"].items():
        top = sorted(drops.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{reason} {n:,}" for reason, n in top[:6])
        lines.append(f"  dropped by {stage}: {shown}{f' and {len(top) - 6} more' if len(top) > 6 else ''}")
    for name, entry in found.get("contamination", {}).items():
        lines.append(f"  {name}: {len(entry['items']):,} items in {entry['documents']:,} documents")
        for r in entry["strongest"]:
            lines.append(
                f"    {r['item']} {r['field']} {r['overlap']:.0%} of {r['grams']} n-grams in {r['url']}: {r['quote']}"
            )
    if "fertility" in found:
        from gristmill.tokenize.fertility import render as render_fertility

        lines += ["", "tokenizer", *("  " + row for row in render_fertility(found["fertility"]).splitlines())]
    if "dataset" in found:
        lines += ["", "packed shards"]
        for p in found["dataset"]["phases"]:
            shares = ", ".join(f"{s} {v['realised']:.1%}" for s, v in sorted(p["shares"].items()))
            lines.append(
                f"  {p['name']:<12} {p['rows']:>8,} rows of {p['seq_len']} tokens in {len(p['shards'])} shards: {shares}"
            )
    if found.get("loss"):
        lines += ["", "training", *_loss_lines(found["loss"])]
        summary = found.get("training", {})
        if summary:
            lines.append(
                f"  loss {summary.get('first_loss', 0):.3f} → {summary.get('final_loss', 0):.3f} in {summary.get('steps', 0):,} steps, "
                f"{summary.get('tokens', 0):,} tokens, {summary.get('params', 0):,} parameters"
            )
        if found.get("evaluations"):
            from gristmill.pipelines.report.training import evaluation_lines

            lines += evaluation_lines(found["evaluations"])
    if found.get("generated"):
        lines += ["", "generated", "  " + " ".join(str(found["generated"]).split())]
    return "\n".join(lines)


def _loss_lines(rows: list[dict[str, Any]], points: int = 8) -> list[str]:
    """A few points of the loss curve, evenly spaced, each the mean of its stretch."""
    out = []
    n = len(rows)
    top = max(r["loss"] for r in rows)
    for i in range(min(points, n)):
        part = rows[i * n // points : max((i + 1) * n // points, i * n // points + 1)]
        loss = sum(r["loss"] for r in part) / len(part)
        out.append(
            f"  step {part[-1]['step']:>6,}  {part[-1]['phase']:<10} loss {loss:6.3f}  {'█' * round(BAR * loss / top)}"
        )
    return out
