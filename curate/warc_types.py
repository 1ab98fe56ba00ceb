"""What the WARC reader yields (records and damage) and the limits that bound its memory."""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.curate.headers import Headers

KINDS = frozenset(
    {"warcinfo", "request", "response", "metadata", "resource", "revisit", "conversion", "continuation", "other"}
)
"""WARC-Type values (ISO 28500); anything else is `other`. ARC version blocks are `warcinfo`, ARC documents `response`."""


@dataclass(frozen=True)
class Limits:
    """Bounds of reading, all in bytes. What passes a bound is a counted reason, never held in memory."""

    max_block_bytes: int = 32 << 20
    """Larger record blocks are skipped and flagged `too_large`. Common Crawl cuts payloads at 1 to 5 MiB."""
    max_body_bytes: int = 32 << 20
    """Larger HTTP bodies, after removing chunks and content encodings, are `http.too_large`."""
    max_header_bytes: int = 64 << 10
    """A record header, or an HTTP head, longer than this is no header."""
    max_member_bytes: int = 64 << 30
    """A compressed member that inflates to more than this is damage (`warc.member_too_large`): a bomb."""
    hold_bytes: int = 64 << 20
    """Blocks of one compressed member are held until its end (and so their `length`) is known, up to this sum."""


@dataclass(slots=True)
class Record:
    """One record. Bytes [offset, offset + length) of the file, decompressed, hold it at `inner`."""

    kind: str
    headers: Headers
    url: str
    """WARC-Target-URI or ARC URL as recorded, without the angle brackets that some writers put around it."""
    date: str
    """WARC-Date or ARC date as recorded."""
    record_id: str
    offset: int
    """Compressed offset of the member that the record starts in; in an uncompressed file the record's own offset."""
    inner: int
    """Decompressed offset inside that member; 0 in an uncompressed file."""
    length: int
    """Compressed bytes up to the end of the (last) member that holds it; uncompressed: header and block."""
    block: bytes
    truncated: bool = False
    """The block is shorter than its Content-Length."""
    too_large: bool = False
    """The block passes `Limits.max_block_bytes`; `block` is empty."""
    content_type: str = ""
    """Type of the block (WARC) or of the document (ARC)."""

    @property
    def warc_truncated(self) -> str:
        """The WARC-Truncated header (`length`, `time`, `disconnect`, …), else empty."""
        return self.headers.get("WARC-Truncated")


@dataclass(slots=True)
class Damage:
    """Bytes that are no record: a damaged tail or a damaged stretch. One row of the ledger, `quarantined`.

    When a record header could be read, `kind`, `url`, `date` and `record_id` are its own.
    """

    file: str
    offset: int
    inner: int
    length: int
    """Compressed bytes until reading went on, or to the end of the file; inside a sound member, to that member's end."""
    reason: str
    """`warc.truncated_member`, `warc.bad_gzip`, `warc.bad_crc`, `warc.bad_header`, …: the table in `curate.warc`."""
    message: str = ""
    kind: str = ""
    url: str = ""
    date: str = ""
    record_id: str = ""


@dataclass(slots=True)
class Start:
    """A parsed record header: everything but the block."""

    kind: str
    headers: Headers
    url: str
    date: str
    record_id: str
    content_type: str
    size: int | None
    """Declared bytes of the block; None when missing, negative or no number."""
    arc: bool = False
