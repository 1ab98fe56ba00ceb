"""Which algorithm, learning-rate multiplier and weight decay each named parameter gets: defaults, then group overrides.

Weight decay goes to matrices only, and not to embeddings: a decayed norm gain or embedding row shrinks for want of
gradient, not for lack of use (rare tokens' rows get few gradients; OLMo 2, arXiv 2501.00656 section 3.4, drops it for
embeddings). Muon takes the matrices of the blocks: embeddings and head are look-ups over the vocabulary, whose rows see
unequal numbers of tokens, and Jordan's Muon leaves them to AdamW.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gristmill.core.errors import UsageError
from gristmill.trainer.optim_schema import REGEX, Algorithm, Optimizer, ParameterGroup

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCKS = "blocks"  # the decoder's list of layers: the hidden matrices are inside
SHOWN = 3  # parameter names in a hint


@dataclass(frozen=True)
class Choice:
    """How one parameter is trained. Its rate is lr_multiplier x the scheduled rate of the run."""

    algorithm: Algorithm
    lr_multiplier: float
    weight_decay: float


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies by default: matrices, but not the token embedding (nor a head tied to it)."""
    return parameter.dim() >= 2 and not name.startswith("embed")


def hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether `optimizer.name: muon` trains a parameter with Muon: a matrix of a block."""
    return parameter.dim() == 2 and BLOCKS in name.split(".")


def choose(model: nn.Module, settings: Optimizer) -> dict[str, Choice]:
    """{parameter: its choice} in name order, so that it never depends on construction. Tied parameters count once.

    Raises UsageError when a group gets no parameter, or gives Muon something that is no matrix.
    """
    named = dict(sorted(model.named_parameters()))
    owner = {name: next((g for g in settings.groups if matches(g.match, name)), None) for name in named}
    for i, group in enumerate(settings.groups):
        if not any(taken is group for taken in owner.values()):
            raise _no_match(i, group, [n for n in named if matches(group.match, n)], list(named))
    return {name: _choice(name, parameter, owner[name], settings) for name, parameter in named.items()}


def matches(pattern: str, name: str) -> bool:
    """A shell pattern or `re:` expression against a whole parameter name."""
    if pattern.startswith(REGEX):
        return re.fullmatch(pattern.removeprefix(REGEX), name) is not None
    return fnmatch.fnmatchcase(name, pattern)


def _choice(name: str, parameter: Tensor, group: ParameterGroup | None, settings: Optimizer) -> Choice:
    algorithm = group.optimizer if group and group.optimizer else settings.name
    if algorithm == "muon" and not (group and group.optimizer) and not hidden_matrix(name, parameter):
        algorithm = "adamw"
    if algorithm == "muon" and parameter.dim() != 2:
        assert group is not None
        raise UsageError(
            f"optimizer.groups: {group.match!r} gives muon {name}, whose shape is {tuple(parameter.shape)}",
            hint="muon trains matrices only; narrow the pattern",
        )
    decay = settings.weight_decay if decays(name, parameter) else 0.0
    multiplier = 1.0
    if algorithm == "muon" and settings.muon is not None and settings.muon.lr is not None:
        multiplier = settings.muon.lr / settings.lr
    if group is not None:
        decay = decay if group.weight_decay is None else group.weight_decay
        multiplier *= group.lr_multiplier
    return Choice(algorithm, multiplier, decay)


def _no_match(index: int, group: ParameterGroup, matched: list[str], names: list[str]) -> UsageError:
    where = f"optimizer.groups[{index}].match: {group.match!r}"
    if matched:
        return UsageError(
            f"{where} matches only parameters that earlier groups take, such as {matched[0]}",
            hint="the first group that matches decides; put the narrower pattern first",
        )
    return UsageError(
        f"{where} matches no parameter",
        hint=f"the model has {len(names)} parameters, such as {', '.join(names[:: max(1, len(names) // SHOWN)][:SHOWN])}",
    )
