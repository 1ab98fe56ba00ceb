"""Dropped documents, readable: reason, measured value against its threshold, and the text where there was one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from gristmill.core.docshards import read_table
from gristmill.core.errors import UsageError
from gristmill.core.hashing import hash64
from gristmill.core.stage import Receipt
from gristmill.pipelines.views import manifests

# stage -> the output that holds its verdicts; a null reason there means kept
VERDICTS = {"curate.pages": "drops.parquet", "curate.decide": "verdicts.parquet", "curate": "drops.parquet"}


def reasons(root: Path) -> list[tuple[str, str, int]]:
    """(stage, reason, documents) of every drop, most frequent first within a stage."""
    out = []
    for stage, manifest in manifests(root).items():
        for reason, n in sorted((manifest.total()["drops"] or {}).items(), key=lambda item: (-item[1], item[0])):
            out.append((stage, reason, n))
    return out


def sample_of(root: Path, reason: str, count: int, seed: int, chars: int) -> list[dict[str, Any]]:
    """A seeded sample of one reason's documents, the same from any number of workers. Raises UsageError if unknown."""
    known = manifests(root)
    rows: list[tuple[int, str, Receipt, dict[str, Any]]] = []
    for stage, name in VERDICTS.items():
        for receipt in known[stage].receipts if stage in known else []:
            if not (receipt.drops or {}).get(reason):
                continue
            table = read_table(receipt.output(name))
            for row in table.filter(pc.equal(table["reason"], reason)).to_pylist():
                rows.append((hash64(row["id"] or f"{receipt.key}:{row.get('warc_offset')}", seed), stage, receipt, row))
        if rows:
            break
    if not rows:
        stages = [s for s, r, _ in reasons(root) if r == reason]
        if stages:
            raise UsageError(f"{reason} drops records that are no documents", hint="its count is in `gristmill show`")
        names = sorted({r for _, r, _ in reasons(root)})
        raise UsageError(f"nothing was dropped as {reason!r}", hint=f"reasons here: {', '.join(names) or 'none'}")
    rows.sort(key=lambda item: (item[0], item[3]["id"] or ""))
    return [_with_text(known, stage, receipt, row, chars) for _, stage, receipt, row in rows[:count]]


def _with_text(known: Any, stage: str, receipt: Receipt, row: dict[str, Any], chars: int) -> dict[str, Any]:
    out = {"stage": stage, "file": receipt.key, **row}
    for page_receipt in known["curate.pages"].receipts if "curate.pages" in known else []:
        if page_receipt.key != receipt.key or stage == "curate.pages":
            continue
        pages = read_table(page_receipt.output("pages.parquet"))
        match = pages.filter(pc.equal(pages["id"], row["id"])).to_pylist()
        if match:
            page = match[0]
            text = str(page.pop("text"))
            out.update(
                {k: page[k] for k in ("url", "warc_file", "warc_offset", "warc_length", "language", "language_score")}
            )
            out["text"] = text[:chars]
    return out


def render(row: dict[str, Any]) -> str:
    value = row.get("value")
    against = (
        f" {value:.6g} against {row['threshold']:.6g}" if value is not None and row.get("threshold") is not None else ""
    )
    head = f"{row['reason']}{against}  {row.get('url') or ''}  [{row['file']}]"
    text = " ".join(str(row.get("text", "")).split())
    return head + (f"\n    {text}" if text else "")
