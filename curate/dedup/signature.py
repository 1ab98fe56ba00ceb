"""MinHash signatures of texts: words, word n-grams, minima (datasketch's affine32, bit for bit), band keys, sketches.

Shapes: D documents of one batch, K = bands * rows minima per document, N shingles of the whole batch in one flat
array. Everything here is a pure function of the text and the settings; nothing depends on how documents are batched.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gristmill.core.hashing import hash64, hash128_bytes, mix64, seed_of

U32, U64 = np.uint32, np.uint64
Words64 = NDArray[np.uint64]

UNSPACED = (
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x1000, 0x109F),  # Myanmar, and its two extensions
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark and zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0xFF66, 0xFF9F),  # halfwidth Katakana
    (0x1B000, 0x1B16F),  # Kana supplement and extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Code point ranges (inclusive) of scripts written without spaces between words: each character is a word."""

BLOCK = 1 << 16  # shingles per numpy pass: two uint32 temporaries of 256 KiB stay in L2


class _Fold(dict[int, str | None]):
    """`str.translate` table, filled on demand by the character's Unicode category."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        category = unicodedata.category(char)
        folded: str | None
        if category in ("Mn", "Cf"):
            folded = None  # accents after NFD; soft hyphens and zero-width marks
        elif category == "Nd":
            folded = "0"
        elif category[0] in "PSZC":
            folded = " "
        elif any(low <= code <= high for low, high in UNSPACED):
            folded = f" {char} "
        else:
            folded = char
        self[code] = folded
        return folded


_FOLD = _Fold()  # memo of a pure function of the code point


def words_of(text: str) -> list[str]:
    """The words that shingles are made of.

    Lower-cased, decomposed (NFD) without combining marks, every decimal digit as `0`, punctuation and symbols as
    spaces, split at whitespace. A character of a script without word spaces (`UNSPACED`) is a word of its own, so
    that an n-gram there is n characters.
    """
    text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFD", text)
    return text.translate(_FOLD).split()


def text_hash(text: str) -> bytes:
    """16-byte hash of the text with each run of whitespace as one space and none at the ends: the exact-copy key."""
    return hash128_bytes(" ".join(text.split()))


def shingle_hashes(documents: Sequence[Sequence[str]], ngram: int) -> tuple[Words64, NDArray[np.int64]]:
    """64-bit hashes of every word n-gram of each document: (N,) uint64 and (D,) counts, documents in order.

    A document of 1 to n-1 words has one shingle, all its words: short texts pair only when their words are the same.
    A document without words has none (count 0): it never pairs by MinHash, only by its exact hash.
    Repeats are kept, since a minimum does not see them.
    """
    sizes = np.fromiter(map(len, documents), np.int64, len(documents))
    counts = np.where(sizes >= ngram, sizes - ngram + 1, np.minimum(sizes, 1))
    known: dict[str, int] = {}
    for words in documents:
        for word in words:
            if word not in known:
                known[word] = hash64(word)
    flat = np.fromiter((known[w] for words in documents for w in words), U64, int(sizes.sum()))
    starts = np.cumsum(sizes) - sizes
    # Rolling n-grams over the whole batch, then the positions whose n words lie in one document.
    chained = np.zeros(max(len(flat) - ngram + 1, 0), U64)
    for i in range(ngram):
        chained = mix64(chained ^ flat[i : i + len(chained)])
    out = np.empty(int(counts.sum()), U64)
    at = np.cumsum(counts) - counts
    for d in range(len(sizes)):
        start, size = int(starts[d]), int(sizes[d])
        if size >= ngram:
            out[at[d] : at[d] + counts[d]] = chained[start : start + counts[d]]
        elif size:
            value = np.zeros(1, U64)
            for i in range(start, start + size):
                value = mix64(value ^ flat[i])
            out[at[d]] = value[0]
    return out, counts


@lru_cache(maxsize=16)
def permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Multipliers (odd) and offsets of `count` affine permutations: datasketch's own, so that signatures can be exchanged."""
    from datasketch import MinHash

    a, b = MinHash(num_perm=count, seed=seed, scheme="affine32").permutations
    return np.asarray(a, U32), np.asarray(b, U32)


def minima(shingles: Words64, counts: NDArray[np.int64], count: int, seed: int) -> NDArray[np.uint32]:
    """(D, K) uint32 minima of the low 32 bits of the shingle hashes; rows of documents without shingles are 2^32-1.

    Equal bit for bit to datasketch 2.0's `MinHash(num_perm=K, seed=seed, scheme="affine32")`: MurmurHash3's 32-bit
    finaliser once, then a*h + b mod 2^32 per permutation. Documents are taken in blocks of about `BLOCK` shingles,
    each permutation in one pass over a block with `np.minimum.reduceat` (40 k documents of 500 words per second).
    """
    a, b = permutations(count, seed)
    out = np.full((len(counts), count), U32(0xFFFFFFFF), U32)
    some = np.flatnonzero(counts)
    ends = np.cumsum(counts[some])
    at = 0
    while at < len(some):
        begin = int(ends[at - 1]) if at else 0
        to = max(int(np.searchsorted(ends, begin + BLOCK, side="right")), at + 1)
        h = _fmix32(shingles[begin : int(ends[to - 1])].astype(U32))
        offsets = np.concatenate([[0], ends[at : to - 1] - begin]).astype(np.int64)
        rows, t = np.empty((count, to - at), U32), np.empty_like(h)
        for k in range(count):
            np.multiply(h, a[k], out=t)
            t += b[k]
            np.minimum.reduceat(t, offsets, out=rows[k])
        out[some[at:to]] = rows.T
        at = to
    return out


def _fmix32(h: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's 32-bit finaliser (public domain, A. Appleby), a bijection."""
    h = h ^ (h >> U32(16))
    h *= U32(0x85EBCA6B)
    h ^= h >> U32(13)
    h *= U32(0xC2B2AE35)
    return h ^ (h >> U32(16))


def band_keys(signature: NDArray[np.uint32], bands: int) -> Words64:
    """(D, bands) uint64: each band's minima chained through mix64 from the band's own seed.

    64 bits because at 1e11 documents and 14 bands 32-bit keys give every document 326 false partners, 64-bit keys
    3.8e3 false pairs in all (expected number of equal keys, n^2 * bands / 2^65).
    """
    rows = signature.shape[1] // bands
    values = signature.reshape(len(signature), bands, rows).astype(U64)
    keys = np.broadcast_to(np.array([seed_of("minhash.band", j) for j in range(bands)], U64), (len(signature), bands))
    for i in range(rows):
        keys = mix64(keys ^ values[:, :, i])
    return np.ascontiguousarray(keys)


def sketches(signature: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """(D, K) uint8: the low 8 bits of every minimum, enough to estimate J with sd .041 at .75 (full minima: .041)."""
    return signature.astype(np.uint8)


def estimates(sketch: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimated Jaccard of one sketch (K,) to each of `others` (M, K), corrected for 8-bit chance agreement.

    b-bit minwise hashing (Li and König 2010) for small sets in a large space: (share equal - 2^-8) / (1 - 2^-8).
    """
    share: NDArray[np.float64] = np.mean(others == sketch, axis=1, dtype=np.float64)
    return (share - 1 / 256) / (255 / 256)


def signatures(texts: Sequence[str], settings: Any) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """(D, K) minima and (D,) shingle counts of texts, by `curate.schema.MinHash` settings."""
    shingles, counts = shingle_hashes([words_of(t) for t in texts], settings.ngram)
    return minima(shingles, counts, settings.bands * settings.rows, settings.seed), counts
