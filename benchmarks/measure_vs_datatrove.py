"""Time `curate.measure` + `curate.decide` beside datatrove's four FineWeb filters chained, on the same texts and core.

Usage: python benchmarks/measure_vs_datatrove.py TEXTS [--limit N]

TEXTS is a .jsonl or .jsonl.gz file with a `text` per line; with a `lang` field only English lines count. Both sides
take every document to its verdict; ours also stores all metrics. "cold" is the first pass of a process (empty memo),
"warm" the second. Prints documents per second of CPU time, ratios, and how many verdicts differ.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.curate.decide import decide_table
from gristmill.curate.kernels import kernels
from gristmill.curate.measure import measure_batch
from gristmill.curate.rules import RULES
from gristmill.curate.schema import C4, C4Rewrite, FineWeb, Gopher, Language, Rules

BATCH = 256


def read(path: Path, limit: int) -> list[str]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        rows = (json.loads(line) for line in file)
        texts = [row["text"] for row in rows if row.get("lang", "en") == "en" and row["text"]]
    return texts[:limit] if limit else texts


def ours(texts: list[str]) -> list[tuple[str | None, str | None]]:
    """(reason, rewritten text if kept) per text."""
    rules = Rules.model_validate({"gopher@datatrove": Gopher(), "c4@datatrove": C4(), "fineweb@datatrove": FineWeb()})
    out: list[tuple[str | None, str | None]] = []
    for at in range(0, len(texts), BATCH):
        part = texts[at : at + BATCH]
        n = len(part)
        measures = measure_batch(part, ["en"] * n, C4Rewrite(), 30)
        head = {
            "id": pa.array(map(str, range(n))),
            "language": pa.array(["en"] * n),
            "language_score": pa.array([1.0] * n),
        }
        for name, column in head.items():
            measures = measures.append_column(name, column)
        verdicts, _ = decide_table(measures, Language(), rules)
        reasons = verdicts.column("reason").to_pylist()
        out += [(r, None if r else t) for r, t in zip(reasons, measures.column("c4.text").to_pylist(), strict=True)]
    return out


def theirs(texts: list[str]) -> list[tuple[str | None, str | None]]:
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    chain = [
        ("gopher", GopherRepetitionFilter()),
        ("gopher", GopherQualityFilter()),
        ("c4", C4QualityFilter(filter_no_terminal_punct=False)),
        ("fineweb", FineWebQualityFilter()),
    ]
    names = {(rule.name.split(".")[0], rule.datatrove): rule.name for rule in RULES}
    out: list[tuple[str | None, str | None]] = []
    for i, text in enumerate(texts):
        doc = Document(text=text, id=str(i))
        for prefix, step in chain:
            verdict: Any = step.filter(doc)
            if verdict is not True:
                out.append((names[prefix, verdict[1]], None))
                break
        else:
            out.append((None, doc.text))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--limit", type=int, default=0, help="documents, 0 for all")
    args = parser.parse_args()
    texts = read(args.texts, args.limit)
    kernels()  # compiled once per machine, then from numba's cache
    theirs(texts[:1])  # both sides load spaCy outside the clock
    ours(texts[:1])
    seconds: dict[str, float] = {}
    results = {}
    for name, run in (("gristmill cold", ours), ("gristmill warm", ours), ("datatrove", theirs)):
        start = time.process_time()
        results[name] = run(texts)
        seconds[name] = time.process_time() - start
    base = seconds["datatrove"]
    print(
        f"{len(texts)} documents, {sum(map(len, texts)) / 1e6:.2f} M characters, compiled kernels: {kernels().compiled}"
    )
    for name, s in seconds.items():
        print(f"{name:15s} {s:8.2f} s {len(texts) / s:8.0f} docs/s  x{base / s:.1f}")
    mine, peer = results["gristmill warm"], results["datatrove"]
    different = [i for i, (a, b) in enumerate(zip(mine, peer, strict=True)) if a != b]
    print(f"verdicts, reasons or texts that differ: {len(different)}; kept: {sum(r is None for r, _ in peer)}")
    for i in different[:20]:
        print(f"  document {i}: gristmill {mine[i][0]}, datatrove {peer[i][0]}")


if __name__ == "__main__":
    main()
