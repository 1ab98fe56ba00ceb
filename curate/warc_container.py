"""The containers of archives (plain, gzip, LZ4, Zstandard), opened member by member with bounded memory.

A container hands out decompressed pieces of its current member and knows the member's compressed offset and end. It
knows nothing of records, except that after damage it goes on only at bytes that inflate to a record header.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import BinaryIO

from gristmill.curate.warc_codecs import PIECE, Codec, Data, Gzip, Lz4, Zstd, damage_reason, salvage
from gristmill.curate.warc_parse import LOOK, starts_record
from gristmill.curate.warc_types import Limits

READ = 256 << 10
"""Compressed bytes per read."""
FEEDS = 8 << 10, 64 << 10
"""Compressed bytes that a codec gets first and then at once. It copies what follows its member: most are short."""
PROBE = 64 << 10
"""Compressed bytes that must show a record header for reading to go on at a candidate."""
PROBES = 100_000
"""Candidates tried in one search for the next member: a file made of magic numbers ends in finite time."""


@dataclass
class Gap:
    """Bytes between members that belong to none: [offset, offset + length)."""

    offset: int
    length: int


class Plain:
    """An uncompressed file: one member, whose records stand at their own offsets."""

    compressed = False
    fault = ""
    message = ""
    offset = 0

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.started = False
        self.size = stream.seek(0, 2)

    def next(self) -> bool | Gap:
        if self.started:
            return False
        self.started = True
        self.stream.seek(0)
        return True

    def read(self) -> bytes:
        return self.stream.read(PIECE)

    def seek(self, offset: int) -> None:
        self.stream.seek(offset)


class Compressed:
    """A file of compressed members. `next` opens one, `read` gives its pieces, `end` is its end once `read` gave b"".

    After a member that fails, `fault` (a damage reason) and `message` are set, and `end` is where the bytes gave out;
    `resync` then finds the next member that holds a record, and returns its offset (the file's size if none).

    A gzip member is inflated by the fastest library there is. If that one finds a fault or no end, the member is read
    again from its start with zlib, in steps that depend on the member alone: what a damaged one gives, and which
    damage it is, depends neither on the library nor on where the reads before it ended.
    """

    compressed = True

    def __init__(self, stream: BinaryIO, codec: type[Gzip] | type[Lz4] | type[Zstd], limits: Limits) -> None:
        self.stream = stream
        self.kind = codec
        self.limits = limits
        self.dictionary = b""
        self.size = stream.seek(0, 2)
        self.codec: Codec | None = None
        self.careful = codec is not Gzip
        self.ahead: int | None
        self.offset = self.end = 0
        self.fault = self.message = ""
        self.made = self.repeat = 0  # bytes made of this member; those of them that were given out before a new start
        self.looked, self.ahead = False, None
        self._go(0)
        if codec is Zstd:
            self._read_dictionary()

    def _go(self, offset: int) -> None:
        self.stream.seek(offset)
        self.raw = b""  # read; raw[cut:] is not yet fed, and begins at self.at
        self.cut = 0
        self.at = offset

    def _make(self) -> Codec:
        return Zstd(self.dictionary) if self.kind is Zstd else self.kind()

    def _need(self, n: int) -> bytes:
        """The next n bytes or more, fewer at the end of the file, without passing over them."""
        while len(self.raw) - self.cut < n and (more := self.stream.read(max(READ, n - len(self.raw)))):
            self.raw, self.cut = self.raw[self.cut :] + more, 0
        return self.raw[self.cut : self.cut + n]

    def _feed(self) -> Data:
        """The next bytes for a codec; none at the end of the file."""
        if self.cut >= len(self.raw):
            self.raw, self.cut = self.stream.read(READ), 0
        data = memoryview(self.raw)[self.cut : self.cut + FEEDS[self.made > 0]]
        self.cut += len(data)
        self.at += len(data)
        return data

    def _skip(self, n: int) -> None:
        if n <= len(self.raw) - self.cut:
            self.cut, self.at = self.cut + n, self.at + n
        else:
            self._go(self.at + n)

    def _read_dictionary(self) -> None:
        """A leading skippable frame 0x184D2A5D holds the dictionary of a .warc.zst, itself compressed or not."""
        head = self._need(8)
        if head[:4] == b"\x5d\x2a\x4d\x18":
            size = int.from_bytes(head[4:8], "little")
            if size <= 16 << 20:
                raw = self._need(8 + size)[8:]
                # Its own frame has no dictionary and at most 64 KiB of output per KiB: salvage stops at `enough`.
                packed = raw.startswith(Zstd.magic)
                self.dictionary = salvage(Zstd(), raw, 64 << 20) if packed else raw
            self._go(0)

    def _padding(self, head: bytes) -> int:
        """Length of what may stand between members: zeros, line ends, skippable frames of LZ4 and Zstandard."""
        if self.kind is not Gzip and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
            return 8 + int.from_bytes(head[4:8], "little")
        if head[:1] not in (b"\0", b"\r", b"\n"):
            return 0
        rest = self.raw[self.cut :]
        return len(rest) - len(rest.lstrip(b"\0\r\n"))

    def next(self) -> bool | Gap:
        """Opens the next member (True), or tells of bytes that are none (Gap), or of the end (False)."""
        while padding := self._padding(head := self._need(8)):
            self._skip(padding)
        if not head:
            return False
        self.fault = self.message = ""
        if not head.startswith(self.kind.magic):
            start = self.at
            return Gap(start, self.resync(start + 1) - start)
        self.offset, self.made, self.repeat, self.looked = self.at, 0, 0, False
        self.careful = self.kind is not Gzip
        self.codec = self._make() if self.careful else Gzip.quick(head)
        return True

    def _start_over(self) -> None:
        """Reads the current member again with zlib and copies of its state, passing over what was given out."""
        self._go(self.offset)
        self.codec, self.careful, self.repeat, self.made = Gzip(), True, self.made, 0

    def read(self) -> bytes:
        while (codec := self.codec) is not None:
            data = self._feed() if codec.hungry else b""
            before = codec.copy() if self.careful else None
            try:
                out = codec.decompress(data)
            except Exception as e:  # zlib.error, RuntimeError (lz4), ZstdError, MemoryError: all mean damaged bytes
                if not self.careful:
                    self._start_over()
                    continue
                self._fail(damage_reason(self.kind.name, e), str(e), self.at)
                return self._fresh(salvage(before, data))
            if codec.eof:
                rest = len(codec.unused)
                self.cut, self.at = self.cut - rest, self.at - rest
                self.end, self.codec = self.at, None
            elif not data and not out and codec.hungry:
                if not self.careful:
                    self._start_over()
                    continue
                self._fail("warc.truncated_member", f"the file ends inside a {self.kind.name} member", self.at)
                return b""
            if new := self._fresh(out):
                return new
        return b""

    def _fresh(self, out: bytes) -> bytes:
        """Those of the bytes just made that were not given out before and are within the limit; counts them."""
        self.made += len(out)
        if self.repeat:
            known = min(self.repeat, len(out))
            self.repeat, out = self.repeat - known, out[known:]
        if (over := self.made - self.limits.max_member_bytes) > 0:
            message = f"inflates to more than {self.limits.max_member_bytes} bytes"
            self._fail("warc.member_too_large", message, self.at)
            return out[: max(0, len(out) - over)]
        return out

    def _fail(self, reason: str, message: str, end: int) -> None:
        self.fault, self.message, self.end, self.codec = reason, message, end, None

    def find_end(self) -> int | None:
        """The end of the current member without moving, or None when it cannot be told (LZ4, Zstandard, damage).

        Inflates the member once more; later calls remember.
        """
        if self.codec is None:
            return self.end
        if not self.looked:
            self.looked, self.ahead = True, self._look_ahead()
        return self.ahead

    def _look_ahead(self) -> int | None:
        if self.kind is not Gzip:
            return None
        codec, at, made, end = Gzip(), self.offset, 0, None
        self.stream.seek(at)
        try:
            while made <= self.limits.max_member_bytes:
                data = self.stream.read(PROBE) if codec.hungry else b""
                if codec.hungry and not data:
                    break
                made += len(codec.decompress(data))
                at += len(data)
                if codec.eof:
                    end = at - len(codec.unused)
                    break
        except zlib.error:
            pass
        self.stream.seek(self.at + len(self.raw) - self.cut)
        return end

    def resync(self, start: int) -> int:
        """Moves to the first member at or after `start` that inflates to a record header; returns its offset."""
        magic, at = self.kind.magic, start
        self.stream.seek(start)
        window = b""
        for _ in range(PROBES):
            found = window.find(magic)
            while found < 0:
                keep = len(magic) - 1
                at, window = (at + len(window) - keep, window[-keep:]) if len(window) > keep else (at, window)
                more = self.stream.read(1 << 20)
                if not more:
                    self._go(self.size)
                    return self.size
                window += more
                found = window.find(magic)
            if len(window) - found < PROBE:
                window += self.stream.read(PROBE)
            if self._holds_record(window[found : found + PROBE]):
                self._go(at + found)
                return at + found
            at, window = at + found + 1, window[found + 1 :]
        self._go(self.size)
        return self.size

    def _holds_record(self, data: bytes) -> bool:
        return starts_record(salvage(self._make(), data, LOOK))


def open_container(stream: BinaryIO, limits: Limits) -> Plain | Compressed:
    """The container of a seekable stream, told by its first bytes and never by its name.

    Raises ImportError when an LZ4 or Zstandard file meets no decompressor.
    """
    stream.seek(0)
    head = stream.read(4)
    for codec in (Gzip, Lz4, Zstd):
        if head.startswith(codec.magic) or (codec is Zstd and head[1:] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
            codec()
            return Compressed(stream, codec, limits)
    return Plain(stream)
