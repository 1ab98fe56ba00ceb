"""Hashes that decide output bytes: pinned values, so that no platform or version can change an order unseen."""

from __future__ import annotations

import numpy as np

from gristmill.core.hashing import canonical_json, digest, document_id, hash64, mix64, seed_of


def test_pinned_values() -> None:
    assert mix64(np.array([0, 1, 2**63], np.uint64)).tolist() == [
        16294208416658607535,
        10451216379200822465,
        5196802822362493915,
    ]
    assert document_id("a.warc.gz", 0) == document_id("a.warc.gz", 0, 0)
    assert len(document_id("a.warc.gz", 12, 5)) == 32
    assert hash64("gristmill", 3) == hash64(b"gristmill", 3)


def test_mix64_is_a_bijection_and_seeds_differ() -> None:
    x = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(mix64(x))) == len(x)
    assert len(np.unique(mix64(x, seed_of("a", 1)))) == len(x)
    assert (mix64(x, 1) != mix64(x, 2)).all()


def test_identity_depends_on_each_part() -> None:
    ids = {document_id(n, o, i) for n in ("a", "b") for o in (0, 1) for i in (0, 1)}
    assert len(ids) == 8


def test_canonical_json_ignores_key_order() -> None:
    assert canonical_json({"b": 1, "a": 2}) == b'{"a":2,"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
