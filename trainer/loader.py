"""The batches of one rank, read ahead by a thread: the same rows whatever the ranks, in micro batches of one shape.

A global batch is cut into one block of ceil(rows / dp) neighbouring rows per data-parallel rank, a block into equal micro
batches of at most run.micro_batch_rows. What is missing in the last ones, or where rows are skipped, is filled with rows
whose labels are all ignored, so every rank runs the same shapes in all steps of a span.

The count of valid tokens is the global batch's, without a collective: every rank reads the boundaries and provenance of
all its rows, but only its own tokens. A Goldfish mask depends on tokens: with it every rank reads them all.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from gristmill.core.errors import GristmillError, UsageError
from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import goldfish
from gristmill.trainer.data import IGNORE, Batch, RowReader, StepRows
from gristmill.trainer.integrity import ShardCheck
from gristmill.trainer.ops import count_documents
from gristmill.trainer.order import DataOrder
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.schema import TrainRun

AHEAD = 2  # steps read before they are asked for: one hides the reading, a second a shard's first opening


@dataclass(frozen=True)
class Micro:
    """Rows of one forward pass, arrays of shape (B, T): int64, and int16 source indices (-1 where the label is ignored)."""

    tokens_BT: Tensor
    labels_BT: Tensor
    position_BT: Tensor
    source_BT: Tensor  # of the label's piece, into DataOrder.sources
    documents: int  # pieces of all rows, also of those that only fill: counted before they are on a GPU


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a step. Row i of `rows` is row i % B of micro batch i // B; rows that only fill come last."""

    step: int
    phase: str
    valid_tokens: int  # of the whole global batch
    micros: list[Micro]
    rows: list[tuple[str, int]]


class Loader:
    """Batches of the steps of an order, in order. Close it, or use it in a `with`.

    `wait_seconds` adds up the time that `batch` kept its caller. Raises FormatError on a dataset it cannot read.
    """

    def __init__(
        self, dataset: PackedDataset, order: DataOrder, world: World, run: TrainRun, device: torch.device
    ) -> None:
        self.dataset, self.world, self.run, self.device = dataset, world, run, device
        self.wait_seconds = 0.0
        self._check: ShardCheck | None = None
        self._reader = RowReader(dataset, order)
        self._thread = ThreadPoolExecutor(1, "loader")
        self._ahead: deque[tuple[int, Future[StepBatch]]] = deque()

    @property
    def order(self) -> DataOrder:
        return self._reader.order

    def batch(self, step: int) -> StepBatch:
        """The rank's batch of a step, on the device. Quick when steps are asked for as `order.next_step` gives them.

        Raises UsageError for a step outside the run or without rows, and FormatError on rows that cannot be read, both
        with the step, and FormatError once any shard turns out to be changed, with its name.
        """
        began = time.perf_counter()
        try:
            if self.run.verify_shards:
                if self._check is None:
                    self._check = ShardCheck(self.dataset, self.order, step, self.world.rank, self.world.size)
                self._check.check()
            if not self._ahead or self._ahead[0][0] != step:
                self.reset(self.order, step)
            _, future = self._ahead.popleft()
            self._read_ahead(self._ahead[-1][0] if self._ahead else step)
            try:
                found = future.result()
            except GristmillError as error:
                raise type(error)(f"step {step}: {error.message}", hint=error.hint) from error
            except Exception as error:
                error.add_note(f"while reading the rows of step {step}")
                raise
            return replace(found, micros=[self._on_device(micro) for micro in found.micros])
        finally:
            self.wait_seconds += time.perf_counter() - began

    def reset(self, order: DataOrder, step: int) -> None:
        """Forget what was read ahead and go on at `step` of an order: after an edit or a rewind."""
        self._drop()
        if order is not self.order:
            self._reader = RowReader(self.dataset, order)
        self._ahead.append((step, self._thread.submit(self._read, self._reader, step)))

    def finish(self) -> None:
        """Wait until this rank's share of the shards is hashed. Raises FormatError when one was changed."""
        if self._check is not None:
            self._check.finish()

    def check(self) -> None:
        """Raises FormatError when a changed shard was found so far: before a checkpoint."""
        if self._check is not None:
            self._check.check()

    def hashes(self) -> dict[str, str]:
        """sha256 of the shard files that this rank has read whole so far, by path inside the dataset."""
        return self._check.hashes() if self._check is not None else {}

    def close(self) -> None:
        self._drop()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._reader.close()
        if self._check is not None:
            self._check.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _read_ahead(self, last: int) -> None:
        while len(self._ahead) < AHEAD and (step := self.order.next_step(last)) is not None:
            self._ahead.append((step, self._thread.submit(self._read, self._reader, step)))
            last = step

    def _read(self, reader: RowReader, step: int) -> StepBatch:
        batch = reader.of_step(step)
        if not batch.rows:
            raise UsageError("all its rows are skipped")
        block = -(-batch.slots // self.world.dp)  # rows of a rank
        micros = -(-block // self.run.micro_batch_rows)
        size = -(-block // micros)  # rows of a micro batch: equal ones, so that 10 rows by 8 become 5 + 5
        mine, source_BT, valid = self._arrays(reader, batch, self.world.dp_rank, block, micros * size)
        if self.run.loss.goldfish is None:
            valid = batch.pieces.valid_tokens
        else:
            others = (rank for rank in range(self.world.dp) if rank != self.world.dp_rank)
            valid += sum(self._arrays(reader, batch, rank, block, None)[2] for rank in others)
        arrays = [torch.from_numpy(a) for a in (mine.tokens_BT, mine.labels_BT, mine.position_BT, source_BT)]
        if self.device.type == "cuda":
            arrays = [array.pin_memory() for array in arrays]
        parts = [_micro(*part) for part in zip(*(torch.split(array, size) for array in arrays), strict=True)]
        first = self.world.dp_rank * block
        rows = [(batch.phase, row) for row in batch.rows[first : first + block]]
        return StepBatch(step, batch.phase, valid, parts, rows)

    def _arrays(
        self, reader: RowReader, batch: StepRows, rank: int, block: int, height: int | None
    ) -> tuple[Batch, np.ndarray, int]:
        """A rank's rows, their sources and, with a Goldfish mask (else 0), their valid tokens."""
        first = min(rank * block, len(batch.rows))
        end = min(first + block, len(batch.rows))
        arrays, source_BT = reader.arrays(batch, first, end, height)
        if self.run.loss.goldfish is None:
            return arrays, source_BT, 0
        arrays = goldfish.mask_labels(arrays, self.run.loss.goldfish)
        source_BT[arrays.labels_BT == IGNORE] = -1
        return arrays, source_BT, arrays.valid_tokens

    def _on_device(self, micro: Micro) -> Micro:
        if self.device.type == "cpu":
            return micro
        arrays = {name: t.to(self.device, non_blocking=True) for name, t in vars(micro).items() if name != "documents"}
        return replace(micro, **arrays)


def _micro(tokens_BT: Tensor, labels_BT: Tensor, position_BT: Tensor, source_BT: Tensor) -> Micro:
    return Micro(tokens_BT, labels_BT, position_BT, source_BT, count_documents(position_BT))
