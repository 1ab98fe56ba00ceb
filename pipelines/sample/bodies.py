"""HTTP bodies: charsets and their declarations, content encodings, broken mark-up, and payloads that are no HTML."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib

import brotli
import zstandard

from gristmill.pipelines.sample.draw import Draw

ENCODINGS = ("gzip", "br", "deflate", "deflate-raw", "zstd", "chunked", "gzip+chunked")
"""How some bodies are stored. `deflate` is zlib's format as RFC 9110 says, `deflate-raw` what some servers send instead."""
BREAKS = ("unclosed", "crossed", "stray_bytes", "bad_attributes")
NOT_HTML = ("application/pdf", "image/png", "text/plain", "application/json")


def encode(body: bytes, encoding: str, draw: Draw) -> tuple[bytes, list[tuple[str, str]]]:
    """The body as sent and the headers that say how. Raises KeyError on an unknown name."""
    headers: list[tuple[str, str]] = []
    for part in encoding.split("+"):
        if part == "chunked":
            body = _chunked(body, draw)
            headers.append(("Transfer-Encoding", "chunked"))
        else:
            body = _compressed(body, part)
            headers.append(("Content-Encoding", part.removesuffix("-raw")))
    return body, headers


def _compressed(body: bytes, name: str) -> bytes:
    if name == "gzip":
        return gzip.compress(body, 6, mtime=0)
    if name == "br":
        return bytes(brotli.compress(body, quality=5))
    if name == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(body)
    if name == "deflate":
        return zlib.compress(body, 6)
    if name == "deflate-raw":
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        return packer.compress(body) + packer.flush()
    raise KeyError(name)


def _chunked(body: bytes, draw: Draw) -> bytes:
    out = []
    at = 0
    while at < len(body):
        piece = body[at : at + draw.between(200, 6000)]
        out.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        at += len(piece)
    return b"".join([*out, b"0\r\n\r\n"])


def broken(html: str, how: str) -> bytes:
    """UTF-8 bytes of a page with one kind of damage that browsers put up with."""
    if how == "unclosed":
        html = re.sub(r"</(p|li|td|tr|body|html|head)>", "", html)
    elif how == "crossed":
        html = re.sub(r"<p>(\w[^<]*)</p>", r"<p><b><i>\1</b></i></p>", html)
        html = html.replace("</article>", "</div></article></span>", 1)
    elif how == "bad_attributes":
        html = html.replace("<p>", "<p class=lead align=left id='a' id=\"a\" =x>").replace(
            "<li>", "<li style=color:red;>"
        )
    data = html.encode()
    if how == "stray_bytes":
        # Latin-1 no-break spaces, a NUL and a lone continuation byte, as mixed editors leave them
        data = data.replace(b"</p>\n", b"\xa0</p>\x00\n", 4).replace(b"</li>\n", b" \x85</li>\n & ", 3)
    return data


def not_html(kind: str, title: str, text: str, draw: Draw) -> bytes:
    """A small valid payload of another type."""
    if kind == "application/pdf":
        return _pdf(title)
    if kind == "image/png":
        return _png(draw)
    if kind == "application/json":
        return json.dumps({"title": title, "body": text, "id": draw.below(10_000)}).encode()
    return f"{title}\n\n{text}\n".encode()


def _pdf(title: str) -> bytes:
    text = re.sub(r"[^A-Za-z0-9 .,]", " ", title)
    stream = f"BT /F1 18 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%b\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    offsets = []
    for i, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (i, body)
    table = b"".join(b"%010d 00000 n \n" % o for o in offsets)
    start = len(out)
    return out + b"xref\n0 6\n0000000000 65535 f \n%btrailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (
        table,
        start,
    )


def _png(draw: Draw, side: int = 24) -> bytes:
    rows = b"".join(b"\0" + draw.raw(side) for _ in range(side))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 6)) + chunk(b"IEND", b"")


def binary(draw: Draw) -> bytes:
    """A picture that its server calls HTML."""
    return _png(draw, 96)
