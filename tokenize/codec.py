"""Text to ids and back by a trained tokenizer.json, for corpora: what looks like a special token stays text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.core.errors import FormatError
from gristmill.core.tokshards import token_dtype
from gristmill.core.vocabulary import tokenizer_facts


@lru_cache(maxsize=2)
def codec_of(path: str, sha256: str) -> Codec:
    """The codec of a tokenizer.json whose content has this digest, opened once a process (0.1 s for 32k ids)."""
    return Codec(path)


class Codec:
    """A tokenizer.json ready to encode. The `tokenizers` library is the truth for ids.

    `raw` is the file, `vocab_size` the number of ids, `sha256` the file's digest, `special_ids` maps the roles of
    `core.vocabulary.SPECIALS` to ids. Raises FormatError when the file is no tokenizer.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        """`source` is a path, or the JSON itself as bytes."""
        from tokenizers import Tokenizer

        try:
            raw = source if isinstance(source, bytes) else Path(source).read_bytes()
            self.tokenizer: Any = Tokenizer.from_str(raw.decode())
        except Exception as error:  # the library raises plain Exception
            name = "the tokenizer" if isinstance(source, bytes) else source
            raise FormatError(f"{name} does not load: {error}", hint="train it again") from error
        facts = tokenizer_facts(raw)
        self.raw = raw
        self.vocab_size = facts.vocab_size
        self.special_ids = facts.special_ids
        self.sha256 = facts.sha256
        self.dtype = token_dtype(self.vocab_size)
        # A corpus may quote "<|eos|>"; that must not end the document. Not stored in the file, so set on each load.
        self.tokenizer.encode_special_tokens = True

    @property
    def bos(self) -> int:
        return self._special("bos")

    @property
    def eos(self) -> int:
        return self._special("eos")

    @property
    def pad(self) -> int:
        return self._special("pad")

    def _special(self, role: str) -> int:
        if role not in self.special_ids:
            raise FormatError(f"the tokenizer has no {role} token", hint="train it with `gristmill tokenizer train`")
        return self.special_ids[role]

    @property
    def free_ids(self) -> np.ndarray:
        """(n,) ids that no text gives: the special and the reserved ones, ascending."""
        return np.asarray(sorted(self.tokenizer.get_added_tokens_decoder()), np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its (tokens,) ids, without eos; uint16 or uint32 by the vocabulary size."""
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, self.dtype) for e in found]

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per text its (tokens,) ids and (tokens, 2) int64 character spans; part of a character spans all of it."""
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(np.asarray(e.ids, self.dtype), np.asarray(e.offsets, np.int64).reshape(-1, 2)) for e in found]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, special tokens spelled out."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, documents: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        plain = [np.asarray(d, np.int64).tolist() for d in documents]
        return [str(t) for t in self.tokenizer.decode_batch(plain, skip_special_tokens=False)]
