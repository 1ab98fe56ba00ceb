"""The WARC reader against real archives: odd ones, crawls, pages; no worse than warcio and fastwarc on any file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_helper import shared_data

from gristmill.curate.http_body import is_html, parse_response
from gristmill.curate.warc import Damage, Limits, Page, Record, open_warc, page_of, read_records
from gristmill.curate.warc_parse import parse_arc_line, parse_warc_header

LIMITS = Limits()
COMPARED = ("response", "resource", "revisit")
EXCEPTIONS = json.loads(Path(__file__).with_name("odd_exceptions.json").read_text())


def read_all(path: Path) -> list[Record | Damage]:
    with open_warc(str(path)) as stream:
        return list(read_records(stream, path.name, LIMITS))


def index(folder: str) -> list[tuple[Path, dict[str, Any]]]:
    root = shared_data(f"warc/{folder}")
    rows = [json.loads(line) for line in (root / "index.jsonl").read_text().splitlines()]
    return [(root / row["file"], row) for row in rows]


def peers(row: dict[str, Any], kind: str) -> int:
    return max(int(row[peer]["records"].get(kind, 0)) for peer in ("warcio", "fastwarc"))


@pytest.mark.parametrize("folder", ["odd", "crawl"])
def test_counts_reach_the_better_peer(folder: str) -> None:
    used = []
    for path, row in index(folder):
        rows = read_all(path)
        kinds = Counter(r.kind for r in rows if isinstance(r, Record))
        for kind in COMPARED:
            if kinds[kind] >= peers(row, kind):
                continue
            found = [e for e in EXCEPTIONS if e["file"] == path.name and e["kind"] == kind]
            assert found, f"{path.name}: {kinds[kind]} {kind} records, a peer has {peers(row, kind)}"
            entry = found[0]
            used.append(entry)
            assert (entry["records"], entry["peers"]) == (kinds[kind], peers(row, kind))
            damage = [r for r in rows if isinstance(r, Damage) and r.offset == entry["offset"]]
            assert [(d.reason, d.kind) for d in damage] == [(entry["reason"], kind)]
            assert damage[0].offset + damage[0].length == entry["byte"] == path.stat().st_size
    if folder == "odd":
        assert all(e in used for e in EXCEPTIONS), "an exception that explains nothing"


@pytest.mark.parametrize("folder", ["odd", "crawl"])
def test_html_counts_reach_the_better_peer(folder: str) -> None:
    """HTML of any status, as the peers counted it; the two cut pages of the exceptions are quarantined instead."""
    for path, row in index(folder):
        html = 0
        for r in read_all(path):
            if isinstance(r, Record) and r.kind == "response":
                response = parse_response(r.block, LIMITS)
                html += is_html(response.headers, response.body)[0]
        cut = sum(e["file"] == path.name for e in EXCEPTIONS)
        assert html + cut >= max(row["warcio"]["html_responses"], row["fastwarc"]["html_responses"]), path.name


@pytest.mark.parametrize("folder", ["odd", "crawl", "pages"])
def test_offsets_lead_back_to_the_record(folder: str) -> None:
    for path in sorted(shared_data(f"warc/{folder}").iterdir()):
        if ".jsonl" in path.name:
            continue
        data = path.read_bytes()
        seen = set()
        for r in read_all(path):
            assert (r.offset, r.inner) not in seen, f"{path.name}: {r.offset} twice"
            seen.add((r.offset, r.inner))
            assert 0 < r.length <= len(data) - r.offset
            if not isinstance(r, Record) or data[:4] == b"\x04\x22\x4d\x18":
                continue
            cut = data[r.offset : r.offset + r.length]
            if data[:2] == b"\x1f\x8b":
                cut = gzip.decompress(cut)
            head = cut[r.inner :]
            line = head[: head.index(b"\n") + 1]
            start = parse_arc_line(line) or parse_warc_header(re.split(rb"\n\r*\n", head, maxsplit=1)[0])
            assert start is not None
            assert start.url == r.url
            assert r.block in head


def test_pages_match_their_manifest() -> None:
    """Every page of the manifest, at its offset and length, with the payload its digest was taken of."""
    with gzip.open(shared_data("warc/pages-manifest.jsonl.gz")) as f:
        manifest = {(row["warc"], row["offset"]): row for row in map(json.loads, f)}
    for path in sorted(shared_data("warc/pages").glob("*.warc.gz")):
        for r in read_all(path):
            assert isinstance(r, Record)
            page = page_of(r, LIMITS)
            if isinstance(page, Page):
                row = manifest.pop((path.name, page.offset))
                assert (page.length, page.url, page.record_id) == (
                    row["length"],
                    row["url"],
                    row["record_id"].strip("<>"),
                )
                assert len(page.html) == row["bytes"]
                digest = base64.b32encode(hashlib.sha1(page.html).digest()).decode()
                assert r.headers.get("WARC-Payload-Digest") == f"sha1:{digest}"
            else:
                assert page.reason in ("record.warcinfo", "record.request", "record.metadata")
    assert not manifest


def test_reasons_of_the_crawl_files() -> None:
    """Every response has one outcome; dns answers are `http.bad`, EUC-JP pages with false gzip headers are pages."""
    reasons: Counter[str] = Counter()
    pages: Counter[str] = Counter()
    for path, _ in index("crawl"):
        for r in read_all(path):
            assert isinstance(r, Record), f"{path.name}: {r}"
            found = page_of(r, LIMITS)
            if isinstance(found, Page):
                pages[path.name] += 1
            else:
                reasons[found.reason] += 1
    assert pages["chatnoir-resiliparse__clueweb-quirk.warc.gz"] == 29
    assert pages["dolma__sample-0000.warc.gz"] == 22
    assert pages["whirlwind-python__whirlwind.warc.gz"] == 1
    assert reasons["http.bad"] == 38
    assert reasons["http.truncated"] == 0


@pytest.mark.slow
def test_damaged_archives_are_survived() -> None:
    """2,000 seeded mutations of the odd files: no exception, no repeated offset, every record inside its file."""
    import io
    import random

    limits = Limits(max_block_bytes=1 << 20, max_member_bytes=8 << 20, hold_bytes=4 << 20)
    files = [p.read_bytes()[:100_000] for p in sorted(shared_data("warc/odd").iterdir()) if ".jsonl" not in p.name]
    rng = random.Random(7)
    for _ in range(2000):
        data = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 4)):
            i = rng.randrange(len(data) or 1)
            kind = rng.randrange(5)
            if kind == 0 and data:
                data[i] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[i : i + rng.randint(1, 2000)]
            elif kind == 2:
                data[i:i] = rng.randbytes(rng.randint(1, 300))
            elif kind == 3:
                del data[i:]
            else:
                data[i:i] = rng.choice(files)[:3000]
        seen = set()
        last = (-1, -1)
        for r in read_records(io.BytesIO(bytes(data)), "fuzz", limits):
            assert (r.offset, r.inner) not in seen
            seen.add((r.offset, r.inner))
            assert last < (r.offset, r.inner)
            last = (r.offset, r.inner)
            assert 0 <= r.length <= len(data) - r.offset
            if isinstance(r, Record):
                page_of(r, limits)
                if data[:3] == b"\x1f\x8b\x08":
                    zlib.decompressobj(31).decompress(bytes(data[r.offset : r.offset + 16]))  # a member starts there
