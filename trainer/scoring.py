"""Log-likelihoods of token sequences under a model, the same at any number of processes: what every evaluation asks for.

Sequences are packed into rows of one fixed shape with positions that restart, as in training, so that nothing is compiled
anew and short sequences cost what they are long. Nothing random is drawn, no gradient is touched, no mode is changed.
Letters of the shape suffixes: B rows, T positions, N sequences.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gristmill.trainer.data import IGNORE
from gristmill.trainer.parallel.mesh import World


@dataclass(frozen=True)
class Scored:
    """Token ids of which those from `first` (1 or more) on are scored, each given all before it."""

    ids: np.ndarray
    first: int = 1


@dataclass(frozen=True)
class Scores:
    """Per sequence: `nats` (N,) float64, the negative log-likelihood of its scored tokens. `greedy` (N,) bool: whether
    each of them was the likeliest; None where that was not asked for."""

    nats: np.ndarray
    greedy: np.ndarray | None


@torch.no_grad()
def score(
    model: nn.Module, sequences: Sequence[Scored], rows: int, seq_len: int, world: World, *, greedy: bool = False
) -> Scores:
    """Score every sequence (of at most `seq_len` + 1 ids), `rows` rows at a time on each data-parallel rank.

    Collective: every process calls it with the same arguments and gets the same result. `model` is a Decoder, or any
    module with its `token_loss(tokens_BT, labels_BT, position_BT)` and, for `greedy`, its forward pass.
    """
    places = pack([len(s.ids) - 1 for s in sequences], seq_len)
    batches = -(-len(places) // rows)
    nats_N, hits_N = np.zeros(len(sequences)), np.zeros(len(sequences))
    for index in range(world.dp_rank, -(-batches // world.dp) * world.dp, world.dp):  # as many on every rank
        tokens_BT, labels_BT, position_BT, owner_BT = _batch(
            sequences, places[index * rows : (index + 1) * rows], rows, seq_len
        )
        arrays = [torch.from_numpy(a).to(world.device) for a in (tokens_BT, labels_BT, position_BT)]
        counted_BT = labels_BT != IGNORE
        owner = owner_BT[counted_BT]
        nll_BT = model.token_loss(*arrays).double().cpu().numpy()  # type: ignore[operator]
        nats_N += np.bincount(owner, nll_BT[counted_BT], len(sequences))
        if greedy:
            best_BT = model(arrays[0], arrays[2]).argmax(-1).cpu().numpy()
            hits_N += np.bincount(owner, (best_BT == labels_BT)[counted_BT], len(sequences))
    _settle(model, world)
    both = torch.from_numpy(np.stack([nats_N, hits_N])).to(world.device)
    nats_N, hits_N = world.sum_data(both).cpu().numpy()
    scored_N = np.array([len(s.ids) - s.first for s in sequences])
    return Scores(nats_N, hits_N == scored_N if greedy else None)


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of `width` as lists of sequence indices: best fit, longest first. A function of the arguments alone."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room, row), ascending
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        assert 0 < lengths[i] <= width, f"sequence {i} has {lengths[i]} positions, a row {width}"
        at = bisect.bisect_left(free, (lengths[i], -1))
        if at == len(free):
            room, row = width, len(rows)
            rows.append([])
        else:
            room, row = free.pop(at)
        rows[row].append(i)
        bisect.insort(free, (room - lengths[i], row))
    return rows


def _batch(sequences: Sequence[Scored], places: Sequence[list[int]], rows: int, width: int) -> tuple[np.ndarray, ...]:
    """tokens, labels, positions and owning sequence, each (rows, width) int64; a row's unused tail is a piece of id 0."""
    tokens_BT, owner_BT = np.zeros((rows, width), np.int64), np.zeros((rows, width), np.int64)
    labels_BT = np.full((rows, width), IGNORE, np.int64)
    position_BT = np.tile(np.arange(width), (rows, 1))
    for row, members in enumerate(places):
        at = 0
        for i in members:
            ids, first = sequences[i].ids.astype(np.int64), sequences[i].first
            end = at + len(ids) - 1
            tokens_BT[row, at:end], owner_BT[row, at:end] = ids[:-1], i
            labels_BT[row, at + first - 1 : end] = ids[first:]
            position_BT[row, at:end] = np.arange(end - at)
            at = end
        position_BT[row, at:] = np.arange(width - at)
    return tokens_BT, labels_BT, position_BT, owner_BT


def _settle(model: Any, world: World) -> None:
    if world.size > 1:  # else nothing is gathered, and torch.distributed need not be imported
        from gristmill.trainer.parallel.shard import settle

        settle(model)
