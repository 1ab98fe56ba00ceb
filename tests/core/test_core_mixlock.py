"""The lock of a mixture as readers see it: what mixes writes, what is damaged, and what is known without documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.mixlock import LOCK_FORMAT, LockedPhase, LockedUse, MixLock, outline, read_lock

PHASE = {
    "name": "warm",
    "seq_len": 128,
    "rows": 70,
    "batches": 2,
    "batch_rows": 32,
    "rows_per_shard": 1000,
    "lr": {"phase": "stable"},
    "shares": {"a": {"target": 1.0, "realised": 1.0}},
    "sources": {"a": {"rows": 70, "tokens": 9000, "epochs": 1.25, "cursor": {"documents": 3, "tokens": 0}}},
}
LOCK = {
    "format": LOCK_FORMAT,
    "mixture": {"anything": 1},
    "seed": 6,
    "vocab_size": 4096,
    "tokenizer_sha256": "ab",
    "special_ids": {"bos": 0, "eos": 1, "pad": 2},
    "dtype": "<u2",
    "stores": [],
    "sources": [{"name": "a", "documents": 9, "tokens": 7200, "heldout_documents": 1, "max_epochs": 4.0}],
    "phases": [PHASE],
    "warnings": ["W203 …"],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "mix.lock.json"
    path.write_bytes(orjson.dumps({**LOCK, **changes}))
    return path


def test_a_lock_is_read_typed(tmp_path):
    lock = read_lock(written(tmp_path))
    phase = lock.phases[0]
    assert (phase.batches, phase.tokens) == (2, 64 * 128)
    assert phase.sources["a"] == LockedUse(rows=70, tokens=9000, epochs=1.25)
    assert lock.phase("warm") is phase
    assert lock.phase("cool") is None
    assert lock.sources[0].tokens == 7200
    manifest = lock.manifest()
    assert (manifest.vocab_size, manifest.dtype, manifest.phases[0].batches) == (4096, "<u2", 2)
    assert manifest.phases[0].lr == {"phase": "stable"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "gristmill-mix-lock-9"}, "has format"),
        ({"phases": []}, "phases"),
        ({"phases": [{**PHASE, "rows": "many"}]}, r"phases\.0\.rows"),
        ({"phases": [{**PHASE, "batch_rows": 0}]}, r"phases\.0\.batch_rows"),
        ({"vocab_size": 0}, "vocab_size"),
    ],
)
def test_a_damaged_lock_is_refused_and_named(tmp_path, changes, message):
    with pytest.raises(FormatError, match=message):
        read_lock(written(tmp_path, **changes))


def test_other_files_are_no_locks(tmp_path):
    for name, text in (("list", "[1]"), ("text", "{"), ("missing", None)):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(FormatError):
            read_lock(path)
    with pytest.raises(FormatError, match="not the one"):
        read_lock(written(tmp_path), "0" * 64)


def test_an_outline_knows_sizes_and_no_epochs():
    phases = [
        LockedPhase(name="m", seq_len=8, rows=64, batch_rows=4, shares={"a": {"target": 0.5, "realised": 0.5}},
                    sources={"a": LockedUse(), "b": LockedUse()})
    ]  # fmt: skip
    lock = outline(phases, seed=3, limits={"a": 2.0})
    assert [s.name for s in lock.sources] == ["a", "b"]
    assert (lock.sources[0].max_epochs, lock.sources[0].tokens) == (2.0, None)
    with pytest.raises(ValueError, match="vocabulary"):
        lock.manifest()
    manifest = lock.manifest(100_000)
    assert (manifest.dtype, manifest.phases[0].shares["b"]["realised"]) == ("<u4", 0.0)


def test_mixes_writes_what_core_reads():
    from gristmill.mixes import assign

    assert assign.LOCK_FORMAT == LOCK_FORMAT == MixLock.model_fields["format"].default


def test_an_outline_of_a_mixture_says_what_its_file_says():
    from gristmill.mixes.api import load_mixture
    from gristmill.pipelines.trainplan import outline_of

    mixture, _ = load_mixture("smollm3-3b")
    lock = outline_of(mixture)
    assert [p.batches for p in lock.phases] == [3_450_000, 748_000, 522_000]
    assert sum(s["target"] for s in lock.phases[2].shares.values()) == pytest.approx(1)
    assert all(use.epochs is None for p in lock.phases for use in p.sources.values())
    demo, _ = load_mixture("demo")
    with pytest.raises(UsageError, match="sized in epochs"):
        outline_of(demo)
    part = demo.stages[0].model_validate(
        {
            "name": "x",
            "seq_len": 4,
            "global_batch": 8,
            "tokens": 80,
            "mix": {"english": {"tokens": 40}, "other": "rest"},
        }
    )
    fixed = outline_of(demo.model_copy(update={"stages": [part]}))
    assert fixed.phases[0].shares["other"]["target"] == 0.5
    assert fixed.phases[0].rows == 20
