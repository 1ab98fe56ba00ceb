"""Reading a root: stages with their ledgers, status, what differs between two roots, and what can be cleaned."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import digest
from gristmill.core.manifest import Manifest, drop_manifest, read_manifest, stage_folder
from gristmill.pipelines.graph import REGISTRY
from gristmill.pipelines.lease import holder

SHOW_FIELDS = (
    "stage",
    "digest",
    "complete",
    "tasks",
    "rows_in",
    "rows_out",
    "drops",
    "quarantined",
    "notes",
    "seconds",
    "outputs",
)


def manifests(root: Path) -> dict[str, Manifest]:
    """Every stage that has a manifest, in the order of the line. Raises UsageError when the root has none."""
    found = {}
    for name in REGISTRY:
        manifest = read_manifest(root, name)
        if manifest is not None:
            found[name] = manifest
    if not found:
        raise UsageError(f"{root} holds no finished stage", hint="gristmill run RECIPE --root DIR")
    return found


def show(root: Path, *, by_file: bool = False) -> dict[str, Any]:
    """`{"stages": [...]}` with each stage's ledger; with `by_file`, each stage's `files` and a list of `files` too."""
    stages, files = [], {}  # type: ignore[var-annotated]
    for name, manifest in manifests(root).items():
        total = manifest.total()
        entry = {key: total[key] for key in SHOW_FIELDS}
        if by_file:
            entry["files"] = [
                {
                    "file": r.key,
                    "digest": digest(r.content),
                    "rows_in": r.rows_in,
                    "rows_out": r.rows_out,
                    "drops": r.drops,
                    "quarantined": r.quarantined,
                    "notes": r.notes,
                    "outputs": [s.path for s in r.outputs],
                }
                for r in manifest.receipts
            ]
            for row in entry["files"]:
                files.setdefault(row["file"], []).append({"stage": name, **row})
        stages.append(entry)
    out: dict[str, Any] = {"format": "gristmill-show-1", "root": str(root), "stages": stages}
    if by_file:
        out["files"] = [{"file": name, "stages": rows} for name, rows in sorted(files.items())]
    return out


def render_show(view: dict[str, Any]) -> str:
    """The ledger as a table: rows in and out, then every reason with its count."""
    lines = [f"{'stage':<20} {'tasks':>5} {'rows in':>11} {'rows out':>11} {'dropped':>9} {'quarant.':>8}  digest"]
    for s in view["stages"]:
        dropped = "-" if s["drops"] is None else f"{sum(s['drops'].values()):,}"
        lines.append(
            f"{s['stage']:<20} {s['tasks']:>5,} {s['rows_in']:>11,} {s['rows_out']:>11,} {dropped:>9} "
            f"{s['quarantined']:>8,}  {s['digest'][:12]}{'' if s['complete'] else '  INCOMPLETE'}"
        )
        for reason, n in sorted((s["drops"] or {}).items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"{'':<20}       {reason:<36} {n:>9,}")
        lines += [f"{'':<20}       {line}" for line in _note_lines(s["notes"])]
        for f in s.get("files", []):
            dropped = "-" if f["drops"] is None else f"{sum(f['drops'].values()):,}"
            lines.append(
                f"  {f['file'][-40:]:<40} in {f['rows_in']:,} out {f['rows_out']:,} dropped {dropped} quarantined {f['quarantined']:,}"
            )
    return "\n".join(lines)


def _note_lines(notes: dict[str, int]) -> list[str]:
    """Notes, those of one family with one count on one line: `rule_not_applied.` may name dozens of rules."""
    families: dict[tuple[str, int], list[str]] = {}
    for note, n in sorted(notes.items()):
        head, _, rest = note.partition(".") if note.startswith("rule_not_applied.") else (note, "", "")
        families.setdefault((head, n), []).append(rest)
    out = []
    for (head, n), names in families.items():
        if len(names) == 1:
            label = f"{head}.{names[0]}" if names[0] else head
        else:
            label = f"{head}: {len(names)} kinds, {', '.join(names[:2])} …"
        out.append(f"note {label:<60} {n:>9,}")
    return out


def status_of(root: Path) -> dict[str, Any]:
    """Holder, last run and stages, for `gristmill status`."""
    last = None
    runs = sorted((p for p in (root / "runs").glob("*") if p.name.isdigit()), reverse=True)
    for folder in runs[:1]:
        with contextlib.suppress(OSError, ValueError):
            data = orjson.loads((folder / "run.json").read_bytes())
            last = {
                "number": int(folder.name),
                "outcome": data.get("outcome", "running or killed"),
                "started": data.get("started"),
                "finished": data.get("finished"),
                "argv": data.get("argv"),
            }
    stages = []
    for name in REGISTRY:
        with contextlib.suppress(FormatError):
            manifest = read_manifest(root, name)
            if manifest is not None:
                stages.append({"stage": name, "tasks": len(manifest.receipts), "complete": manifest.complete})
    return {"format": "gristmill-status-1", "holder": holder(root), "last_run": last, "stages": stages}


def diff_roots(one: Path, two: Path) -> list[dict[str, Any]]:
    """Stages whose digests differ between two roots, with the counts that differ."""
    left, right = manifests(one), manifests(two)
    out = []
    for name in [n for n in REGISTRY if n in left or n in right]:
        a, b = left.get(name), right.get(name)
        if a is None or b is None:
            out.append({"stage": name, "same": False, "only_in": str(one if b is None else two)})
            continue
        ta, tb = a.total(), b.total()
        counts = {k: [ta[k], tb[k]] for k in ("rows_in", "rows_out", "quarantined", "tasks") if ta[k] != tb[k]}
        da, db = ta["drops"] or {}, tb["drops"] or {}
        drops = {k: [da.get(k, 0), db.get(k, 0)] for k in sorted({*da, *db}) if da.get(k, 0) != db.get(k, 0)}
        by_key = {r.key: r.content for r in b.receipts}
        files = sorted(
            {r.key for r in a.receipts if by_key.get(r.key) != r.content} | (set(by_key) - {r.key for r in a.receipts})
        )
        out.append({"stage": name, "same": a.digest == b.digest, "counts": counts, "drops": drops, "files": files})
    return out


def clean_root(root: Path, *, everything: bool, delete: bool) -> tuple[int, int]:
    """Remove what no manifest names, or all of it. Returns (folders, bytes). Raises UsageError when it is no root.

    A stage whose manifest is absent, damaged or incomplete keeps every finished task: an interrupted run goes on from
    them. So do unfinished tasks with checkpoints.
    """
    if not (root / "stages").is_dir():
        raise UsageError(f"{root} is not the root of a run", hint="it has no `stages` folder")
    folders = size = 0
    for name in REGISTRY:
        base = stage_folder(root, name)
        keep = None if everything else _current_tasks(root, name)
        for folder in sorted(base.iterdir()) if base.is_dir() else []:
            if not folder.is_dir() or folder.is_symlink():
                continue
            leftovers = list(folder.glob(".tmp-*"))
            done = (folder / "receipt.json").exists()
            unfinished = not done and (folder / "work").is_dir()
            stale = (
                everything or (not done and not unfinished) or (done and keep is not None and folder.name not in keep)
            )
            for path in [folder] if stale else leftovers:
                folders += path == folder
                size += sum(f.lstat().st_size for f in [path, *path.rglob("*")] if f.is_file())
                if delete:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        if everything and delete:
            drop_manifest(root, name)
    return folders, size


def _current_tasks(root: Path, stage: str) -> set[str] | None:
    """Task ids that a complete manifest names; None when there is none to go by."""
    try:
        manifest = read_manifest(root, stage)
    except FormatError:
        return None
    return {r.task for r in manifest.receipts} if manifest is not None and manifest.complete else None
