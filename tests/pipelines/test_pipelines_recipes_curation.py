"""The packaged curation recipes: they load, say what they measure, and name tables that load."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.core.errors import ConfigError
from gristmill.curate.rules.engine import active, in_order
from gristmill.pipelines.graph import measured
from gristmill.pipelines.language_tables import find_table, packaged
from gristmill.pipelines.schema import load_recipe


@pytest.mark.parametrize(
    ("name", "families"),
    [
        ("fineweb", ["c4", "layout", "lines", "ngrams", "words"]),
        ("fineweb2", ["layout", "lines", "ngrams", "words"]),
        ("dclm-baseline", ["dclm", "refinedweb"]),
    ],
)
def test_recipes_measure_what_their_sets_need(name: str, families: list[str]) -> None:
    curate = load_recipe(name).recipe.curate
    config = measured(curate, curate.model_dump(mode="json", by_alias=True))
    assert config["families"] == families
    assert (config["c4"] is not None) == ("c4" in families)
    assert (config["refinedweb"] is not None) == ("refinedweb" in families)


def test_every_threshold_of_fineweb_is_the_published_one() -> None:
    curate = load_recipe("fineweb").recipe.curate
    published = type(curate.rules).model_validate({"gopher@datatrove": {}, "c4@datatrove": {}, "fineweb@datatrove": {}})
    assert active(curate.rules) == active(published)
    assert curate.c4 == type(curate.c4)()
    dclm = load_recipe("dclm-baseline").recipe.curate
    published = type(dclm.rules).model_validate({"gopher@dclm": {}, "refinedweb@dclm": {}})
    assert active(dclm.rules) == active(published)
    assert dclm.refinedweb == type(dclm.refinedweb)()


def test_fineweb2_has_thresholds_by_language() -> None:
    rules = load_recipe("fineweb2").recipe.curate.rules
    groups = list(dict.fromkeys(rule.group for rule in in_order(rules)))
    assert groups[:3] == ["gopher.repetition@datatrove", "fineweb@datatrove", "gopher.quality@datatrove"]
    french = {rule.name: limit for rule, limit in active(rules, "fra_Latn")}
    other = {rule.name: limit for rule, limit in active(rules, "it")}
    assert (french["gopher.dup_lines"], other["gopher.dup_lines"]) == (0.264, 0.3)
    assert french["gopher.top_4_gram"] == 0.134
    assert french["gopher.dup_10_grams"] == 0.1
    assert not {"gopher.dup_paragraphs", "gopher.dup_line_chars", "fineweb.short_lines"} & set(french)
    assert "fineweb.few_punctuated_lines" not in {rule.name for rule, _ in active(rules, "de")}
    assert len(rules.languages) == 12
    assert len(rules.languages["fr"].stop_words) == 18


def test_tables_are_found_packaged_beside_the_recipe_or_by_path(tmp_path: Path) -> None:
    assert find_table("fineweb2", tmp_path) == packaged()["fineweb2"]
    table = tmp_path / "t.csv"
    table.write_text("language,gopher@datatrove.min_words\nde,7\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("gristmill: 1\ncurate:\n  rules:\n    gopher@datatrove: {}\n    per_language: t.csv\n")
    loaded = load_recipe(str(recipe))
    assert {r.name: x for r, x in active(loaded.recipe.curate.rules, "de")}["gopher.too_few_words"] == 7
    table.write_text("language,gopher@datatrove.min_words\nde,-7\n")
    with pytest.raises(ConfigError, match=r"t\.csv:2:4: error: languages\.de\.gopher@datatrove\.min_words"):
        load_recipe(str(recipe))
    table.unlink()
    with pytest.raises(ConfigError, match=r"r\.yaml:5:19: error: curate\.rules\.per_language: no such file"):
        load_recipe(str(recipe))
    with pytest.raises(ConfigError, match="no table named"):
        load_recipe("fineweb2", ["curate.rules.per_language=nope"])
