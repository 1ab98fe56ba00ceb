"""The plan: rows from shares, tokens and epochs; what is refused with which numbers, at which line; warnings; the table."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.core.errors import ConfigError, UsageError
from gristmill.mixes.api import load_mixture
from gristmill.mixes.plan import Plan, Supply, make_plan, plan_supplies
from gristmill.mixes.plan_lock import lock_of, write_lock
from gristmill.mixes.plan_shares import rescale
from gristmill.mixes.plan_text import as_json, lines, render, short
from gristmill.mixes.schema import Mixture
from gristmill.mixes.sources import Stock


def stock(**tokens: int) -> list[Stock]:
    """Sources of documents of 20 tokens; `fw_de` is the child fw.de."""
    return [Stock(name.replace("_", "."), n // 20, n // 20, n, 0, 0) for name, n in tokens.items()]


def mixture(stages: list[dict[str, Any]], **more: Any) -> Mixture:
    base = {"seq_len": 9, "global_batch": 36}  # rows of 10 stored tokens, 4 rows a batch
    stages = [{"name": f"p{i}", **base, **s} for i, s in enumerate(stages)]
    sources = {"en": {"filter": "language == 'en'"}, "de": {"filter": "language == 'de'"}}
    return Mixture.model_validate({"gristmill_mix": 1, "sources": sources, "stages": stages, **more})


def planned(mix: Mixture, en: int = 100, de: int = 50) -> Plan:
    """Over `en` + `de` documents of 20 tokens each."""
    return make_plan(mix, stock(en=en * 20, de=de * 20), 300)


def rows(plan: Plan) -> list[dict[str, int]]:
    return [{u.source: u.rows for u in p.uses} for p in plan.phases]


def codes(plan: Plan) -> list[str]:
    return [note.code for note in plan.notes]


def test_shares() -> None:
    plan = planned(mixture([{"tokens": 1000, "mix": {"en": 0.75, "de": 0.25}}]))
    assert plan.phases[0].batches == 27  # 1000 tokens are 111.1 rows: 27 whole batches of 4
    assert rows(plan) == [{"en": 81, "de": 27}]
    assert (plan.phases[0].tokens, plan.phases[0].bytes) == (108 * 9, 108 * 10 * 2)
    assert plan.phases[0].uses[0].epochs == 810 / 2000
    assert plan.warnings == []


def test_normalized_rest_and_absolute() -> None:
    stages: list[dict[str, Any]] = [
        {"tokens": 900, "normalize": True, "mix": {"en": 3, "de": 1}},
        {"tokens": 900, "mix": {"de": {"tokens": 180}, "en": "rest"}},
        {"mix": {"de": {"epochs": 0.5}, "en": {"tokens": 450}}},
        {"tokens": 900, "mix": {"de": {"epochs": 0.1}, "en": "rest"}},
    ]
    assert rows(planned(mixture(stages))) == [
        {"en": 75, "de": 25},
        {"de": 20, "en": 80},
        {"de": 50, "en": 50},
        {"de": 10, "en": 90},
    ]


def test_too_often_names_what_would_fit() -> None:
    mix = mixture([{"tokens": 900, "mix": {"en": 0.5, "de": 0.5}}, {"tokens": 4500, "mix": {"de": 1.0}}])
    with pytest.raises(UsageError) as caught:
        planned(mix)
    assert caught.value.message == (
        "E104 source `de` would be seen 5.50 times by the end of phase `p1` (5,500 of 1,000 tokens), its limit is 4"
    )
    assert "can have 3,132 tokens" in (caught.value.hint or "")  # 3,500 stored tokens are 350 rows: 87 batches of 36
    assert "share of 0.7000" in (caught.value.hint or "")
    fits = mixture([{"tokens": 900, "mix": {"en": 0.5, "de": 0.5}}, {"tokens": 3132, "mix": {"de": 1.0}}])
    assert planned(fits).phases[1].uses[0].epochs == 3.98


def test_limits_and_repeats() -> None:
    stages = [{"mix": {"de": {"epochs": 6}}}]
    with pytest.raises(UsageError, match="E104"):
        planned(mixture(stages))
    own = mixture(stages, sources={"de": {"filter": "language == 'de'", "max_epochs": 6}})
    assert codes(make_plan(own, stock(de=1000), 300)) == ["W201"]
    repeat = mixture(stages, defaults={"on_short": "repeat"}, sources={"de": {"filter": "language == 'de'"}})
    assert make_plan(repeat, stock(de=1000), 300).warnings == ["W201 source `de` is seen 6.00 times, its limit is 4"]
    endless = mixture([{"tokens": 10**9, "mix": {"de": 1.0}}], defaults={"on_short": "repeat"})
    with pytest.raises(UsageError, match="E104"):
        planned(endless)


def test_exactly_the_limit_is_allowed() -> None:
    plan = planned(mixture([{"mix": {"de": {"epochs": 4}, "en": {"epochs": 4}}}]))
    assert rows(plan) == [{"de": 400, "en": 800}]


def test_too_small() -> None:
    with pytest.raises(UsageError) as caught:
        planned(mixture([{"mix": {"de": {"epochs": 1}}}, {"mix": {"de": {"epochs": 0.1}}}]), de=10)
    assert "E109 phase `p1` has 2.0 rows of 9 tokens, one global batch is 4 rows" in caught.value.message
    assert "stages.1.global_batch to 18" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="E109 phase `p0`: nothing is left"):
        planned(mixture([{"tokens": 100, "mix": {"en": {"epochs": 1}, "de": "rest"}}]))


def test_warnings() -> None:
    stages = [
        {"tokens": 7200, "mix": {"en": 0.9985, "de": 0.0015}},
        {"lr": {"phase": "decay"}, "mix": {"all": {"tokens": 360}}},
    ]
    sources = {
        "en": {"filter": "language == 'en'", "max_epochs": 9},
        "de": {"filter": "language == 'de'"},
        "all": {},
        "none": {},
    }
    mix = mixture(stages, sources=sources)
    found = make_plan(
        mix, stock(en=2000, de=1000, all=3000, none=0), 300, overlaps={("en", "all"): 96, ("de", "none"): 1}
    )
    assert codes(found) == ["W203", "W202", "W204", "W210"]  # `none` is in no phase, so it shares nothing that counts
    assert "share 96 documents" in found.warnings[-1]
    uneven = planned(mixture([{"tokens": 900, "mix": {"en": 0.954, "de": 0.046}}]))
    assert uneven.warnings == ["W205 source `de` in phase `p0` gets 5 whole rows for 4.60"]
    cut = planned(
        mixture([{"tokens": 900, "pack": "bfd-truncate", "mix": {"en": 1}}, {"tokens": 900, "mix": {"de": 1}}])
    )
    assert codes(cut) == ["W206"]
    assert [p.pack for p in cut.phases] == ["bfd-truncate", "bfd"]


FILE = """gristmill_mix: 1
sources:
  en: {filter: "language == 'en'"}
  de: {filter: "language == 'de'", max_epochs: 2}
  fw: {split_by: language}
  idle: {}
stages:
  - {name: a, tokens: 900, seq_len: 9, global_batch: 36, mix: {en: 0.5, de: 0.4, fw.fr: 0.1}}
  - name: b
    tokens: 7200
    seq_len: 9
    global_batch: 36
    lr: {phase: decay}
    mix:
      en: 0.8
      fw: 0.2
"""


def file(tmp_path: Path, text: str = FILE, **tokens: int) -> tuple[Plan, Mixture, Any]:
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    mix, document = load_mixture(str(path))
    return make_plan(mix, stock(**tokens), 300, document, {("en", "fw.fr"): 32}), mix, document


@pytest.mark.parametrize(
    ("edit", "tokens", "where", "text"),
    [
        (("", ""), {"en": 400}, "15:11: error: stages[1].mix.en: E104", "source `en` would be seen"),
        (("", ""), {"de": 100}, "8:77: error: stages[0].mix.de: E104", "its limit is 2"),
        (("", ""), {"de": 0}, "8:77: error: stages[0].mix.de: E103", "no documents"),
        (("fw.fr", "fw.xx"), {}, "8:89: error: stages[0].mix.fw.xx: E102", "children: fw.fr, fw.it"),
        (("", ""), {"fw_fr": 20, "fw_it": 20}, "E104", "source `fw.fr` would be seen"),
        (("global_batch: 36, mix", "global_batch: 900, mix"), {}, "", ""),
        (("tokens: 900, ", "tokens: 950, "), {}, "", ""),
        (
            ("en: 0.8\n      fw: 0.2", "en: {epochs: 3}\n      fw: rest"),
            {},
            "16:11: error: stages[1].mix.fw: E109",
            "rest",
        ),
    ],
)
def test_faults_have_their_place(
    tmp_path: Path, edit: tuple[str, str], tokens: dict[str, int], where: str, text: str
) -> None:
    full = {"en": 4000, "de": 1000, "fw_fr": 600, "fw_it": 400} | tokens
    if not where:
        file(tmp_path, FILE.replace(*edit), **full)
        return
    with pytest.raises(ConfigError) as caught:
        file(tmp_path, FILE.replace(*edit), **full)
    assert where in str(caught.value)
    assert text in str(caught.value)


def test_a_phase_too_small_has_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mix\.yaml:\d+:\d+: error: stages\[1\]\.mix: E109 phase `b` has"):
        file(
            tmp_path,
            FILE.replace("    tokens: 7200\n", "").replace("en: 0.8\n      fw: 0.2", "en: {tokens: 20}"),
            en=4000, de=1000, fw_fr=600,
        )  # fmt: skip


def test_warnings_have_their_place(tmp_path: Path) -> None:
    plan, mix, document = file(tmp_path, FILE.replace("en: 0.8\n      fw: 0.2", "en: 0.7985\n      fw: 0.2\n      de: 0.0015"), en=4000, de=2000, fw_fr=600, fw_it=400)  # fmt: skip
    found = as_json(plan, mix, document)["warnings"]
    assert [(w["code"], w["line"], w["column"], w["path"]) for w in found] == [
        ("W203", 6, 3, "sources.idle"),
        ("W204", 16, 7, "stages[1].mix.fw"),
        ("W202", 17, 7, "stages[1].mix.de"),
        ("W210", 5, 3, "sources.fw"),
    ]
    text = render(plan, mix, document)
    assert "mix.yaml:6:3: warning: W203 source `idle` is in no phase" in text
    assert "mix.yaml" not in "".join(plan.warnings)  # the lock's bytes do not hang on the file's layout


def test_a_parent_splits_by_available_tokens(tmp_path: Path) -> None:
    plan, mix, _ = file(tmp_path, en=4000, de=1000, fw_fr=600, fw_it=400)
    assert rows(plan)[0] == {"en": 50, "de": 40, "fw.fr": 10}
    assert rows(plan)[1] == {"en": 640, "fw.fr": 96, "fw.it": 64}
    by_name = {line.name: line for line in lines(plan, mix)}
    assert (by_name["fw"].available, by_name["fw"].epochs) == (1000, (100 + 1600) / 1000)
    assert by_name["fw.fr"].epochs == (100 + 960) / 600
    both = mixture(
        [{"tokens": 900, "mix": {"fw.fr": 0.5, "fw": "rest"}}, {"mix": {"fw": {"epochs": 1}}}],
        sources={"fw": {"split_by": "language"}},
    )
    assert rows(make_plan(both, stock(fw_fr=600, fw_it=400), 300)) == [
        {"fw.fr": 80, "fw.it": 20},
        {"fw.fr": 60, "fw.it": 40},
    ]


def test_rescale_gives_what_is_short_to_the_others() -> None:
    mix = mixture([{"tokens": 1800, "mix": {"en": 0.5, "de": 0.5}}], defaults={"on_short": "rescale", "max_epochs": 1})
    plan = planned(mix, en=200, de=25)
    assert rows(plan) == [{"en": 150, "de": 50}]  # 500 tokens of de are 50 rows
    assert plan.warnings == ["W205 source `de` in phase `p0` gets 25.00% of the rows for 50.00%: its limit is 1 epochs"]
    assert plan.phases[0].uses[1].share == 0.5
    with pytest.raises(UsageError, match="E104"):
        planned(mix, en=50, de=25)  # 1,500 tokens for 2,000


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 400)), min_size=1, max_size=8),
    st.integers(1, 500),
)
def test_rescale_never_exceeds_a_room(parts: list[tuple[float, int]], total: int) -> None:
    want = {f"s{i}": w for i, (w, _) in enumerate(parts)}
    room = {f"s{i}": float(r) for i, (_, r) in enumerate(parts)}
    counts, capped = rescale(want, total, room)
    if sum(room.values()) < total:
        assert counts is None
        return
    assert counts is not None
    assert sum(counts.values()) == total
    assert all(counts[s] <= room[s] for s in want)
    assert list(counts) == list(want)
    free = [s for s in want if s not in capped]
    for one in free:  # those that were not cut keep their proportions, to whole rows
        left, weight = total - sum(counts[s] for s in capped), sum(want[s] for s in free)
        assert abs(counts[one] - want[one] / weight * left) < 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.02, 1), min_size=3, max_size=3), min_size=1, max_size=4),
    st.lists(st.integers(100, 20_000), min_size=3, max_size=3),
    st.lists(st.integers(36, 20_000), min_size=4, max_size=4),
    st.sampled_from(["error", "rescale"]),
    st.floats(0.3, 5),
)
def test_no_source_passes_its_limit(
    shares: list[list[float]], tokens: list[int], budgets: list[int], on_short: str, limit: float
) -> None:
    """A plan that is made has whole batches, exact sums, cumulative epochs, and no source over its limit."""
    stages = [
        {"tokens": budget, "normalize": True, "mix": dict(zip("abc", weights, strict=True))}
        for weights, budget in zip(shares, budgets, strict=False)
    ]
    mix = mixture(
        stages, sources={"a": {}, "b": {}, "c": {}}, defaults={"on_short": on_short, "max_epochs": limit}
    )  # fmt: skip
    try:
        plan = make_plan(mix, stock(**dict(zip("abc", tokens, strict=True))), 300)
    except UsageError as error:
        if "E104" not in error.message:
            raise
        return
    used: Counter[str] = Counter()
    for number, (phase, budget) in enumerate(zip(plan.phases, budgets, strict=False)):
        assert phase.rows == sum(u.rows for u in phase.uses) == phase.batches * 4
        assert 0 <= budget - phase.tokens < 36
        for use in phase.uses:
            used[use.source] += use.tokens
            available = tokens["abc".index(use.source)]
            slack = 0 if on_short == "rescale" else (number + 1) * 10  # rounding to whole rows, one a phase
            assert used[use.source] <= limit * available + slack + 1e-6
            assert use.epochs is not None
            assert math.isclose(use.epochs, used[use.source] / available)
            if on_short == "error":
                assert abs(use.rows - use.share * phase.rows) < 1


def test_unknown_supplies() -> None:
    sources = {
        "en": {"group": "web"},
        "de": {"group": "web", "max_epochs": 9},
        "fw": {"split_by": "language", "group": "fw"},
    }
    stages: list[dict[str, Any]] = [
        {"tokens": 900, "mix": {"en": 0.5, "de": 0.3, "fw.fr": 0.2}},
        {"mix": {"en": {"epochs": 1}, "fw": {"epochs": 1}}},
    ]
    mix = mixture(stages, sources=sources)

    def supply(name: str, tokens: int | None) -> Supply:
        return Supply(name, None, tokens, None, None, mix.limit(name))

    supplies = [supply("en", 2000), supply("de", None), supply("fw.fr", None), supply("fw", None)]
    plan = plan_supplies(mix, supplies, {"fw": None, "group web": 4000, "group fw": None}, None)
    assert plan.unsized == {"p1": ["fw"]}
    assert [p.name for p in plan.phases] == ["p0"]
    by_name = {(line.kind, line.name): line for line in lines(plan, mix)}
    assert by_name["group", "web"].epochs is None  # p1 takes an unknown part of it
    assert by_name["source", "de"].epochs is None
    assert "p1: size unknown, it is in epochs of fw" in render(plan, mix)
    with pytest.raises(UsageError, match="stage `p1` is sized in epochs of fw"):
        lock_of(plan, mix)
    first = mixture(stages[:1], sources=sources)
    one = plan_supplies(first, supplies, {"fw": None, "group web": 4000, "group fw": None}, None)
    web = next(line for line in lines(one, first) if line.kind == "group")
    assert (web.available, web.epochs, web.limit) == (4000, 800 / 4000, 9)
    short_of = {"fw": None, "group web": 50, "group fw": None}
    with pytest.raises(UsageError, match="E104 group `web` would be seen 16"):
        plan_supplies(first, supplies, short_of, None)


def test_the_lock_of_a_plan(tmp_path: Path) -> None:
    from gristmill.core.mixlock import read_lock

    sources = {"en": {"loss_weight": 0.5}, "de": {}}
    mix = mixture([{"tokens": 900, "until": 450, "mix": {"en": 0.5, "de": 0.5}}], sources=sources)
    write_lock(tmp_path / "lock.json", lock_of(planned(mix), mix))
    lock = read_lock(tmp_path / "lock.json")
    assert (lock.vocab_size, lock.phases[0].rows, lock.phases[0].until_rows) == (300, 100, 48)
    assert (lock.phases[0].loss_weights, lock.phases[0].sources["de"].epochs) == ({"en": 0.5}, 0.5)
    assert lock.manifest().phases[0].until_rows == 48


def test_truncation_draws_more_than_it_keeps() -> None:
    """1,000 documents of 30 tokens in rows of 10: a third of each is kept."""
    mix = mixture([{"pack": "bfd-truncate", "mix": {"en": {"epochs": 2}}}], sources={"en": {}})
    counted = [Stock("en", 1000, 1000, 30_000, 0, 0, {10: 20_000})]
    plan = make_plan(mix, counted, 300)
    assert (plan.phases[0].rows, plan.phases[0].uses[0].epochs) == (2000, 2.0)
    assert plan.warnings == [
        "W206 phase `p0`: bfd-truncate drops what documents have beyond 10 tokens, 66.7% of the tokens drawn"
    ]
    mix = mixture([{"pack": "bfd-truncate", "tokens": 45_000, "mix": {"en": 1}}], sources={"en": {}})
    with pytest.raises(UsageError, match=r"E104 source `en` would be seen 5\.00 times"):
        make_plan(mix, counted, 300)


def test_table_shows_sources_and_phases() -> None:
    mix = mixture([{"mix": {"en": {"epochs": 1}}}, {"mix": {"en": {"epochs": 0.5}, "de": {"epochs": 1}}}])
    text = render(planned(mix), mix)
    en = next(line for line in text.splitlines() if line.startswith("en"))
    assert "1.80K 100.0%   1.00" in en  # 200 rows of 9 positions
    assert "900  50.0%   1.50" in en
    assert en.endswith("1.50     4  ok")


def test_short() -> None:
    assert [short(n) for n in (5.1e12, 1_200_000, 812, 999_600, None)] == ["5.10T", "1.20M", "812", "1.00M", "?"]
