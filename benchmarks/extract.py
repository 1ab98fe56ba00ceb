"""Scores every extraction engine and setting on pages with known main text, beside the peer's: token F1 against CPU time.

Usage: python benchmarks/extract.py --gold DIR [--json] [--settings NAME …] [--limit N] [--repeats N]

DIR holds `fulltext.jsonl[.gz]` (id, warc, record_id, collection, text) and, if any, `snippets.jsonl[.gz]` (`with` and
`without`: strings that must and must not appear); the WARC files lie beside it in `../warc/pages`. The peer is trafilatura
1.11 as datatrove calls it, in the environment that `make parity` builds (built here when it is missing). Every setting
runs in a process of its own on the same decoded pages, in turns of 40 pages; milliseconds are CPU time a page over all
pages. Scores: docstrings of `benchmarks/extract_score.py`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extract_score import bag, half_of, scores, snippet_scores

from gristmill.curate.charset import decode_html
from gristmill.curate.engines import BUILTIN
from gristmill.curate.warc import Damage, Limits, Skip, open_warc, page_of, read_records

REPO = Path(__file__).resolve().parents[1]
PEER = REPO / ".venv-parity" / "bin" / "python"
TURN = 40
"""Pages of one setting before the next one's turn."""
PUBLISHED = (
    ("trafilatura 2.3.1 extract", 0.907, 0.892, 0.951),
    ("resiliparse 2.0.1 main_content", 0.861, 0.812, 0.957),
    ("all text", 0.613, 0.484, 0.973),
)
"""Figures of the peers' plain calls on the project's 452 pages, measured apart from this script."""


def settings() -> dict[str, dict[str, Any]]:
    """Every engine at its defaults under its own name, and other settings of it as `engine:mode:favor`."""
    found: dict[str, dict[str, Any]] = {name: {"engine": name} for name in BUILTIN}
    for name, engine in BUILTIN.items():
        for mode in ("fast", "full") if engine.modes else ("fast",):
            for favor in ("balanced", "precision", "recall"):
                if (mode, favor) != ("fast", "balanced"):
                    key = ":".join([name, mode, favor] if engine.modes else [name, favor])
                    found[key] = {"engine": name, "mode": mode, "favor": favor}
    return found


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    for path, opener in ((folder / f"{name}.jsonl.gz", gzip.open), (folder / f"{name}.jsonl", open)):
        if path.exists():
            with opener(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
                return [json.loads(line) for line in file]
    return []


def shuffled(key: str) -> bytes:
    """Sorts pages so that collections are mixed, the same each time."""
    return hashlib.sha256(key.strip("<>").encode()).digest()


def read_pages(folder: Path, wanted: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """record id -> {"html", "url"}, of the WARC files that the rows name. Exits where a page is not found."""
    ids = {row["record_id"].strip("<>") for row in wanted}
    found: dict[str, dict[str, str]] = {}
    for name in sorted({row["warc"] for row in wanted}):
        path = folder.parent / "warc" / "pages" / name
        path = path if path.exists() else next(folder.parent.rglob(Path(name).name), path)
        with open_warc(str(path)) as stream:
            for record in read_records(stream, name, Limits()):
                if isinstance(record, Damage):
                    continue
                page = page_of(record, Limits())
                if not isinstance(page, Skip) and (key := page.record_id.strip("<>")) in ids:
                    html, _ = decode_html(page.html, page.content_type)
                    found[key] = {"html": html.encode("utf-8", "replace").decode(), "url": page.url}
    if missing := ids - found.keys():
        sys.exit(f"{len(missing)} of {len(ids)} pages are not in the WARC files beside {folder}, as {min(missing)}")
    return found


class Runner:
    """A process that extracts pages by number and says how long it took."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._read()
        self.cpu = 0.0
        self.texts: list[str] = []

    def turn(self, start: int, stop: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{start} {stop}\n")
        self.process.stdin.flush()
        answer = self._read()
        self.cpu += answer["cpu"]
        self.texts += answer["texts"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(map(str, self.process.args))[:200]} ended with status {self.process.wait()}")  # type: ignore[arg-type]
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(pages: Path, n: int, chosen: dict[str, dict[str, Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Per setting: the texts of all pages (of the first repeat) and the median over repeats of CPU ms a page."""
    here = Path(__file__).parent
    ms: dict[str, list[float]] = {name: [] for name in chosen}
    out: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        runners = {}
        for name, extract in chosen.items():
            own = [sys.executable, str(here / "extract_runner.py"), str(pages), json.dumps(extract)]
            runners[name] = Runner([str(PEER), str(here / "peer_extract.py"), str(pages)] if name == "peer" else own)
        for number, start in enumerate(range(0, n, TURN)):
            order = list(runners)
            order = order[number % len(order) :] + order[: number % len(order)]
            for name in order:
                runners[name].turn(start, min(start + TURN, n))
        for name, runner in runners.items():
            runner.close()
            ms[name].append(1000 * runner.cpu / n)
            out.setdefault(name, {"texts": runner.texts, "about": runner.about})
    for name, values in ms.items():
        out[name]["ms_per_page"] = statistics.median(values)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gold", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    known = ["peer", *settings()]
    parser.add_argument("--settings", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--limit", type=int, default=0, help="full-text pages and snippet pages taken, 0 for all")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args(argv)
    folder = args.gold.resolve()
    full, snippets = (
        sorted(rows(folder, name), key=lambda row: shuffled(row["record_id"]))[: args.limit or None]
        for name in ("fulltext", "snippets")
    )
    if not full:
        sys.exit(f"{folder} holds no fulltext.jsonl or fulltext.jsonl.gz")
    if "peer" in args.settings and not PEER.exists():
        subprocess.run(["make", "parity"], cwd=REPO, check=True, stdout=sys.stderr)
    html = read_pages(folder, [*full, *snippets])
    order = sorted(html, key=shuffled)
    place = {key: i for i, key in enumerate(order)}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pages.jsonl"
        path.write_text("".join(json.dumps({"html": html[key]["html"]}) + "\n" for key in order), encoding="utf-8")
        chosen = {name: ({} if name == "peer" else settings()[name]) for name in args.settings}
        measured = measure(path, len(order), chosen, args.repeats)
    gold = [bag(row["text"]) for row in full]
    groups = {
        "collection": [row["collection"] for row in full],
        "half": [half_of(html[row["record_id"].strip("<>")]["url"]) for row in full],
    }
    report: dict[str, Any] = {}
    for name, got in measured.items():
        texts = got["texts"]
        mine = [texts[place[row["record_id"].strip("<>")]] for row in full]
        report[name] = {**scores(mine, gold, groups), "ms_per_page": round(got["ms_per_page"], 2)}
        if snippets:
            mine = [texts[place[row["record_id"].strip("<>")]] for row in snippets]
            report[name]["snippets"] = snippet_scores(mine, snippets)
        report[name]["versions"] = got["about"]["versions"]
    if args.json:
        print(json.dumps(report))
    else:
        table(report, len(full), len(snippets), len(order))


def table(report: dict[str, Any], full: int, snippets: int, pages: int) -> None:
    """The scores, fastest first, the peers' figures, and F1 by collection and half."""
    print(f"{full} pages with full text, {snippets} with snippets; CPU milliseconds over {pages} pages")
    print(f"{'setting':28s} {'F1':>6s} {'P':>6s} {'R':>6s} {'ms':>7s} {'x peer':>7s}  snippets P/R")
    peer = report.get("peer", {}).get("ms_per_page")
    by_speed = sorted(report.items(), key=lambda item: item[1]["ms_per_page"])
    best = 0.0
    for name, r in by_speed:
        frontier, best = "*" if r["f1"] > best else " ", max(best, r["f1"])
        ratio = f"{peer / r['ms_per_page']:7.1f}" if peer else "      -"
        found = r.get("snippets")
        pair = f"{found['precision']:.3f}/{found['recall']:.3f}" if found else ""
        print(
            f"{name:27s}{frontier} {r['f1']:6.3f} {r['precision']:6.3f} {r['recall']:6.3f} {r['ms_per_page']:7.2f} {ratio}  {pair}"
        )
    print("* no faster setting has a higher F1")
    for name, f1, precision, recall in PUBLISHED:
        print(f"  {name:40s} {f1:6.3f} {precision:6.3f} {recall:6.3f}  plain call, measured apart on 452 pages")
    for kind in ("collection", "half"):
        names = sorted(next(iter(report.values()))[kind])
        print(f"F1 by {kind:18s}" + "".join(f"{name[:11]:>12s}" for name in names))
        for name, r in by_speed:
            print(f"{name:24s}" + "".join(f"{r[kind][group]['f1']:12.3f}" for group in names))


if __name__ == "__main__":
    main()
