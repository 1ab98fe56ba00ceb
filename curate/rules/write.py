"""Writes a fitted table as YAML, JSON or CSV, by the ending of its name; `curate.rules.tables` reads all three."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

KINDS = (".yaml", ".yml", ".json", ".csv")


def write_table(path: Path, languages: dict[str, dict[str, Any]], about: str) -> None:
    """`path` ends with one of KINDS; `about` is left out of CSV, which has no place for it."""
    text = {".json": _json, ".csv": _csv}.get(path.suffix, _yaml)(languages, about)
    path.write_text(text, encoding="utf-8", newline="")


def _json(languages: dict[str, dict[str, Any]], about: str) -> str:
    return json.dumps({"gristmill": 1, "about": about, "languages": languages}, ensure_ascii=False, indent=1) + "\n"


def _yaml(languages: dict[str, dict[str, Any]], about: str) -> str:
    lines = ["gristmill: 1", f"about: {_flow(about)}", "languages:" + ("" if languages else " {}")]
    for label, entry in languages.items():
        lines.append(f"  {_flow(label)}:" + ("" if entry else " {}"))
        for key, value in entry.items():
            if isinstance(value, dict):
                lines.append(f"    {key}:" + ("" if value else " {}"))
                lines += [f"      {name}: {_flow(item)}" for name, item in value.items()]
            else:
                lines.append(f"    {key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """JSON on one line, which YAML reads alike; keys of n-gram tables are whole numbers."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _csv(languages: dict[str, dict[str, Any]], about: str) -> str:
    rows = {label: dict(_cells(entry, ())) for label, entry in languages.items()}
    header = list(dict.fromkeys(key for cells in rows.values() for key in cells))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["language", *header])
    for label, cells in rows.items():
        writer.writerow([label, *(cells.get(key, "") for key in header)])
    return out.getvalue()


def _cells(at: dict[str, Any], path: tuple[str, ...]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in at.items():
        here = (*path, str(key))
        if isinstance(value, dict):
            out += _cells(value, here)
        elif isinstance(value, list):
            out.append((".".join(here), " ".join(value)))
        else:
            out.append((".".join(here), "off" if value is None else str(value)))
    return out
