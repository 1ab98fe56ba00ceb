"""The containers of archives (plain, gzip, LZ4, Zstandard), opened member by member with bounded memory.

A container hands out decompressed pieces of its current member and knows the member's compressed offset and end. It
knows nothing of records, except that after damage it goes on only at bytes that inflate to a record header.
"""

from __future__ import annotations

import importlib
import zlib
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Protocol

from gristmill.curate.warc_parse import LOOK, starts_record
from gristmill.curate.warc_types import Limits

READ = 64 << 10
"""Compressed bytes per read. zlib copies what follows a member, so larger reads cost more than they save."""
PIECE = 256 << 10
"""Decompressed bytes per piece: what a bomb can make us hold at once (zstd: up to 32 MiB, see `Zstd`)."""
PROBE = 64 << 10
"""Compressed bytes that must show a record header for reading to go on at a candidate."""
PROBES = 100_000
"""Candidates tried in one search for the next member: a file made of magic numbers ends in finite time."""


class Codec(Protocol):
    """A decompressor of one member: feed it when `hungry`, until `eof`; `unused` is what follows the member."""

    @property
    def hungry(self) -> bool: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused(self) -> bytes: ...

    def decompress(self, data: bytes) -> bytes: ...

    def copy(self) -> Codec | None: ...


class Gzip:
    name: ClassVar[str] = "gzip"
    magic: ClassVar[bytes] = b"\x1f\x8b\x08"

    def __init__(self) -> None:
        self.z = zlib.decompressobj(31)
        self.tail = b""

    @property
    def hungry(self) -> bool:
        return not self.tail

    @property
    def eof(self) -> bool:
        return self.z.eof

    @property
    def unused(self) -> bytes:
        return self.z.unused_data

    def decompress(self, data: bytes) -> bytes:
        out = self.z.decompress(self.tail + data if self.tail else data, PIECE)
        self.tail = self.z.unconsumed_tail
        return out

    def copy(self) -> Gzip | None:
        other = Gzip.__new__(Gzip)
        other.z, other.tail = self.z.copy(), self.tail
        return other


class Lz4:
    """An LZ4 frame, through the optional `lz4` package."""

    name: ClassVar[str] = "lz4"
    magic: ClassVar[bytes] = b"\x04\x22\x4d\x18"

    def __init__(self) -> None:
        self.d = importlib.import_module("lz4.frame").LZ4FrameDecompressor()

    @property
    def hungry(self) -> bool:
        return bool(self.d.needs_input)

    @property
    def eof(self) -> bool:
        return bool(self.d.eof)

    @property
    def unused(self) -> bytes:
        return self.d.unused_data or b""

    def decompress(self, data: bytes) -> bytes:
        return bytes(self.d.decompress(data, max_length=PIECE))

    def copy(self) -> None:
        return None


class Zstd:
    """A Zstandard frame. Input goes in 1 KiB at a time: a block of 4 bytes can make 128 KiB, so a step makes <= 32 MiB."""

    name: ClassVar[str] = "zstd"
    magic: ClassVar[bytes] = b"\x28\xb5\x2f\xfd"
    step: ClassVar[int] = 1024

    def __init__(self, dictionary: bytes = b"") -> None:
        zstandard = importlib.import_module("zstandard")
        extra = {"dict_data": zstandard.ZstdCompressionDict(dictionary)} if dictionary else {}
        self.d = zstandard.ZstdDecompressor(max_window_size=1 << 27, **extra).decompressobj()
        self.tail = b""

    @property
    def hungry(self) -> bool:
        return not self.tail

    @property
    def eof(self) -> bool:
        return bool(self.d.eof)

    @property
    def unused(self) -> bytes:
        return bytes(self.d.unused_data) + self.tail

    def decompress(self, data: bytes) -> bytes:
        data = self.tail + data
        self.tail = data[self.step :]
        return bytes(self.d.decompress(data[: self.step]))

    def copy(self) -> None:
        return None


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
    """

    compressed = True

    def __init__(self, stream: BinaryIO, codec: type[Gzip] | type[Lz4] | type[Zstd], limits: Limits) -> None:
        self.stream = stream
        self.kind = codec
        self.limits = limits
        self.dictionary = b""
        self.size = stream.seek(0, 2)
        self.codec: Codec | None = None
        self.ahead: int | None
        self.offset = self.end = 0
        self.fault = self.message = ""
        self.made = 0
        self.looked, self.ahead = False, None
        self._go(0)
        if codec is Zstd:
            self._read_dictionary()

    def _go(self, offset: int) -> None:
        self.stream.seek(offset)
        self.raw = b""  # read, not yet fed; its first byte stands at self.at
        self.at = offset

    def _make(self) -> Codec:
        return Zstd(self.dictionary) if self.kind is Zstd else self.kind()

    def _need(self, n: int) -> None:
        while len(self.raw) < n and (more := self.stream.read(max(READ, n - len(self.raw)))):
            self.raw += more

    def _skip(self, n: int) -> None:
        if n <= len(self.raw):
            self.raw, self.at = self.raw[n:], self.at + n
        else:
            self._go(self.at + n)

    def _read_dictionary(self) -> None:
        """A leading skippable frame 0x184D2A5D holds the dictionary of a .warc.zst, itself compressed or not."""
        self._need(8)
        if self.raw[:4] == b"\x5d\x2a\x4d\x18":
            size = int.from_bytes(self.raw[4:8], "little")
            if size <= 16 << 20:
                self._need(8 + size)
                raw = self.raw[8 : 8 + size]
                # Its own frame has no dictionary and at most 64 KiB of output per KiB: _salvage stops at `enough`.
                packed = raw.startswith(Zstd.magic)
                self.dictionary = _salvage(Zstd(), raw, 64 << 20) if packed else raw
            self._go(0)

    def _padding(self) -> int:
        """Length of what may stand between members: zeros, line ends, skippable frames of LZ4 and Zstandard."""
        self._need(8)
        if self.kind is not Gzip and self.raw[1:4] == b"\x2a\x4d\x18" and self.raw[0] & 0xF0 == 0x50:
            return 8 + int.from_bytes(self.raw[4:8], "little")
        return len(self.raw) - len(self.raw.lstrip(b"\0\r\n"))

    def next(self) -> bool | Gap:
        """Opens the next member (True), or tells of bytes that are none (Gap), or of the end (False)."""
        while padding := self._padding():
            self._skip(padding)
        if not self.raw:
            return False
        self.fault = self.message = ""
        if not self.raw.startswith(self.kind.magic):
            start = self.at
            return Gap(start, self.resync(start + 1) - start)
        self.offset, self.codec, self.made, self.looked = self.at, self._make(), 0, False
        return True

    def read(self) -> bytes:
        while (codec := self.codec) is not None:
            data = b""
            if codec.hungry:
                data, self.raw = self.raw or self.stream.read(READ), b""
            before = codec.copy()
            try:
                out = codec.decompress(data)
            except Exception as e:  # zlib.error, RuntimeError (lz4), ZstdError, MemoryError: all mean damaged bytes
                out = _salvage(before, data)
                self.at += len(data)
                self._fail(_reason(self.kind.name, e), str(e), self.at)
                self.made += len(out)
                return out
            self.at += len(data)
            if codec.eof:
                self.raw = codec.unused
                self.at -= len(self.raw)
                self.end, self.codec = self.at, None
            elif not data and not out and codec.hungry:
                return self._fail("warc.truncated_member", f"the file ends inside a {self.kind.name} member", self.at)
            self.made += len(out)
            if self.made > self.limits.max_member_bytes:
                return self._fail("warc.member_too_large", f"inflates to more than {self.made} bytes", self.at)
            if out:
                return out
        return b""

    def _fail(self, reason: str, message: str, end: int) -> bytes:
        self.fault, self.message, self.end, self.codec = reason, message, end, None
        return b""

    def find_end(self) -> int | None:
        """The end of the current member without moving, or None when it cannot be told (LZ4, Zstandard, damage).

        Inflates the rest of the member once; later calls remember.
        """
        if self.codec is None:
            return self.end
        if not self.looked:
            self.looked, self.ahead = True, self._look_ahead()
        return self.ahead

    def _look_ahead(self) -> int | None:
        codec, at, made = self.codec.copy() if self.codec else None, self.at, self.made
        if codec is None:
            return None
        self.stream.seek(at + len(self.raw))
        data, end = self.raw, None
        try:
            while made <= self.limits.max_member_bytes:
                if codec.hungry:
                    data = data or self.stream.read(READ)
                    if not data:
                        break
                made += len(codec.decompress(data))
                at, data = at + len(data), b""
                if codec.eof:
                    end = at - len(codec.unused)
                    break
        except zlib.error:
            pass
        self.stream.seek(self.at + len(self.raw))
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
        return starts_record(_salvage(self._make(), data, LOOK))


def _salvage(codec: Codec | None, data: bytes, enough: int = PIECE) -> bytes:
    """What a codec gives before it fails: one call over all the data would lose it. Up to about `enough` bytes."""
    parts: list[bytes] = []
    made = i = 0
    if isinstance(codec, Gzip):
        data, codec.tail = codec.tail + data, b""
    try:
        while codec is not None and not codec.eof and made < enough:
            step = data[i : i + 16] if codec.hungry else b""
            i += len(step)
            out = codec.decompress(step)
            if not step and not out and codec.hungry:
                break
            parts.append(out)
            made += len(out)
    except Exception:  # as in `read`: the damage itself
        pass
    return b"".join(parts)


def _reason(name: str, error: Exception) -> str:
    text = str(error).lower()
    if "incorrect data check" in text or "incorrect length check" in text or "checksum" in text:
        return "warc.bad_crc"
    return f"warc.bad_{name}"


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
