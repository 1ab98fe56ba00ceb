"""Encode documents with the fastest backend that gives `tokenizers`' ids on them, checked before and while it works.

Before: each backend must agree on the adversarial texts, once per tokenizer and process. While: a document goes to a
backend only if every code point in it was compared (libraries follow different versions of Unicode); the caller names
documents that are encoded twice. A backend that differs anywhere is refused for the rest of the process and named in a
log line, and the caller starts over: which libraries are installed decides speed, never a byte.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gristmill.core.errors import FormatError, UsageError
from gristmill.tokenize.adversarial import adversarial
from gristmill.tokenize.backends import BACKENDS, Backend, installed, probe_parts, probe_text
from gristmill.tokenize.bytelevel import Parts, take_apart
from gristmill.tokenize.codec import Codec

ENCODERS = "GRISTMILL_ENCODERS"
"""Environment variable: backends to use, by comma, fastest first; empty for `tokenizers` alone."""

RECYCLE_BYTES = 128 << 20
"""Text after which a backend is built anew: gigatoken remembers every word, about 90 bytes each (measured)."""

TRUTH_BYTES = 1 << 20
_WAITING = 4096
log = logging.getLogger("gristmill.tokenize")


class Differs(Exception):
    """A backend gave other ids than `tokenizers`, or failed; it is refused from now on. Encode again without it."""


@dataclass
class _Agreement:
    """What is known in this process of one backend with one tokenizer."""

    refused: str | None = None
    checked: bool = False
    status: np.ndarray = field(default_factory=lambda: np.zeros(0x110000, np.uint8))


class _Here(threading.local):
    """What one thread of this process holds: a worker has one as a rule, and nothing here is locked."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str, str], _Agreement] = {}
        self.encoders: dict[tuple[str, tuple[str, ...]], Encoder] = {}


_HERE = _Here()


def pack(texts: Iterable[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as (bytes,) uint8 and (texts + 1,) int64 offsets."""
    raws = [t.encode() if isinstance(t, str) else t for t in texts]
    offsets = np.zeros(len(raws) + 1, np.int64)
    np.cumsum([len(r) for r in raws], out=offsets[1:])
    return np.frombuffer(b"".join(raws), np.uint8), offsets


def join(pieces: Sequence[np.ndarray], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Arrays one after the other in one, and their (pieces + 1,) int64 offsets."""
    offsets = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(p) for p in pieces], out=offsets[1:])
    flat = (
        np.concatenate([np.empty(0, dtype), *pieces], dtype=dtype, casting="unsafe") if pieces else np.empty(0, dtype)
    )
    return flat, offsets


class Tier:
    """One backend for one tokenizer, with the screen that decides which documents it may see."""

    def __init__(self, name: str, codec: Codec, parts: Parts, known: _Agreement) -> None:
        """Raises FormatError when the backend cannot hold this tokenizer."""
        self.name = name
        self.known = known
        self.codec = codec
        self._parts = parts
        self._backend: Backend = BACKENDS[name](parts)
        self._spent = 0
        probe = probe_parts(parts)
        self._probe = (Codec(probe.json()), BACKENDS[name](probe))
        self._digits: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        if self._backend.groups:
            self._digits = _digit_tables(codec, self._backend.groups)
            self._probe_digits = _digit_tables(self._probe[0], self._backend.groups)

    def held(self, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(documents,) bool: those that this backend may not be given. Compares code points not met before."""
        from gristmill.tokenize.kernels import scan

        waiting = np.empty(_WAITING, np.int32)
        while True:
            flags = np.zeros(len(offsets) - 1, np.uint8)
            status, limit = self.known.status, self._backend.max_spaces
            found = scan(data, offsets, status, self._backend.groups > 0, limit, flags, waiting)
            if not found:
                return flags.astype(bool)
            self._compare(waiting[:found])

    def _compare(self, points: np.ndarray) -> None:
        """Set the status of code points by encoding each in all surroundings with the truth and with the backend."""
        from gristmill.tokenize.kernels import DIFFERS, KNOWN, NUMBER, SPACE

        chars = [chr(c) for c in points.tolist()]
        number = [unicodedata.category(c)[0] == "N" for c in chars]
        groups = self._backend.groups
        texts = [probe_text(c, not (groups and n)) for c, n in zip(chars, number, strict=True)]
        truth, backend = self._probe
        want = truth.encode_batch(texts)
        got = _run(backend, [t.encode() for t in texts])
        if groups:
            flat, offsets = join(got, np.dtype(np.uint32))
            flat, offsets = _regroup(flat, offsets, groups, self._probe_digits)
            got = [flat[a:b] for a, b in itertools.pairwise(offsets)]
        for point, char, is_number, a, b in zip(points.tolist(), chars, number, want, got, strict=True):
            bits = KNOWN | (NUMBER if is_number else 0) | (SPACE if char.isspace() else 0)
            self.known.status[point] = bits | (0 if np.array_equal(a, b) else DIFFERS)

    def encode(self, raws: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens,) ids of the texts one after the other, and (texts + 1,) offsets. Raises Differs when it fails."""
        self._spent += sum(map(len, raws))
        if self._spent > RECYCLE_BYTES:
            self._backend, self._spent = BACKENDS[self.name](self._parts), 0
        try:
            pieces = _run(self._backend, raws)
        except _Failed as error:
            raise self.refuse(str(error)) from error
        flat, offsets = join(pieces, np.dtype(np.uint32))
        if self._digits is None:
            return flat, offsets
        return _regroup(flat, offsets, self._backend.groups, self._digits)

    def refuse(self, reason: str) -> Differs:
        self.known.refused = reason
        log.warning("encoding without %s %s: %s", self.name, installed(self.name), reason)
        return Differs(f"{self.name}: {reason}")

    def agree(self) -> None:
        """Compare on the adversarial texts. Raises Differs."""
        if self.known.checked:
            return
        texts = adversarial(sorted(self._parts.added), self._parts.spelt())
        data, offsets = pack(texts)
        try:
            held = self.held(data, offsets)
        except _Failed as error:
            raise self.refuse(str(error)) from error
        mine = [t for t, h in zip(texts, held, strict=True) if not h]
        flat, ends = self.encode([t.encode() for t in mine])
        for i, want in enumerate(self.codec.encode_batch(mine)):
            if not np.array_equal(want, flat[ends[i] : ends[i + 1]]):
                raise self.refuse(f"other ids for {mine[i][:60]!r}")
        self.known.checked = True


class _Failed(Exception):
    pass


def _run(backend: Backend, raws: Sequence[bytes]) -> list[np.ndarray]:
    try:
        return backend.encode(raws)
    except Exception as error:
        raise _Failed(f"it failed: {error}") from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # how Rust's panics come; it derives from BaseException
            raise _Failed(f"it panicked: {error}") from error
        raise


def _digit_tables(codec: Codec, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments `digit`, `group_ids` and `group_lengths` of `kernels.regroup`, from `tokenizers` itself."""
    digit = np.full(codec.vocab_size, -1, np.int8)
    table = np.zeros((groups * 1000, groups), np.uint32)
    lengths = np.zeros(groups * 1000, np.int64)
    for n in range(1, groups + 1):
        for value, ids in enumerate(codec.encode_batch([f"{v:0{n}}" for v in range(10**n)])):
            table[(n - 1) * 1000 + value, : len(ids)] = ids
            lengths[(n - 1) * 1000 + value] = len(ids)
    digit[table[:10, 0]] = np.arange(10)
    return digit, table, lengths


def _regroup(
    flat: np.ndarray, offsets: np.ndarray, groups: int, tables: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    from gristmill.tokenize.kernels import regroup

    out, ends = np.empty_like(flat), np.empty_like(offsets)
    return out[: regroup(flat, offsets, tables[0], groups, tables[1], tables[2], out, ends)], ends


class Encoder:
    """All backends of one tokenizer that agree with `tokenizers`, and `tokenizers` for what they may not see.

    `used` counts documents by backend, `rechecked` those that were encoded twice.
    """

    def __init__(self, codec: Codec, names: Sequence[str] | None = None) -> None:
        """Raises UsageError when $GRISTMILL_ENCODERS names no backend."""
        self.codec = codec
        self.used: dict[str, int] = {}
        self.rechecked = 0
        self.table: tuple[np.ndarray, np.ndarray] | None = None
        self._built: list[Tier] = []
        self._names = list(wanted() if names is None else names)
        try:
            self._parts = take_apart(codec.raw)
            self.table = self._parts.table()
        except FormatError as error:
            log.info("encoding with tokenizers alone: %s", error)
            self._names = []

    def tiers(self) -> Iterator[Tier]:
        """The backends that may be used, fastest first; each is built and compared when it is first asked for."""
        for tier in self._built:
            if tier.known.refused is None:
                yield tier
        while self._names:
            name = self._names.pop(0)
            have = installed(name)
            if have is None:
                continue
            known = _HERE.known.setdefault((self.codec.sha256, name, have), _Agreement())
            if known.refused is not None:
                continue
            try:
                tier = Tier(name, self.codec, self._parts, known)
                tier.agree()
            except (FormatError, ImportError) as error:
                known.refused = str(error)
                log.info("encoding without %s %s: %s", name, have, error)
            except Differs:
                pass  # logged
            else:
                self._built.append(tier)
                yield tier

    def encode(self, data: np.ndarray, offsets: np.ndarray, check: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """(tokens,) ids of UTF-8 documents `data[offsets[i]:offsets[i + 1]]`, and (documents + 1,) offsets into them.

        Documents `check` are encoded by `tokenizers` too. Raises Differs when a backend gave them other ids.
        """
        view, dtype = memoryview(data), self.codec.dtype  # type: ignore[arg-type]
        n = len(offsets) - 1
        left = np.arange(n)
        pieces: list[np.ndarray] = [np.empty(0, dtype)] * n
        by: dict[int, Tier] = {}
        again = set(check)
        for tier in self.tiers() if n else ():
            whole = len(left) == n
            raws = [bytes(view[offsets[i] : offsets[i + 1]]) for i in left]
            try:
                held = tier.held(*((data, offsets) if whole else pack(raws)))
            except _Failed as error:
                raise tier.refuse(str(error)) from error
            flat, ends = tier.encode([r for r, h in zip(raws, held, strict=True) if not h] if held.any() else raws)
            mine = left[~held]
            self.used[tier.name] = self.used.get(tier.name, 0) + len(mine)
            by.update((i, tier) for i in again.intersection(mine.tolist()))
            if len(mine) == n and not by:
                return flat.astype(dtype), ends
            for at, i in enumerate(mine.tolist()):
                pieces[i] = flat[ends[at] : ends[at + 1]]
            left = left[held]
            if not len(left):
                break
        redo = [*left.tolist(), *sorted(by)]
        self.rechecked += len(by)
        self.used["tokenizers"] = self.used.get("tokenizers", 0) + len(left)
        for i, ids in zip(redo, self._truth(bytes(view[offsets[i] : offsets[i + 1]]) for i in redo), strict=True):
            if i in by and not np.array_equal(ids, pieces[i]):
                raise by[i].refuse("other ids for a document of the corpus")
            pieces[i] = ids
        return join(pieces, dtype)

    def _truth(self, raws: Iterable[bytes]) -> Iterator[np.ndarray]:
        """By `tokenizers`, in batches of TRUTH_BYTES: its encodings take some 100 bytes a token."""
        batch: list[str] = []
        size = 0
        for raw in raws:
            batch.append(raw.decode())
            size += len(raw)
            if size >= TRUTH_BYTES:
                yield from self.codec.encode_batch(batch)
                batch, size = [], 0
        yield from self.codec.encode_batch(batch)


def encoder_of(codec: Codec) -> Encoder:
    """The worker's encoder for a tokenizer, built once (some 0.3 s) for many shards."""
    key = (codec.sha256, tuple(wanted()))
    if key not in _HERE.encoders:
        _HERE.encoders.clear()  # one is held: with its memory of words it may take RECYCLE_BYTES and more
        _HERE.encoders[key] = Encoder(codec)
    return _HERE.encoders[key]


def wanted() -> list[str]:
    """Backends by $GRISTMILL_ENCODERS, all of them where it is not set."""
    text = os.environ.get(ENCODERS)
    names = list(BACKENDS) if text is None else [n.strip() for n in text.split(",") if n.strip()]
    unknown = [n for n in names if n not in BACKENDS and n != "tokenizers"]
    if unknown:
        raise UsageError(f"{ENCODERS} names {unknown[0]!r}", hint=f"backends: {', '.join(BACKENDS)}, tokenizers")
    return [n for n in names if n != "tokenizers"]
