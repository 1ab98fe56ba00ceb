"""An annealing ablation as a mixture of its own: the stages up to its place, then the branch.

The stages before stay as they are, so their shards are not packed anew, and a run goes on from its parent's checkpoint
(`from: {run, step, keep_position: true}`): the stage it branches from is trained up to the place (`until`). The branch's
documents go on where the whole of that stage ends, so none of them was seen in it.
"""

from __future__ import annotations

from gristmill.core.errors import UsageError
from gristmill.mixes.schema import Mixture, Phase


def branch(mixture: Mixture, name: str) -> Mixture:
    """The mixture of one of its ablations. Raises UsageError when it has none of this name.

    The branch has the sequence length and batch of its stage; its mix is `base` times the stage's shares, scaled to sum
    to 1, and the candidates on top.
    """
    ablation = next((a for a in mixture.ablations if a.name == name), None)
    if ablation is None:
        known = ", ".join(a.name for a in mixture.ablations) or "none"
        raise UsageError(f"E102 no ablation named `{name}`", hint=f"ablations: {known}")
    at = next(i for i, stage in enumerate(mixture.stages) if stage.name == ablation.from_.stage)
    parent = mixture.stages[at]
    shares = {source: part for source, part in parent.mix.items() if isinstance(part, float)} if ablation.base else {}
    if ablation.base:
        left = 1 - sum(shares.values())
        shares = {
            s: left if part == "rest" else shares[s] for s, part in parent.mix.items() if part == "rest" or s in shares
        }
    total = sum(shares.values())
    mix = {source: ablation.base * share / total for source, share in shares.items()}
    for source, share in ablation.candidate.items():
        mix[source] = mix.get(source, 0.0) + share
    until = ablation.from_.at // parent.global_batch * parent.global_batch
    whole = parent.tokens is not None and until >= parent.tokens // parent.global_batch * parent.global_batch
    own = Phase(
        name=ablation.name,
        tokens=ablation.tokens,
        seq_len=parent.seq_len,
        global_batch=parent.global_batch,
        pack=parent.pack,
        lr=ablation.lr,
        normalize=True,
        mix=mix,
    )
    stages = [*mixture.stages[:at], parent.model_copy(update={"until": None if whole else until}), own]
    changed = mixture.model_copy(update={"stages": stages, "ablations": [], "branch": None})
    return Mixture.model_validate(changed.model_dump(by_alias=True))


def resolved(mixture: Mixture) -> Mixture:
    """The mixture that `branch:` asks for: itself where it asks for none."""
    return mixture if mixture.branch is None else branch(mixture, mixture.branch)
