"""Record headers of WARC (any version) and ARC (1, also with the headings of 2): recognising, parsing, finding them."""

from __future__ import annotations

import re

from gristmill.curate.headers import Headers, parse_fields, to_text
from gristmill.curate.warc_types import KINDS, Start

BLANK = re.compile(rb"[\r\n]*")
WARC_LINE = re.compile(rb"WARC/\d+\.\d+[ \t]*\r*\n")
_ARC = rb"(?P<url>[A-Za-z][A-Za-z0-9+.-]*:[^\n]{0,8192}) (?P<ip>\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]*:[0-9a-fA-F:.]+|-)"
ARC_LINE = re.compile(_ARC + rb" (?P<date>\S{1,40})(?P<type> [^\n]{0,1024})? (?P<size>-?\w+)[ \t]*\r*\n")
"""`URL IP date type length`. URLs hold spaces, CRs and raw bytes; dates have 12 to 16 digits, or are hex or `null`; types can be empty."""

FIND_WARC = re.compile(rb"\n(?=WARC/\d+\.\d+[ \t]*\r*\n)")
FIND_ARC = re.compile(
    rb"\n(?=" + _ARC.replace(b"?P<url>", b"?:").replace(b"?P<ip>", b"?:") + rb" \d{8,20} [^\n]{0,1024}-?\d+[ \t]*\r*\n)"
)
"""Headers inside foreign bytes: stricter than ARC_LINE (numeric date and length), since any text may stand around them."""

LOOK = 16 << 10
"""Bytes that decide whether a record starts here: an ARC line holds a whole URL."""


def starts_record(data: bytes, at: int = 0) -> bool:
    """Whether the bytes at `at`, after blank lines, begin with a WARC version line or an ARC header line."""
    stop = at + LOOK
    found = BLANK.match(data, at, stop)
    begin = found.end() if found else at
    return bool(WARC_LINE.match(data, begin, stop) or ARC_LINE.match(data, begin, stop))


def find_header(data: bytes, start: int, arc: bool) -> int:
    """Where the next header line begins after a newline at or after `start`; -1 when there is none."""
    found = (FIND_ARC if arc else FIND_WARC).search(data, start)
    return found.end() if found else -1


def parse_warc_header(head: bytes) -> Start | None:
    """A WARC header (version line to blank line). None when it has neither a WARC-Type nor a Content-Length."""
    headers = parse_fields(head.partition(b"\n")[2])
    kind = headers.get("WARC-Type").lower()
    if not kind and "Content-Length" not in headers:
        return None
    return Start(
        kind=kind if kind in KINDS else "other",
        headers=headers,
        url=clean_url(headers.get("WARC-Target-URI")),
        date=headers.get("WARC-Date"),
        record_id=clean_url(headers.get("WARC-Record-ID")),
        content_type=headers.get("Content-Type"),
        size=_size(headers.get("Content-Length")),
    )


def parse_arc_line(line: bytes) -> Start | None:
    """An ARC header line, with its newline. None when it is none."""
    found = ARC_LINE.match(line)
    if not found:
        return None
    url = to_text(found["url"]).strip()
    kind = to_text(found["type"] or b"").strip()
    size = to_text(found["size"])
    fields = [("URL", url), ("IP-address", to_text(found["ip"])), ("Archive-date", to_text(found["date"]))]
    return Start(
        kind="warcinfo" if url.startswith("filedesc:") else "response",
        headers=Headers([*fields, ("Content-type", kind), ("Archive-length", size)]),
        url=url,
        date=to_text(found["date"]),
        record_id="",
        content_type=kind,
        size=_size(size),
        arc=True,
    )


def clean_url(value: str) -> str:
    """Strips spaces and one pair of angle brackets (wget writes `<http://…>`)."""
    value = value.strip()
    return value[1:-1].strip() if value.startswith("<") and value.endswith(">") else value


def _size(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
