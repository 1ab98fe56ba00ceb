"""The sample's WARC files and truth file, walked here with nothing but zlib, against what the truth says."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import brotli
import pytest
import zstandard
from lxml import html as lxml_html

from gristmill.core.errors import FormatError, InputError, UsageError
from gristmill.pipelines.sample import Truth, is_complete, read_truth, write_sample
from gristmill.pipelines.sample.articles import jaccard
from gristmill.pipelines.sample.bodies import ENCODINGS
from gristmill.pipelines.sample.plan import LEVELS, quotas

PAGES = 120


@dataclasses.dataclass
class Stored:
    """One WARC record as found."""

    file: str
    offset: int
    length: int
    headers: dict[str, str]
    block: bytes
    whole: bool

    def http(self) -> tuple[int, dict[str, str], bytes]:
        head, _, body = self.block.partition(b"\r\n\r\n")
        status, *lines = head.decode("ascii").split("\r\n")
        return int(status.split()[1]), {k.lower(): v for k, v in (x.split(": ", 1) for x in lines)}, body


Answers = dict[tuple[str, int], Stored]


def walk(folder: Path, name: str) -> list[Stored]:
    """Every gzip member of a file as a record; the last may be cut."""
    data = (folder / name).read_bytes()
    found = []
    at = 0
    while at < len(data):
        assert data[at : at + 4] == b"\x1f\x8b\x08\x00"
        assert data[at + 4 : at + 8] == b"\0\0\0\0", "a member carries a time"
        unpack = zlib.decompressobj(31)
        raw = unpack.decompress(data[at:])
        length = len(data) - at - len(unpack.unused_data)
        head, _, rest = raw.partition(b"\r\n\r\n")
        version, *lines = head.decode().split("\r\n")
        assert version == "WARC/1.0"
        headers = dict(x.split(": ", 1) for x in lines)
        if unpack.eof:
            assert rest.endswith(b"\r\n\r\n")
            rest = rest[:-4]
            assert len(rest) == int(headers["Content-Length"])
        found.append(Stored(name, at, length, headers, rest, unpack.eof))
        at += length
    return found


def main_text(page: bytes) -> str:
    """Main text without title and code, by the mark-up's own `articleBody` and not by an extractor."""
    tree = lxml_html.fromstring(page)
    lines = []
    for root in tree.xpath('//*[@itemprop="articleBody" or @itemprop="text"]'):
        for node in root.iter("p", "li", "h2", "h3", "td"):
            lines.append(" ".join(node.text_content().split()))
    return "\n".join(lines)


def decoded(stored: Stored) -> bytes:
    _, headers, body = stored.http()
    if headers.get("transfer-encoding") == "chunked":
        out = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            n = int(size, 16)
            out, body = out + body[:n], body[n + 2 :]
        body = out
    how = headers.get("content-encoding")
    if how == "gzip":
        return gzip.decompress(body)
    if how == "br":
        return brotli.decompress(body)
    if how == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    if how == "deflate":
        try:
            return zlib.decompress(body)
        except zlib.error:
            return zlib.decompress(body, -15)
    return body


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    write_sample(out, seed=0, pages=PAGES, files=3)
    return out


@pytest.fixture(scope="module")
def truth(folder: Path) -> Truth:
    return read_truth(folder)


@pytest.fixture(scope="module")
def stored(folder: Path, truth: Truth) -> list[Stored]:
    return [r for f in truth.files if f.name.endswith(".gz") for r in walk(folder, f.name)]


@pytest.fixture(scope="module")
def answers(stored: list[Stored]) -> dict[tuple[str, int], Stored]:
    return {(r.file, r.offset): r for r in stored if r.headers["WARC-Type"] in ("response", "revisit")}


def test_two_runs_write_the_same_bytes_whatever_the_hash_seed(folder: Path, tmp_path: Path) -> None:
    code = f"from gristmill.pipelines.sample import write_sample; write_sample({str(tmp_path)!r}, seed=0, pages={PAGES}, files=3)"
    src = Path(__file__).resolve().parents[2] / "src"
    env = {**os.environ, "PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "PYTHONPATH": str(src)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=tmp_path)
    names = sorted(p.name for p in folder.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_another_seed_gives_other_pages(truth: Truth, tmp_path: Path) -> None:
    other = write_sample(tmp_path, seed=1, pages=60, files=1)
    assert not {p.url for p in other.pages} & {p.url for p in truth.pages}
    assert {p.kind for p in other.pages} == {p.kind for p in truth.pages}, "the smallest sample has every kind"


def test_records_stand_where_the_truth_says(truth: Truth, stored: list[Stored], answers: Answers) -> None:
    counts: dict[str, Counter[str]] = {}
    for record in stored:
        if record.whole:
            counts.setdefault(record.file, Counter())[record.headers["WARC-Type"]] += 1
    assert counts == truth.records
    assert len(truth.pages) == len(answers)
    for page in truth.pages:
        record = answers[page.file, page.offset]
        assert (record.headers["WARC-Target-URI"], record.length) == (page.url, page.length)
        if page.kind != "truncated":
            assert record.http()[0] == page.status
    assert truth.expected["rows"] == len(stored)


def test_headers_are_those_of_a_crawl(stored: list[Stored]) -> None:
    ids = [r.headers["WARC-Record-ID"] for r in stored]
    assert len(set(ids)) == len(ids)
    first_of_file: dict[str, str] = {}
    for record in stored:
        first_of_file.setdefault(record.file, record.headers["WARC-Type"])
        kind = record.headers["WARC-Type"]
        if kind in ("request", "response", "revisit"):
            assert record.headers["Content-Type"] == f"application/http; msgtype={kind.replace('revisit', 'response')}"
        if kind == "response" and record.whole:
            _, headers, body = record.http()
            for name, data in (("Payload", body), ("Block", record.block)):
                sha1 = base64.b32encode(hashlib.sha1(data).digest()).decode()
                assert record.headers[f"WARC-{name}-Digest"] == f"sha1:{sha1}"
            if "transfer-encoding" not in headers:
                assert int(headers["content-length"]) == len(body)
    assert set(first_of_file.values()) == {"warcinfo"}
    by_id = {r.headers["WARC-Record-ID"]: r for r in stored}
    for record in stored:
        if record.headers["WARC-Type"] == "revisit":
            original = by_id[record.headers["WARC-Refers-To"]]
            assert original.headers["WARC-Payload-Digest"] == record.headers["WARC-Payload-Digest"]
            assert original.headers["WARC-Target-URI"] == record.headers["WARC-Refers-To-Target-URI"]
            assert record.block.endswith(b"\r\n\r\n"), "a revisit stores no body"


def test_only_the_last_record_is_cut(truth: Truth, stored: list[Stored]) -> None:
    assert [r.whole for r in stored].index(False) == len(stored) - 1
    (page,) = truth.of_kind("truncated")
    assert (page.file, page.offset) == (stored[-1].file, stored[-1].offset)
    assert page.expect == "quarantine"
    assert truth.expected["quarantined"] == 1


def test_expected_sums_follow_from_the_records(truth: Truth, stored: list[Stored]) -> None:
    ledger: Counter[str] = Counter()
    html = 0
    for record in stored:
        kind = record.headers["WARC-Type"]
        if not record.whole:
            continue
        if kind != "response":
            ledger[f"record.{kind}"] += 1
            continue
        status, headers, body = record.http()
        if status != 200:
            ledger[f"http.status_{status // 100}xx"] += 1
        elif not body:
            ledger["http.empty_body"] += 1
        elif "text/html" not in headers["content-type"] or body.startswith(b"\x89PNG"):
            ledger["http.not_html"] += 1
        else:
            html += 1
    assert dict(ledger) == truth.expected["ledger"]
    assert html == truth.expected["html"]
    assert sum(truth.kinds().values()) == len(truth.pages)


def test_similarities_are_exact(truth: Truth, answers: Answers) -> None:
    ranges = {f"near-{name}": (least, greatest) for name, _, least, greatest in LEVELS}
    seen = set()
    for group, members in truth.groups().items():
        base, *copies = members
        assert base.jaccard is None
        assert copies
        text = main_text(decoded(answers[base.file, base.offset]))
        assert len(text.split()) >= 250
        for copy in copies:
            assert copy.url != base.url
            other = main_text(decoded(answers[copy.file, copy.offset]))
            assert jaccard(text, other) == pytest.approx(copy.jaccard, abs=1e-6)
            if group.startswith("exact"):
                assert other == text
            else:
                assert copy.jaccard is not None
                level = group.rsplit("-", 1)[0]
                least, greatest = ranges[level]
                assert least <= copy.jaccard <= greatest
                seen.add(level)
    assert seen == set(ranges)
    gone = [p for p in truth.of_kind("near_copy") if p.expect == "one_of_group"]
    kept = [p for p in truth.of_kind("near_copy") if p.expect == "keep"]
    assert all(p.jaccard is not None and p.jaccard >= 0.95 for p in gone)
    assert all(p.jaccard is not None and p.jaccard <= 0.4 for p in kept)
    assert gone
    assert kept


def test_languages_and_charsets(truth: Truth, answers: Answers) -> None:
    foreign = truth.of_kind("language", "charset")
    assert len({p.language for p in foreign if p.kind == "language"}) >= 5
    assert len({p.charset for p in foreign if p.charset != "utf-8"}) >= 4
    assert {"header", "meta"} <= {p.declared for p in truth.of_kind("charset")}
    for page in foreign:
        _, headers, body = answers[page.file, page.offset].http()
        assert page.charset is not None
        text = body.decode(page.charset)
        assert ("charset=" in headers["content-type"]) == (page.declared in ("header", "both"))
        assert ('<meta charset="' in text) == (page.declared in ("meta", "both"))
        if page.charset != "utf-8":
            with pytest.raises(UnicodeDecodeError):
                body.decode("utf-8")
        expected = Counter(p.language for p in foreign)[page.language]
        assert truth.expected["languages"][page.language] == expected
    texts = [
        main_text(answers[p.file, p.offset].http()[2].decode(p.charset or "").encode("utf-8"))
        for p in foreign
        if p.declared == "both"
    ]
    assert max(jaccard(a, b) for i, a in enumerate(texts) for b in texts[:i]) <= 0.4


def test_encoded_bodies_decode_to_pages(truth: Truth, answers: Answers) -> None:
    pages = truth.of_kind("encoded")
    assert {p.encoding for p in pages} == set(ENCODINGS)
    for page in pages:
        record = answers[page.file, page.offset]
        assert b"<html" not in record.http()[2] or page.encoding == "chunked"
        assert decoded(record).endswith(b"</html>\n")


def test_planted_kinds_are_what_they_say(truth: Truth, answers: Answers) -> None:
    def bodies(kind: str) -> list[bytes]:
        pages = truth.of_kind(kind)
        assert pages, kind
        return [answers[p.file, p.offset].http()[2] for p in pages]

    assert all(b"lorem ipsum" in b.lower() for b in bodies("lorem"))
    for body in bodies("braces"):
        assert any("{" in pre.text_content() for pre in lxml_html.fromstring(body).iter("pre"))
    assert all(b.startswith(b"\x89PNG") for b in bodies("binary_as_html"))
    assert all(b == b"" for b in bodies("empty"))
    assert {b[:5] for b in bodies("not_html")} >= {b"%PDF-", b"\x89PNG\r", b'{"tit'}
    assert all(main_text(b) == "" for b in bodies("boilerplate"))
    assert all(len(main_text(b).split()) < 50 for b in bodies("short"))
    for body in bodies("repeated"):
        lines = main_text(body).split("\n")
        assert len(set(lines)) <= 2 < len(lines)
    for page, body in zip(truth.of_kind("email"), bodies("email"), strict=True):
        assert body.count(b".example.org") == page.emails > 0
    assert truth.expected["emails"] == sum(p.emails for p in truth.of_kind("email"))
    for page in truth.of_kind("redirect"):
        assert answers[page.file, page.offset].http()[1]["location"].startswith("https://")
    broken = bodies("broken")
    assert any(b"</p>" not in b for b in broken)
    assert any(b"\0" in b for b in broken)


def test_listed_urls_are_blocked_and_no_others(truth: Truth) -> None:
    from gristmill.curate.schema import Urls
    from gristmill.curate.urls import UrlRules

    rules = UrlRules(Urls())
    for page in truth.pages:
        reason = rules.check(page.url)
        assert (reason or "").startswith("url.") == (page.kind == "url_blocked"), (page.url, reason)
    assert truth.expected["url_blocked"] == len(truth.of_kind("url_blocked")) >= 2


def test_labels_are_balanced_and_stand_in_no_page(folder: Path, truth: Truth, answers: Answers) -> None:
    rows = [json.loads(x) for x in (folder / "quality-labels.jsonl").read_bytes().splitlines()]
    counts = Counter(r["label"] for r in rows)
    assert counts == truth.expected["labels"]
    assert counts["hq"] == counts["lq"] >= 30
    assert len({r["text"] for r in rows}) == len(rows)
    crawled = {
        line for p in truth.of_kind("prose") for line in main_text(decoded(answers[p.file, p.offset])).split("\n")
    }
    good = {line for r in rows if r["label"] == "hq" for line in r["text"].split("\n") if len(line) > 60}
    assert good
    assert not good & crawled


def test_complete_only_as_written(folder: Path, tmp_path: Path) -> None:
    assert is_complete(folder, 0, PAGES, 3)
    assert not is_complete(folder, 1, PAGES, 3)
    assert not is_complete(folder, 0, None, 3)
    assert not is_complete(folder, 0, PAGES, 4)
    assert not is_complete(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert is_complete(copy, 0, PAGES, 3)
    data = bytearray((copy / "sample-00001.warc.gz").read_bytes())
    data[100] ^= 1
    (copy / "sample-00001.warc.gz").write_bytes(data)
    assert not is_complete(copy, 0, PAGES, 3), "a changed byte goes unnoticed"


def test_a_smaller_sample_leaves_no_older_file(tmp_path: Path) -> None:
    write_sample(tmp_path, pages=60, files=3)
    write_sample(tmp_path, pages=60, files=1)
    assert [p.name for p in sorted(tmp_path.glob("*.gz"))] == ["sample-00000.warc.gz"]
    assert is_complete(tmp_path, 0, 60, 1)


def test_summary_and_quotas(truth: Truth) -> None:
    text = truth.summary()
    assert f"{len(truth.pages):,} pages in 3 WARC files" in text
    assert len(text.splitlines()) <= 6
    q = quotas(None)
    assert sum(q.of.values()) + q["near_base"] + q.prose == 2000
    assert truth.expected["min_surviving_chars"] * 10 // 7 <= truth.expected["planted_chars"]


@pytest.mark.parametrize("arguments", [{"files": 0}, {"pages": 0}, {"files": 5000}])
def test_bad_arguments_write_nothing(arguments: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_sample(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_unreadable_truth_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gristmill sample"):
        read_truth(tmp_path / "nowhere.json")
    (tmp_path / "truth.json").write_text('{"pages": 3}')
    with pytest.raises(FormatError):
        read_truth(tmp_path)
