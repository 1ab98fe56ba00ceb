"""One global batch as arrays: tokens, labels and positions that restart with every piece. No torch.

Labels are the next token, -100 where there is none to learn: the last token of a piece (it must not predict another
document's first) and the padding. Position 0 marks a piece's first token, so attention never has to guess borders
from eos. Letters: B rows, T = seq_len positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gristmill.core.errors import FormatError
from gristmill.core.tokshards import PackedDataset
from gristmill.trainer.order import rows_of_step

IGNORE = -100  # torch's cross_entropy leaves this label out


@dataclass(frozen=True)
class Batch:
    """int64 arrays of shape (B, T)."""

    tokens_BT: np.ndarray
    labels_BT: np.ndarray
    position_BT: np.ndarray

    @property
    def valid_tokens(self) -> int:
        """Labels that count in the loss."""
        return int((self.labels_BT != IGNORE).sum())

    def micro(self, rows: int) -> Iterator[Batch]:
        """Slices of at most `rows` rows, in order."""
        for i in range(0, len(self.tokens_BT), rows):
            cut = slice(i, i + rows)
            yield Batch(self.tokens_BT[cut], self.labels_BT[cut], self.position_BT[cut])


def batch_of_step(dataset: PackedDataset, step: int) -> Batch:
    """The global batch of a step (from 1). Raises UsageError outside the run, FormatError on ids beyond the vocabulary."""
    manifest = dataset.manifest
    rows = [
        row_arrays(*dataset.row(phase, row), manifest.special_ids.get("pad"))
        for phase, row in rows_of_step(dataset, step)
    ]
    tokens_BT, labels_BT, position_BT = (np.stack(column) for column in zip(*rows, strict=True))
    largest = int(max(tokens_BT.max(), labels_BT.max()))
    if largest >= manifest.vocab_size:
        raise FormatError(
            f"step {step} holds token id {largest}, the manifest says a vocabulary of {manifest.vocab_size}",
            hint="run the shards stage again with the tokenizer of its token stores",
        )
    return Batch(tokens_BT, labels_BT, position_BT)


def row_arrays(tokens: np.ndarray, starts: np.ndarray, pad: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T,) tokens, labels and positions of one packed row of T+1 tokens with ascending piece `starts`, first 0.

    A last piece made of nothing but `pad` is padding. A document of two or more tokens cannot look like that: even
    where pad is eos, eos stands only at a document's end.
    """
    ids = tokens.astype(np.int64)
    lengths = np.diff(np.append(starts, len(ids)))
    position = np.arange(len(ids)) - np.repeat(starts.astype(np.int64), lengths)
    labels = ids[1:].copy()
    labels[starts[1:] - 1] = IGNORE
    last = int(starts[-1])
    if pad is not None and bool((ids[last:] == pad).all()):
        labels[last:] = IGNORE
    return ids[:-1], labels, position[:-1]
