"""A recipe: the YAML that names the input, the curation, the tokenizer, the mixture and the training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from gristmill.core.errors import ConfigError, Problem, UsageError
from gristmill.core.imports import Import
from gristmill.core.places import find_yaml
from gristmill.core.settings import Document, Loc, Settings, apply_overrides, parse_overrides, read_yaml, validate
from gristmill.curate.schema import Curate, Reader
from gristmill.mixes.api import settled
from gristmill.mixes.schema import Mixture
from gristmill.pipelines.language_tables import named_table
from gristmill.tokenize.schema import Tokenizer
from gristmill.trainer.schema import TrainRun

SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]

Override = tuple[Loc, Any, str]
"""(path, value, place) of one --set."""


class Input(Settings):
    """What is read."""

    paths: list[str] = []
    """Globs, files or fsspec URLs of .warc(.gz), .arc(.gz) files, or CommonCrawl `warc.paths(.gz)` lists."""
    reader: Reader | None = None
    """A reader of datatrove for files that are no archives: their rows take the place of WARC records, without extraction."""
    source: str = Field("web", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """A name for this crawl, kept with every document's tokens: up to 64 letters, digits, `_`, `.` and `-`."""


class Shards(Settings):
    """How packed shards are cut."""

    shard_bytes: int = Field(64 << 20, ge=1, strict=True)
    """Bytes of one packed .bin, at most (rounded down to whole rows)."""
    part_bytes: int = Field(128 << 20, ge=1, strict=True)
    """Bytes of the token stores, side by side, that one task of the shuffle spreads over the shards."""
    shuffle: Literal["auto", "gather", "buckets"] = "auto"
    """`buckets` shuffles in two passes of long reads and writes, `gather` fetches each row from the stores; `auto` gathers
    up to 4 GiB of tokens. The shards are the same bytes."""


class Recipe(Settings):
    """One pipeline, from WARC files to a checkpoint. Parts left out end the line early.

    With `imports` and no `input.paths` nothing is curated: the line begins with the imported documents.
    """

    gristmill: Literal[1]
    """Version of this file's format."""
    input: Input = Input()
    imports: dict[SourceName, Import] = {}
    """Text and token stores that gristmill did not curate, by the source name that their documents get."""
    curate: Curate = Curate()
    tokenizer: Tokenizer | None = None
    mixture: str | None = None
    """A packaged mixture's name, or a path relative to this file."""
    shards: Shards = Shards()
    train: str | None = None
    """A packaged training run's name, or a path relative to this file."""

    @property
    def curates(self) -> bool:
        """Whether the line begins with web archives: not in a recipe that only imports."""
        return bool(self.input.paths) or not self.imports

    @property
    def has_text(self) -> bool:
        """Whether any document has a text that a tokenizer could be trained on: token stores have ids."""
        return self.curates or any(spec.text for spec in self.imports.values())


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the files it names, each with the places of its values."""

    recipe: Recipe
    document: Document
    path: Path
    mixture: tuple[Mixture, Document] | None
    run: tuple[TrainRun, Document] | None


def load_recipe(name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe with its mixture, training run and table of rules by language. `--set mixture.…` and `--set train.…` reach into those files.

    Raises ConfigError with every problem of all the files at once; UsageError when a file is missing.
    """
    path, label = find_yaml(name, "gristmill.pipelines")
    document = read_yaml(path, label)
    own: list[Override] = []
    nested: dict[str, list[Override]] = {"mixture": [], "train": []}
    for loc, value, place in parse_overrides(overrides, document.problems):
        if loc[0] in nested and len(loc) > 1:
            nested[str(loc[0])].append((loc[1:], value, place))
        else:
            own.append((loc, value, place))
    apply_overrides(document, own)
    recipe, problems = validate(document, Recipe)
    found: dict[str, tuple[Settings, Document]] = {}
    data = document.data if isinstance(document.data, dict) else {}
    for key, package, model in (("mixture", "gristmill.mixes", Mixture), ("train", "gristmill.trainer", TrainRun)):
        named = data.get(key)
        if not isinstance(named, str):
            if nested[key]:
                hint = f"add `{key}: NAME` to the recipe, or --set {key}=NAME"
                problems += [Problem(p, 0, 0, key, f"the recipe names no {key}", hint) for _, _, p in nested[key]]
            continue
        try:
            nested_path, nested_label = find_yaml(named, package, beside=path.parent)
            nested_doc = read_yaml(nested_path, nested_label)
        except ConfigError as error:
            problems += error.problems
            continue
        except UsageError as error:
            problems.append(document.problem((key,), error.message, error.hint))
            continue
        apply_overrides(nested_doc, nested[key])
        value, faults = validate(nested_doc, model)
        problems += faults
        if isinstance(value, Mixture):
            value = settled(value, nested_path.parent, nested_doc)
        if value is not None:
            found[key] = (value, nested_doc)
    table, faults = named_table(document, path.parent)
    problems += faults
    if table is not None and recipe is not None:
        rules = recipe.curate.rules.model_copy(update={"per_language": table})
        recipe = recipe.model_copy(update={"curate": recipe.curate.model_copy(update={"rules": rules})})
    for key, needs in (("mixture", "tokenizer"), ("train", "mixture")):
        lacking = data.get(key) is not None and data.get(needs) is None
        if lacking and not document.incomplete and not any(p.path == needs for p in problems):
            problems.append(document.problem((key,), f"needs a {needs}", f"add `{needs}:` to the recipe"))
    lone = recipe is not None and not problems and not recipe.has_text
    if lone and recipe is not None and recipe.tokenizer is not None and recipe.tokenizer.file is None:
        what = "no text to train a tokenizer on: the imports are token stores alone"
        hint = "`tokenizer: {file: tokenizer.json}`, the file that made their ids"
        problems.append(document.problem(("tokenizer",), what, hint))
    if problems or recipe is None:
        raise ConfigError(problems)
    return LoadedRecipe(recipe, document, path, found.get("mixture"), found.get("train"))  # type: ignore[arg-type]
