"""The content of every shard checked once per launch, in the background, against the manifest. No torch.

A thread reads the files in the order in which training will read them, each rank its share (files rank, rank + size, ...),
so that a run starts at once and a changed byte is known before its rows have been used for long.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from gristmill.core.errors import FormatError
from gristmill.core.tokshards import PackedDataset
from gristmill.trainer.order import DataOrder

READ_BYTES = 1 << 20
SUFFIXES = ("bin", "bnd.npy", "prov.parquet")


class ShardCheck:
    """Hashes the shard files of a dataset from the phase and rows of `step` on, then those before. Starts at once."""

    def __init__(self, dataset: PackedDataset, order: DataOrder, step: int, rank: int = 0, size: int = 1) -> None:
        self.folder = dataset.folder
        self._files = list(_files(order, step))[rank::size]
        self._done: dict[str, str] = {}
        self._fault: FormatError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="shard-check")
        self._thread.start()

    def check(self) -> None:
        """Raises FormatError, which names the file, as soon as one differs."""
        if self._fault is not None:
            raise self._fault

    def finish(self) -> None:
        """Wait until all files of this rank are read, then `check`."""
        self._thread.join()
        self.check()

    def hashes(self) -> dict[str, str]:
        """sha256 (hex) of the files read so far, by path inside the dataset; all of them equal the manifest's."""
        return dict(self._done)

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for name, want in self._files:
                have = self._sha256(name)
                if have is None:
                    return
                if have != want:
                    raise FormatError(
                        f"{self.folder / name} was changed: its sha256 is {have[:12]}, the manifest says {want[:12]}",
                        hint=f"delete {self.folder} and run the recipe again: its shards are written anew",
                    )
                self._done[name] = have
        except FormatError as fault:
            self._fault = fault
        except OSError as error:
            self._fault = FormatError(f"a shard cannot be read: {error}")

    def _sha256(self, name: str) -> str | None:
        """None when told to stop."""
        path = self.folder / name
        if self.folder.resolve() not in path.parent.resolve().parents:
            raise FormatError(f"shard path {name!r} leaves the dataset folder")
        value = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while data := file.read(READ_BYTES):
                if self._stop.is_set():
                    return None
                value.update(data)
        return value.hexdigest()


def _files(order: DataOrder, step: int) -> Iterator[tuple[str, str]]:
    """(file, sha256 in the manifest) in the order of use from `step` on."""
    shards = [(phase, i) for phase in order.manifest.phases for i in range(len(phase.shards))]
    if order.steps:
        name, row = order.row_of_sample(order.samples_after(min(step, order.steps) - 1) if step > 1 else 0)
        first = (name, row // order.manifest.phase(name).rows_per_shard)
        at = next(i for i, (phase, index) in enumerate(shards) if (phase.name, index) == first)
        shards = shards[at:] + shards[:at]
    for phase, index in shards:
        shard = phase.shards[index]
        base = Path(shard.file.removesuffix(".bin")).as_posix()
        yield from ((f"{base}.{suffix}", shard.sha256[suffix]) for suffix in SUFFIXES)
