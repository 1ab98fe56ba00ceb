"""The mixture YAML: every code at its place in the file, all faults at once, and a dump that loads again."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.core.errors import ConfigError, Problem
from gristmill.core.places import recipes_in
from gristmill.mixes.api import load_mixture
from gristmill.mixes.schema import Mixture, parse_tokens

HEAD = """gristmill_mix: 1
sources:
  en: {filter: "language == 'en'"}
  de: {filter: "language == 'de'"}
stages:
"""


def problems(tmp_path: Path, text: str) -> list[Problem]:
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_mixture(str(path))
    return caught.value.problems


def stage(**fields: str) -> str:
    base = {"name": "a", "tokens": "20M", "seq_len": "128", "global_batch": "4096", "mix": "{en: 0.5, de: 0.5}"}
    kept = {k: v for k, v in {**base, **fields}.items() if v}
    return "  - {" + ", ".join(f"{k}: {v}" for k, v in kept.items()) + "}\n"


@pytest.mark.parametrize(
    ("fields", "code", "where", "hint"),
    [
        ({"mix": "{en: 0.5, de: 0.4}"}, "E101", "stages[0].mix", "0.1 too little"),
        ({"mix": "{en: 0.5, de: 0.6}"}, "E101", "stages[0].mix", "0.1 too much"),
        ({"mix": "{en: 1, de: rest}"}, "E101", "stages[0].mix", None),
        ({"mix": "{en: 0.5, fr: 0.5}"}, "E102", "stages[0].mix.fr", "en, de"),
        ({"mix": "{en: rest, de: rest}"}, "E105", "stages[0].mix", "at most one"),
        ({"mix": "{en: 0.5, de: {tokens: 2M}}"}, "E105", "stages[0].mix", "rest"),
        ({"mix": "{en: {epochs: 1}}"}, "E105", "stages[0].mix", "leave it out"),
        ({"mix": "{en: rest}", "normalize": "true"}, "E105", "stages[0].mix", "shares only"),
        ({"mix": "{en: {epoch: 1}}", "tokens": ""}, "E107", "stages[0].mix.en", "{epochs: 1.5}"),
        ({"mix": "{en: yes}"}, "E107", "stages[0].mix.en", "a share"),
        ({"mix": "{en: true}"}, "E107", "stages[0].mix.en", "a share"),
        ({"mix": "{en: {tokens: 2m}, de: rest}"}, "E107", "stages[0].mix.en.tokens", "write 2M"),
        ({"tokens": "20G"}, "E107", "stages[0].tokens", "write 20B"),
        ({"tokens": "20 parsecs"}, "E107", "stages[0].tokens", "K, M, B, T"),
        ({"tokens": "0.5"}, "E107", "stages[0].tokens", "20M"),
        ({"tokens": "1.0000005K"}, "E107", "stages[0].tokens", None),
        ({"tokens": "true"}, "E107", "stages[0].tokens", "20M"),
        ({"tokens": "-5"}, "E109", "stages[0].tokens", None),
        ({"tokens": "9999999T"}, "E109", "stages[0].tokens", None),
        ({"global_batch": "4100"}, "E107", "stages[0].global_batch", "4096 is 32 rows"),
        ({"global_batch": "100"}, "E107", "stages[0].global_batch", "128 is 1 rows"),
        ({"tokens": "4K"}, "E109", "stages[0].tokens", "lower global_batch"),
        ({"tokens": ""}, "E109", "stages[0].mix", "tokens: 20M"),
        ({"mix": "{en: {tokens: 20M}, de: rest}"}, "E109", "stages[0].mix", None),
    ],
)
def test_codes(tmp_path: Path, fields: dict[str, str], code: str, where: str, hint: str | None) -> None:
    found = problems(tmp_path, HEAD + stage(**fields))
    assert [(p.message.split()[0], p.path, p.line) for p in found] == [(code, where, 6)]
    assert (hint or "") in (found[0].hint or "")


def test_phases_are_checked_against_each_other(tmp_path: Path) -> None:
    text = HEAD + stage(lr="{phase: decay}") + stage(mix="{en: 0.5, it: 0.5}")
    found = problems(tmp_path, text)
    assert [(p.message.split()[0], p.path, p.line) for p in found] == [
        ("E110", "stages[1].lr", 7),
        ("E107", "stages[1].name", 7),
        ("E102", "stages[1].mix.it", 7),
    ]


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = (HEAD + stage(tokens="20g") + stage(name="b", mix="{en: 2}") + "seeds: 4\n").replace(
        "language == 'de'", "lang == 'de'"
    )
    found = problems(tmp_path, text)
    assert [(p.line, p.message.split()[0]) for p in found] == [(4, "E102"), (6, "E107"), (7, "E101"), (8, "unknown")]
    assert "column 1 of the expression" in found[0].message


def test_names_stay_inside_their_folder(tmp_path: Path) -> None:
    assert problems(tmp_path, HEAD + stage(name="../up"))[0].path == "stages[0].name"
    assert problems(tmp_path, HEAD + stage(name="a/b"))[0].path == "stages[0].name"


def test_units() -> None:
    assert [parse_tokens(v) for v in ("8T", "2.5M", "20_000", 7, 1e6, "1.25K")] == [
        8 * 10**12,
        2_500_000,
        20_000,
        7,
        10**6,
        1250,
    ]


def test_dump_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(
        HEAD
        + stage(mix="{en: 3, de: 5}", normalize="true")
        + stage(name="b", mix="{en: rest, de: {tokens: 2.5M}}")
        + stage(name="c", tokens="", mix="{en: {epochs: 1.5}}", lr="{phase: decay, to: 0}")
    )
    mixture, _ = load_mixture(str(path), ["stages.1.tokens=30M", "seed=9"])
    assert (mixture.stages[1].tokens, mixture.seed) == (30_000_000, 9)
    assert Mixture.model_validate(mixture.model_dump(mode="json", by_alias=True)) == mixture


@pytest.mark.parametrize("name", sorted(recipes_in("gristmill.mixes")))
def test_packaged_mixtures_load(name: str) -> None:
    mixture, document = load_mixture(name)
    assert mixture.stages
    assert document.name.endswith(f"{name}.yaml")


def test_json_schema_can_be_printed() -> None:
    assert "stages" in Mixture.model_json_schema()["properties"]
