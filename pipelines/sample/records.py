"""WARC/1.0 records as a crawler writes them: one gzip member each, headers in CommonCrawl's order, bytes fixed by the seed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

from gristmill.core.hashing import seed_of

_LEVEL = 6
"""gzip's default: CommonCrawl's files use it too."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request with its answer. `head` is the response's status line and headers, `body` the payload as sent."""

    url: str
    head: bytes
    body: bytes
    payload_type: str
    charset: str | None
    revisit_of: str | None = None
    """URL of an earlier exchange whose payload this one repeats; then no body is stored."""


@dataclass(frozen=True, slots=True)
class Written:
    """Where a record stands: compressed offset and length of its member."""

    offset: int
    length: int


def record_id(seed: int, *names: str) -> str:
    """A `urn:uuid` derived from names: version 5, so that two runs write the same one."""
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join([str(seed), *names]))}>"


def fetch_date(seed: int, i: int) -> datetime:
    """When page `i` was fetched: a day of 2024 drawn by the seed, then seven seconds a page."""
    day = datetime(2024, 1, 1, 6, 0, tzinfo=UTC) + timedelta(days=seed_of(seed, "date") % 300)
    return day + timedelta(seconds=7 * i)


def digest(data: bytes) -> str:
    """`sha1:` and base32. Payload digests are of the body as stored, chunks and encodings included, as warcio checks it."""
    return "sha1:" + base64.b32encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode()


class WarcWriter:
    """Writes one file; `written` holds what later revisits refer to and is shared between the files of a sample."""

    def __init__(self, file: BinaryIO, name: str, seed: int, written: dict[str, tuple[str, str, str]]) -> None:
        self.file, self.name, self.seed, self.earlier = file, name, seed, written
        self.records: Counter[str] = Counter()
        self.at = 0
        self.info_id = record_id(seed, "warcinfo", name)

    def warcinfo(self, date: datetime) -> None:
        block = (
            f"isPartOf: gristmill-sample-{self.seed}\r\npublisher: gristmill\r\n"
            "description: a small synthetic web; its truth file says what is planted where\r\n"
            "software: gristmill sample\r\nrobots: classic\r\nformat: WARC File Format 1.0\r\n"
        ).encode()
        headers = [("Content-Type", "application/warc-fields"), ("WARC-Filename", self.name)]
        self._record("warcinfo", date, self.info_id, headers, block)

    def exchange(self, page: Exchange, date: datetime, cut: float | None = None) -> Written:
        """Request, response (or revisit) and metadata. With `cut` the response's member ends after that share of its
        bytes, and nothing follows it."""
        n = seed_of(self.seed, page.url)
        path = page.url.split("/", 3)[3] if page.url.count("/") > 2 else ""
        host = page.url.split("/")[2]
        request = (
            f"GET /{path} HTTP/1.1\r\nUser-Agent: gristmill-sample/1.0\r\n"
            "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n"
            f"Accept-Encoding: br,gzip\r\nHost: {host}\r\nConnection: Keep-Alive\r\n\r\n"
        ).encode("ascii")
        # 192.0.2.0/24, 198.51.100.0/24 and 203.0.113.0/24 are set aside for documentation (RFC 5737)
        address = f"{('192.0.2', '198.51.100', '203.0.113')[n % 3]}.{n // 3 % 254 + 1}"
        common = [("WARC-Warcinfo-ID", self.info_id), ("WARC-IP-Address", address), ("WARC-Target-URI", page.url)]
        kind = "revisit" if page.revisit_of else "response"
        request_id, response_id = (record_id(self.seed, k, page.url, _stamp(date)) for k in ("request", kind))
        self._record(
            "request", date, request_id, [("Content-Type", "application/http; msgtype=request"), *common], request
        )
        headers = [
            ("Content-Type", "application/http; msgtype=response"),
            common[0],
            ("WARC-Concurrent-To", request_id),
            *common[1:],
        ]
        if page.revisit_of:
            first_id, first_date, payload = self.earlier[page.revisit_of]
            block = page.head
            headers += [
                ("WARC-Payload-Digest", payload),
                ("WARC-Profile", "http://netpreserve.org/warc/1.0/revisit/identical-payload-digest"),
                ("WARC-Refers-To", first_id),
                ("WARC-Refers-To-Target-URI", page.revisit_of),
                ("WARC-Refers-To-Date", first_date),
            ]
        else:
            block = page.head + page.body
            headers += [
                ("WARC-Payload-Digest", digest(page.body)),
                ("WARC-Block-Digest", digest(block)),
                ("WARC-Identified-Payload-Type", page.payload_type),
            ]
            self.earlier[page.url] = (response_id, _stamp(date), digest(page.body))
        written = self._record(kind, date, response_id, headers, block, cut)
        if cut is None:
            fields = f"fetchTimeMs: {40 + n % 900}\r\n" + (
                f"charset-detected: {page.charset}\r\n" if page.charset else ""
            )
            self._record(
                "metadata",
                date,
                record_id(self.seed, "metadata", page.url, _stamp(date)),
                [
                    ("Content-Type", "application/warc-fields"),
                    common[0],
                    ("WARC-Concurrent-To", response_id),
                    common[2],
                ],
                fields.encode(),
            )
        return written

    def _record(
        self,
        kind: str,
        date: datetime,
        name: str,
        headers: list[tuple[str, str]],
        block: bytes,
        cut: float | None = None,
    ) -> Written:
        lines = [
            "WARC/1.0",
            f"WARC-Type: {kind}",
            f"WARC-Date: {_stamp(date)}",
            f"WARC-Record-ID: {name}",
            f"Content-Length: {len(block)}",
            *(f"{k}: {v}" for k, v in headers),
        ]
        record = "\r\n".join(lines).encode() + b"\r\n\r\n" + block + b"\r\n\r\n"
        member = gzip.compress(record, _LEVEL, mtime=0)
        if cut is not None:
            member = member[: int(len(member) * cut)]
        else:
            self.records[kind] += 1
        written = Written(self.at, len(member))
        self.file.write(member)
        self.at += len(member)
        return written


def _stamp(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%SZ")
