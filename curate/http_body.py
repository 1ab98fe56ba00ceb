"""HTTP responses as archives hold them: head, chunks and content encodings undone, HTML told from the rest.

Archives lie often and in known ways: the payload may be stored decoded while the head still says `gzip` or `chunked`
(Nutch, some Common Crawl years), status texts and blank lines may be missing. A declared encoding is undone only when
the bytes bear it out.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from gristmill.curate.headers import BLANK_LINE, Headers, parse_fields
from gristmill.curate.warc_types import Limits

STATUS_LINE = re.compile(rb"(?:HTTP\w{0,4}|ICY)(?:/\d+(?:\.\d+)?)?[ \t]+(\d{3})(?!\d)")
PIECE = 1 << 20


@dataclass
class HttpResponse:
    """A parsed response. `status` is None when there is no HTTP head; then the whole block is `body`."""

    status: int | None
    headers: Headers
    body: bytes
    raw_bytes: int
    """Payload bytes before chunks and encodings were undone."""
    problems: list[str] = field(default_factory=list)
    """`truncated`, `too_large`, `bad_encoding` concern the body; `no_head`, `not_chunked`, `not_<encoding>`,
    `unknown_encoding` were put right."""


def parse_response(block: bytes, limits: Limits) -> HttpResponse:
    """Splits and decodes the block of a response record. Never raises on bad bytes; see `HttpResponse.problems`."""
    status, headers, body = split_head(block, limits.max_header_bytes)
    response = HttpResponse(status, headers, body, len(body))
    if status is None:
        response.problems.append("no_head")
        return response
    if "chunked" in ",".join(headers.get_all("Transfer-Encoding")).lower():
        response.body, problem = dechunk(body)
        if problem:
            response.problems.append(problem)
    encodings = [e.strip().lower() for value in headers.get_all("Content-Encoding") for e in value.split(",")]
    for encoding in reversed(encodings):
        if encoding in ("", "identity", "none"):
            continue
        response.body, problem = decode(response.body, encoding, limits.max_body_bytes)
        if problem:
            response.problems.append(problem)
    if len(response.body) > limits.max_body_bytes:
        response.body, response.problems = b"", [*response.problems, "too_large"]
    return response


def vouched(headers: Headers, payload: int) -> bool:
    """Whether HTTP's own Content-Length is there and met by a payload of so many bytes."""
    text = headers.get("Content-Length")
    return text.isascii() and text.isdigit() and len(text) < 19 and 0 < int(text) <= payload


def split_head(block: bytes, max_head: int) -> tuple[int | None, Headers, bytes]:
    """(status, headers, payload). Interim 1xx responses are passed over; None and the whole block without a head.

    A head that meets no blank line ends at the first line that begins with `<`.
    """
    rest = block
    while True:
        found = STATUS_LINE.match(rest) or STATUS_LINE.match(rest.lstrip(b"\r\n"))
        if not found:
            return None, Headers(), block
        rest = found.string
        status = int(found[1])
        blank = BLANK_LINE.search(rest, 0, max_head)
        head, body = (rest[: blank.start()], rest[blank.end() :]) if blank else (rest[:max_head], b"")
        body_tag = head.find(b"\n<")
        if body_tag >= 0:
            head, body = rest[:body_tag], rest[body_tag + 1 :]
        elif not blank and len(rest) > max_head:
            return None, Headers(), block
        if 100 <= status < 200 and STATUS_LINE.match(body):
            rest = body
            continue
        return status, parse_fields(head.partition(b"\n")[2]), body


CHUNK_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,12})[ \t]*(?:;[^\r\n]{0,1024})?\r?\n")


def dechunk(body: bytes) -> tuple[bytes, str]:
    """The payload without its chunk framing, and a problem or "".

    A body whose first line is no chunk size was stored decoded: it comes back as it is (`not_chunked`). Where a later
    size line is wrong the rest is kept as it stands; a body that ends before its last chunk is `truncated`.
    """
    parts: list[bytes] = []
    at = 0
    while True:
        found = CHUNK_SIZE.match(body, at)
        if not found:
            if not parts:
                return body, "not_chunked" if body else ""
            rest = body[at:].strip(b"\r\n")
            if not rest:
                return b"".join(parts), "truncated"
            return b"".join([*parts, rest]), "bad_chunks"
        size = int(found[1], 16)
        start = found.end()
        if size == 0:
            return b"".join(parts), ""
        parts.append(body[start : start + size])
        at = start + size
        if at > len(body):
            return b"".join(parts), "truncated"
        if body.startswith(b"\r\n", at):
            at += 2
        elif body.startswith(b"\n", at):
            at += 1


# --- content encodings ----------------------------------------------------------------------------------------------


def decode(body: bytes, encoding: str, limit: int) -> tuple[bytes, str]:
    """Undoes one content encoding, to at most `limit` + 1 bytes; a problem or "".

    Bytes without the encoding's mark are taken as stored decoded (`not_gzip`, …). `truncated`: the stream ends early
    and what it gave is returned. `bad_encoding`: it breaks in the middle.
    """
    if not body:
        return body, ""
    if encoding in ("gzip", "x-gzip"):
        if not body.startswith(b"\x1f\x8b\x08"):
            return body, "not_gzip"
        return _collect(_inflate(body, 31), limit)
    if encoding == "deflate":
        for wbits in (15, -15):  # zlib, as the standard says; raw deflate, as some servers do
            if wbits == 15 and (body[0] & 0x0F != 8 or int.from_bytes(body[:2], "big") % 31):
                continue
            out, problem = _collect(_inflate(body, wbits), limit)
            if problem != "bad_encoding":
                return out, problem
        return body, "not_deflate" if looks_like_html(body) else "bad_encoding"
    if encoding in ("br", "brotli"):
        out, problem = _collect(_brotli(body), limit)
        if problem == "bad_encoding" or (problem == "truncated" and looks_like_html(body)):
            return (body, "not_br") if looks_like_html(body) else (out, problem)
        return out, problem
    if encoding == "zstd":
        if not body.startswith(b"\x28\xb5\x2f\xfd"):
            return body, "not_zstd"
        return _collect(_zstd(body), limit)
    return body, "unknown_encoding"


class _BadEncoding(Exception):
    pass


class _Truncated(Exception):
    pass


def _collect(pieces: Iterator[bytes], limit: int) -> tuple[bytes, str]:
    parts, size = [], 0
    try:
        for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size > limit:
                return b"".join(parts), ""  # parse_response sees the size
    except _Truncated:
        return b"".join(parts), "truncated"
    except _BadEncoding:
        return b"".join(parts), "bad_encoding"
    return b"".join(parts), ""


def _inflate(data: bytes, wbits: int) -> Iterator[bytes]:
    while True:
        z = zlib.decompressobj(wbits)
        while not z.eof:
            try:
                out = z.decompress(data, PIECE)
            except zlib.error as e:
                if "data check" in str(e) or "length check" in str(e):
                    # All bytes are there. Browsers show such pages; redo in small steps to have them.
                    yield from _before_check(data, wbits)
                    return
                raise _BadEncoding from e
            data = z.unconsumed_tail
            if out:
                yield out
            elif not z.eof:
                raise _Truncated
        data = z.unused_data
        if wbits != 31 or not data.startswith(b"\x1f\x8b\x08"):
            return


def _before_check(data: bytes, wbits: int) -> Iterator[bytes]:
    z = zlib.decompressobj(wbits)
    for i in range(0, len(data), 4096):
        before = z.copy()
        try:
            yield z.decompress(data[i : i + 4096])
        except zlib.error:
            try:
                for j in range(i, min(i + 4096, len(data))):
                    yield before.decompress(data[j : j + 1])
            except zlib.error:
                return


def _brotli(data: bytes) -> Iterator[bytes]:
    import brotli

    decoder = brotli.Decompressor()
    given = False
    while not decoder.is_finished():
        try:
            out = decoder.process(b"" if given else data, output_buffer_limit=PIECE)
        except brotli.error as e:
            raise _BadEncoding from e
        given = True
        if out:
            yield out
        elif decoder.can_accept_more_data() and not decoder.is_finished():
            raise _Truncated


def _zstd(data: bytes) -> Iterator[bytes]:
    import zstandard

    # 128 MiB is the widest window that `zstd --ultra` makes without --long=31; browsers allow 8 MiB.
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data, read_across_frames=True)
    size = 0
    while True:
        try:
            out = reader.read(PIECE)
        except zstandard.ZstdError as e:
            raise _BadEncoding from e
        if not out:
            break
        size += len(out)
        yield out
    declared = zstandard.frame_content_size(data)
    if declared > size:
        raise _Truncated


# --- HTML or not ----------------------------------------------------------------------------------------------------

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml"})
VAGUE_TYPES = frozenset(
    {"", "text/plain", "application/octet-stream", "binary/octet-stream", "application/unknown", "unknown/unknown"}
    | {"*/*", "text", "html", "text/xml", "application/xml", "no-type", "unk", "unknown", "application/force-download"}
)
"""Types that servers send when they do not know: the bytes decide. Any other type is believed."""

BINARY = re.compile(
    rb"%PDF-|PK\x03\x04|\x89PNG\r\n|GIF8[79]a|\xff\xd8\xff|\x1f\x8b\x08|Rar!\x1a|7z\xbc\xaf|BZh[1-9]|\xfd7zXZ|\x7fELF"
    rb"|OggS|ID3[\x02-\x04]|RIFF....(?:WAVE|WEBP|AVI )|\x00\x00\x01\x00|wOF[F2]|\xd0\xcf\x11\xe0|FWS|CWS|....ftyp"
    rb"|\x28\xb5\x2f\xfd|\{\\rtf",
    re.DOTALL,
)
LEADING = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s+|<\?xml.{0,512}?\?>|<!--.{0,4096}?-->)*", re.DOTALL)
HTML_START = re.compile(
    rb"<(?:!doctype\s+html|html|head|body|title|meta|script|style|link|table|div|h1|p|br|a|b|font|iframe|frameset|center)"
    rb"(?=[\s>/])",
    re.IGNORECASE,
)
"""The tags of the WHATWG MIME sniffing standard, and a few of the same kind."""
STRONG_START = re.compile(rb"<(?:!doctype\s+html|html)(?=[\s>])", re.IGNORECASE)
LOOK = 8192


def is_html(headers: Headers, body: bytes) -> tuple[bool, str]:
    """Whether a decoded body is HTML, and why: `type`, `sniffed`, or `binary`, `nul_bytes`, `other_type`, `not_sniffed`."""
    types = [t.partition(";")[0].strip().lower() for t in headers.get_all("Content-Type")]
    kind = next((t for t in types if t in HTML_TYPES), types[0] if types else "")
    if BINARY.match(body):
        return False, "binary"
    if _has_nuls(body):
        return False, "nul_bytes"
    if kind in HTML_TYPES:
        return True, "type"
    if kind not in VAGUE_TYPES:
        return False, "other_type"
    strong = kind in ("text/plain", "text/xml", "application/xml")
    return (True, "sniffed") if looks_like_html(body, strong) else (False, "not_sniffed")


def looks_like_html(body: bytes, strong: bool = False) -> bool:
    """Whether the bytes, after spaces, comments and an XML declaration, begin with a tag of HTML.

    `strong` asks for `<!doctype html` or `<html`. UTF-16 is read through its BOM.
    """
    head = body[:LOOK]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "replace").encode("utf-8")
    found = LEADING.match(head)
    return bool((STRONG_START if strong else HTML_START).match(head, found.end() if found else 0))


def _has_nuls(body: bytes) -> bool:
    """More than 1 NUL in 100 bytes of the first 8 KiB, padding at the end apart, and not in every second byte as in UTF-16."""
    head = body[:LOOK].rstrip(b"\0")
    nuls = head.count(0)
    if nuls * 100 <= len(head):
        return False
    odd, even = head[1::2].count(0), head[::2].count(0)
    return not (max(odd, even) * 5 >= len(head) and min(odd, even) * 100 <= len(head))
