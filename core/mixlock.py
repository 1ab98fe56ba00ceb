"""What a mixture's lock says of its phases: rows, batches, learning rates, and the tokens and epochs of every source.

`mixes` writes mix.lock.json beside the shards; the trainer reads the mixture only in this form. A lock can also be made
from a mixture alone, before any document is encoded: then what depends on the token counts is None (`outline`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PackedManifest, PackedPhase, token_dtype

LOCK_FORMAT = "gristmill-mix-lock-1"


class Read(BaseModel):
    """A frozen part of the file. Keys that readers do not need are left out, so that a lock may hold more."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class LockedSource(Read):
    """What a source has, over all phases."""

    name: str
    documents: int | None = Field(None, ge=0)
    tokens: int | None = Field(None, ge=0)
    """Stored tokens, held-out documents left out."""
    max_epochs: float | None = Field(None, gt=0)


class LockedUse(Read):
    """What one phase takes of one source; None where nobody has counted yet."""

    rows: int | None = Field(None, ge=0)
    tokens: int | None = Field(None, ge=0)
    """Stored tokens: seq_len + 1 a row, padding left out."""
    epochs: float | None = Field(None, ge=0)
    """Passes over the source by the end of this phase, earlier phases counted."""


class LockedPhase(Read):
    """One curriculum stage: `rows` rows of `seq_len` tokens, `batch_rows` of them in each step."""

    name: str
    seq_len: int = Field(ge=1)
    rows: int = Field(ge=0)
    batch_rows: int = Field(ge=1)
    lr: dict[str, Any] = {}
    shares: dict[str, dict[str, float]] = {}
    """source -> {"target": share, "realised": share of tokens}; a source whose share nobody knows yet is left out."""
    sources: dict[str, LockedUse] = {}
    until_rows: int | None = Field(None, ge=0)
    """Rows trained on where not all are: the stage that an ablation branches from."""
    loss_weights: dict[str, float] = {}
    """{source: weight of its tokens' losses} where it is not 1."""
    chain: str = ""
    """Hash over all that makes the rows of this stage and those before it; "" before packing (mixes.chain)."""
    spec: dict[str, Any] = {}
    """What went into the chain for this stage, so that a change can be named."""

    @property
    def batches(self) -> int:
        return self.rows // self.batch_rows

    @property
    def tokens(self) -> int:
        """Positions trained on, in whole batches."""
        return self.batches * self.batch_rows * self.seq_len


class MixLock(Read):
    """A mixture with its choices made. `vocab_size` is None in an outline: no tokenizer is known there."""

    format: Literal["gristmill-mix-lock-1"] = "gristmill-mix-lock-1"
    seed: int = 0
    vocab_size: int | None = Field(None, ge=1)
    tokenizer_sha256: str = ""
    special_ids: dict[str, int] = {}
    sources: list[LockedSource] = []
    phases: list[LockedPhase] = Field(min_length=1)
    warnings: list[str] = []

    def phase(self, name: str) -> LockedPhase | None:
        return next((phase for phase in self.phases if phase.name == name), None)

    def manifest(self, vocab_size: int | None = None) -> PackedManifest:
        """A dataset's manifest without shards: enough for the data order, the schedule and a plan.

        `vocab_size` is used where the lock has none; ValueError when neither is known.
        """
        size = self.vocab_size or vocab_size
        if size is None:
            raise ValueError("the size of the vocabulary is not known")
        phases = [
            PackedPhase(
                name=p.name,
                seq_len=p.seq_len,
                rows=p.rows,
                batch_rows=p.batch_rows,
                rows_per_shard=p.rows or 1,
                lr=p.lr,
                shares=_shares(p),
                until_rows=p.until_rows,
                loss_weights=p.loss_weights,
                chain=p.chain,
                spec=p.spec,
            )
            for p in self.phases
        ]
        return PackedManifest(
            token_dtype(size).str, size, self.special_ids, self.tokenizer_sha256, self.seed, "", phases, []
        )


def _shares(phase: LockedPhase) -> dict[str, dict[str, float]]:
    """Every source of the phase; 0 stands for a share that is not known, so that the source is named all the same."""
    unknown = {"target": 0.0, "realised": 0.0}
    return {**{source: unknown for source in phase.sources}, **phase.shares}


def read_lock(path: str | Path, sha256: str | None = None) -> MixLock:
    """Read mix.lock.json. Raises FormatError when it is missing, damaged, or not the file of this digest."""
    path = Path(path)
    if sha256 is not None and path.is_file() and sha256_file(path) != sha256:
        raise FormatError(f"{path} is not the one its dataset was packed with", hint="run the recipe again")
    try:
        data = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is not a mixture's lock: {error}") from error
    found = data.get("format") if isinstance(data, Mapping) else None
    if found != LOCK_FORMAT:
        raise FormatError(f"{path} has format {found!r}, this version reads {LOCK_FORMAT!r}")
    try:
        return MixLock.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{path} is damaged: {place}: {first['msg']}") from error


def outline(
    phases: list[LockedPhase],
    *,
    seed: int = 0,
    limits: Mapping[str, float] | None = None,
    vocab_size: int | None = None,
) -> MixLock:
    """The lock of a mixture whose sources nobody has counted. `limits`: source -> most epochs."""
    names = dict.fromkeys(source for phase in phases for source in phase.sources)
    sources = [LockedSource(name=name, max_epochs=(limits or {}).get(name)) for name in names]
    return MixLock(seed=seed, vocab_size=vocab_size, sources=sources, phases=phases)
