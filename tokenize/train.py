"""Train a byte-level BPE whose id space is exactly the vocabulary size, the same bytes every time.

Ids: the special tokens from 0, the reserved ones, the 256 bytes, the merges; where the corpus gives too few merges, or
the size is padded, more reserved ids fill the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gristmill.core.errors import InputError
from gristmill.core.vocabulary import SPECIALS
from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.split import pattern

if TYPE_CHECKING:
    import tokenizers

PAIR_LIMIT = 1_500_000_000
"""Most occurrences of one byte pair. `tokenizers` counts pairs in int32: at 1.999e9 a pair is merged, at 2.199e9 it is
silently lost (reproduced in 0.23; tokenizers#437). A merged pair never occurs more often than the two bytes at its
seam, so counting byte pairs bounds every later count; under 2**31 bytes of text nothing can overflow. Runs are within
the bound: n equal characters are counted as n - 1 pairs, by the trainer and here."""

_COUNT_BYTES = 4 << 20


def reserved_token(index: int) -> str:
    return f"<|reserved_{index}|>"


class PairGuard:
    """Counts adjacent byte pairs of texts passing by and refuses a corpus in which one could overflow int32."""

    def __init__(self, limit: int = PAIR_LIMIT) -> None:
        self.limit = limit
        self.counts = np.zeros(65_536, np.int64)
        self._waiting: list[bytes] = []
        self._bytes = 0

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        """Pass texts through. Raises InputError when a pair's count reaches the limit."""
        for text in texts:
            self._waiting.append(text.encode())
            self._bytes += len(self._waiting[-1])
            if self._bytes >= _COUNT_BYTES:
                self._count()
            yield text
        self._count()

    def _count(self) -> None:
        if not self._bytes:
            return
        # Seams between texts are counted too: one pair per text more, which only makes the bound wider.
        data = np.frombuffer(b"".join(self._waiting), np.uint8).astype(np.intp)
        self.counts += np.bincount(data[:-1] << 8 | data[1:], minlength=65_536)
        self._waiting, self._bytes = [], 0
        top = int(self.counts.argmax())
        if self.counts[top] >= self.limit:
            raise InputError(
                f"the sample holds the byte pair {bytes(divmod(top, 256))!r} {self.counts[top]:,} times; the trainer "
                "counts in 32 bits and would lose it",
                hint="lower tokenizer.sample.bytes; 2,000,000,000 is plenty",
            )


@contextmanager
def single_thread() -> Iterator[None]:
    """Keep `tokenizers` on one thread: a worker owns one core, and threads forbid a later fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def train_bpe(texts: Iterable[str], settings: Tokenizer, pair_limit: int = PAIR_LIMIT) -> tokenizers.Tokenizer:
    """Train the size that goes on, on texts (already sampled and cut). The order of the texts does not matter.

    No normaliser (normalising would make the round trip lossy; text is normalised when it is curated) and no
    post-processor: eos is added when a corpus is encoded. Raises InputError when there is no text at all, or so much
    that pair counts could overflow.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Built

    built: Any = Built(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern(settings)), behavior="isolated"),
            # Both default to True: a prefix space breaks the round trip, the regex would split by GPT-2's rule again.
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    special = [*SPECIALS.values(), *map(reserved_token, range(settings.reserved))]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.size,
        min_frequency=settings.min_frequency,
        max_token_length=settings.max_token_length + 1,  # the library's bound is exclusive, and in bytes here
        special_tokens=[_special(text) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # without it, bytes not in the sample vanish
        show_progress=False,
    )
    seen = [False]

    def noted() -> Iterator[str]:
        for text in PairGuard(pair_limit).watch(texts):
            seen[0] = seen[0] or bool(text)
            yield text

    with single_thread():
        built.train_from_iterator(noted(), trainer)
    if not seen[0]:
        raise InputError(
            "no text to train a tokenizer on", hint="did curation keep any document? see `gristmill drops`"
        )
    return filled(built, settings)


def filled(built: Any, settings: Tokenizer) -> tokenizers.Tokenizer:
    """A trained tokenizer with reserved ids up to the size asked for, where merges ran out or the size was padded."""
    short = settings.padded - built.get_vocab_size()
    more = range(settings.reserved, settings.reserved + short)
    built.add_special_tokens([_special(reserved_token(i)) for i in more])
    assert built.get_vocab_size() == settings.padded, "the id space must be exactly the size asked for"
    trained: tokenizers.Tokenizer = built
    return trained


def _special(text: str) -> tokenizers.AddedToken:
    from tokenizers import AddedToken

    return AddedToken(text, special=True, normalized=False)


def transformers_config() -> dict[str, Any]:
    """tokenizer_config.json, with which `transformers` loads the folder of a tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS["bos"],
        "eos_token": SPECIALS["eos"],
        "pad_token": SPECIALS["pad"],
        "clean_up_tokenization_spaces": False,  # True would drop spaces when decoding
        "model_max_length": 1_000_000_000,
        "padding_side": "right",
    }
