"""A recipe as a list of stages in order, each with its own slice of the settings and where that slice came from."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.core.errors import UsageError
from gristmill.core.settings import Document, Loc, Mark, dotted
from gristmill.core.stage import Stage
from gristmill.pipelines.schema import LoadedRecipe

REGISTRY = {
    "curate.pages": "gristmill.curate.pages:Pages",
    "curate.measure": "gristmill.curate.measure:Measure",
    "curate.decide": "gristmill.curate.decide:Decide",
    "curate.signatures": "gristmill.curate.signatures:Signatures",
    "curate.clusters": "gristmill.curate.clusters:Clusters",
    "curate.quality": "gristmill.curate.quality_stage:QualityScores",
    "curate": "gristmill.curate.curated:Curated",
    "tokenizer": "gristmill.tokenize.stages:TokenizerStage",
    "tokens": "gristmill.tokenize.stages:Tokens",
    "mixture": "gristmill.mixes.stages:MixturePlan",
    "shards.write": "gristmill.mixes.stages:ShardsWrite",
    "shards": "gristmill.mixes.stages:Shards",
    "train": "gristmill.trainer.train:Train",
}
"""Every stage by name, in the order of the line. Nothing outside this table can be imported by a recipe."""


@dataclass(frozen=True)
class Origin:
    """Where one key of a stage's config stands: a file and the path of that key inside it."""

    document: Document
    loc: Loc

    def mark(self, rest: Sequence[str | int]) -> Mark:
        return self.document.mark((*self.loc, *rest))

    def label(self, rest: Sequence[str | int]) -> str:
        return dotted((*self.loc, *rest))


@dataclass(frozen=True)
class Node:
    """One stage of a recipe, ready to name its tasks."""

    name: str
    stage: Stage
    origins: Mapping[str, Origin]

    @property
    def upstream(self) -> tuple[str, ...]:
        return tuple(self.stage.upstream)


def build(loaded: LoadedRecipe) -> list[Node]:
    """The stages of a recipe in order. Raises UsageError when a model or package that a stage needs is absent."""
    nodes: list[Node] = []
    for name, config, origins in _slices(loaded):
        stage = load_class(name)(config)
        nodes.append(Node(name, stage, origins))
    return nodes


def load_class(name: str) -> type[Stage]:
    module, _, attribute = REGISTRY[name].partition(":")
    found: type[Stage] = getattr(importlib.import_module(module), attribute)
    assert issubclass(found, Stage), f"{name} is no stage"
    return found


def ancestors(nodes: Sequence[Node], to: str | None) -> list[Node]:
    """The nodes that `to` needs, itself included, in order. Raises UsageError on an unknown name."""
    if to is None:
        return list(nodes)
    by_name = {n.name: n for n in nodes}
    if to not in by_name:
        raise UsageError(f"no stage named {to!r} in this recipe", hint=f"stages: {', '.join(by_name)}")
    wanted, queue = set(), [to]
    while queue:
        name = queue.pop()
        if name in by_name and name not in wanted:
            wanted.add(name)
            queue += by_name[name].upstream
    return [n for n in nodes if n.name in wanted]


def _slices(loaded: LoadedRecipe) -> list[tuple[str, dict[str, Any], dict[str, Origin]]]:
    recipe, doc = loaded.recipe, loaded.document
    curate = recipe.curate
    data = curate.model_dump(mode="json", by_alias=True)

    def at(*loc: str) -> Origin:
        return Origin(doc, loc)

    dedup = curate.dedup.exact or curate.dedup.minhash is not None
    rules = curate.rules
    quality: dict[str, Any] | None = None
    if curate.quality is not None:
        from gristmill.curate.quality import model_digest

        beside = loaded.path.parent / curate.quality.model
        model = beside if beside.exists() else Path(curate.quality.model)
        quality = {**data["quality"], "model": str(model.absolute()), "sha256": model_digest(model)}
    out: list[tuple[str, dict[str, Any], dict[str, Origin]]] = [
        (
            "curate.pages",
            {"extract": data["extract"], "urls": data["urls"]},
            {"extract": at("curate", "extract"), "urls": at("curate", "urls")},
        ),
        (
            "curate.measure",
            {
                "c4": data["c4"] if rules.c4 is not None else None,
                "short_line_chars": rules.fineweb.short_line_chars if rules.fineweb else 30,
            },
            {
                "c4": at("curate", "c4"),
                "short_line_chars": at("curate", "rules", "fineweb@datatrove", "short_line_chars"),
            },
        ),
        (
            "curate.decide",
            {"language": data["language"], "rules": data["rules"]},
            {"language": at("curate", "language"), "rules": at("curate", "rules")},
        ),
    ]
    block = data["dedup"]
    if dedup:
        out.append(("curate.signatures", {"dedup": block}, {"minhash": at("curate", "dedup", "minhash")}))
        out.append(("curate.clusters", {"dedup": block}, {"dedup": at("curate", "dedup")}))
    if quality is not None:
        scoring = {k: v for k, v in quality.items() if k in ("model", "label", "sha256")}
        origins = {"quality": at("curate", "quality"), "label": at("curate", "quality", "label")}
        out.append(("curate.quality", {"quality": scoring, "dedup": block}, origins))
    minimum = {"min_score": quality["min_score"]} if quality is not None else None
    origins = {
        "min_score": at("curate", "quality", "min_score"),
        "verify": at("curate", "dedup", "minhash", "verify"),
    }
    out.append(("curate", {"quality": minimum, "dedup": block}, origins))
    if recipe.tokenizer is not None:
        out.append(
            (
                "tokenizer",
                recipe.tokenizer.model_dump(mode="json", by_alias=True),
                _each(doc, ("tokenizer",), recipe.tokenizer),
            )
        )
        out.append(("tokens", {"source": recipe.input.source}, {"source": at("input", "source")}))
    if loaded.mixture is not None:
        mixture, mix_doc = loaded.mixture
        config = {"mixture": mixture.model_dump(mode="json", by_alias=True), "shard_bytes": recipe.shards.shard_bytes}
        origins = {"mixture": Origin(mix_doc, ()), "shard_bytes": at("shards", "shard_bytes")}
        out.append(("mixture", config, origins))
        out.append(("shards.write", {}, {}))
        out.append(("shards", {}, {}))
    if loaded.run is not None:
        run, run_doc = loaded.run
        out.append(("train", {"run": run.model_dump(mode="json", by_alias=True)}, {"run": Origin(run_doc, ())}))
    return out


def _each(doc: Document, prefix: Loc, model: Any) -> dict[str, Origin]:
    return {name: Origin(doc, (*prefix, name)) for name in type(model).model_fields}
