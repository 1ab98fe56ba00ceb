"""Where `train plan` finds a run's stages: a root's packed shards, else its lock, else its token stores, else the mixture.

The farther down, the less is known: without token stores nobody has counted the sources, so epochs are unknown, and a
stage sized in epochs has no size at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.core.errors import UsageError
from gristmill.core.mixlock import LockedPhase, LockedUse, MixLock, outline, read_lock
from gristmill.core.tokshards import PackedManifest

if TYPE_CHECKING:
    from gristmill.mixes.schema import Mixture, Phase

LOCK = "mix.lock.json"


@dataclass(frozen=True)
class Stages:
    """A run's stages as found. `origin` says where, for people."""

    manifest: PackedManifest
    lock: MixLock
    origin: str


def find_stages(
    root: Path | None,
    mixture: str,
    beside: Path | None = None,
    overrides: Sequence[str] = (),
    vocab_size: int | None = None,
) -> Stages:
    """The stages of a run over `mixture` (a name, or a path, also relative to `beside`), from a root where it has them.

    `overrides` change the mixture, so with any the root's shards and lock are not looked at. `vocab_size` is for a
    mixture alone. Raises UsageError when the sizes or the vocabulary cannot be known, and what loading a mixture raises.
    """
    if root is not None and not overrides:
        from gristmill.core.manifest import read_manifest
        from gristmill.core.tokshards import read_manifest as read_dataset

        shards = read_manifest(root, "shards")
        if shards is not None and shards.receipts:
            folder = Path(shards.receipts[0].output("manifest.json").path).parent
            dataset = read_dataset(folder)
            return Stages(dataset, read_lock(folder / LOCK, dataset.lock_sha256), f"the packed shards of {root}")
        mixed = read_manifest(root, "mixture")
        if mixed is not None and mixed.receipts:
            lock = read_lock(mixed.receipts[0].output(LOCK).path)
            return Stages(lock.manifest(), lock, f"the mixture's lock in {root} (not packed yet)")
    from gristmill.core.places import find_yaml
    from gristmill.mixes.api import load_mixture

    path, name = find_yaml(mixture, "gristmill.mixes", beside)
    loaded, _ = load_mixture(str(path), overrides)
    counted = _from_stores(root, loaded) if root is not None else None
    if counted is not None:
        return Stages(counted.manifest(), counted, f"mixture {name} over the encoded documents of {root}")
    lock = outline_of(loaded)
    if vocab_size is None:
        raise UsageError(
            "the size of the vocabulary is not known: there is no tokenizer yet", hint="give --vocab-size 32768"
        )
    return Stages(lock.manifest(vocab_size), lock, f"mixture {name} alone (no documents counted: epochs unknown)")


def _from_stores(root: Path, mixture: Mixture) -> MixLock | None:
    """The lock-to-be over a root's encoded documents; None when it has none."""
    from gristmill.mixes.api import plan_from_stores
    from gristmill.mixes.plan_lock import lock_of
    from gristmill.pipelines.mixplan import stores_in

    found = stores_in(root)
    return lock_of(plan_from_stores(mixture, *found), mixture) if found is not None else None


def outline_of(mixture: Mixture) -> MixLock:
    """The lock of a mixture alone: sizes as its stages say them, epochs None.

    Raises UsageError for a stage whose size is not written down, as when every amount is in epochs.
    """
    from gristmill.mixes.plan_lock import loss_weights

    phases = []
    for phase in mixture.stages:
        tokens = _tokens(phase)
        batches = tokens // phase.seq_len // phase.batch_rows
        if not batches:
            raise UsageError(
                f"stage `{phase.name}` has {tokens:,} tokens, one batch {phase.global_batch:,}",
                hint="give it more tokens",
            )
        shares = _shares(phase, tokens)
        phases.append(
            LockedPhase(
                name=phase.name,
                seq_len=phase.seq_len,
                rows=batches * phase.batch_rows,
                batch_rows=phase.batch_rows,
                until_rows=_until(phase, batches),
                lr=phase.lr.model_dump(mode="json", exclude_none=True),
                loss_weights=loss_weights(mixture, list(phase.mix)),
                shares={name: {"target": share, "realised": share} for name, share in shares.items()},
                sources={name: LockedUse() for name in phase.mix},
            )
        )
    names = dict.fromkeys([*mixture.sources, *(name for phase in mixture.stages for name in phase.mix)])
    return outline(phases, seed=mixture.seed, limits={name: mixture.limit(name) for name in names})


def _until(phase: Phase, batches: int) -> int | None:
    """Rows trained on, where not all."""
    until = batches if phase.until is None else min(phase.until // phase.global_batch, batches)
    return until * phase.batch_rows if until < batches else None


def _tokens(phase: Phase) -> int:
    from gristmill.mixes.schema import TokensPart

    if phase.tokens is not None:
        return phase.tokens
    parts = [part.tokens for part in phase.mix.values() if isinstance(part, TokensPart)]
    if len(parts) < len(phase.mix):
        raise UsageError(
            f"stage `{phase.name}` is sized in epochs, and its documents are not encoded yet",
            hint="gristmill run RECIPE --root DIR --to tokens, then give --root DIR",
        )
    return sum(parts)


def _shares(phase: Phase, tokens: int) -> dict[str, float]:
    """Shares that are known without counting: all but those of amounts in epochs, and of a `rest` beside them."""
    from gristmill.mixes.schema import EpochsPart, TokensPart

    given = {name: part for name, part in phase.mix.items() if isinstance(part, float)}
    scale = 1 / sum(given.values()) if phase.normalize else 1.0
    out = {name: share * scale for name, share in given.items()}
    out |= {name: part.tokens / tokens for name, part in phase.mix.items() if isinstance(part, TokensPart)}
    rest = next((name for name, part in phase.mix.items() if part == "rest"), None)
    if rest is not None and not any(isinstance(part, EpochsPart) for part in phase.mix.values()):
        out[rest] = 1.0 - sum(out.values())
    return out
