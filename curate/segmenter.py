"""Cuts chunks (runs without whitespace) into words with one of spaCy's rule-based tokenizers, many chunks in one call.

A call of spaCy's tokenizer costs more than the cutting itself, so chunks are joined by line feeds, each of which is a
token of its own that no special case reaches over, and cut as one text. What a word measures is worked out once per
distinct word; a chunk's columns are gathered from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from gristmill.curate.kernels import BASE, PRIME, kernels
from gristmill.curate.light_imports import load_spacy
from gristmill.curate.segmenter_plain import cutter

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Gopher's stop words (Rae et al. 2021, appendix A1.1), matched case-sensitively as datatrove does."""

NONSYMBOL, ALPHA, STOP_SHIFT = 1, 2, 2
"""Bits of a word's flags: has a character that is no punctuation; has a letter; from bit 2 on, index of its stop word
plus one."""

LONG = 64  # longer chunks (URLs, base64, unspaced scripts) seldom come back and are not memoised
SENTENCE_END, PUNCTUATION, OTHER = 2, 1, 0
"""What a token is to spaCy's Sentencizer."""

Ints = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]
Edges = dict[int, tuple[frozenset[str], frozenset[str]]]

CHUNK_COLUMNS: dict[str, npt.DTypeLike] = {
    "start": np.int64,
    "count": np.int64,
    "hot": np.uint8,  # 1: its first token, 2: its last one may be part of a special case with a neighbour's
    "breaks0": np.int32,  # sentence breaks in a chunk entered without a pending full stop
    "breaks1": np.int32,  # ... and with one
    "state0": np.uint8,  # 1 when the chunk leaves a full stop pending
    "state1": np.uint8,
}
WORD_COLUMNS: dict[str, npt.DTypeLike] = {
    "length": np.int64,
    "hash": np.uint64,
    "power": np.uint64,
    "flags": np.uint8,
}
_TOKEN_COLUMNS: dict[str, npt.DTypeLike] = {
    **WORD_COLUMNS,
    "symbol": np.uint8,
    "word": np.bool_,  # not only whitespace
    "special": np.bool_,  # part of what some special case gives
    "first": np.bool_,  # may continue a special case that an earlier chunk begins
    "last": np.bool_,  # may begin one
}


class Column:
    """A numpy array that grows by doubling."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._data = np.zeros(1024, dtype)
        self.size = 0

    def extend(self, values: Sequence[Any] | npt.NDArray[Any]) -> None:
        end = self.size + len(values)
        if end > len(self._data):
            grown = np.zeros(max(end, 2 * len(self._data)), self._data.dtype)
            grown[: self.size] = self._data[: self.size]
            self._data = grown
        self._data[self.size : end] = values
        self.size = end

    def take(self, rows: Ints) -> npt.NDArray[Any]:
        return self._data.take(rows)

    def all(self) -> npt.NDArray[Any]:
        """A view of what was added; good until more is."""
        return self._data[: self.size]


@dataclass(frozen=True)
class Segments:
    """Chunks cut into words: CHUNK_COLUMNS but `start` per chunk, WORD_COLUMNS per word, and the words.

    `edges` has the tokens at a chunk's start and at its end that special cases may be matched on, where these are not
    its first and its last word alone.
    """

    chunks: Columns
    words: Columns
    strings: list[str]
    edges: Edges


def word_hash(word: str) -> int:
    """Polynomial hash of a word's characters modulo 2**61 - 1; of a concatenation it follows from the parts'."""
    h = 0
    for c in word:
        h = (h * BASE + ord(c) + 1) % PRIME
    return h


def word_columns(words: Sequence[str]) -> Columns:
    """`length`, `hash` and `power` of words."""
    length = np.fromiter(map(len, words), np.int64, len(words))
    codes = np.frombuffer(bytearray("".join(words), "utf-32-le"), np.uint32)
    return dict(zip(("length", "hash", "power"), (length, *kernels().hashes(codes, length)), strict=True))


class Segmenter:
    """One of spaCy's blank pipelines and every distinct token that it has made since `forget`. Not thread-safe."""

    def __init__(self, code: str) -> None:
        spacy = load_spacy()
        from datatrove.utils.text import PUNCTUATION_SET
        from spacy.language import create_tokenizer
        from spacy.pipeline.sentencizer import Sentencizer
        from spacy.symbols import IS_PUNCT, ORTH
        from spacy.tokenizer import Tokenizer
        from spacy.vocab import create_vocab

        # what spacy.blank makes, without a pipeline around it, which takes longer
        defaults = spacy.util.get_lang_class(code).Defaults
        vocab: Any = create_vocab(code, defaults)
        # none of the twenty attributes of a new lexeme is read from it, and they take half of a miss
        self._is_punctuation = vocab.lex_attr_getters[IS_PUNCT]
        vocab.lex_attr_getters = {}
        language: Any = SimpleNamespace(vocab=vocab, Defaults=defaults)
        tok: Any = create_tokenizer()(language)
        # spaCy cannot forget the lexeme whose key is 1 when a memory zone ends and fails at its next use (datatrove
        # then deletes the word from the text, from the second document on); made outside any zone, it stays
        vocab["IS_ALPHA"]
        self._vocab, self._tokenizer = vocab, tok
        # the same tokenizer without special cases, to see which tokens a special case is matched on
        self._bare = Tokenizer(
            vocab,
            rules={},
            prefix_search=tok.prefix_search,
            suffix_search=tok.suffix_search,
            infix_finditer=tok.infix_finditer,
            token_match=tok.token_match,
            url_match=tok.url_match,
        )
        self._orth = ORTH
        self._cases = frozenset(tok.rules)
        self._special = frozenset(part.get(ORTH) for parts in tok.rules.values() for part in parts)
        self.pairs: set[tuple[str, str]] = set()
        """Tokens that stand side by side in a special case."""
        runs = [[t.text for t in self._bare(special) if not t.is_space] for special in tok.rules]
        for run in runs:
            self.pairs.update(pairwise(run))
        self._plain = cutter(code, self._cases, runs)
        self._firsts = {second for _, second in self.pairs}
        self._lasts = {first for first, _ in self.pairs}
        self._heads, self._tails = tuple(self._firsts), tuple(self._lasts)
        self._punctuation = PUNCTUATION_SET
        self._terminals = frozenset(Sentencizer.default_punct_chars)
        self._stop = {word: i + 1 << STOP_SHIFT for i, word in enumerate(STOP_WORDS)}
        self._breaks: dict[bytes, tuple[int, int, int, int]] = {}
        self.forget()

    def forget(self) -> None:
        """Forget all tokens. Changes no result."""
        self._texts: list[str] = []
        self._columns = {name: Column(dtype) for name, dtype in _TOKEN_COLUMNS.items()}
        self._breaks.clear()
        self._numbers: dict[str, int] = {}  # text -> token
        [self._newline] = self._learn(["\n"])
        self._ids: dict[int, int] = {self._vocab.strings.add("\n"): self._newline}  # spaCy's key of a string -> token

    def segment(self, chunks: Sequence[str]) -> Segments:
        """Cut chunks into words. Lone surrogates count as `?`."""
        with self._vocab.memory_zone():  # frees the lexemes at the end: the vocabulary would grow without bound
            tokens, counts, plain = self._tokens(chunks)
            owner = np.repeat(np.arange(len(chunks)), counts)
            is_word = self._take("word", tokens)
            words, owner = tokens[is_word], owner[is_word]
            n_words = np.bincount(owner, minlength=len(chunks))
            hot, edges = self._edges(chunks, words, owner, n_words, plain)
        symbols, ends = self._take("symbol", tokens).tobytes(), np.cumsum(counts).tolist()
        breaks = [self._breaks_of(symbols[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
        numbers = np.array(breaks, np.int32).reshape(len(chunks), 4)
        columns: Columns = {"count": n_words, "hot": hot}
        columns |= {name: numbers[:, i] for i, name in enumerate(("breaks0", "breaks1", "state0", "state1"))}
        texts = self._texts
        return Segments(
            columns, {name: self._take(name, words) for name in WORD_COLUMNS}, [texts[i] for i in words.tolist()], edges
        )

    def whole(self, chunks: Sequence[str]) -> Segments:
        """Each chunk as one word, without spaCy."""
        n = len(chunks)
        columns: Columns = {name: np.zeros(n, dtype) for name, dtype in CHUNK_COLUMNS.items() if name != "start"}
        columns["count"] += 1
        columns["breaks1"] += 1
        found = self._features(list(chunks), [chunk.strip() for chunk in chunks])
        words = {name: found[name] for name in WORD_COLUMNS}
        return Segments(columns, words, list(chunks), {})

    def _take(self, name: str, tokens: Ints) -> npt.NDArray[Any]:
        return self._columns[name].take(tokens)

    def _tokens(self, chunks: Sequence[str]) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
        """The tokens of all chunks, how many each has, and which chunks are plain: cut without spaCy, and by no special case."""
        plain = np.zeros(len(chunks), np.bool_)
        if self._plain is None:
            return *self._cut(self._tokenizer, chunks), plain
        cut = self._plain
        pieces: list[str] = []
        sizes: list[int] = []
        others: list[str] = []
        for i, chunk in enumerate(chunks):
            found = cut(chunk)
            if found is None:
                others.append(chunk)
            else:
                plain[i] = True
                pieces += found
                sizes.append(len(found))
        counts = np.zeros(len(chunks), np.int64)
        tokens_of_others, counts[~plain] = self._cut(self._tokenizer, others)
        counts[plain] = sizes
        mine = np.repeat(plain, counts)
        tokens = np.zeros(len(mine), np.int64)
        tokens[mine] = self._named(pieces)
        tokens[~mine] = tokens_of_others
        return tokens, counts, plain

    def _named(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens by their text."""
        self._learn(dict.fromkeys(t for t in texts if t not in self._numbers))
        return [self._numbers[t] for t in texts]

    def _cut(self, tokenizer: Any, chunks: Sequence[str]) -> tuple[Ints, Ints]:
        """The tokens of all chunks, and how many each has."""
        if not chunks:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        keys = tokenizer(_utf8("\n".join(chunks))).to_array([self._orth]).reshape(-1).tolist()
        found = list(map(self._ids.get, keys))
        if None in found:
            strings = self._vocab.strings
            new = list(dict.fromkeys(k for k, token in zip(keys, found, strict=True) if token is None))
            self._ids.update(zip(new, self._named([strings[key] for key in new]), strict=True))
            found = [self._ids[k] for k in keys]
        tokens = np.array(found, np.int64)
        between = tokens == self._newline
        cuts = np.flatnonzero(between)
        if len(cuts) != len(chunks) - 1:  # a chunk with whitespace at its edge
            parts = [self._cut(tokenizer, [chunk]) for chunk in chunks] if len(chunks) > 1 else [(tokens, tokens[:1])]
            return np.concatenate([t for t, _ in parts]), np.array([len(t) for t, _ in parts], np.int64)
        return tokens[~between], np.diff(np.concatenate(([-1], cuts, [len(tokens)]))) - 1

    def _learn(self, texts: Iterable[str]) -> list[int]:
        """New tokens' numbers."""
        texts = list(texts)
        if not texts:
            return []
        begin = len(self._texts)
        words = [text.strip() for text in texts]
        for name, values in self._features(texts, words).items():
            self._columns[name].extend(values)
        self._texts += words
        numbers = list(range(begin, len(self._texts)))
        self._numbers.update(zip(texts, numbers, strict=True))
        return numbers

    def _features(self, texts: list[str], words: list[str]) -> Columns:
        """_TOKEN_COLUMNS of tokens and of what is left of them without white space."""
        kinds = [(NONSYMBOL | ALPHA, OTHER) if t.isascii() and t.isalpha() else self._kind(t) for t in texts]
        stop, special, firsts, lasts = self._stop, self._special, self._firsts, self._lasts
        return {
            **word_columns(words),
            "flags": np.array(
                [flags | stop.get(word, 0) for (flags, _), word in zip(kinds, words, strict=True)], np.uint8
            ),
            "symbol": np.array([symbol for _, symbol in kinds], np.uint8),
            "word": np.array([bool(word) for word in words]),
            "special": np.array([word in special for word in words]),
            "first": np.array([word in firsts for word in words]),
            "last": np.array([word in lasts for word in words]),
        }

    def _kind(self, text: str) -> tuple[int, int]:
        """(flags without a stop word's, symbol) of a token."""
        word = text.strip()
        flags = 0 if self._punctuation.issuperset(word) else NONSYMBOL
        flags |= ALPHA if any(map(str.isalpha, word)) else 0
        return flags, SENTENCE_END if text in self._terminals else PUNCTUATION if self._is_punctuation(text) else OTHER

    def _breaks_of(self, symbols: bytes) -> tuple[int, int, int, int]:
        """(breaks0, breaks1, state0, state1) of a chunk's tokens: full stops, then anything that is no punctuation."""
        known = self._breaks.get(symbols)
        if known is None:
            out = []
            for state in (0, 1):
                n, pending = 0, state
                for symbol in symbols:
                    if symbol == SENTENCE_END:
                        pending = 1
                    elif symbol == OTHER and pending:
                        n, pending = n + 1, 0
                out.append((n, pending))
            known = (out[0][0], out[1][0], out[0][1], out[1][1])
            if len(symbols) <= LONG:
                self._breaks[symbols] = known
        return known

    def _edges(
        self, chunks: Sequence[str], words: Ints, owner: Ints, n_words: Ints, plain: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint8], Edges]:
        """The column `hot`, and `Segments.edges`."""
        hot = np.zeros(len(chunks), np.uint8)
        full = np.flatnonzero(n_words)
        ends = np.cumsum(n_words)[full]
        first, last = words[ends - n_words[full]], words[ends - 1]
        hot[full] = self._take("first", first) + 2 * self._take("last", last).astype(np.uint8)
        # where a special case acted, the tokens that it was matched on may differ from those that it gave
        acted = np.unique(owner[self._take("special", words) & ~plain[owner]]).tolist()
        special = [i for i in acted if chunks[i].startswith(self._heads) or chunks[i].endswith(self._tails)]
        edges: Edges = {}
        if not special:
            return hot, edges
        own_heads, own_tails = np.zeros(len(chunks), np.int64), np.zeros(len(chunks), np.int64)
        own_heads[full], own_tails[full] = first, last
        bare_heads, n_heads = self._cut(self._bare, [chunks[i][:LONG] for i in special])
        bare_tails, n_tails = bare_heads, n_heads
        if any(len(chunks[i]) > LONG for i in special):
            bare_tails, n_tails = self._cut(self._bare, [chunks[i][-LONG:] for i in special])
        begins, stops = np.cumsum(n_heads) - n_heads, np.cumsum(n_tails) - 1
        heads, tails = (
            zip(bare_heads[begins].tolist(), own_heads[special].tolist(), strict=True),
            zip(bare_tails[stops].tolist(), own_tails[special].tolist(), strict=True),
        )
        for i, head, tail in zip(special, heads, tails, strict=True):
            firsts = frozenset(self._texts[t] for t in head) & self._firsts
            lasts = frozenset(self._texts[t] for t in tail) & self._lasts
            edges[i] = firsts, lasts
            hot[i] = bool(firsts) + 2 * bool(lasts)
        return hot, edges


def _utf8(text: str) -> str:
    """Text that spaCy can keep as UTF-8: lone surrogates become "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
