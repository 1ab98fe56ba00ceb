"""Seeded choices: every number is a hash of (seed, names, counter), so no draw depends on another's presence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from gristmill.core.hashing import hash64, seed_of

T = TypeVar("T")


class Draw:
    """A small source of choices for one purpose, named by `names`; the same names give the same choices."""

    def __init__(self, seed: int, *names: object) -> None:
        self._seed = seed_of(seed, *names)
        self._n = 0

    def bits(self) -> int:
        """64 bits."""
        self._n += 1
        return hash64(str(self._n), self._seed)

    def below(self, n: int) -> int:
        """A number in [0, n). The modulo bias is under n / 2**64."""
        return self.bits() % n

    def between(self, low: int, high: int) -> int:
        """A number in [low, high]."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[T]) -> T:
        """One item of a non-empty sequence."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in a drawn order."""
        keys = [(self.bits(), i) for i in range(len(items))]
        return [items[i] for _, i in sorted(keys)]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """`n` items (all when there are fewer) in a drawn order."""
        return self.shuffled(items)[:n]

    def raw(self, n: int) -> bytes:
        """`n` bytes without structure."""
        return b"".join(self.bits().to_bytes(8, "little") for _ in range((n + 7) // 8))[:n]
