"""Time curation beside datatrove's published FineWeb configuration: reading, rules, and archives to decided documents.

Usage: python benchmarks/curate.py --warc 'GLOB' [--json] [--rounds 3] [--gold DIR] [--texts DIR] [--only read,rules,end]

The two sides run in turn, each a fresh process of its own interpreter over the same files; figures are CPU seconds,
user and system, children included, medians over the rounds. The peer's environment is made by `make parity` if it is
missing. Ratios above 1 say that ours is faster. With --json one object on stdout; progress goes to stderr.

Rules are timed on the English texts that our default engine takes from the archives, then on DIR/en-*.jsonl.zst of
--texts (default: the folder `text` beside the archives' tree, if there is one): cold is the first pass of a process
with compiled kernels cached and libraries loaded, warm the second.

What a machine does once and keeps, compiling the kernels and hashing datatrove's domains, is done first, in a cache of
this benchmark's own, and reported apart as `compile_seconds` and `lists_seconds`.
"""

from __future__ import annotations

import argparse
import glob
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
PARITY = REPO / ".venv-parity"
ENOUGH = 1_500
"""English documents that a rules figure should rest on; the report says how many there were."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
Result = dict[str, Any]


def peer_python() -> Path:
    """The peer's interpreter. Runs `make parity` when it is not there. Raises SystemExit when that fails."""
    python = PARITY / "bin" / "python"
    if not (PARITY / ".gristmill").exists():
        say("making the peer's environment (make parity)")
        if subprocess.run(["make", "parity"], cwd=REPO, stdout=sys.stderr).returncode:
            raise SystemExit("`make parity` failed: without the peer there is nothing to compare with")
    return python


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_side(python: Path, script: str, mode: str, inputs: Path, result: Path, *options: str, **extra: str) -> Result:
    """One process of one side. Raises SystemExit with the end of its stderr when it fails."""
    command = [str(python), str(HERE / script), mode, str(inputs), str(result), *options]
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1"), "OMP_WAIT_POLICY": "passive", **extra}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{script} {mode} {' '.join(options)} failed:\n{done.stderr[-3000:]}")
    found: Result = json.loads(result.read_text())
    return found


def medians(rounds: Sequence[Mapping[str, Any]], *names: str) -> dict[str, float]:
    """Median over the rounds of each named number that every round has."""
    there = [n for n in names if rounds and all(isinstance(r.get(n), int | float) for r in rounds)]
    return {name: round(statistics.median(float(r[name]) for r in rounds), 4) for name in there}


def ratio(ours: float | None, peer: float | None) -> float | None:
    """How many times faster ours is; None where a side was not timed."""
    return round(peer / ours, 2) if ours and peer else None


def different(ours: Result, peer: Result) -> list[list[Any]]:
    """[document, our reason, the peer's under our name] where verdict, first reason or kept text differ."""
    names: Mapping[str, str] = ours["names"]
    found = []
    for i, (mine, (step, reason, mark)) in enumerate(zip(ours["verdicts"], peer["verdicts"], strict=True)):
        named = None if step is None else names.get(f"{step}:{reason}", f"{step}:{reason}")
        if mine != [named, mark]:
            found.append([i, mine[0] or "kept", named or ("kept" if mine[0] else "kept, another text")])
    return found


def more_texts(folder: Path) -> list[str]:
    """The `text` fields of DIR/en-*.jsonl.zst, in name order."""
    import zstandard

    texts = []
    for path in sorted(folder.glob("en-*.jsonl.zst")):
        with path.open("rb") as raw:
            lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8")
            texts += [row["text"] for row in map(json.loads, lines) if row.get("text")]
    return texts


def beside(paths: Sequence[str], name: str) -> Path | None:
    """A folder called `name` beside any of the folders above the archives, four levels up at most."""
    for parent in list(Path(paths[0]).resolve().parents)[:4]:
        if (parent / name).is_dir():
            return parent / name
    return None


def engines(default: str, wanted: Sequence[str]) -> dict[str, str]:
    """role -> engine, for the roles `default`, `fast` and others by their own name, of those that the schema knows."""
    from gristmill.core.errors import GristmillError
    from gristmill.pipelines.schema import load_recipe

    found = {"default": default}
    for i, name in enumerate(wanted):
        try:
            load_recipe("web", ["input.paths=[x]", f"curate.extract.engine={name}"])
        except GristmillError as error:
            say(f"engine {name} is left out: {error}")
        else:
            found["fast" if i == 0 else name] = name
    return found


def token_f1(gold: Path | None, wanted: Mapping[str, str]) -> dict[str, Any] | None:
    """Token F1 on gold/fulltext of every engine and the peer's setting, by `benchmarks/extract.py` in this same run."""
    script = HERE / "extract.py"
    if gold is None or not script.exists():
        return None
    done = subprocess.run(
        [sys.executable, str(script), "--gold", str(gold), "--json", "--settings", "peer", *set(wanted.values())],
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
    )
    if done.returncode:
        return {"error": "benchmarks/extract.py failed"}
    table: dict[str, Any] = json.loads(done.stdout)
    return {role: (table.get(name) or {}).get("f1") for role, name in {**wanted, "peer": "peer"}.items()}


def summary(runs: Mapping[str, Mapping[str, list[Result]]], roles: Mapping[str, str]) -> dict[str, Any]:
    """The figures from all results: runs[side][what] is a list of rounds."""
    ours, peer = runs["gristmill"], runs["datatrove"]

    def of(side: Mapping[str, list[Result]], what: str, *names: str) -> dict[str, float]:
        return medians(side.get(what, []), *names)

    seconds = {
        "gristmill": {
            **{f"rules_{k}": v for k, v in of(ours, "rules", "cold", "warm", "load", "every_metric_cold", "every_metric_warm").items()},
            **{k.replace("seconds", "reading"): v for k, v in of(ours, "read", "seconds", "seconds_with_charset").items()},
            **{f"end_to_end_{role}": of(ours, f"end {role}", "seconds").get("seconds") for role in roles if f"end {role}" in ours},
        },
        "datatrove": {
            **{f"rules_{k}": v for k, v in of(peer, "rules", "cold", "warm", "load").items()},
            **{k.replace("seconds", "reading"): v for k, v in of(peer, "read", "seconds").items()},
            **{k.replace("seconds", "end_to_end"): v for k, v in of(peer, "end", "seconds").items()},
        },
    }  # fmt: skip
    mine, theirs = seconds["gristmill"], seconds["datatrove"]
    ends = {role: ratio(mine.get(f"end_to_end_{role}"), theirs.get("end_to_end")) for role in roles}
    first = {what: rounds[0] for what, rounds in ours.items() if rounds}
    pages = first.get("end default", {}).get("documents")
    peer_end = peer["end"][0] if peer.get("end") else {}

    def per_second(s: float | None) -> float | None:
        return round(pages / s, 1) if pages and s else None

    last = {what: rounds[-1] for what, rounds in ours.items()} | {"peer": peer_end}
    return {
        "rules_warm": ratio(mine.get("rules_warm"), theirs.get("rules_warm")),
        "rules_cold": ratio(mine.get("rules_cold"), theirs.get("rules_cold")),
        "rules_every_metric_warm": ratio(mine.get("rules_every_metric_warm"), theirs.get("rules_warm")),
        "rules_every_metric_cold": ratio(mine.get("rules_every_metric_cold"), theirs.get("rules_cold")),
        "end_to_end_default": ends.get("default"),
        "end_to_end_fast": ends.get("fast"),
        "end_to_end": {engine: ends[role] for role, engine in roles.items()},
        "reading": ratio(mine.get("reading"), theirs.get("reading")),
        "reading_with_charset": ratio(mine.get("reading_with_charset"), theirs.get("reading")),
        "docs_per_s_core": per_second(mine.get("end_to_end_default")),
        "docs_per_s_core_by_engine": {e: per_second(mine.get(f"end_to_end_{role}")) for role, e in roles.items()},
        "peer_docs_per_s_core": per_second(theirs.get("end_to_end")),
        "pages": pages,
        "kept": first.get("end default", {}).get("kept"),
        "kept_by_engine": {e: first[f"end {role}"]["kept"] for role, e in roles.items() if f"end {role}" in first},
        "peer_kept": peer_end.get("kept"),
        "peer_timeouts": peer_end.get("timeouts"),
        "seconds": seconds,
        "where_time_goes": {what: r["where"] for what, r in last.items() if "where" in r},
        "floor_seconds": {k: v for k, v in last.get("floor", {}).items() if isinstance(v, float)},
        "compile_seconds": last.get("compile", {}).get("seconds"),
        "lists_seconds": last.get("compile", {}).get("lists_seconds"),
        "peak_kb": {
            side: {w: {k: max(r[k] for r in rs) for k in ("own_peak_kb", "child_peak_kb")} for w, rs in found.items() if rs}
            for side, found in runs.items()
        },
        "isal": {side: next((rs[0]["isal"] for rs in found.values() if rs), None) for side, found in runs.items()},
    }  # fmt: skip


def measure(args: argparse.Namespace, paths: Sequence[str], scratch: Path) -> dict[str, Any]:
    python, peer = Path(sys.executable), peer_python()
    archives, texts, result = scratch / "archives.txt", scratch / "texts.jsonl", scratch / "result.json"
    archives.write_text("".join(f"{Path(path).resolve()}\n" for path in paths))
    only = set(args.only.split(","))
    roles = engines(args.default, [e for e in args.engines.split(",") if e]) if "end" in only else {}
    changes = [f"--set={change}" for change in args.set]
    runs: dict[str, dict[str, list[Result]]] = {"gristmill": {}, "datatrove": {}}

    kept = {"NUMBA_CACHE_DIR": str(scratch / "numba"), "XDG_CACHE_HOME": str(scratch / "cache")}

    def ours(what: str, mode: str, inputs: Path, *options: str) -> Result:
        found = run_side(python, "curate_side.py", mode, inputs, result, *options, **kept)
        runs["gristmill"].setdefault(what, []).append(found)
        say(f"  gristmill {what}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items() if isinstance(v, float)))
        return found

    def theirs(mode: str, inputs: Path) -> Result:
        found = run_side(peer, "peer_curate.py", mode, inputs, result)
        runs["datatrove"].setdefault(mode, []).append(found)
        say(f"  datatrove {mode}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items() if isinstance(v, float)))
        return found

    ours("compile", "compile", archives)
    ours("floor", "floor", archives)
    n_pages = n_more = 0
    if "rules" in only:
        say("English texts of the archives, by the default engine")
        run_side(python, "curate_side.py", "end", archives, result, *changes, **kept)
        lines = result.with_suffix(".texts.jsonl").read_text().splitlines(keepends=True)
        more = more_texts(args.texts) if args.texts else []
        n_pages, n_more = len(lines), len(more)
        limit = args.limit or n_pages + n_more
        texts.write_text("".join([*lines, *(json.dumps({"text": text}) + "\n" for text in more)][:limit]))
    differences: list[list[Any]] = []
    for number in range(args.rounds):
        say(f"round {number + 1} of {args.rounds}")
        if "read" in only:
            ours("read", "read", archives)
            theirs("read", archives)
        if "rules" in only:
            differences = different(ours("rules", "rules", texts), theirs("rules", texts))
        if "end" in only:
            for role, engine in roles.items():
                ours(f"end {role}", "end", archives, f"--set=curate.extract.engine={engine}", *changes)
            theirs("end", archives)
    out = summary(runs, roles)
    n_rules = len(runs["gristmill"]["rules"][0]["verdicts"]) if "rules" in only else 0
    return {
        **out,
        "rules_documents": {"all": n_rules, "of_archives": n_pages, "of_texts": n_more, "enough": n_rules >= ENOUGH},
        "rules_kept": {s: r["rules"][0]["kept"] for s, r in runs.items() if "rules" in r},
        "rules_different": len(differences),
        "rules_differences": differences[:20],
        "f1": token_f1(args.gold, roles) if "end" in only and not args.no_f1 else None,
        "files": len(paths),
        "rounds": args.rounds,
        "engines": roles,
    }


def show(found: Mapping[str, Any]) -> str:
    """A table for people."""
    rows = [
        *((name, found[name]) for name in ("reading", "reading_with_charset", "rules_warm", "rules_cold")),
        *((f"end to end, {engine}", value) for engine, value in found["end_to_end"].items()),
    ]
    lines = [f"{name:28s} x{value}" for name, value in rows if value is not None]
    sides = (
        ("gristmill", found["docs_per_s_core"], found["kept"]),
        ("datatrove", found["peer_docs_per_s_core"], found["peer_kept"]),
    )
    lines += [
        f"{side:28s} {speed} documents/s/core, {kept} of {found['pages']} pages kept" for side, speed, kept in sides
    ]
    rules = found["rules_documents"]["all"]
    return "\n".join([*lines, f"rules: {found['rules_different']} of {rules} documents differ"])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warc", required=True, metavar="GLOB", help="archives, a quoted glob")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gold", type=Path, help="folder with fulltext.jsonl.gz (default: `gold` beside the archives)")
    parser.add_argument("--texts", type=Path, help="folder with en-*.jsonl.zst (default: `text` beside the archives)")
    parser.add_argument("--limit", type=int, default=0, help="texts for the rules, 0 for all")
    parser.add_argument("--only", default="read,rules,end")
    parser.add_argument("--no-f1", action="store_true", help="do not score the engines on the gold texts")
    parser.add_argument("--default", default="trafilatura", metavar="ENGINE")
    parser.add_argument("--engines", default="resiliparse,blocks", help="the fast engine, then others to time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes of our recipe `web`")
    args = parser.parse_args(argv)
    paths = sorted(glob.glob(args.warc, recursive=True))
    if not paths:
        parser.error(f"no file matches {args.warc}")
    args.gold = args.gold or beside(paths, "gold")
    args.texts = args.texts or beside(paths, "text")
    with tempfile.TemporaryDirectory(prefix="gristmill-benchmark-") as scratch:
        found = measure(args, paths, Path(scratch))
    print(json.dumps(found, indent=1, ensure_ascii=False) if args.json else show(found))


if __name__ == "__main__":
    main()
