"""The decompressors of archive members (gzip, LZ4, Zstandard) behind one interface, and what a failing one still gives."""

from __future__ import annotations

import importlib
import zlib
from typing import Any, ClassVar, Protocol

PIECE = 256 << 10
"""Decompressed bytes per piece: what a bomb can make us hold at once (zstd: up to 32 MiB, see `Zstd`)."""

Data = bytes | memoryview


class Codec(Protocol):
    """A decompressor of one member: feed it when `hungry`, until `eof`; `unused` is what follows the member."""

    @property
    def hungry(self) -> bool: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused(self) -> bytes: ...

    def decompress(self, data: Data) -> bytes: ...

    def copy(self) -> Codec | None: ...


def _inflater() -> Any:
    """`isal.isal_zlib`, about twice as fast at the same bytes, else zlib."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib


class Gzip:
    """A gzip member through zlib, whose verdict on damaged bytes is the one that counts."""

    name: ClassVar[str] = "gzip"
    magic: ClassVar[bytes] = b"\x1f\x8b\x08"

    def __init__(self, inflater: Any = zlib) -> None:
        self.z = inflater.decompressobj(31)
        self.tail = b""

    @classmethod
    def quick(cls, head: bytes) -> Gzip:
        """The fastest decompressor for a member that begins with these bytes: isal, if installed.

        Members with a header checksum or reserved flags (RFC 1952, bits 1 and 5 to 7) are left to zlib, which checks
        them. The caller must start a member over with zlib whenever this one is not content.
        """
        return cls(_INFLATER if len(head) > 3 and not head[3] & 0xE2 else zlib)

    @property
    def hungry(self) -> bool:
        return not self.tail

    @property
    def eof(self) -> bool:
        return bool(self.z.eof)

    @property
    def unused(self) -> bytes:
        return bytes(self.z.unused_data)

    def decompress(self, data: Data) -> bytes:
        out: bytes = self.z.decompress(self.tail + data if self.tail else data, PIECE)
        self.tail = self.z.unconsumed_tail
        return out

    def copy(self) -> Gzip | None:
        other = Gzip.__new__(Gzip)
        other.z, other.tail = self.z.copy(), self.tail
        return other


_INFLATER = _inflater()


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

    def decompress(self, data: Data) -> bytes:
        return bytes(self.d.decompress(bytes(data), max_length=PIECE))

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

    def decompress(self, data: Data) -> bytes:
        data = self.tail + data
        self.tail = data[self.step :]
        return bytes(self.d.decompress(data[: self.step]))

    def copy(self) -> None:
        return None


def salvage(codec: Codec | None, data: Data, enough: int = PIECE) -> bytes:
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
    except Exception:  # zlib.error, RuntimeError (lz4), ZstdError, MemoryError: the damage itself
        pass
    return b"".join(parts)


def damage_reason(name: str, error: Exception) -> str:
    """`warc.bad_crc` when the bytes decode and fail a checksum or length check, else `warc.bad_<codec>`."""
    text = str(error).lower()
    if "incorrect data check" in text or "incorrect length check" in text or "checksum" in text:
        return "warc.bad_crc"
    return f"warc.bad_{name}"
