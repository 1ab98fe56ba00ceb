"""From a WARC record to an HTML page, or to the one reason why it is none."""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.curate.headers import Headers
from gristmill.curate.http_body import is_html, looks_like_html, parse_response, vouched
from gristmill.curate.warc_types import Limits, Record


@dataclass(slots=True)
class Page:
    """An HTML page, still in bytes: decoding and parsing are done where a crash costs one page."""

    url: str
    date: str
    record_id: str
    offset: int
    inner: int
    length: int
    html: bytes
    content_type: str
    headers: Headers
    """Of the HTTP response."""


@dataclass(slots=True)
class Skip:
    """Why a record is no page: `record.<kind>`, or `http.` with status_3xx, status_4xx, status_5xx, status_other,
    not_html, empty_body, truncated, bad, too_large, bad_encoding. `value` is the status or the size in bytes, if any."""

    reason: str
    value: float | None = None


def page_of(record: Record, limits: Limits) -> Page | Skip:
    """The page that a record holds. The checks run in this order: kind, size, status, cut payload, emptiness, encoding,
    HTML; so a cut page of status 404 is `http.status_4xx`.

    A payload is cut when WARC-Truncated says so, when its chunks or its compressed stream end early, or when the block
    is shorter than its Content-Length and HTTP's own Content-Length does not vouch for the payload.
    """
    if record.kind != "response":
        return Skip("record.other" if record.kind == "continuation" else f"record.{record.kind}")
    if record.too_large:
        return Skip("http.too_large")
    response = parse_response(record.block, limits)
    headers = response.headers
    if response.status is None:
        if not record.block.strip():
            return Skip("http.empty_body")
        if not looks_like_html(record.block):
            return Skip("http.bad")
        headers = Headers([("Content-Type", "text/html")])
    elif response.status != 200:
        name = f"{response.status // 100}xx" if 300 <= response.status < 600 else "other"
        return Skip(f"http.status_{name}", float(response.status))
    if "too_large" in response.problems:
        return Skip("http.too_large")
    short = record.truncated and not vouched(headers, response.raw_bytes)
    if record.warc_truncated or "truncated" in response.problems or short:
        return Skip("http.truncated", float(len(response.body)))
    if "bad_encoding" in response.problems:
        return Skip("http.bad_encoding")
    if not response.body or response.body.isspace():
        return Skip("http.empty_body")
    html, _ = is_html(headers, response.body)
    if not html:
        return Skip("http.not_html")
    return Page(
        record.url, record.date, record.record_id, record.offset, record.inner, record.length, response.body,
        headers.get("Content-Type"), headers,
    )  # fmt: skip
