"""From a plan to the exact place of every token: the pieces of each phase, row by row, and the mixture's lock.

The pieces of a phase depend on the phases before it (the cursors go on) and never on those after, so a changed last
phase leaves the shards of the earlier ones as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.core.mixlock import LOCK_FORMAT
from gristmill.core.vocabulary import TokenizerFacts
from gristmill.mixes.draw import Cursor, Draws
from gristmill.mixes.order import destinations
from gristmill.mixes.pack import Pieces, pack
from gristmill.mixes.plan import PhasePlan, Plan
from gristmill.mixes.schema import Mixture
from gristmill.mixes.sources import Documents, Stock

LAYOUT_FORMAT = "gristmill-mix-layout-1"

PIECES_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # destination: row within the phase
        ("row_start", pa.int32()),  # first token of the piece inside the row
        ("store", pa.int32()),  # ordinal of the token store
        ("doc", pa.int32()),  # row in that store's docs.parquet
        ("doc_start", pa.int32()),  # first token of the piece inside its document
        ("length", pa.int32()),  # tokens
        ("source", pa.int16()),  # index into the layout's `sources`
        ("epoch", pa.int16()),
    ]
)
"""One row per piece, sorted by (row, row_start): PHASE/00042.pieces.parquet."""


@dataclass(frozen=True)
class Assigned:
    """One phase: its pieces (PIECES_SCHEMA) and what each source really gave."""

    plan: PhasePlan
    pieces: pa.Table
    tokens: dict[str, int]
    cursors: dict[str, Cursor]

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """Per source the share of rows asked for and the share of tokens that came out."""
        total = sum(self.tokens.values())
        return {u.source: {"target": u.share, "realised": self.tokens[u.source] / total} for u in self.plan.uses}


def assign(mixture: Mixture, plan: Plan, documents: Documents, stock: Sequence[Stock]) -> Iterator[Assigned]:
    """Pack, interleave and permute phase by phase. At most one phase's pieces are held at a time."""
    by_name = {s.name: s for s in stock}
    draws = {
        s.name: Draws(documents.hashes[s.documents], documents.lengths[s.documents], mixture.seed, s.name)
        for s in stock
    }
    cursors = dict.fromkeys(by_name, Cursor())
    for phase in plan.phases:
        names = [u.source for u in phase.uses]
        places = destinations([u.rows for u in phase.uses], names, mixture.seed, phase.name)
        columns: list[dict[str, np.ndarray]] = []
        tokens: dict[str, int] = {}
        for i, (use, place) in enumerate(zip(phase.uses, places, strict=True)):
            pieces, cursors[use.source] = pack(
                draws[use.source],
                cursors[use.source],
                use.rows,
                phase.seq_len + 1,
                mixture.defaults.pack,
                mixture.defaults.max_docs_per_row,
            )
            tokens[use.source] = int(pieces.length.sum())
            columns.append(_columns(pieces, place, i, by_name[use.source].documents, documents))
        joined = {n: np.concatenate([c[n] for c in columns]) for n in PIECES_SCHEMA.names}
        order = np.lexsort((joined["row_start"], joined["row"]))
        table = pa.table({n: pa.array(joined[n][order], PIECES_SCHEMA.field(n).type) for n in PIECES_SCHEMA.names})
        yield Assigned(phase, table, tokens, {n: cursors[n] for n in names})


def _columns(
    pieces: Pieces, place: np.ndarray, source: int, positions: np.ndarray, documents: Documents
) -> dict[str, np.ndarray]:
    at = positions[pieces.document]
    return {
        "row": place[pieces.row],
        "row_start": pieces.row_start,
        "store": documents.store[at],
        "doc": documents.doc[at],
        "doc_start": pieces.doc_start,
        "length": pieces.length,
        "source": np.full(len(pieces), source),
        "epoch": pieces.epoch,
    }


def rows_per_shard(phase: PhasePlan, dtype: str, shard_bytes: int) -> int:
    """Rows of one shard: as many as fit `shard_bytes`, at least one."""
    return max(shard_bytes // ((phase.seq_len + 1) * np.dtype(dtype).itemsize), 1)


def shard_tables(assigned: Assigned, rows: int) -> Iterator[pa.Table]:
    """The pieces of each shard of `rows` rows, in order."""
    ends = range(rows, assigned.plan.rows + rows, rows)
    cuts = np.searchsorted(assigned.pieces["row"].to_numpy(), [0, *ends])
    for begin, end in itertools.pairwise(cuts):
        yield assigned.pieces.slice(begin, end - begin)


def layout(
    assigned: Assigned, plan: Plan, shard_bytes: int, facts: TokenizerFacts, stores: Sequence[str]
) -> dict[str, Any]:
    """What writing one phase's shards needs: nothing about other phases, so that those may change."""
    phase = assigned.plan
    return {
        "format": LAYOUT_FORMAT,
        "phase": phase.name,
        "seq_len": phase.seq_len,
        "rows": phase.rows,
        "rows_per_shard": rows_per_shard(phase, plan.dtype, shard_bytes),
        "dtype": plan.dtype,
        "pad": facts.special_ids["pad"],
        "sources": [u.source for u in phase.uses],
        "stores": list(stores),  # sha256 of each docs.parquet
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
        "shares": assigned.shares,
        "sources": {
            u.source: {
                "rows": u.rows,
                "tokens": assigned.tokens[u.source],
                "epochs": u.epochs,
                "cursor": asdict(assigned.cursors[u.source]),
            }
            for u in phase.uses
        },
    }
