"""The rows of a step as arrays: tokens, labels, positions that restart with every piece, and sources. No torch.

Labels are the next token, -100 where there is none to learn: the last token of a piece (it must not predict another
document's first), pieces of blocked documents, and the padding, which is a row's last piece where it has no provenance.
Position 0 marks a piece's first token, so attention never has to guess borders from eos. Everything is computed for all
rows of a batch at once. Letters: B rows, T = seq_len positions, W = T + 1 tokens of a packed row, P pieces.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.errors import FormatError
from gristmill.core.rowcopy import RowCopier
from gristmill.core.tokshards import PackedDataset, ShardReader
from gristmill.trainer.order import DataOrder

IGNORE = -100  # torch's cross_entropy leaves this label out
NEVER = np.iinfo(np.int64).max
OPEN_SHARDS = 8  # neighbouring steps read one or two; rows deferred at several times come from a few more


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


@dataclass(frozen=True)
class Pieces:
    """The pieces of B rows, one after another, padding included."""

    count_B: np.ndarray  # pieces of each row, at least 1
    start_P: np.ndarray  # first token inside its row
    length_P: np.ndarray  # tokens
    source_P: np.ndarray  # int16 index into DataOrder.sources, -1 for others
    learn_P: np.ndarray  # whether its labels count: neither padding nor blocked

    @property
    def valid_tokens(self) -> int:
        """Labels that count: each piece of n tokens teaches n - 1 of them."""
        return int((self.length_P[self.learn_P] - 1).sum())

    def rows(self, first: int, end: int) -> Pieces:
        cut = slice(int(self.count_B[:first].sum()), int(self.count_B[:end].sum()))
        columns = (self.start_P, self.length_P, self.source_P, self.learn_P)
        return Pieces(self.count_B[first:end], *(column[cut] for column in columns))


@dataclass(frozen=True)
class StepRows:
    """One global batch before its tokens are read. `slots` rows were due; fewer stand here where some are skipped."""

    step: int
    phase: str
    seq_len: int
    slots: int
    rows: list[int]
    pieces: Pieces


@dataclass(frozen=True)
class _Provenance:
    """Columns of a shard's provenance, one entry a piece, in row order."""

    row: np.ndarray
    start: np.ndarray
    source: np.ndarray
    blocked_from: np.ndarray  # the sample from which its document is blocked


class RowReader:
    """Reads the rows of steps, as `order` has them, from the memory-mapped shards. For one thread."""

    def __init__(self, dataset: PackedDataset, order: DataOrder) -> None:
        self.dataset, self.order = dataset, order
        if dataset.manifest.dtype not in ("<u2", "<u4"):
            raise FormatError(f"{dataset.folder}: tokens of type {dataset.manifest.dtype!r}, known are <u2 and <u4")
        self._copier = RowCopier(dataset)
        self._buffer = np.empty((0, 0), dataset.manifest.dtype)
        self._codes = {name: i for i, name in enumerate(order.sources)}
        self._blocked = pa.array([bytes.fromhex(document) for document in order.blocked], pa.binary(16))
        self._blocked_from = np.array([*order.blocked.values(), NEVER], np.int64)
        self._open: OrderedDict[tuple[str, int], _Provenance] = OrderedDict()

    def close(self) -> None:
        """Close the shards' files; the next read opens them again."""
        self._copier.close()

    def of_step(self, step: int) -> StepRows:
        """The rows and pieces of a step. Raises UsageError outside the run, FormatError on boundaries that cannot be."""
        span, samples = self.order.span(step), self.order.samples_of_step(step)
        parts = [self._pieces(span.phase.name, shard, part) for shard, part in self._by_shard(span.phase.name, samples)]
        columns = [[getattr(part, name) for part in parts] for name in Pieces.__dataclass_fields__]
        pieces = Pieces(*(np.concatenate(c) if c else np.empty(0, np.int64) for c in columns))
        return StepRows(step, span.phase.name, span.phase.seq_len, span.rows, [row for _, row in samples], pieces)

    def arrays(self, batch: StepRows, first: int, end: int, height: int | None = None) -> tuple[Batch, np.ndarray]:
        """Rows first..end-1 of a step and source_BT, int16: of the label's piece, -1 where it is ignored or unknown.

        With `height` rows of fully ignored padding follow up to that many: B = height. Raises FormatError on ids beyond
        the vocabulary.
        """
        n, width = max(end - first, 0), batch.seq_len + 1
        size = n if height is None else height
        tokens_BT = np.full((size, width - 1), self.dataset.manifest.special_ids.get("pad", 0), np.int64)
        labels_BT = np.full((size, width - 1), IGNORE, np.int64)
        position_BT = np.broadcast_to(np.arange(width - 1), (size, width - 1)).copy()
        source_BT = np.full((size, width - 1), -1, np.int16)
        if n:
            pieces = batch.pieces.rows(first, end)
            ids_BW = self._tokens(batch.phase, batch.rows[first:end])
            start_P = pieces.start_P + width * np.repeat(np.arange(n), pieces.count_B)
            learn = np.repeat(pieces.learn_P, pieces.length_P)
            learn[start_P] = False  # a piece's first token is predicted by nothing
            learn_BT = learn.reshape(n, width)[:, 1:]
            tokens_BT[:n] = ids_BW[:, :-1]
            np.copyto(labels_BT[:n], ids_BW[:, 1:], where=learn_BT)
            place = np.arange(n * width) - np.repeat(start_P, pieces.length_P)
            position_BT[:n] = place.reshape(n, width)[:, :-1]
            source = np.repeat(pieces.source_P, pieces.length_P).reshape(n, width)[:, 1:]
            np.copyto(source_BT[:n], source, where=learn_BT)
        return Batch(tokens_BT, labels_BT, position_BT), source_BT

    def _by_shard(self, phase: str, samples: Sequence[tuple[int, int]]) -> Iterator[tuple[int, np.ndarray]]:
        """(shard, its (sample, row) pairs) in order; a shard comes again where rows of another stand between."""
        pairs = np.array(samples, np.int64).reshape(-1, 2)
        shards = pairs[:, 1] // self.dataset.manifest.phase(phase).rows_per_shard
        cuts = np.flatnonzero(np.diff(shards)) + 1
        for part in np.split(pairs, cuts) if len(pairs) else []:
            yield int(part[0, 1]) // self.dataset.manifest.phase(phase).rows_per_shard, part

    def _pieces(self, phase: str, shard: int, pairs: np.ndarray) -> Pieces:
        reader, first = self._reader(phase, shard)
        sample_B, row_B = pairs[:, 0], pairs[:, 1]
        count_B, start_P = reader.starts_of(row_B - first)
        width = self.dataset.manifest.phase(phase).seq_len + 1
        ends = np.cumsum(count_B)
        inside_P = np.arange(len(start_P)) - np.repeat(ends - count_B, count_B)  # a piece's number in its row
        end_P = np.append(start_P[1:], width)
        end_P[ends - 1] = width
        length_P = end_P - start_P
        if (start_P[ends - count_B] != 0).any() or (length_P < 1).any():
            raise FormatError(f"{reader.base}.bnd.npy: piece starts of a row do not ascend from 0 to {width - 1}")
        known = self._provenance(phase, shard, reader)
        begin_B, end_B = np.searchsorted(known.row, row_B), np.searchsorted(known.row, row_B, "right")
        real_P = inside_P < np.repeat(end_B - begin_B, count_B)
        index = (np.repeat(begin_B, count_B) + inside_P)[real_P]
        rest_B = count_B - (end_B - begin_B)  # 1: the row ends in padding
        if ((rest_B != 0) & (rest_B != 1)).any() or (known.start[index] != start_P[real_P]).any():
            raise FormatError(f"{reader.base}.prov.parquet does not tell the pieces of {reader.base}.bnd.npy")
        source_P = np.full(len(start_P), -1, np.int16)
        source_P[real_P] = known.source[index]
        learn_P = np.zeros(len(start_P), bool)
        learn_P[real_P] = np.repeat(sample_B, count_B)[real_P] < known.blocked_from[index]
        return Pieces(count_B, start_P, length_P, source_P, learn_P)

    def _tokens(self, phase: str, rows: Sequence[int]) -> np.ndarray:
        """(B, W) tokens in the dataset's type, in a buffer that the next call uses again."""
        width = self.dataset.manifest.phase(phase).seq_len + 1
        if self._buffer.shape[1] != width or len(self._buffer) < len(rows):
            self._buffer = np.empty((len(rows), width), self.dataset.manifest.dtype)
        ids_BW = self._copier.rows_into(phase, rows, self._buffer)
        largest = int(ids_BW.max())
        if largest >= self.dataset.manifest.vocab_size:
            raise FormatError(
                f"phase {phase!r} holds token id {largest}, the manifest says a vocabulary of {self.dataset.manifest.vocab_size}",
                hint="run the shards stage again with the tokenizer of its token stores",
            )
        return ids_BW

    def _reader(self, phase: str, shard: int) -> tuple[ShardReader, int]:
        """The shard and its first row."""
        first = shard * self.dataset.manifest.phase(phase).rows_per_shard
        return self.dataset.locate(phase, first)[0], first

    def _provenance(self, phase: str, shard: int, reader: ShardReader) -> _Provenance:
        if (phase, shard) in self._open:
            self._open.move_to_end((phase, shard))
            return self._open[phase, shard]
        columns = ["row", "row_start", "source"]  # ids are most of the file, and few runs block documents
        table = provenance(reader, [*columns, "id"] if len(self._blocked) else columns)
        names = table["source"].combine_chunks()
        codes = np.array([self._codes.get(name, -1) for name in names.dictionary.to_pylist()] or [-1], np.int16)
        blocked_from = np.full(table.num_rows, NEVER, np.int64)
        if len(self._blocked):
            blocked_from = self._blocked_from[
                pc.index_in(table["id"], value_set=self._blocked).fill_null(len(self._blocked)).to_numpy()
            ]
        found = _Provenance(
            table["row"].to_numpy(), table["row_start"].to_numpy(), codes[names.indices.to_numpy()], blocked_from
        )
        if len(found.row) and (np.diff(found.row) < 0).any():
            raise FormatError(f"{reader.base}.prov.parquet is not in row order")
        self._open[phase, shard] = found
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return found


def provenance(reader: ShardReader, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's provenance, or some columns of it. Raises FormatError when its file is damaged."""
    try:
        return reader.provenance(columns)
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{reader.base}.prov.parquet is damaged: {error}") from error


def batch_of_step(dataset: PackedDataset, step: int, order: DataOrder | None = None) -> Batch:
    """The global batch of a step (from 1). Raises UsageError outside the run, FormatError on ids beyond the vocabulary."""
    reader = RowReader(dataset, order or DataOrder(dataset.manifest))
    batch = reader.of_step(step)
    return reader.arrays(batch, 0, len(batch.rows))[0]
