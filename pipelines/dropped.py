"""Dropped documents, readable: seeded samples by reason, each with its value, its threshold and the text they describe."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from gristmill.core.docshards import read_batches
from gristmill.core.errors import UsageError
from gristmill.core.hashing import hash64
from gristmill.core.printable import printable
from gristmill.curate.imports_text import MALFORMED
from gristmill.pipelines.explained import texts_judged
from gristmill.pipelines.fates import FATE_SCHEMA, Fates
from gristmill.pipelines.views import manifests

IMPORTS = "imports.text"
VERDICT = ("reason", "value", "threshold")
_NOTHING = dict.fromkeys(FATE_SCHEMA.names)


def reasons(root: Path) -> list[tuple[str, str, int]]:
    """(stage, reason, documents) of every drop, most frequent first within a stage.

    Rows that `imports.text` quarantined are among them: they are in its drops.parquet, too.
    """
    out = []
    for stage, manifest in manifests(root).items():
        total = manifest.total()
        counts = dict(total["drops"] or {})
        if stage == IMPORTS:
            counts |= {reason: n for reason, n in total["notes"].items() if reason in MALFORMED}
        for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            out.append((stage, reason, n))
    return out


def in_family(reason: str, wanted: str) -> bool:
    """Whether `wanted` names a reason: itself, or a family of reasons (`gopher` and `gopher.*` have `gopher.hashes`)."""
    return reason == wanted or reason.startswith(wanted.removesuffix("*").removesuffix(".") + ".")


def sample_of(root: Path, wanted: str, count: int, seed: int, chars: int) -> list[dict[str, Any]]:
    """A seeded sample of a reason's or a family's documents, the same from any number of workers.

    Rows of FATE_SCHEMA with "file" (of imported ones the "row" of it, from 0; they have no text), "text_version" and the first `chars` characters of that "text": the one whose value
    the rule compared. Raises UsageError where nothing was dropped so.
    """
    held: list[tuple[int, str, dict[str, Any]]] = []
    for row in _dropped(root):
        if in_family(row["reason"], wanted):
            _keep(held, row, count, seed)
    if not held:
        known = [r for _, r, _ in reasons(root)]
        if any(in_family(r, wanted) for r in known):
            raise UsageError(f"{wanted} drops records that are no documents", hint="its count is in `gristmill show`")
        raise UsageError(
            f"nothing was dropped as {wanted!r}", hint=f"reasons here: {', '.join(sorted(set(known))) or 'none'}"
        )
    return _with_texts(root, _ranked(held), chars)


def samples(root: Path, count: int, seed: int, chars: int) -> dict[str, list[dict[str, Any]]]:
    """`count` documents of every reason, as `sample_of` gives them, in the order of the line. Memory: the samples."""
    held: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
    for row in _dropped(root):
        _keep(held.setdefault(row["reason"], []), row, count, seed)
    order = dict.fromkeys(reason for _, reason, _ in reasons(root))
    rows = _with_texts(root, [row for reason in order if reason in held for row in _ranked(held[reason])], chars)
    return {reason: [row for row in rows if row["reason"] == reason] for reason in order if reason in held}


def _dropped(root: Path) -> Iterator[dict[str, Any]]:
    found = Fates(root)
    for file in found.files():
        table = found.table(file)
        for batch in table.filter(table["reason"].is_valid()).to_batches(4096):
            for row in batch.to_pylist():
                yield {"file": file, **row}
    known = manifests(root)
    for receipt in known[IMPORTS].receipts if IMPORTS in known else []:
        for batch in read_batches(receipt.output("drops.parquet"), ["id", "url", *VERDICT, "warc_offset"]):
            for row in batch.to_pylist():
                number = row.pop("warc_offset")
                yield {**_NOTHING, "file": receipt.key, "stage": IMPORTS, **row, "row": number}


def _keep(held: list[tuple[int, str, dict[str, Any]]], row: dict[str, Any], count: int, seed: int) -> None:
    """Keep the `count` rows of the smallest hash of (id, seed): a sample that no order of rows changes."""
    heapq.heappush(held, (-hash64(row["id"], seed), row["id"], row))
    if len(held) > count:
        heapq.heappop(held)


def _ranked(held: list[tuple[int, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [row for _, _, row in sorted(held, key=lambda item: (-item[0], item[1]))]


def _with_texts(root: Path, rows: list[dict[str, Any]], chars: int) -> list[dict[str, Any]]:
    judged = texts_judged(root, [(row["file"], row["id"], row["reason"]) for row in rows], chars)
    found = [judged.get((row["file"], row["id"]), (None, "")) for row in rows]
    return [{**row, "text_version": v, "text": text} for row, (v, text) in zip(rows, found, strict=True)]


def render(row: dict[str, Any]) -> str:
    version = f" of the {row['text_version']} text" if row["value"] is not None and row["text_version"] else ""
    place = printable(row["file"]) + (f" row {row['row']}" if "row" in row else "")
    head = f"{row['reason']}{_against(row)}{version}  {printable(row['url'] or '')}  [{place}]  {row['id']}"
    text = printable(" ".join(row["text"].split()))
    return head + (f"\n    {text}" if text else "")


def _against(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return ""
    return f" {row['value']:.6g}" + (f" against {row['threshold']:.6g}" if row["threshold"] is not None else "")


def lines(found: dict[str, list[dict[str, Any]]]) -> bytes:
    """The samples as JSON lines."""
    import orjson

    return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for rows in found.values() for row in rows)


def section(found: dict[str, list[dict[str, Any]]], counts: dict[str, int]) -> str:
    """The samples as HTML, a heading per reason; every text is escaped."""
    parts = ["<h2>Dropped documents</h2>"]
    for reason, rows in found.items():
        parts.append(f"<h3>{escape(reason)} ({counts.get(reason, 0):,})</h3>")
        for row in rows:
            head = f"{escape(row['url'] or row['id'])} {escape(row['language'] or '')}{escape(_against(row))}"
            version = f" ({row['text_version']} text)" if row["text_version"] else ""
            parts.append(
                f'<details open><summary>{head}{version}</summary><p class="sample">{escape(row["text"])}</p></details>'
            )
    return "".join(parts)
