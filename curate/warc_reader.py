"""The framing loop: from decompressed bytes to records, following Content-Length only as far as it proves true."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from gristmill.curate.headers import BLANK_LINE
from gristmill.curate.http_body import split_head, vouched
from gristmill.curate.warc_container import Compressed, Gap, Plain
from gristmill.curate.warc_parse import (
    BLANK,
    LOOK,
    WARC_LINE,
    find_header,
    parse_arc_line,
    parse_warc_header,
    starts_record,
)
from gristmill.curate.warc_types import Damage, Limits, Record, Start

Outcome = Literal["whole", "crossed", "cut", "short", "moved", "failed"]
"""How a block ended: whole in its member; whole but over several members; its member ended and a header stands inside
the bytes read; its file ended; its member ended and the cursor stands at the next record's; its member failed."""

HEADER_COST = 2048
"""Bytes that a held record's header costs, about."""
WHOLE = 1 << 20
"""Bytes of a member that are read before its first record is parsed."""


class Reader:
    """A cursor over the decompressed bytes of the current member, and the records that wait for that member's end."""

    def __init__(self, source: Plain | Compressed, name: str, limits: Limits) -> None:
        self.source = source
        self.plain = source if isinstance(source, Plain) else None
        self.gz = source if isinstance(source, Compressed) else None
        self.name = name
        self.limits = limits
        self.ready: list[Record | Damage] = []
        self.pending: list[Record | Damage] = []  # complete, but their member's end is not known yet
        self.held = 0  # bytes of pending blocks
        self.arc = False  # the kind of the last header: which one to look for inside foreign bytes
        self.any = False  # a record header was read
        self.buf = b""
        self.i = 0  # buf[i] is the next byte
        self.base = 0  # and stands at base + i of the member
        self.over = True  # buf is all that is left of the member
        self.last_end = 0  # of the member before this one

    def run(self) -> Iterator[Record | Damage]:
        while self.advance():
            if self.gz and (record := self.only(self.gz)):
                yield from self.take_ready()
                yield record
                continue
            while self.one():
                if not self.pending:
                    yield from self.take_ready()
            self.close()
            yield from self.take_ready()
        yield from self.take_ready()

    def take_ready(self) -> list[Record | Damage]:
        """What can be yielded, in file order (a gap may be noted before the record that runs across it is complete)."""
        ready, self.ready = self.ready, []
        return ready if len(ready) < 2 else sorted(ready, key=lambda r: (r.offset, r.inner))

    # --- the cursor ---------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Opens the next member, noting gaps on the way. False at the end of the file."""
        self.buf, self.i, self.base, self.over = b"", 0, 0, True
        while (state := self.source.next()) is not True:
            if not isinstance(state, Gap):
                return False
            self.ready.append(Damage(self.name, state.offset, 0, state.length, "warc.garbage", "no member starts here"))
        self.over = False
        return True

    def fill(self) -> bool:
        piece = self.source.read()
        if not piece:
            self.over = True
            return False
        self.base += self.i
        self.buf = self.buf[self.i :] + piece if self.i < len(self.buf) else piece
        self.i = 0
        return True

    def ensure(self, n: int) -> None:
        while len(self.buf) - self.i < n and not self.over and self.fill():
            pass

    def skip_blank(self) -> None:
        while True:
            if found := BLANK.match(self.buf, self.i):
                self.i = found.end()
            if self.i < len(self.buf) or self.over or not self.fill():
                return

    def place(self) -> tuple[int, int]:
        """(offset, inner) of a record that starts at the cursor."""
        at = self.base + self.i
        return (at, 0) if self.plain else (self.source.offset, at)

    def jump(self, place: int) -> None:
        assert self.plain is not None
        self.plain.seek(place)
        self.buf, self.i, self.base, self.over = b"", 0, place, False

    def boundary(self) -> bool:
        """Whether a record may end here: the member does, or the next record begins."""
        self.ensure(LOOK)
        found = BLANK.match(self.buf, self.i, self.i + LOOK)
        blank = found is not None and found.end() in (len(self.buf), self.i + LOOK)
        return blank or starts_record(self.buf, self.i)

    # --- records ------------------------------------------------------------------------------------------------

    def only(self, gz: Compressed) -> Record | None:
        """The record of a member that holds one, whole, and nothing else: nearly every member of nearly every crawl.

        `one` would find the same more slowly. Else None, with the bytes read so far before the cursor.
        """
        pieces = [gz.read()]
        made = len(pieces[0])
        while gz.codec is not None and made < WHOLE:
            pieces.append(gz.read())
            made += len(pieces[-1])
        self.buf = buf = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if gz.codec is not None or gz.fault or not WARC_LINE.match(buf):
            return None
        end = BLANK_LINE.search(buf, 0, self.limits.max_header_bytes)
        start = parse_warc_header(buf[: end.start()]) if end else None
        if start is None or end is None or start.size is None or start.size > self.limits.max_block_bytes:
            return None
        begin, stop = end.end(), end.end() + start.size
        blank = BLANK.match(buf, stop) if stop <= made else None
        if blank is None or blank.end() < made:
            return None
        self.any, self.arc = True, False
        return Record(
            start.kind, start.headers, start.url, start.date, start.record_id, gz.offset, 0, gz.end - gz.offset,
            buf[begin:stop], content_type=start.content_type,
        )  # fmt: skip

    def one(self) -> bool:
        """Reads one record or one stretch of garbage. False at the end of the current member."""
        self.skip_blank()
        self.ensure(LOOK)
        if self.i >= len(self.buf):
            return False
        offset, inner = self.place()
        start = self.header()
        if start is None:
            self.garbage(offset, inner)
        else:
            self.any, self.arc = True, start.arc
            self.record(start, offset, inner)
        return True

    def header(self) -> Start | None:
        """Parses the header at the cursor and moves past it; None, unmoved, when there is none."""
        if WARC_LINE.match(self.buf, self.i):
            n, limit = LOOK, self.limits.max_header_bytes
            while not (end := BLANK_LINE.search(self.buf, self.i, self.i + limit)):
                if self.over or n > limit:
                    return None
                n *= 2
                self.ensure(n)
            start = parse_warc_header(self.buf[self.i : end.start()])
            if start is not None:
                self.i = end.end()
            return start
        newline = self.buf.find(b"\n", self.i, self.i + LOOK)
        start = parse_arc_line(self.buf[self.i : newline + 1]) if newline >= 0 else None
        if start is not None:
            self.i = newline + 1
        return start

    def record(self, start: Start, offset: int, inner: int) -> None:
        """Reads the block of a record whose header was just read, and files it as record or damage."""
        limit, begin, size = self.limits.max_block_bytes, self.base + self.i, start.size
        record = Record(
            start.kind, start.headers, start.url, start.date, start.record_id, offset, inner, 0, b"",
            content_type=start.content_type,
        )  # fmt: skip
        if size is None or (self.plain and size > self.plain.size - begin):
            # No usable length, or one past the end of the file: the next header line decides.
            data, found = self.until_header(self.i - 1, limit + 1)
            if not found and (self.gz.fault if self.gz else size is not None and not self.complete(record, data)):
                return self.broken(offset, inner, record)
            record.truncated, record.too_large = size is not None, len(data) > limit
            return self.finish(record, _trim(data, start.arc))
        record.too_large = size > limit
        if self.plain and record.too_large:
            # Look where it should end before passing over it: many such lies must not cost a reading each.
            self.jump(begin + size)
            if not self.boundary():
                record.truncated = True
                self.jump(begin)
                self.until_header(0, 0)
            return self.finish(record, b"")
        data, how = self.take(size, not record.too_large)
        if how == "failed":
            return self.broken(offset, inner, record)
        if how in ("cut", "short", "moved"):
            record.truncated = True
        if how == "moved":
            assert self.gz is not None
            record.length = self.last_end - offset
            record.block = data
            self.ready.append(record)
            return None
        if how == "cut" or (how == "whole" and not self.boundary()):
            cut = self.header_inside(data)
            if cut >= 0:  # Content-Length reaches into the next record
                self.base, self.i, self.buf = begin + cut, 0, data[cut:] + self.buf[self.i :]
                data, record.truncated = _trim(data[:cut], start.arc), True
        return self.finish(record, data)

    def take(self, n: int, keep: bool) -> tuple[bytes, Outcome]:
        """n bytes of block, held if `keep`. A block runs on into the next member unless that begins with a record."""
        parts: list[bytes] = []
        crossed = False
        while n:
            here = min(n, len(self.buf) - self.i)
            if here:
                if keep:
                    parts.append(self.buf[self.i : self.i + here])
                self.i += here
                n -= here
            elif self.over or not self.fill():
                held = b"".join(parts)
                if self.gz is None:
                    return held, "short"
                if self.gz.fault:
                    return held, "failed"
                if not crossed and self.header_inside(held) >= 0:
                    return held, "cut"
                self.last_end = self.gz.end
                self.close()
                if not self.advance():
                    return held, "moved"
                self.ensure(LOOK)
                if starts_record(self.buf):
                    return held, "moved"
                parts, crossed = [held], True
        return b"".join(parts), "crossed" if crossed else "whole"

    def complete(self, record: Record, data: bytes) -> bool:
        """Whether a block at the end of the file is whole in spite of its record's length: HTTP's own one is met."""
        if record.kind != "response" or len(data) > self.limits.max_block_bytes:
            return False
        status, headers, body = split_head(data, self.limits.max_header_bytes)
        return status is not None and vouched(headers, len(body))

    def header_inside(self, data: bytes) -> int:
        """Where a header line stands inside a block, or -1."""
        found = find_header(b"\n" + data, 0, self.arc)
        return found - 1 if found >= 0 else -1

    def finish(self, record: Record, data: bytes) -> None:
        """Files a complete record: at once in a plain file, else when its member has ended or too much is held."""
        record.block = b"" if record.too_large else data
        if self.gz is None:
            record.length = self.base + self.i - record.offset
            self.ready.append(record)
            return
        self.pending.append(record)
        self.held += len(record.block) + HEADER_COST
        if self.held > self.limits.hold_bytes:
            self.release(self.gz.find_end() or self.gz.at)

    def release(self, end: int) -> None:
        for record in self.pending:
            record.length = end - record.offset
        self.ready += self.pending
        self.pending, self.held = [], 0

    # --- damage -------------------------------------------------------------------------------------------------

    def until_header(self, search: int, keep: int) -> tuple[bytes, bool]:
        """Moves to the next header line after a newline at or past `search`, or to the member's end.

        Returns the bytes passed, at most `keep` of them, and whether a header was found.
        """
        parts: list[bytes] = []
        room = keep
        search = max(search, 0)
        while True:
            at = find_header(self.buf, search, self.arc)
            stop = at if at >= 0 else len(self.buf) if self.over else max(self.i, len(self.buf) - LOOK)
            if room:
                parts.append(self.buf[self.i : min(stop, self.i + room)])
                room -= len(parts[-1])
            self.i = stop
            if at >= 0 or self.over:
                return b"".join(parts), at >= 0
            self.fill()
            search = self.i

    def garbage(self, offset: int, inner: int) -> None:
        """Bytes at the cursor that are no record: skipped to the next header line of this member, as one Damage."""
        begins = bool(WARC_LINE.match(self.buf, self.i))
        _, found = self.until_header(self.i, 0)
        if self.gz and self.gz.fault and not found:
            return self.broken(offset, inner, None, fragment=True)
        if begins:
            cut = self.plain is not None and not found
            reason = "warc.truncated_record" if cut else "warc.bad_header"
            message = "the file ends inside a record header" if cut else "a record header that cannot be read"
        else:
            reason = "warc.garbage" if self.any or found else "warc.not_an_archive"
            message = "bytes that are no record"
        found_here = Damage(self.name, offset, inner, self.base + self.i - offset, reason, message)
        (self.ready if self.plain else self.pending).append(found_here)

    def broken(self, offset: int, inner: int, record: Record | None, fragment: bool = False) -> None:
        """Files the damage that ends the current member (or plain file) and moves to where reading can go on.

        `record` is the one that was being read. Without one, the last complete record of the member pays: nothing
        vouches for bytes at the edge of a failure. Only where the file simply ends, in a `fragment` of a next record,
        is it spared.
        """
        if self.gz is None:
            resume, reason, message = self.base + self.i, "warc.truncated_record", "the file ends inside a record"
        else:
            reason, message = self.gz.fault, self.gz.message
            self.gz.fault = ""
            resume = self.gz.resync(self.gz.offset + 1)
            spared = fragment and reason == "warc.truncated_member" and resume == self.gz.size
            if record is None and self.pending and isinstance(last := self.pending[-1], Record) and not spared:
                self.pending.pop()
                record, offset, inner = last, last.offset, last.inner
            if reason == "warc.bad_crc":  # bytes that fail their checksum are not passed on
                self.pending = [self.damage(p, p.offset, p.inner, resume, reason, message) for p in self.pending]
            self.release(resume)
        self.buf, self.i, self.base, self.over = b"", 0, 0, True
        self.ready.append(self.damage(record, offset, inner, resume, reason, message))

    def damage(
        self, of: Record | Damage | None, offset: int, inner: int, end: int, reason: str, message: str
    ) -> Damage:
        found = Damage(self.name, offset, inner, end - offset, reason, message)
        if of is not None:
            found.kind, found.url, found.date, found.record_id = of.kind, of.url, of.date, of.record_id
        return found

    def close(self) -> None:
        """At the end of a member: its records get their length, or its failure becomes damage."""
        if self.gz is None:
            return
        if self.gz.fault:
            self.broken(*self.place(), None)
        else:
            self.release(self.gz.end)


def _trim(data: bytes, arc: bool) -> bytes:
    """Without the end mark of a record: two line ends in WARC, one in ARC."""
    for end in (b"\n",) if arc else (b"\r\n\r\n", b"\n\n"):
        if data.endswith(end):
            return data[: -len(end)]
    return data
