"""Scores rows of whole numbers with a forest of oblivious trees, in whole numbers: the same bits on every machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from gristmill.core.errors import FormatError

UNIT = 4096
"""A leaf is a log-odds in 1/4096."""


@dataclass(frozen=True)
class Forest:
    """T trees of depth D over F features: tree t's leaf is the number whose bit d is `x[features[t, d]] > cuts[t, d]`.

    Oblivious trees: every node of a level asks the same question, as in CatBoost (Prokhorenkova et al. 2018).
    """

    start: int
    features: np.ndarray
    """(T, D)"""
    cuts: np.ndarray
    """(T, D), int8"""
    leaves: np.ndarray
    """(T, 2^D), 1/4096 log-odds"""

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Log-odds (1/4096) of each of N rows, given as columns: (F, N) int8 → (N,) int64."""
        from gristmill.curate.engines.blocks_trees import walk

        out = np.empty(columns.shape[1], dtype=np.int64)
        walk(columns, self.features, self.cuts, self.leaves, self.start, out)
        return out

    @classmethod
    def load(cls, data: dict[str, object], width: int) -> Forest:
        """From the JSON of the weights file. Raises FormatError where it does not fit `width` features."""
        try:
            features = np.array(data["features"], dtype=np.int64)
            forest = cls(
                int(str(data["start"])), features, np.array(data["cuts"], np.int8), np.array(data["leaves"], np.int64)
            )
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise FormatError(f"weights of the blocks engine: {error}") from error
        shapes_fit = (
            features.ndim == 2
            and forest.cuts.shape == features.shape
            and forest.leaves.shape == (len(features), 1 << features.shape[1])
        )
        if not shapes_fit or features.min() < 0 or features.max() >= width:
            raise FormatError(f"weights of the blocks engine: shapes do not fit {width} features")
        return forest


PROBABILITY = np.array([round(255 / (1 + 2.718281828459045 ** (4 - code / 16))) for code in range(129)], dtype=np.int64)
"""255 times the probability that a score's code stands for: code = 16 × (log-odds + 4), 0 to 128."""


def code_of(log_odds: np.ndarray) -> np.ndarray:
    """A log-odds score (in 1/4096) as a code of 0 to 127."""
    return np.clip((log_odds.astype(np.int64) + 4 * 4096) // 256, 0, 127)


def best_cut(codes: np.ndarray, tokens: np.ndarray, recall_weight: float = 1.0) -> int:
    """The lowest code to keep so that the page's expected token F is highest, were the codes right.

    `recall_weight`: beta squared of van Rijsbergen's F, a power of two (exact in binary); 1 is F1, less favours precision.
    """
    mass = PROBABILITY[codes] * tokens
    kept_mass = np.cumsum(np.bincount(codes, weights=mass, minlength=128)[::-1])
    kept = np.cumsum(np.bincount(codes, weights=tokens, minlength=128)[::-1])
    return 127 - int(np.argmax(kept_mass / np.maximum(255 * kept + recall_weight * kept_mass[-1], 1)))


def load_forest(text: str, width: int) -> Forest:
    """A weights file's text. Raises FormatError where it is not one for `width` features."""
    data = json.loads(text)
    if data.get("width") != width:
        raise FormatError(f"weights of the blocks engine: fitted on {data.get('width')} features, the code has {width}")
    return Forest.load(data, width)


@cache
def own_forest(width: int) -> Forest:
    """The package's own weights, read once."""
    return load_forest(files("gristmill.curate.engines").joinpath("blocks.json").read_text("utf-8"), width)
