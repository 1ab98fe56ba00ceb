"""HTTP responses: heads, chunks, encodings that lie or break, HTML told from the rest."""

from __future__ import annotations

import gzip
import zlib

import brotli
import pytest
import zstandard

from gristmill.curate.headers import Headers, parse_fields
from gristmill.curate.http_body import is_html, parse_response
from gristmill.curate.warc import Limits, Page, Record, Skip, page_of

LIMITS = Limits()
HTML = b"<!doctype html><html><body>" + b"<p>some text of a page</p>" * 200 + b"</body></html>"


def raw_deflate(data: bytes) -> bytes:
    z = zlib.compressobj(wbits=-15)
    return z.compress(data) + z.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


def message(body: bytes, *fields: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([status, *fields, "", ""]).encode("latin-1") + body


def chunked(body: bytes, step: int = 700, last: bool = True) -> bytes:
    parts = [body[i : i + step] for i in range(0, len(body), step)]
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + (b"0\r\n\r\n" if last else b"")


def outcome(block: bytes, limits: Limits = LIMITS, truncated: bool = False, **headers: str) -> str | bytes:
    fields = Headers([(k.replace("_", "-"), v) for k, v in headers.items()])
    record = Record("response", fields, "http://x/", "", "", 0, 0, 1, block, truncated=truncated)
    found = page_of(record, limits)
    return found.html if isinstance(found, Page) else found.reason


@pytest.mark.parametrize("encoding", ENCODERS)
def test_encodings(encoding: str) -> None:
    body = ENCODERS[encoding](HTML)
    assert parse_response(message(body, f"Content-Encoding: {encoding.upper()}"), LIMITS).body == HTML
    response = parse_response(
        message(chunked(body), f"content-encoding:{encoding}", "Transfer-Encoding: Chunked"), LIMITS
    )
    assert (response.body, response.problems) == (HTML, [])


def test_raw_deflate_and_stacked_encodings() -> None:
    assert parse_response(message(raw_deflate(HTML), "Content-Encoding: deflate"), LIMITS).body == HTML
    stacked = brotli.compress(gzip.compress(HTML))
    assert parse_response(message(stacked, "Content-Encoding: gzip, br"), LIMITS).body == HTML
    assert parse_response(message(stacked, "Content-Encoding: gzip", "Content-Encoding: br"), LIMITS).body == HTML
    two = gzip.compress(HTML[:1000]) + gzip.compress(HTML[1000:])
    assert parse_response(message(two, "Content-Encoding: gzip"), LIMITS).body == HTML


@pytest.mark.parametrize("encoding", [*ENCODERS, "utf-8", "identity", "none", "something"])
def test_bodies_stored_decoded_under_a_false_encoding(encoding: str) -> None:
    block = message(HTML, "Content-Type: text/html", f"Content-Encoding: {encoding}", "Transfer-Encoding: chunked")
    assert outcome(block) == HTML


@pytest.mark.parametrize("encoding", ENCODERS)
def test_cut_streams_are_truncated(encoding: str) -> None:
    body = ENCODERS[encoding](HTML)
    block = message(body[: len(body) - 9], "Content-Type: text/html", f"Content-Encoding: {encoding}")
    assert outcome(block) == "http.truncated"
    start = parse_response(block, LIMITS).body
    assert HTML.startswith(start)


def test_streams_that_break_in_the_middle() -> None:
    noise = bytes((i * i * 31 + i) % 251 for i in range(20_000))
    body = bytearray(gzip.compress(noise))
    body[40:100] = b"\xff" * 60
    assert outcome(message(bytes(body), "Content-Type: text/html", "Content-Encoding: gzip")) == "http.bad_encoding"
    assert outcome(message(b"\xff" * 99, "Content-Type: text/html", "Content-Encoding: br")) == "http.bad_encoding"
    assert outcome(message(b"\xff" * 99, "Content-Type: text/html", "Content-Encoding: deflate")) == "http.bad_encoding"


def test_wrong_gzip_checksum_is_forgiven_as_browsers_do() -> None:
    body = bytearray(gzip.compress(HTML))
    body[-7] ^= 1
    assert outcome(message(bytes(body), "Content-Type: text/html", "Content-Encoding: gzip")) == HTML


@pytest.mark.parametrize("encoding", ENCODERS)
def test_bombs_stop_at_the_limit(encoding: str) -> None:
    import tracemalloc

    bomb = ENCODERS[encoding](bytes(16 << 20))
    limits = Limits(max_body_bytes=1 << 20)
    block = message(bomb, "Content-Type: text/html", f"Content-Encoding: {encoding}")
    tracemalloc.start()
    assert outcome(block, limits) == "http.too_large"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert outcome(message(HTML, "Content-Type: text/html"), Limits(max_body_bytes=100)) == "http.too_large"


def test_chunks() -> None:
    def body(raw: bytes) -> tuple[bytes, list[str]]:
        response = parse_response(message(raw, "Transfer-Encoding: chunked"), LIMITS)
        return response.body, response.problems

    assert body(chunked(b"abcdefghij", 3)) == (b"abcdefghij", [])
    assert body(b"3;name=value\r\nabc\r\n0\r\nTrailer: x\r\n\r\n") == (b"abc", [])
    assert body(b"3  \nabc\n2\nde\n0\n\n") == (b"abcde", [])
    assert body(b"3\r\nabc\r\nzz\r\nrest\r\n") == (b"abczz\r\nrest", ["bad_chunks"])
    assert body(b"5\r\nabc") == (b"abc", ["truncated"])
    assert body(b"3\r\nabc\r\n") == (b"abc", ["truncated"])
    assert body(b"no chunks here") == (b"no chunks here", ["not_chunked"])
    assert body(b"0\r\n\r\n") == (b"", [])
    assert body(b"") == (b"", [])


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("HTTP/1.1 301 Moved", "http.status_3xx"),
        ("HTTP/1.0 304", "http.status_3xx"),
        ("HTTP/1.1 404 Not Found", "http.status_4xx"),
        ("HTTP/2 503", "http.status_5xx"),
        ("HTTP 502 Bad Gateway", "http.status_5xx"),
        ("HTTP/1.1 206 Partial Content", "http.status_other"),
        ("HTTP/1.1 999 Denied", "http.status_other"),
    ],
)
def test_statuses(status: str, reason: str) -> None:
    assert outcome(message(HTML, "Content-Type: text/html", status=status)) == reason


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 200\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n",
        b"HTTP/1.1 200 OK\r\r\nContent-Type: text/html\r\r\n\r\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nno colon\r\n\tfolded\r\ncontent-TYPE :text/html ; charset=x\r\n\r\n",
        b"HTTPX/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n",  # the blank line is missing
        b"HTTP/1.1 200 OK\r\nX: \xe9\xe8\r\nContent-Type: text/html\r\n\r\n",
        b"",  # HTTP/0.9
    ],
)
def test_heads(head: bytes) -> None:
    assert outcome(head + HTML) == HTML


def test_empty_and_headless() -> None:
    assert outcome(b"") == "http.empty_body"
    assert outcome(message(b" \r\n", "Content-Type: text/html")) == "http.empty_body"
    assert outcome(b"20240101\nwww.x.org. 60 IN A 10.0.0.1\n") == "http.bad"


def test_cut_payloads() -> None:
    block = message(HTML, "Content-Type: text/html")
    assert outcome(block, WARC_Truncated="length") == "http.truncated"
    assert outcome(block, truncated=True) == "http.truncated"
    vouched = message(HTML, "Content-Type: text/html", f"Content-Length: {len(HTML)}")
    assert outcome(vouched, truncated=True) == HTML
    assert outcome(message(HTML, status="HTTP/1.1 404 Gone"), truncated=True) == "http.status_4xx"


@pytest.mark.parametrize(
    ("kind", "body", "html", "why"),
    [
        ("text/html; charset=utf-8", b"anything", True, "type"),
        ("Application/XHTML+XML", HTML, True, "type"),
        ("text/html", b"%PDF-1.4 ...", False, "binary"),
        ("text/html", b"PK\x03\x04zip", False, "binary"),
        ("text/html", b"\x89PNG\r\n\x1a\n", False, "binary"),
        ("text/html", b"ab\0\0\0\0cd" * 50, False, "nul_bytes"),
        ("text/html", "<html>wide</html>".encode("utf-16-le"), True, "type"),
        ("text/html", b"<html>" + b"x" * 5000 + b"\0", True, "type"),
        ("", HTML, True, "sniffed"),
        ("", b"  <!-- note --> <?xml version='1.0'?>\n<HTML lang=en>", True, "sniffed"),
        ("", b"\xef\xbb\xbf<head>", True, "sniffed"),
        ("", "\ufeff<html>".encode("utf-16-le"), True, "sniffed"),
        ("", b'{"json": "<html>"}', False, "not_sniffed"),
        ("", b"<rss version='2.0'>", False, "not_sniffed"),
        ("application/octet-stream", b"<div>x</div>", True, "sniffed"),
        ("text/plain", HTML, True, "sniffed"),
        ("text/plain", b"<p>a mail that quotes a tag", False, "not_sniffed"),
        ("text/xml", b"<?xml version='1.0'?><html xmlns='x'>", True, "sniffed"),
        ("application/xml", b"<?xml version='1.0'?><feed>", False, "not_sniffed"),
        ("image/gif", HTML, False, "other_type"),
        ("application/json", HTML, False, "other_type"),
    ],
)
def test_html_or_not(kind: str, body: bytes, html: bool, why: str) -> None:
    assert is_html(Headers([("content-type", kind)] if kind else []), body) == (html, why)


def test_the_html_type_among_several_wins() -> None:
    headers = parse_fields(b"Content-Type: application/octet-stream\nContent-Type: text/html")
    assert is_html(headers, b"text") == (True, "type")


def test_header_fields() -> None:
    headers = parse_fields(b"A: 1\r\na:2\n more\r\n: nameless\nnothing\nB:\r\n\xff: \xfe")
    assert list(headers) == [("A", "1"), ("a", "2 more"), ("B", ""), ("\xff", "\xfe")]
    assert (headers.get("a"), headers.get_all("A"), "b" in headers, "c" in headers) == (
        "1",
        ["1", "2 more"],
        True,
        False,
    )


def test_skips_carry_their_value() -> None:
    record = Record("response", Headers(), "", "", "", 0, 0, 1, message(b"", status="HTTP/1.1 404 No"))
    assert page_of(record, LIMITS) == Skip("http.status_4xx", 404.0)
