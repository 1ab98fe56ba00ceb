"""Resident memory of the extraction process over many pages, with recycling: the curve of a leak that stays bounded.

Usage: python benchmarks/extract_memory.py --warc 'GLOB' [--pages 100000] [--engine NAME] [--recycle N] [--json]

The pages of the archives go round and round through one `curate.sandbox.Sandbox`. Memory is the resident set that the
kernel reports for the living extraction process after every `--every` pages, and for this process.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curate_side import pages_of


def resident_mib(pid: int | None) -> float | None:
    """Resident set of a process in MiB; None where it has ended or /proc is missing."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    return None


def curve(paths: Sequence[str], pages: int, every: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A point after every `every` pages: pages, MiB of both processes, processes started so far."""
    from gristmill.curate.language import find_model
    from gristmill.curate.sandbox import Job, Sandbox
    from gristmill.curate.schema import Extract

    held = [Job(page.html, page.content_type) for page in pages_of(paths)]
    if not held:
        sys.exit("these archives hold no HTML page")
    jobs = ((number, held[number % len(held)]) for number in itertools.count(1))
    with Sandbox(Extract.model_validate(dict(settings)), find_model()) as sandbox:
        for number, _ in sandbox.map(itertools.islice(jobs, pages)):
            if number % every == 0 or number == pages:
                child, own = resident_mib(sandbox.pid), resident_mib(os.getpid())
                yield {"pages": number, "extraction_mib": child, "own_mib": own, "processes": sandbox.started}


def bound(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest resident set of the first and of the second half, and whether the second is at most a tenth larger."""
    known = [p["extraction_mib"] for p in points if p["extraction_mib"] is not None]
    half = len(known) // 2
    if not half:
        return {"first_half_mib": None, "second_half_mib": None, "bounded": None}
    first, second = max(known[:half]), max(known[half:])
    return {"first_half_mib": first, "second_half_mib": second, "bounded": second <= 1.1 * first}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warc", required=True, metavar="GLOB")
    parser.add_argument("--pages", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=990, help="not a divisor of the recycling, where no process lives")
    parser.add_argument("--engine", default="trafilatura")
    parser.add_argument("--recycle", type=int, help="pages per extraction process (default: the recipe's)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    settings: dict[str, Any] = {"engine": args.engine}
    if args.recycle:
        settings["recycle_pages"] = args.recycle
    points = []
    for point in curve(sorted(glob.glob(args.warc, recursive=True)), args.pages, args.every, settings):
        points.append(point)
        if not args.json:
            print("{pages:8d} pages  {extraction_mib} MiB  own {own_mib} MiB  process {processes}".format(**point))
            sys.stdout.flush()
    found = {**settings, **bound(points), "points": points}
    print(json.dumps(found) if args.json else {k: v for k, v in found.items() if k != "points"})


if __name__ == "__main__":
    main()
