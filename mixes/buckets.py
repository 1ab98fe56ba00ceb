"""Spread fixed-size records over many buckets on disk in bounded memory: runs sorted by bucket, then a bucket at a time.

Records are gathered up to `memory` bytes, sorted by bucket (stably) and appended to one file as a run; a bucket is then
the concatenation of its stretches in the runs, in the order in which its records were added. One file, whatever the
number of buckets; the index in memory has 16 bytes per stretch.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

MEMORY = 8 << 20
"""Bytes gathered before a run is written; with 1,000 buckets a stretch is 8 kB, two pages."""


class Buckets:
    """Write with `add`, then read with `bucket`; a context manager that removes its file at the end.

    Buckets are numbers from 0 without a limit; those never added to are empty.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], memory: int = MEMORY) -> None:
        self.path, self.dtype = path, dtype
        most = max(memory // dtype.itemsize, 1)
        self._records = np.empty(most, dtype)
        self._to = np.empty(most, np.int64)
        self._size = 0
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # buckets in a run, ascending; their edges in the file
        self._written = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115  closed by `close`

    def add(self, records: np.ndarray, buckets: np.ndarray | int) -> None:
        """Append (n,) records, each to its own bucket or all to one."""
        if records.dtype != self.dtype:
            raise ValueError(f"records of {records.dtype}, not {self.dtype}")
        at = 0
        while at < len(records):
            n = min(len(records) - at, len(self._records) - self._size)
            self._records[self._size : self._size + n] = records[at : at + n]
            self._to[self._size : self._size + n] = buckets if isinstance(buckets, int) else buckets[at : at + n]
            self._size += n
            at += n
            if self._size == len(self._records):
                self._flush()

    def count(self, number: int) -> int:
        """The records of one bucket."""
        return sum(end - begin for begin, end in self._stretches(number))

    def bucket(self, number: int) -> np.ndarray:
        """The records of one bucket in the order in which they were added."""
        return self.part(number, 0, self.count(number))

    def part(self, number: int, first: int, most: int) -> np.ndarray:
        """At most `most` records of one bucket from record `first` on."""
        wanted = []
        for begin, end in self._stretches(number):
            if first < end - begin and most > 0:
                wanted.append((begin + first, min(end, begin + first + most)))
                most -= wanted[-1][1] - wanted[-1][0]
            first = max(first - (end - begin), 0)
        out = np.empty(sum(end - begin for begin, end in wanted), self.dtype)
        data = out.view(np.uint8).data
        for begin, end in wanted:
            self._file.seek(begin * self.dtype.itemsize)
            left = (end - begin) * self.dtype.itemsize
            while left:
                n = self._file.readinto(data[:left])
                if not n:
                    raise OSError(f"{self.path} ends too early")
                data, left = data[n:], left - n
        return out

    def _stretches(self, number: int) -> list[tuple[int, int]]:
        """(first, behind the last) record in the file, run by run."""
        self._flush()
        out = []
        for numbers, edges in self._runs:
            i = int(np.searchsorted(numbers, number))
            if i < len(numbers) and numbers[i] == number:
                out.append((int(edges[i]), int(edges[i + 1])))
        return out

    def _flush(self) -> None:
        if not self._size:
            return
        order = np.argsort(self._to[: self._size], kind="stable")
        to = self._to[order]
        first = np.flatnonzero(np.diff(to, prepend=-1))
        self._runs.append((to[first], self._written + np.append(first, len(to))))
        data = self._records[order].view(np.uint8).data
        self._file.seek(0, 2)
        while len(data):
            data = data[self._file.write(data) :]
        self._written += self._size
        self._size = 0

    def close(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Buckets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
