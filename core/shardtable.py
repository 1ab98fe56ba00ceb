"""The shards of a phase as a sequence that holds their digests as bytes: 104 B a shard, not the 900 of as many objects.

10^8 rows of 4,096 tokens are 12,208 shards of 64 MiB: 1.3 MB here, 13 MB as dataclasses with dictionaries of hex digits.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload


@dataclass(frozen=True)
class PackedShard:
    """One shard of a phase. `file` is the .bin's path inside the dataset folder, with forward slashes."""

    file: str
    rows: int
    sha256: dict[str, str]  # suffix ("bin", "bnd.npy", "prov.parquet") -> hex digest


class ShardTable(Sequence[PackedShard]):
    """Shards made when they are asked for. Equal to any sequence of equal shards."""

    def __init__(self, shards: Sequence[Mapping[str, Any]]) -> None:
        """`shards`: the entries of manifest.json. Raises KeyError, TypeError or ValueError on what is no shard."""
        self._rows = array("q")
        self._names: list[str] | None = None
        self._digests = bytearray()
        self._suffixes: tuple[str, ...] = tuple(shards[0]["sha256"]) if shards else ()
        self._pattern = str(shards[0]["file"]).replace("00000", "{:05d}") if shards else ""
        self._odd: dict[int, dict[str, str]] = {}
        for i, shard in enumerate(shards):
            if set(shard) != {"file", "rows", "sha256"}:
                raise TypeError(f"a shard has {', '.join(sorted(shard))}")
            self._rows.append(int(shard["rows"]))
            if str(shard["file"]) != self._file(i) and self._names is None:
                self._names = [self._file(n) for n in range(i)]
            if self._names is not None:
                self._names.append(str(shard["file"]))
            digests = shard["sha256"]
            if tuple(digests) != self._suffixes:
                self._odd[i] = dict(digests)
                self._digests += bytes(32 * len(self._suffixes))
                continue
            for suffix in self._suffixes:
                raw = bytes.fromhex(digests[suffix])
                if len(raw) != 32:
                    raise ValueError(f"{shard['file']}: a sha256 of {len(raw)} bytes")
                self._digests += raw

    def _file(self, i: int) -> str:
        """PHASE/00042.bin, as the writer names shards; other names are kept one by one."""
        return self._names[i] if self._names is not None else self._pattern.replace("{:05d}", f"{i:05d}")

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> PackedShard: ...
    @overload
    def __getitem__(self, index: slice) -> list[PackedShard]: ...
    def __getitem__(self, index: int | slice) -> PackedShard | list[PackedShard]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        at = 32 * len(self._suffixes) * i
        places = enumerate(self._suffixes)
        digests = (
            dict(self._odd[i])
            if i in self._odd
            else {s: self._digests[at + 32 * n : at + 32 * n + 32].hex() for n, s in places}
        )
        return PackedShard(self._file(i), self._rows[i], digests)

    def __iter__(self) -> Iterator[PackedShard]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(other) == len(self)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ShardTable({len(self)} shards)"
