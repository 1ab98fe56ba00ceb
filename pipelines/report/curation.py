"""The curation part of the HTML report: the funnel, reasons with their shares, languages, domains and sampled drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gristmill.pipelines import dropped
from gristmill.pipelines.funnel import funnel

TOP = 25  # languages and domains of a table
SAMPLES, CHARS = 3, 400


def collect(root: Path, samples: Mapping[str, list[dict[str, Any]]] | None = None) -> dict[str, Any]:
    """{"reasons", "language", "domain", "samples"} of a root. `samples`: as `dropped.samples` gives them; None draws 3 each."""
    return {
        "reasons": dropped.reasons(root),
        "language": funnel(root, ("language",), TOP),
        "domain": funnel(root, ("domain",), TOP),
        "samples": dropped.samples(root, SAMPLES, 0, CHARS) if samples is None else samples,
    }


def section(found: dict[str, Any], title: str = "Curation") -> str:
    """The part as HTML, without a page around it."""
    total = found["language"]["total"]
    kept = f"{total['kept']:,} of {total['documents']:,} documents kept, {total['kept_chars']:,} characters."
    counts = {reason: n for _, reason, n in found["reasons"]}
    return "".join(
        [
            f"<h1>{escape(title)}</h1><p>{kept}</p>",
            _reasons(found["reasons"], total["documents"]),
            _groups("Languages", found["language"]),
            _groups("Domains", found["domain"]),
            dropped.section(dict(found["samples"]), counts),
        ]
    )


def _reasons(reasons: Sequence[tuple[str, str, int]], documents: int) -> str:
    """Every reason as a bar. Shares are of documents; reasons of records that are none may exceed them."""
    most = max((n for _, _, n in reasons), default=1)
    rows = "".join(
        f"<tr><td>{escape(stage)}<td>{escape(reason)}<td class=n>{n:,}<td class=n>{n / max(1, documents):.1%}"
        f'<td><svg viewBox="0 0 200 10" style="width:12rem"><rect width="{200 * n / most:.1f}" height="10" fill="#0072b2"/></svg></tr>'
        for stage, reason, n in reasons
    )
    head = "<tr><th>stage<th>reason<th>dropped<th>of documents<th></tr>"
    return f"<h2>Reasons</h2><table>{head}{rows}</table>" if rows else ""


def _groups(heading: str, view: dict[str, Any]) -> str:
    stages = view["stages"]
    head = "".join(f"<th>−{escape(stage.removeprefix('curate.'))}" for stage in stages)
    rows = []
    for row in view["groups"]:
        lost = "".join(f"<td class=n>{row['lost'].get(stage, 0):,}" for stage in stages)
        share = row["kept"] / row["documents"] if row["documents"] else 0.0
        reason, n = next(iter(row["reasons"].items()), ("", 0))
        most = f"{escape(reason)} {n:,}" if reason else ""
        name = escape(" ".join(row["group"]))
        rows.append(
            f"<tr><td>{name}<td class=n>{row['documents']:,}{lost}<td class=n>{row['kept']:,}<td class=n>{share:.1%}<td>{most}</tr>"
        )
    return (
        f"<h2>{heading}</h2><table><tr><th><th>documents{head}<th>kept<th>share<th>most dropped for</tr>"
        f"{''.join(rows)}</table>"
    )
