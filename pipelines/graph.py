"""A recipe as a list of stages in order, each with its own slice of the settings and where that slice came from."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.core.errors import UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.settings import Document, Loc, Mark, dotted
from gristmill.core.stage import Stage
from gristmill.curate.rules.engine import families_of
from gristmill.curate.schema import Curate
from gristmill.curate.schema_language import Wanted
from gristmill.pipelines.language_labels import check_labels
from gristmill.pipelines.named_files import resolved
from gristmill.pipelines.schema import LoadedRecipe, Recipe, Shards

REGISTRY = {
    "curate.pages": "gristmill.curate.pages:Pages",
    "curate.steps": "gristmill.curate.steps:Steps",
    "curate.measure": "gristmill.curate.measure:Measure",
    "curate.decide": "gristmill.curate.decide:Decide",
    "curate.signatures": "gristmill.curate.signatures:Signatures",
    "curate.clusters": "gristmill.curate.clusters:Clusters",
    "curate.contamination": "gristmill.curate.contamination_stage:Contamination",
    "curate.quality": "gristmill.curate.quality_stage:QualityScores",
    "curate": "gristmill.curate.curated:Curated",
    "imports.text": "gristmill.curate.imports_text:ImportsText",
    "tokenizer": "gristmill.tokenize.stages:TokenizerStage",
    "tokens": "gristmill.tokenize.stages:Tokens",
    "mixture": "gristmill.mixes.stages:MixturePlan",
    "shards.buckets": "gristmill.mixes.stages:ShardsBuckets",
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
        if name in ("tokenizer", "tokens"):
            stage.upstream = _texts(loaded.recipe, stage)
        nodes.append(Node(name, stage, origins))
    return nodes


def _texts(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """What the stages that read documents stand on: the parts that this recipe has, in place of `curate`."""
    texts = any(spec.text for spec in recipe.imports.values())
    stores = stage.name == "tokens" and not all(spec.text for spec in recipe.imports.values())
    if stage.name == "tokenizer" and "file" in stage.config:
        return ()
    parts = [("curate", recipe.curates), ("imports.text", texts), ("imports", stores)]
    return (*(name for name, has in parts if has), *(name for name in stage.upstream if name != "curate"))


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

    def at(*loc: str) -> Origin:
        return Origin(doc, loc)

    out = _curation(loaded) if recipe.curates else []
    imported = {name: spec.for_task() for name, spec in recipe.imports.items() if spec.text}
    stores = {name: spec.for_task() for name, spec in recipe.imports.items() if not spec.text}
    if imported:
        out.append(("imports.text", {"imports": imported}, {"imports": at("imports")}))
    if recipe.tokenizer is not None:
        config = recipe.tokenizer.model_dump(mode="json", by_alias=True)
        if recipe.tokenizer.file is not None:
            config = _tokenizer_file(loaded.path.parent, recipe.tokenizer.file)
        origins = {**_each(doc, ("tokenizer",), recipe.tokenizer), "sha256": at("tokenizer", "file")}
        out.append(("tokenizer", config, origins))
        origins = {"source": at("input", "source"), "imports": at("imports")}
        out.append(("tokens", {"source": recipe.input.source, **({"imports": stores} if stores else {})}, origins))
    if loaded.mixture is not None:
        mixture, mix_doc = loaded.mixture
        config = {"mixture": mixture.model_dump(mode="json", by_alias=True), **recipe.shards.model_dump(mode="json")}
        origins = {"mixture": Origin(mix_doc, ()), **{name: at("shards", name) for name in Shards.model_fields}}
        out.append(("mixture", config, origins))
        out.append(("shards.buckets", {}, {}))
        out.append(("shards.write", {}, {}))
        out.append(("shards", {}, {}))
    if loaded.run is not None:
        run, run_doc = loaded.run
        out.append(("train", {"run": run.model_dump(mode="json", by_alias=True)}, {"run": Origin(run_doc, ())}))
    return out


def _tokenizer_file(folder: Path, name: str) -> dict[str, Any]:
    """The config of a tokenizer that there is already. Raises UsageError when there is no such file."""
    found = next((path for path in (folder / name, Path(name)) if path.is_file()), None)
    if found is None:
        raise UsageError(f"tokenizer.file: no such file: {name}", hint=f"sought in {folder.absolute()}, too")
    return {"file": str(found.absolute()), "sha256": sha256_file(found)}


def _curation(loaded: LoadedRecipe) -> list[tuple[str, dict[str, Any], dict[str, Origin]]]:
    recipe, doc = loaded.recipe, loaded.document
    curate = recipe.curate
    data = resolved(curate.model_dump(mode="json", by_alias=True), loaded.path.parent, doc)

    def at(*loc: str) -> Origin:
        return Origin(doc, loc)

    languages = curate.language.for_pages()
    languages["language"]["model"] = data["language"]["model"]  # where it was found
    check_labels(loaded, data["language"]["model"])
    data["language"] = {name: data["language"][name] for name in Wanted.model_fields}
    reader = {"reader": recipe.input.reader.model_dump(mode="json")} if recipe.input.reader is not None else {}
    dedup = curate.dedup.exact or curate.dedup.minhash is not None
    quality: dict[str, Any] | None = None
    if curate.quality is not None:
        from gristmill.curate.quality import model_digest

        beside = loaded.path.parent / curate.quality.model
        model = beside if beside.exists() else Path(curate.quality.model)
        quality = {**data["quality"], "model": str(model.absolute()), "sha256": model_digest(model)}
    out: list[tuple[str, dict[str, Any], dict[str, Origin]]] = [
        (
            "curate.pages",
            {
                "extract": data["extract"],
                "urls": data["urls"],
                "raw_duplicates": curate.dedup.raw_duplicates,
                **languages,
                **reader,
            },
            {
                **{name: at("curate", name) for name in ("extract", "urls", "language")},
                "gate": at("curate", "language", "gate"),
                "reader": at("input", "reader"),
                "wanted": at("curate", "language", "keep"),
                "raw_duplicates": at("curate", "dedup", "raw"),
            },
        ),
        (
            "curate.measure",
            measured(curate, data),
            {
                "families": at("curate", "rules"),
                "c4": at("curate", "c4"),
                "refinedweb": at("curate", "refinedweb"),
                "short_line_chars": at("curate", "rules", "fineweb@datatrove", "short_line_chars"),
                "stop_words": at("curate", "rules", "per_language"),
                "languages": at("curate", "language", "keep"),
            },
        ),
        (
            "curate.decide",
            {name: data[name] for name in ("language", "rules", "takedown", "optout") if data[name] is not None},
            {name: at("curate", name) for name in ("language", "rules", "takedown", "optout")},
        ),
    ]
    block = {name: value for name, value in data["dedup"].items() if name != "raw"}
    if dedup:
        out.append(("curate.signatures", {"dedup": block}, {"minhash": at("curate", "dedup", "minhash")}))
        out.append(("curate.clusters", {"dedup": block}, {"dedup": at("curate", "dedup")}))
    items: dict[str, Any] | None = data["decontaminate"]
    if items is not None:
        origins = {name: at("curate", "decontaminate", name) for name in items}
        out.append(("curate.contamination", {"decontaminate": items, "dedup": block}, origins))
    if quality is not None:
        scoring = {k: v for k, v in quality.items() if k in ("model", "label", "sha256")}
        origins = {"quality": at("curate", "quality"), "label": at("curate", "quality", "label")}
        out.append(("curate.quality", {"quality": scoring, "dedup": block}, origins))
    minimum = {"min_score": quality["min_score"]} if quality is not None else None
    origins = {
        "min_score": at("curate", "quality", "min_score"),
        "verify": at("curate", "dedup", "minhash", "verify"),
    }
    final = {"quality": minimum, "dedup": block, "pii": data["pii"]}
    final["decontaminate"] = {name: items[name] for name in ("action", "min_overlap")} if items is not None else None
    origins |= {name: at("curate", name) for name in ("decontaminate", "pii")}
    out.append(("curate", final, origins))
    if curate.steps:
        out = [(name, {**config, "steps": True} if i else config, where) for i, (name, config, where) in enumerate(out)]
        out.insert(1, ("curate.steps", {"steps": data["steps"]}, {"steps": at("curate", "steps")}))
    return out


def measured(curate: Curate, data: dict[str, Any]) -> dict[str, Any]:
    """The config of `curate.measure`: what the rules compare, not how; `data` is the block as plain data."""
    rules = curate.rules
    families = families_of(rules)
    stop_words = {label: own.stop_words for label, own in rules.languages.items() if own.stop_words}
    return {
        "families": families,
        "c4": data["c4"] if "c4" in families else None,
        "refinedweb": data["refinedweb"] if "refinedweb" in families else None,
        "short_line_chars": rules.fineweb.short_line_chars if rules.fineweb else 30,
        "stop_words": stop_words if "words" in families else {},
        # while the gate acts `curate.pages` depends on `keep` too: with it off, a change of `keep` measures nothing again
        **({"languages": wanted} if (wanted := curate.language.for_pages().get("wanted")) else {}),
    }


def _each(doc: Document, prefix: Loc, model: Any) -> dict[str, Origin]:
    return {name: Origin(doc, (*prefix, name)) for name in type(model).model_fields}
