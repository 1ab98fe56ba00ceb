"""Any tokenizer given as files, brought to one form that can be measured: tokenizer.json, tiktoken ranks or GPT-2's pair.

All become a `tokenizers.Tokenizer`, so that ids and character spans come from one library. Forms, each may be gzipped:
- tokenizer.json (a folder that holds one will do);
- NAME.tiktoken with the pattern and special tokens in NAME.meta.json (or RANKS+META);
- encoder.json with vocab.bpe beside it, or vocab.json with merges.txt (or ENCODER+MERGES).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from gristmill.core.errors import InputError, UsageError
from gristmill.core.hashing import sha256_bytes
from gristmill.tokenize.bytelevel import CHAR_OF, to_bytes
from gristmill.tokenize.files import MOST_IDS, json_of, plain_name, read_bounded, read_json
from gristmill.tokenize.tiktoken_ranks import from_tiktoken

META = "\u2581"  # SentencePiece's mark for a space


class Encoder(Protocol):
    """What the metrics ask of a tokenizer; `Baseline` and `codec.Codec` both are one."""

    vocab_size: int
    sha256: str

    @property
    def free_ids(self) -> np.ndarray: ...

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def decode_batch(self, documents: Sequence[Sequence[int] | np.ndarray]) -> list[str]: ...


class Baseline:
    """A tokenizer of any of the forms. `name`, `kind` ("byte-level", "byte-fallback" or "other"), `vocab_size` (largest
    id + 1), `sha256` (of the bytes it was read from), `prefix_space` (whether a space is put before every text)."""

    def __init__(self, name: str, tokenizer: Any, sha256: str) -> None:
        self.name, self.tokenizer, self.sha256 = name, tokenizer, sha256
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # A corpus may quote "<|eos|>"; that must stay text, as it does when gristmill encodes.
        tokenizer.encode_special_tokens = True
        self._added: dict[int, Any] = dict(tokenizer.get_added_tokens_decoder())
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        top = max(vocabulary.values(), default=-1)
        if top < 0:
            raise InputError(f"{name} has an empty vocabulary")
        if top >= MOST_IDS:
            raise InputError(f"{name} has an id of {top:,}, more than {MOST_IDS:,} are not taken")
        self.vocab_size = top + 1
        self.pieces: list[str | None] = [None] * self.vocab_size
        for piece, index in vocabulary.items():
            self.pieces[index] = piece
        described = orjson.loads(tokenizer.to_str())
        whole = orjson.dumps({k: described.get(k) for k in ("normalizer", "pre_tokenizer", "decoder")})
        if b'"ByteLevel"' in whole:
            self.kind = "byte-level"
        else:
            self.kind = "byte-fallback" if described["model"].get("byte_fallback") else "other"
        first = tokenizer.encode("a", add_special_tokens=False).tokens[:1]
        self.prefix_space = bool(first) and first[0][:1] in (META, CHAR_OF[ord(" ")])
        self.normalizes = described.get("normalizer") is not None

    @cached_property
    def special_ids(self) -> np.ndarray:
        """(n,) ids that no text gives because they are special tokens, ascending."""
        return np.asarray(sorted(i for i, token in self._added.items() if token.special), np.int64)

    @cached_property
    def unassigned(self) -> np.ndarray:
        """(n,) ids below `vocab_size` without a token."""
        return np.asarray([i for i, piece in enumerate(self.pieces) if piece is None], np.int64)

    @property
    def free_ids(self) -> np.ndarray:
        """(n,) special and unassigned ids, ascending."""
        return np.union1d(self.special_ids, self.unassigned).astype(np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its (tokens,) int64 ids, nothing added."""
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.int64) for e in found]

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per text its (tokens,) ids and (tokens, 2) spans in characters of the text as given."""
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(np.asarray(e.ids, np.int64), np.asarray(e.offsets, np.int64).reshape(-1, 2)) for e in found]

    def decode_batch(self, documents: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        plain = [np.asarray(d, np.int64).tolist() for d in documents]
        return [str(t) for t in self.tokenizer.decode_batch(plain, skip_special_tokens=False)]

    def token_bytes(self, index: int) -> bytes | None:
        """The bytes that an id stands for inside a text; None for special and unassigned ids."""
        piece = self.pieces[index]
        if piece is None or (index in self._added and self._added[index].special):
            return None
        if index in self._added:
            return piece.encode(errors="replace")
        if self.kind == "byte-level":
            try:
                return to_bytes(piece)
            except KeyError:  # a piece outside the alphabet, which no text gives
                return piece.encode(errors="replace")
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                pass
        return piece.replace(META, " ").encode(errors="replace")


def open_tokenizer(given: str | Path) -> Baseline:
    """[NAME=]PATH[+PATH] as a command line gives it. Raises UsageError when there is no such file, InputError when a
    file is damaged, too big or no tokenizer."""
    text = str(given)
    name, _, rest = text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)
    parts = [Path(text)] if Path(text).exists() else [Path(p) for p in rest.split("+")]
    first = parts[0]
    if first.is_dir():
        inside = next((first / n for n in _IN_FOLDER if (first / n).is_file()), None)
        if inside is None:
            raise UsageError(f"{first} holds no tokenizer", hint=f"one of {', '.join(_IN_FOLDER)}")
        first = parts[0] = inside
    for path in parts:
        if not path.is_file():
            hint = "options go before `--`" if str(path).startswith("--") else None
            raise UsageError(f"no such tokenizer file: {path}", hint=hint)
    kind = first.name.removesuffix(".gz")
    name = name or plain_name(first)
    if kind.endswith(".tiktoken"):
        meta = parts[1] if len(parts) > 1 else _beside(first, kind.removesuffix(".tiktoken") + ".meta.json")
        return _checked(name, partial(_tiktoken, name, first, meta))
    for ours, theirs in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if kind.endswith(ours):
            merges = parts[1] if len(parts) > 1 else _beside(first, kind.removesuffix(ours) + theirs)
            return _checked(name, partial(_gpt2, name, first, merges))
        if kind.endswith(theirs):
            raise UsageError(f"{first} holds merges alone", hint=f"give {ours}; {theirs} beside it, or {ours}+{theirs}")
    return _checked(name, partial(_json, name, first))


_IN_FOLDER = ("tokenizer.json", "tokenizer.json.gz", "tokenizer.tiktoken", "encoder.json", "vocab.json")
"""What a folder may hold, the first that it does."""


def _beside(path: Path, name: str) -> Path:
    for candidate in (path.parent / name, path.parent / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise UsageError(f"{path} needs {name} beside it", hint=f"or name both files: {path}+OTHER")


def _checked(name: str, load: Callable[[], Baseline]) -> Baseline:
    """The library raises plain Exception, and PanicException (a BaseException) on files that break its assumptions."""
    try:
        return load()
    except (InputError, UsageError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{name} is no tokenizer that can be read: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{name} is no tokenizer that can be read: {error}") from error


def _json(name: str, path: Path) -> Baseline:
    from tokenizers import Tokenizer

    raw = read_bounded(path)
    return Baseline(name, Tokenizer.from_str(raw.decode()), sha256_bytes(raw))


def _tiktoken(name: str, path: Path, meta: Path) -> Baseline:
    ranks, described = read_bounded(path), read_bounded(meta)
    found = json_of(described, meta)
    if isinstance(found, dict) and "pat_str" not in found and len(found) == 1:
        found = next(iter(found.values()))  # {"o200k_base": {...}}
    if not isinstance(found, dict) or not isinstance(found.get("pat_str"), str):
        raise InputError(f"{meta} has no pat_str", hint='{"pat_str": REGEX, "special_tokens": {TEXT: ID}}')
    built = from_tiktoken(ranks, found["pat_str"], found.get("special_tokens") or {}, str(path), CHAR_OF)
    return Baseline(name, built, sha256_bytes(ranks + described))


def _gpt2(name: str, path: Path, merges: Path) -> Baseline:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = read_json(path)
    raw = read_bounded(merges)
    pairs = []
    for number, line in enumerate(raw.decode().split("\n"), 1):
        if not line.strip() or line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise InputError(f"{merges}:{number}: {line[:40]!r} is no merge of two pieces")
        pairs.append((pair[0], pair[1]))
    built: Any = Tokenizer(models.BPE({str(k): int(v) for k, v in vocabulary.items()}, pairs))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    built.decoder = decoders.ByteLevel()
    specials = [k for k in vocabulary if k.startswith("<|") and k.endswith("|>")]
    built.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return Baseline(name, built, sha256_bytes(path.read_bytes() + raw))
