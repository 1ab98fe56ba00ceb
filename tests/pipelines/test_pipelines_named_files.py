"""Files that a recipe names: found beside it before the working directory, and every missing one told with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.core.errors import ConfigError
from gristmill.pipelines.graph import build
from gristmill.pipelines.named_files import resolved
from gristmill.pipelines.schema import load_recipe

RECIPE = """gristmill: 1
curate:
  takedown: gone.txt
  optout: {robots: robots.parquet}
  urls:
    own:
      - {name: mine, domains: lists/mine.txt}
      - {name: other, words: words.txt}
  decontaminate: {benchmarks: ["bench/*.jsonl", none/*.gz]}
"""


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return path


def test_every_missing_file_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    write(tmp_path / "lists/mine.txt")
    write(tmp_path / "bench/a.jsonl")
    with pytest.raises(ConfigError) as caught:
        build(load_recipe(str(tmp_path / "r.yaml")))
    found = {p.path: (p.line, p.message) for p in caught.value.problems}
    assert found == {
        "curate.takedown": (3, "no such file: gone.txt"),
        "curate.optout.robots": (4, "no such file: robots.parquet"),
        "curate.urls.own[1].words": (8, "no such file: words.txt"),
        "curate.decontaminate.benchmarks[1]": (9, "no such file: none/*.gz"),
    }


def test_beside_the_recipe_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/r.yaml").write_text("gristmill: 1\ncurate: {takedown: gone.txt}\n")
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe("recipes/r.yaml")
    block = loaded.recipe.curate.model_dump(mode="json")
    here = write(tmp_path / "gone.txt")
    assert resolved(block, loaded.path.parent, loaded.document)["takedown"] == str(here)
    beside = write(tmp_path / "recipes/gone.txt")
    assert resolved(block, loaded.path.parent, loaded.document)["takedown"] == str(beside)
