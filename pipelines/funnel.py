"""`gristmill show --by language,domain`: how many documents of each language or registered domain every stage left."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from gristmill.pipelines.fates import PAGES, Fates

KEYS = ("language", "domain")
UNKNOWN = "-"
"""The language of pages that were dropped before it was known, and the domain of addresses without one."""
REST = "(rest)"
TOP_REASONS = 3


@dataclass
class Group:
    """One language, domain or pair of them. `lost` counts documents by the stage that dropped them."""

    documents: int = 0
    kept: int = 0
    chars: int = 0
    kept_chars: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, other: Group) -> None:
        for name in ("documents", "kept", "chars", "kept_chars"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lost.update(other.lost)
        self.reasons.update(other.reasons)

    def as_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "kept": self.kept,
            "chars": self.chars,
            "kept_chars": self.kept_chars,
            "lost": dict(sorted(self.lost.items())),
            "reasons": dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))),
        }


def funnel(root: Path, by: Sequence[str], top: int = 20) -> dict[str, Any]:
    """{"by", "stages", "total", "groups": [{"group": [...], "documents", "kept", "lost", ...}]}, largest first.

    Groups beyond `top` are summed as "(rest)", so the groups' counts always add up to the total. Memory: one input
    file's columns and one counter per group.
    """
    groups: dict[tuple[str, ...], Group] = defaultdict(Group)
    total, stages = Group(), {PAGES: None}
    found = Fates(root)
    for file in found.files():
        table = found.table(file)
        columns = [_column(table, name) for name in by]
        numbers = [pc.fill_null(table[name], 0).to_pylist() for name in ("chars", "kept_chars")]
        documents = zip(*columns, table["stage"].to_pylist(), table["reason"].to_pylist(), *numbers, strict=True)
        for *key, stage, reason, chars, kept_chars in documents:
            group = groups[tuple(key)]
            group.documents += 1
            group.chars += chars
            group.kept_chars += kept_chars
            if reason is None:
                group.kept += 1
            else:
                group.lost[stage] += 1
                group.reasons[reason] += 1
                stages.setdefault(stage)
    for group in groups.values():
        total.add(group)
    ranked = sorted(groups.items(), key=lambda item: (-item[1].documents, item[0]))
    rows = [{"group": list(key), **group.as_json()} for key, group in ranked[:top]]
    if len(ranked) > top:
        rest = Group()
        for _, group in ranked[top:]:
            rest.add(group)
        rows.append({"group": [REST] * len(by), "of": len(ranked) - top, **rest.as_json()})
    return {
        "format": "gristmill-funnel-1",
        "by": list(by),
        "stages": list(stages),
        "total": total.as_json(),
        "groups": rows,
    }


def _column(table: Any, name: str) -> list[str]:
    if name == "language":
        return [language or UNKNOWN for language in table["language"].to_pylist()]
    return [registered_domain(url or "") for url in table["url"].to_pylist()]


@lru_cache(maxsize=1)
def _suffixes() -> Any:
    import tldextract

    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # its bundled list, never the network's


@lru_cache(maxsize=100_000)
def registered_domain(url: str) -> str:
    """`example.co.uk` of https://www.example.co.uk/page; the host itself where it has no public suffix; `-` without one."""
    found = _suffixes()(url)
    return found.top_domain_under_public_suffix or found.domain or UNKNOWN


def render(view: dict[str, Any]) -> str:
    """The funnel as a table for a terminal."""
    heads = [*view["by"], "documents", *(f"-{s.removeprefix('curate.')}" for s in view["stages"]), "kept", "kept %"]
    heads += ["Mchars", "most dropped for"]
    table = [heads]
    for row in [*view["groups"], {"group": ["total"] + [""] * (len(view["by"]) - 1), **view["total"]}]:
        share = 100 * row["kept"] / row["documents"] if row["documents"] else 0.0
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in list(row["reasons"].items())[:TOP_REASONS])
        lost = [f"{row['lost'].get(stage, 0):,}" for stage in view["stages"]]
        chars = f"{row['kept_chars'] / 1e6:.2f}"
        table.append(
            [*row["group"], f"{row['documents']:,}", *lost, f"{row['kept']:,}", f"{share:.1f}", chars, reasons]
        )
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    names = len(view["by"])
    lines = []
    for line in table:
        cells = [c.ljust(w) if i < names else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join([*cells[:-1], line[-1]]).rstrip())
    return "\n".join(lines)
