"""`gristmill diff A B`: which documents two runs over the same input judge differently, and why."""

from __future__ import annotations

import heapq
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from gristmill.core.docshards import read_table
from gristmill.core.hashing import hash64
from gristmill.core.settings import flatten
from gristmill.core.stage import Receipt
from gristmill.pipelines.fates import Fates
from gristmill.pipelines.views import manifests

KEPT, ABSENT, OTHER_TEXT = "kept", "(not there)", "kept, other text"


def compare(one: Path, two: Path, count: int = 3, seed: int = 0) -> dict[str, Any]:
    """{"config", "documents", "same", "changed", "changes": [{"from", "to", "documents", "examples"}]}, commonest first.

    `from` and `to` are "kept", a drop reason, or "(not there)"; "kept, other text" where both keep a document whose
    final text differs. Examples are a seeded sample of `count` documents, with both values and thresholds. Memory: one
    input file of each root.
    """
    left, right, same, total = Fates(one), Fates(two), 0, 0
    changes: Counter[tuple[str, str]] = Counter()
    picks: dict[tuple[str, str], list[tuple[int, str, dict[str, Any]]]] = {}
    for file in dict.fromkeys([*left.files(), *right.files()]):
        for row in _joined(file, left, right):
            total += 1
            pair = row["from"], row["to"]
            if pair[0] == pair[1]:
                same += 1
                continue
            changes[pair] += 1
            held = picks.setdefault(pair, [])
            heapq.heappush(held, (-hash64(row["id"], seed), row["id"], row))
            if len(held) > count:
                heapq.heappop(held)
    found = [
        {
            "from": pair[0],
            "to": pair[1],
            "documents": n,
            "examples": [row for _, _, row in sorted(picks[pair], key=lambda item: (-item[0], item[1]))],
        }
        for pair, n in sorted(changes.items(), key=lambda item: (-item[1], item[0]))
    ]
    return {
        "config": config_changes(one, two),
        "documents": total,
        "same": same,
        "changed": total - same,
        "changes": found,
    }


def config_changes(one: Path, two: Path) -> list[dict[str, Any]]:
    """Settings of the curation stages that differ: {"stage", "setting", "one", "two"}; null where a side has none."""
    left, right = manifests(one), manifests(two)
    out = []
    for stage in dict.fromkeys([*left, *right]):
        if not stage.startswith("curate"):
            continue
        sides = []
        for known in (left, right):
            receipts = known[stage].receipts if stage in known else []
            sides.append({".".join(map(str, k)): v for k, v in flatten(receipts[0].config).items()} if receipts else {})
        for setting in sorted({*sides[0], *sides[1]}):
            a, b = sides[0].get(setting), sides[1].get(setting)
            if a != b and not setting.startswith("keys"):
                out.append({"stage": stage, "setting": setting, "one": a, "two": b})
    return out


def _joined(file: str, left: Fates, right: Fates) -> list[dict[str, Any]]:
    """Every document of one file in either root, with its two fates."""
    sides = [{r["id"]: r for r in f.table(file).to_pylist()} if file in f.pages else {} for f in (left, right)]
    altered = _altered(left.final.get(file), right.final.get(file))
    rows = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = sides[0].get(name), sides[1].get(name)
        before, after = _fate(a), _fate(b)
        if before == after == KEPT and name in altered:
            after = OTHER_TEXT
        known = a or b or {}
        rows.append(
            {
                "id": name,
                "url": known["url"],
                "file": file,
                "language": known["language"],
                "from": before,
                "to": after,
                **{
                    f"{field}_{side}": r and r[field]
                    for side, r in (("one", a), ("two", b))
                    for field in ("value", "threshold")
                },
            }
        )
    return rows


def _fate(row: dict[str, Any] | None) -> str:
    return ABSENT if row is None else row["reason"] or KEPT


def _altered(one: Receipt | None, two: Receipt | None) -> set[str]:
    """Ids of documents that both roots keep with another text."""
    if one is None or two is None:
        return set()
    shards = [receipt.output("documents.parquet") for receipt in (one, two)]
    if shards[0].sha256 == shards[1].sha256:
        return set()
    a, b = (read_table(shard, ["id", "text"]) for shard in shards)
    at = pc.index_in(a["id"], value_set=b["id"].combine_chunks())
    both = a.filter(pc.is_valid(at))
    text = b["text"].combine_chunks().take(at.drop_null())
    return set(both.filter(pc.not_equal(both["text"].combine_chunks(), text.combine_chunks()))["id"].to_pylist())


def render(view: dict[str, Any]) -> str:
    """Changed settings, then each change of verdict with its examples."""
    lines = [f"{c['stage']}  {c['setting']}: {_show(c['one'])} → {_show(c['two'])}" for c in view["config"]]
    lines.append(f"{view['documents']:,} documents, {view['same']:,} judged alike, {view['changed']:,} not")
    for change in view["changes"]:
        lines.append(f"{change['documents']:>9,}  {change['from']} → {change['to']}")
        for row in change["examples"]:
            values = [_value(row, side) for side in ("one", "two")]
            told = "; ".join(f"{name}: {v}" for name, v in zip(("one", "two"), values, strict=True) if v)
            lines.append(f"{'':>11}{row['id']}  {row['url']}" + (f"  ({told})" if told else ""))
    return "\n".join(lines)


def _value(row: dict[str, Any], side: str) -> str:
    value, threshold = row[f"value_{side}"], row[f"threshold_{side}"]
    if value is None:
        return ""
    return f"{value:.6g}" + (f" against {threshold:.6g}" if threshold is not None else "")


def _show(value: Any) -> str:
    return "unset" if value is None else str(value)[:60]
