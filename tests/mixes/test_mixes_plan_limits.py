"""E104: budgets and shares that would do are true ones, one fault is said once, and at its place in an ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gristmill.core.errors import ConfigError, UsageError
from gristmill.mixes.api import load_mixture
from gristmill.mixes.plan import Supply, make_plan, plan_supplies
from gristmill.mixes.schema import Mixture
from gristmill.mixes.sources import Stock


def stock(**tokens: int) -> list[Stock]:
    """Sources of documents of 20 tokens; `fw_de` is the child fw.de."""
    return [Stock(name.replace("_", "."), n // 20, n // 20, n, 0, 0) for name, n in tokens.items()]


def mixture(stages: list[dict[str, Any]], sources: dict[str, Any]) -> Mixture:
    base = {"seq_len": 9, "global_batch": 36}  # rows of 10 stored tokens, 4 rows a batch
    stages = [{"name": f"p{i}", **base, **s} for i, s in enumerate(stages)]
    return Mixture.model_validate({"gristmill_mix": 1, "sources": sources, "stages": stages})


FILE = """gristmill_mix: 1
sources:
  en: {}
  de: {max_epochs: 2}
  fw: {split_by: language}
stages:
  - {name: a, tokens: 900, seq_len: 9, global_batch: 36, mix: {en: 0.5, de: 0.4, fw.fr: 0.1}}
ablations:
  - {name: more, from: {stage: a, at: 360}, tokens: 9000, base: 0.1, candidate: {de: 0.9}}
"""


def test_what_would_fit_where_documents_are_truncated() -> None:
    """1,000 documents of 30 tokens in rows of 10: 4 epochs are 4,000 rows, not the 12,000 that their tokens would fill."""
    mix = mixture([{"pack": "bfd-truncate", "tokens": 45_000, "mix": {"en": 1}}], sources={"en": {}})
    counted = [Stock("en", 1000, 1000, 30_000, 0, 0, {10: 20_000})]
    with pytest.raises(UsageError) as caught:
        make_plan(mix, counted, 300)
    assert "can have 36,000 tokens at this share, or give it a share of 0.8000 of 45,000" in (caught.value.hint or "")
    make_plan(mixture([{"pack": "bfd-truncate", "tokens": 36_000, "mix": {"en": 1}}], sources={"en": {}}), counted, 300)


def test_of_many_children_the_worst_speaks() -> None:
    """A parent divides by what its children have: all pass the limit together, and the setting is the parent's."""
    children = {f"fw_c{i}": 400 + 20 * i for i in range(5)}
    stages = [{"tokens": 900, "mix": {"en": 0.9, "fw.c0": 0.1}}, {"tokens": 18_000, "mix": {"en": 0.4, "fw": 0.6}}]
    sources = {"en": {}, "fw": {"split_by": "language", "group": "g"}}
    mix = mixture(stages, sources=sources)
    with pytest.raises(UsageError) as caught:
        make_plan(mix, stock(en=90_000, **children), 300)
    assert caught.value.message.count("E104") == 1
    assert "source `fw.c0` would be seen" in caught.value.message
    assert "so would 4 more children of `fw`" in caught.value.message
    assert "raise sources.fw.max_epochs" in (caught.value.hint or "")
    share = float((caught.value.hint or "").partition("give `fw` a share of ")[2].split()[0])
    fits = mixture([stages[0], {"tokens": 18_000, "mix": {"en": 1 - share, "fw": share}}], sources=sources)
    make_plan(fits, stock(en=90_000, **children), 300)


def test_a_limit_passed_by_little_is_seen_and_said_once() -> None:
    """A group that only this source fills says nothing of its own; two digits would show 4.00 in the second."""
    mix = mixture([{"tokens": 27_000, "mix": {"en": 1}}], sources={"en": {"group": "g"}, "de": {"group": "g"}})
    supplies = [Supply("en", None, 7480, None, None, 4.0), Supply("de", None, None, None, None, 4.0)]
    with pytest.raises(UsageError) as caught:
        plan_supplies(mix, supplies, {"group g": 7480}, 300)
    assert "would be seen 4.01 times" in caught.value.message
    assert caught.value.message.count("E104") == 1
    wide = mixture([{"tokens": 2_700_000, "mix": {"en": 1}}], sources={"en": {"group": "g"}, "de": {"group": "g"}})
    supplies[0] = Supply("en", None, 749_900, None, None, 4.0)
    with pytest.raises(UsageError, match=r"would be seen 4\.001 times .* its limit is 4"):
        plan_supplies(wide, supplies, {"group g": 749_900}, 300)


def test_a_fault_of_an_ablation_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(FILE)
    mix, document = load_mixture(str(path), ["branch=more"])
    with pytest.raises(ConfigError, match=r"mix\.yaml:9:86: error: ablations\[0\]\.candidate\.de: E104"):
        make_plan(mix, stock(en=4000, de=1000, fw_fr=600), 300, document)
    with pytest.raises(ConfigError, match=r"mix\.yaml:9:65: error: ablations\[0\]\.base: E104 source `fw.fr`"):
        make_plan(mix, stock(en=4000, de=90_000, fw_fr=40), 300, document)
