"""From a plan to the exact place of every token: the pieces of each phase, row by row, and the mixture's lock.

The pieces of a phase depend on the phases before it (the cursors go on) and never on those after, so a changed last
phase leaves the shards of the earlier ones as they are. Pieces stream from packing windows to buckets on disk, one for
each file that is written; beside a window only 12 bytes per row of the phase are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.core.errors import UsageError
from gristmill.core.mixlock import LOCK_FORMAT
from gristmill.core.vocabulary import TokenizerFacts
from gristmill.mixes.buckets import Buckets
from gristmill.mixes.catalogue import PIECE
from gristmill.mixes.draw import Cursor, Draws
from gristmill.mixes.order import destinations
from gristmill.mixes.pack import Window, pack
from gristmill.mixes.plan import PhasePlan, Plan
from gristmill.mixes.plan_lock import loss_weights
from gristmill.mixes.schema import Mixture
from gristmill.mixes.sources import Catalogue

LAYOUT_FORMAT = "gristmill-mix-layout-2"
GATHER_BYTES = 4 << 30
"""`shuffle: auto` gathers rows straight from the stores while those are at most so large in all: then they stay in the
page cache of any machine that trains. Larger ones go through buckets, which read and write in long stretches only."""
MOST_USES = int(np.iinfo(np.int16).max)
"""Earlier uses that a piece's provenance can say."""
PART_BYTES = 128 << 20
"""Of the stores, side by side, that one task spreads over the shards."""


@dataclass(frozen=True)
class Spread:
    """How a phase's pieces are grouped into files: by shard (gather), or by the part of the stores they are in (buckets).

    starts: (stores+1,) int64, the tokens before each store when all stand side by side.
    """

    shuffle: str
    rows_per_shard: int
    starts: np.ndarray
    part_tokens: int

    def of(self, pieces: np.ndarray) -> np.ndarray:
        """(n,) int64: the file of each piece."""
        if self.shuffle == "gather":
            return np.asarray(pieces["row"] // self.rows_per_shard)
        return np.asarray((self.starts[pieces["store"]] + pieces["begin"]) // self.part_tokens)

    def ordered(self, pieces: np.ndarray) -> np.ndarray:
        """The pieces of one file as they are stored: row by row, or as they stand in the stores."""
        keys = ("row_start", "row") if self.shuffle == "gather" else ("row", "begin", "store")
        return pieces[np.lexsort([pieces[k] for k in keys])]


def spread(shuffle: str, rows: int, dtype: str, stores: Sequence[tuple[int, int]], part_bytes: int) -> Spread:
    """shuffle: auto, gather or buckets. rows: of a shard. stores: (documents, tokens) of each."""
    width = np.dtype(dtype).itemsize
    starts = np.concatenate([[0], np.cumsum([n for _, n in stores])]).astype(np.int64)
    if shuffle == "auto":
        shuffle = "gather" if starts[-1] * width <= GATHER_BYTES else "buckets"
    return Spread(shuffle, rows, starts, max(part_bytes // width, 1))


@dataclass(frozen=True)
class Assigned:
    """One phase as it was packed: what each source really gave, and where its cursor stands then."""

    plan: PhasePlan
    pieces: int
    tokens: dict[str, int]
    truncated: dict[str, int]
    cursors: dict[str, Cursor]

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """Per source the share of rows asked for and the share of tokens that came out."""
        total = sum(self.tokens.values())
        return {u.source: {"target": u.share, "realised": self.tokens[u.source] / total} for u in self.plan.uses}


def assign(
    mixture: Mixture,
    plan: Plan,
    found: Catalogue,
    spool: Buckets,
    folder: Path,
    spread_of: Callable[[PhasePlan], Spread],
    save: Callable[[PhasePlan, int, np.ndarray], None],
) -> Iterator[Assigned]:
    """Pack, interleave and permute phase by phase.

    spool: the documents of every source (`sources.scan`). folder: for what does not stay in memory. save(phase, file,
    pieces) is called for every file that has pieces, in order, with its (n,) PIECE records as `Spread.ordered`.
    """
    cursors = {s.name: Cursor() for s in found.stock}
    for phase in plan.phases:
        how = spread_of(phase)
        names = [u.source for u in phase.uses]
        if len(names) > MOST_USES:  # a piece's source is an int16
            raise UsageError(f"phase `{phase.name}` draws from {len(names):,} sources, {MOST_USES:,} at most")
        places = destinations([u.rows for u in phase.uses], names, mixture.seed, phase.name)
        tokens = dict.fromkeys(names, 0)
        truncated = dict.fromkeys(names, 0)
        total = last = 0
        with Buckets(folder / f"pieces-{phase.name}", PIECE) as files:
            for i, (use, place) in enumerate(zip(phase.uses, places, strict=True)):
                name = use.source
                draws = Draws(spool, found.number[name], mixture.seed, name, folder)
                for window in pack(
                    draws, cursors[name], use.rows, phase.seq_len + 1, phase.pack, mixture.defaults.max_docs_per_row
                ):
                    pieces = _pieces(window, place, i)
                    to = how.of(pieces)
                    files.add(pieces, to)
                    cursors[name] = window.cursor
                    tokens[name] += int(window.pieces.length.sum())
                    truncated[name] += window.truncated
                    total += len(pieces)
                    last = max(last, int(to.max(initial=0)))
                draws.close()
            for number in range(last + 1):
                if files.count(number):
                    save(phase, number, how.ordered(files.bucket(number)))
        yield Assigned(phase, total, tokens, truncated, {n: cursors[n] for n in names})


def _pieces(window: Window, place: np.ndarray, source: int) -> np.ndarray:
    """The window's (n,) PIECE records; place: the phase's row of every row of the source."""
    packed = window.pieces
    documents = window.documents[packed.document]
    uses = window.uses[packed.document]
    if uses.max(initial=0) > MOST_USES:
        raise UsageError(
            f"E104 a document would be used more than {MOST_USES:,} times",
            hint="lower max_epochs or its rehydrate weight",
        )
    out = np.empty(len(packed), PIECE)
    out["row"] = place[packed.row]
    out["begin"] = documents["offset"] + packed.doc_start
    out["row_start"], out["length"], out["doc_start"] = packed.row_start, packed.length, packed.doc_start
    for name in ("id", "store", "doc"):
        out[name] = documents[name]
    out["source"], out["epoch"] = source, uses
    return out


def rows_per_shard(phase: PhasePlan, dtype: str, shard_bytes: int) -> int:
    """Rows of one shard: as many as fit `shard_bytes`, at least one."""
    return max(shard_bytes // ((phase.seq_len + 1) * np.dtype(dtype).itemsize), 1)


def layout(phase: PhasePlan, plan: Plan, how: Spread, facts: TokenizerFacts, stores: Sequence[str]) -> dict[str, Any]:
    """What writing one phase's shards needs: nothing about other phases, so that those may change."""
    return {
        "format": LAYOUT_FORMAT,
        "phase": phase.name,
        "seq_len": phase.seq_len,
        "rows": phase.rows,
        "rows_per_shard": how.rows_per_shard,
        "shuffle": how.shuffle,
        "dtype": plan.dtype,
        "pad": facts.special_ids["pad"],
        "sources": [u.source for u in phase.uses],
        "stores": list(stores),  # sha256 of each docs.parquet
        "tokens": np.diff(how.starts).tolist(),  # of each store
    }


def lock(
    mixture: Mixture,
    plan: Plan,
    assigned: Sequence[dict[str, Any]],
    facts: TokenizerFacts,
    stores: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """mix.lock.json: the mixture with every choice made. Holds digests and counts, no paths and no times."""
    return {
        "format": LOCK_FORMAT,
        "mixture": mixture.model_dump(mode="json", by_alias=True),
        "seed": mixture.seed,
        "tokenizer_sha256": facts.sha256,
        "vocab_size": facts.vocab_size,
        "special_ids": {role: facts.special_ids[role] for role in ("bos", "eos", "pad") if role in facts.special_ids},
        "dtype": plan.dtype,
        "stores": list(stores),
        "sources": [asdict(s) for s in plan.supplies],
        "phases": list(assigned),
        "warnings": plan.warnings,
    }


def lock_phase(mixture: Mixture, assigned: Assigned, rows: int) -> dict[str, Any]:
    """One phase's entry in the lock. `rows` are those of one shard."""
    phase = assigned.plan
    spec = next(p for p in mixture.stages if p.name == phase.name)
    stored = phase.rows * (phase.seq_len + 1)
    return {
        "name": phase.name,
        "seq_len": phase.seq_len,
        "rows": phase.rows,
        "batches": phase.batches,
        "batch_rows": phase.batch_rows,
        "rows_per_shard": rows,
        "shards": -(-phase.rows // rows),
        "padding": stored - sum(assigned.tokens.values()),
        "lr": spec.lr.model_dump(mode="json", exclude_none=True),
        "loss_weights": loss_weights(mixture, [u.source for u in phase.uses]),
        "until_rows": phase.until_rows,
        "shares": assigned.shares,
        "sources": {
            u.source: {
                "rows": u.rows,
                "tokens": assigned.tokens[u.source],
                **({"truncated": n} if (n := assigned.truncated[u.source]) else {}),
                "epochs": u.epochs,
                "cursor": asdict(assigned.cursors[u.source]),
            }
            for u in phase.uses
        },
    }
