"""Copies stored rows of a packed dataset into a buffer that the caller keeps: no allocation, no conversion, no mapping.

Rows are read with preadv from open files, so a shard is no part of the process's memory and random shards cost a file
handle each, not a mapping. Rows that lie side by side in a shard and go side by side into the buffer are one read.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from gristmill.core.errors import FormatError
from gristmill.core.tokshards import PackedDataset

OPEN_FILES = 256
"""File handles kept open, the last used ones: a process may have 1,024 by default."""


class RowCopier:
    """Reads rows of any phase, in any order. For one thread. Close it, or use it in a `with`."""

    def __init__(self, dataset: PackedDataset) -> None:
        self._files: OrderedDict[tuple[str, int], int] = OrderedDict()
        self.dataset = dataset
        self.dtype = np.dtype(dataset.manifest.dtype)
        self._phases = {phase.name: phase for phase in dataset.manifest.phases}

    def rows_into(self, phase: str, rows: np.ndarray | Sequence[int], buffer: np.ndarray) -> np.ndarray:
        """Copy rows (n,) of a phase into buffer[:n], a C-contiguous (≥ n, seq_len + 1) array of the stored type.

        Returns buffer[:n]. Raises ValueError on a buffer of another shape or type, FormatError on rows that the phase
        does not have and on shards whose files are gone, cut or longer than the manifest says.
        """
        spec = self.dataset.manifest.phase(phase)
        row = np.asarray(rows, np.int64)
        width = spec.seq_len + 1
        n = len(row)
        if buffer.dtype != self.dtype or buffer.ndim != 2 or buffer.shape[1] != width or len(buffer) < n:
            raise ValueError(f"a buffer of {buffer.dtype} {buffer.shape} for {n} rows of {width} {self.dtype}")
        if not buffer.flags.c_contiguous:
            raise ValueError("the buffer is not contiguous")
        if n == 0:
            return buffer[:0]
        if row.min() < 0 or row.max() >= spec.rows:
            raise FormatError(f"phase {phase!r} has rows 0..{spec.rows - 1}, not {int(row.min())}..{int(row.max())}")
        shard, local = row // spec.rows_per_shard, row % spec.rows_per_shard
        apart = (np.diff(row) != 1) | (np.diff(shard) != 0)
        first = np.concatenate([[0], np.flatnonzero(apart) + 1, [n]])
        size = width * self.dtype.itemsize
        target = buffer.data.cast("B")
        begins = first[:-1]
        for at, end, number, where in zip(
            begins.tolist(), first[1:].tolist(), shard[begins].tolist(), (local[begins] * size).tolist(), strict=True
        ):
            piece = target[at * size : end * size]
            file = self._files.get((phase, number))
            if file is None:
                file = self._open(phase, number)
            else:
                self._files.move_to_end((phase, number))
            got = os.preadv(file, [piece], where)
            while got < len(piece):  # a read may stop at 2 GiB, or at a signal
                more = os.preadv(file, [piece[got:]], where + got)
                if more == 0:
                    raise FormatError(f"{spec.shards[number].file} ends inside a row", hint="gristmill mix verify")
                got += more
        return buffer[:n]

    def _open(self, phase: str, number: int) -> int:
        spec = self._phases[phase]
        shard = spec.shards[number]
        path = self.dataset.path_of(shard)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror}", hint="gristmill mix verify") from error
        want = shard.rows * (spec.seq_len + 1) * self.dtype.itemsize
        size = os.fstat(file).st_size
        if size != want:
            os.close(file)
            raise FormatError(f"{path} has {size} bytes, its manifest says {want}", hint="gristmill mix verify")
        if len(self._files) >= OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[phase, number] = file
        return file

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> RowCopier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
