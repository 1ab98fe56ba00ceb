"""The table of chunks: the compiled scan gives what its twin gives, which is what str.split gives, at any size of the table."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.curate import chunks as C

SPACES = [chr(c) for c in range(0x110000) if chr(c).isspace()]
WITHIN = [c for c in SPACES if len(f"a{c}b".splitlines()) == 1]


def both(lines: list[str], known: list[str]) -> tuple[C.Scan, C.Scan]:
    found = []
    for table in (C.Chunks(), C.ChunksTwin()):
        table.add(known, range(1, len(known) + 1))
        found.append(table.scan(lines))
    return found[0], found[1]


def same(one: C.Scan, other: C.Scan) -> None:
    for name in ("rows", "starts", "counts"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name
    assert one.missing == other.missing


WORDS = [
    "a",
    "b",
    "ab",
    "é",
    "\u4e2d\u6587",
    "\U0001f600",
    "\x00",
    "\u200b",
    "a\x00",
    "x" * 70,
    "\u00e2\u0080",
    "\ufeff",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS + [" "] * 12 + WITHIN), max_size=12).map("".join), max_size=6))
def test_scan_equals_its_twin(lines: list[str]) -> None:
    same(*both(lines, ["a", "ab", "é", "\u4e2d\u6587", "\U0001f600a"]))


def test_white_space_is_that_of_python() -> None:
    """Every character, between two letters: those that part them are those of str.isspace."""
    table = C.Chunks()
    table.add(["a", "b"], [1, 2])
    for start in range(0, 0x110000, 0x8000):
        chars = [c for c in map(chr, range(start, start + 0x8000)) if c != "\n" and not "\ud800" <= c <= "\udfff"]
        scan = table.scan([f"a{c}b" for c in chars])
        assert scan.counts.tolist() == [1 + c.isspace() for c in chars]


def test_lone_surrogates_are_question_marks() -> None:
    one, other = both(["a\ud800b \udfff"], ["?"])
    same(one, other)
    assert one.missing == {0: "a?b"}


def test_lines() -> None:
    scan = both(["a  b", "", " ", "\tb", "a b "], ["a", "b"])[0]
    assert [scan.rows[a:b].tolist() for a, b in zip(scan.starts, scan.starts[1:], strict=False)] == [
        [1, 0, 2, 0],
        [0],
        [0],
        [0, 2, 0],
        [1, 2, 0],
    ]
    assert scan.counts.tolist() == [2, 0, 0, 1, 2]


def test_the_table_grows_and_forgets_nothing() -> None:
    rng = random.Random(0)
    table, rows = C.Chunks(), dict[str, int]()
    for _ in range(60):
        new = {"".join(rng.choices("abcdeé", k=rng.randint(1, 9))) for _ in range(300)} - rows.keys()
        fresh = {chunk: len(rows) + i + 1 for i, chunk in enumerate(sorted(new))}
        table.add(list(fresh), list(fresh.values()))
        rows |= fresh
        asked = rng.choices(list(rows), k=200)
        scan = table.scan([" ".join(asked)])
        assert scan.rows.tolist() == [*(rows[chunk] for chunk in asked), 0]
    assert len(rows) > 10_000
    assert not scan.missing
    assert table.scan(["abcdeé" * 3, "f"]).missing == {0: "abcdeé" * 3, 2: "f"}


@pytest.mark.parametrize("bytes_now", [b"xy\n", b"a\n\n", b"abc"])
def test_equal_keys_are_told_apart(bytes_now: bytes) -> None:
    """A chunk of the same key, by luck or by intent, is another chunk."""
    table = C.Chunks()
    table.add(["ab"], [1])
    assert table.scan(["ab"]).rows.tolist() == [1, 0]
    table._arena.all()[:] = list(bytes_now)
    assert table.scan(["ab"]).missing == {0: "ab"}


def test_without_numba_the_twin_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "gristmill.curate.kernels_chunks", raising=False)
    monkeypatch.delattr("gristmill.curate.kernels_chunks", raising=False)
    monkeypatch.setattr(C, "kernel", C.kernel.__wrapped__)
    assert isinstance(C.chunk_table(), C.ChunksTwin)
