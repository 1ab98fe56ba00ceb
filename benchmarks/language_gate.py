"""What the language gate loses and saves on real pages: wanted pages refused, and CPU time of pages with and without it.

Usage: python benchmarks/language_gate.py --warc 'crawl/*.warc.gz' [--engine trafilatura] [--json]

A page is wanted when the label and score (greater than 0.65) of its text, extracted with the gate off, say so. For
every page the whole way without the gate (payload bytes to label) and the gate alone are timed in this one process, each
first every other time. With the gate a page costs the gate, and the decoding if it is refused or else the whole way.
"""

from __future__ import annotations

import argparse
import glob
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gristmill.curate.charset import decode_html
from gristmill.curate.extract import page_text
from gristmill.curate.gate import LanguageGate
from gristmill.curate.identify import Identifier
from gristmill.curate.language import find_model
from gristmill.curate.pages import reading_limits
from gristmill.curate.schema import Extract
from gristmill.curate.schema_language import Gate
from gristmill.curate.warc import Damage, Skip, open_warc, page_of, read_records

TEN = ("en", "de", "fr", "es", "it", "nl", "pt", "pl", "sv", "ja")
WANTED = {"en": ("en",), "de": ("de",), "ja": ("ja",), "ten": TEN}
MIN_SCORE = 0.65


@dataclass
class Tally:
    """One wanted set: counts of pages, CPU seconds with and without the gate."""

    wanted: int = 0
    refused: int = 0
    gate: float = 0.0
    with_gate: float = 0.0
    without: float = 0.0
    lost_urls: list[str] = field(default_factory=list)


def pages(patterns: list[str], settings: Extract) -> Iterator[tuple[str, bytes, str]]:
    """(url, payload, Content-Type) of every HTML page."""
    limits = reading_limits(settings)
    for path in sorted({name for pattern in patterns for name in glob.glob(pattern)}):
        with open_warc(path) as stream:
            for record in read_records(stream, path, limits):
                if isinstance(record, Damage):
                    continue
                page = page_of(record, limits)
                if not isinstance(page, Skip):
                    yield page.url, page.html, page.content_type


def plain(body: bytes, kind: str, settings: Extract, identifier: Identifier) -> tuple[str, float, float]:
    """(label, score, CPU seconds) of one page without the gate."""
    start = time.process_time()
    found = page_text(body, kind, settings)
    label, score = identifier.identify([found.text])[0] if found.reason is None else ("", 0.0)
    return label, score, time.process_time() - start


def gated(html: str, gate: LanguageGate) -> tuple[bool, float]:
    """(whether the gate refuses the page, its CPU seconds)."""
    start = time.process_time()
    refused = gate.refuses(html) is not None
    return refused, time.process_time() - start


def measure(patterns: list[str], settings: Extract, gate: Gate) -> tuple[dict[str, Tally], Counter[str]]:
    identifier = Identifier(find_model())
    gates = {name: LanguageGate(gate, labels, identifier) for name, labels in WANTED.items()}
    for one in gates.values():
        one.refuses("<p>A first page. " * 40)
    page_text(b"<article><p>" + b"A first page. " * 40, "text/html", settings)
    tallies = {name: Tally() for name in WANTED}
    languages: Counter[str] = Counter()
    for n, (url, body, kind) in enumerate(pages(patterns, settings)):
        start = time.process_time()
        html, _ = decode_html(body, kind)
        decoding = time.process_time() - start
        if html.count("<") > settings.max_nodes:
            continue
        first = plain(body, kind, settings, identifier) if n % 2 else None
        verdicts = {name: gated(html, one) for name, one in gates.items()}
        label, score, seconds = first or plain(body, kind, settings, identifier)
        languages[label or "no text"] += 1
        for name, (refused, cost) in verdicts.items():
            tally = tallies[name]
            wanted = label in WANTED[name] and score > MIN_SCORE
            tally.wanted += wanted
            tally.refused += refused
            tally.gate += cost
            tally.without += seconds
            tally.with_gate += cost + (decoding if refused else seconds)
            if wanted and refused:
                tally.lost_urls.append(url)
    return tallies, languages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warc", action="append", required=True, metavar="GLOB")
    parser.add_argument("--engine", default="trafilatura")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    gate = Gate()
    tallies, languages = measure(args.warc, Extract(engine=args.engine), gate)
    total = sum(languages.values())
    out: dict[str, Any] = {"pages": total, "engine": args.engine, "gate": gate.model_dump(), "wanted": {}}
    for name, tally in tallies.items():
        out["wanted"][name] = {
            "languages": WANTED[name],
            "wanted_pages": tally.wanted,
            "lost": len(tally.lost_urls),
            "lost_share": len(tally.lost_urls) / max(tally.wanted, 1),
            "refused": tally.refused,
            "ms_per_page_without": 1e3 * tally.without / total,
            "ms_per_page_with": 1e3 * tally.with_gate / total,
            "speedup": tally.without / tally.with_gate,
            "ms_of_gate": 1e3 * tally.gate / total,
            "lost_urls": tally.lost_urls,
        }
    if args.json:
        print(json.dumps(out))
        return
    print(f"{total:,} pages, {args.engine}; languages: {', '.join(f'{k} {v}' for k, v in languages.most_common(12))}")
    print(
        f"{'keep':6} {'wanted':>7} {'lost':>5} {'lost %':>7} {'refused':>8} {'ms off':>7} {'gate':>6} {'ms on':>7} {'faster':>7}"
    )
    for name, row in out["wanted"].items():
        print(
            f"{name:6} {row['wanted_pages']:7,} {row['lost']:5} {100 * row['lost_share']:7.2f} {row['refused']:8,} "
            f"{row['ms_per_page_without']:7.2f} {row['ms_of_gate']:6.2f} {row['ms_per_page_with']:7.2f} {row['speedup']:6.2f}x"
        )


if __name__ == "__main__":
    main()
