"""The plan: rows from shares, tokens and epochs; what is refused with which numbers; what is held out; the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import document_id
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.mixes.plan import Plan, make_plan, render, short
from gristmill.mixes.schema import Mixture
from gristmill.mixes.sources import Documents, read_documents, stocks


def table(
    lengths: list[int], language: str = "en", file: str = "a.warc.gz", clusters: list[str] | None = None
) -> pa.Table:
    n = len(lengths)
    ids = [document_id(file + language, i) for i in range(n)]
    columns: dict[str, Any] = {f.name: pa.nulls(n, f.type) for f in TOKEN_DOC_SCHEMA}
    columns |= {"id": ids, "dup_cluster": clusters or ids, "warc_file": [file] * n, "language": [language] * n}
    columns |= {"length": lengths, "quality": [i / n for i in range(n)], "offset": np.cumsum([0, *lengths])[:-1]}
    return pa.table({f.name: pa.array(columns[f.name], f.type) for f in TOKEN_DOC_SCHEMA})


def documents(tmp_path: Path, mixture: Mixture, *tables: pa.Table) -> Documents:
    paths = []
    for i, t in enumerate(tables):
        paths.append(tmp_path / f"{i}.parquet")
        pq.write_table(t, paths[-1])
    return read_documents(paths, mixture)


def mixture(stages: list[dict[str, Any]], **more: Any) -> Mixture:
    base = {"seq_len": 9, "global_batch": 36}  # rows of 10 stored tokens, 4 rows a batch
    stages = [{"name": f"p{i}", **base, **s} for i, s in enumerate(stages)]
    sources = {"en": {"filter": "language == 'en'"}, "de": {"filter": "language == 'de'"}}
    return Mixture.model_validate({"gristmill_mix": 1, "sources": sources, "stages": stages, **more})


def planned(tmp_path: Path, mix: Mixture, en: int = 100, de: int = 50) -> Plan:
    """Over `en` + `de` documents of 20 tokens each."""
    found = documents(tmp_path, mix, table([20] * en), table([20] * de, "de"))
    return make_plan(mix, stocks(mix, found), 300)


def rows(plan: Plan) -> list[dict[str, int]]:
    return [{u.source: u.rows for u in p.uses} for p in plan.phases]


def test_shares(tmp_path: Path) -> None:
    plan = planned(tmp_path, mixture([{"tokens": 1000, "mix": {"en": 0.75, "de": 0.25}}]))
    assert plan.phases[0].batches == 27  # 1000 tokens are 111.1 rows: 27 whole batches of 4
    assert rows(plan) == [{"en": 81, "de": 27}]
    assert (plan.phases[0].tokens, plan.phases[0].bytes) == (108 * 9, 108 * 10 * 2)
    assert plan.phases[0].uses[0].epochs == 810 / 2000
    assert plan.warnings == []


def test_normalized_rest_and_absolute(tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [
        {"tokens": 900, "normalize": True, "mix": {"en": 3, "de": 1}},
        {"tokens": 900, "mix": {"de": {"tokens": 180}, "en": "rest"}},
        {"mix": {"de": {"epochs": 0.5}, "en": {"tokens": 450}}},
        {"tokens": 900, "mix": {"de": {"epochs": 0.1}, "en": "rest"}},
    ]
    assert rows(planned(tmp_path, mixture(stages))) == [
        {"en": 75, "de": 25},
        {"de": 20, "en": 80},
        {"de": 50, "en": 50},
        {"de": 10, "en": 90},
    ]


def test_too_often_names_what_would_fit(tmp_path: Path) -> None:
    mix = mixture([{"tokens": 900, "mix": {"en": 0.5, "de": 0.5}}, {"tokens": 4500, "mix": {"de": 1.0}}])
    with pytest.raises(UsageError) as caught:
        planned(tmp_path, mix)
    assert caught.value.message == (
        "E104 source `de` would be seen 5.50 times by the end of phase `p1` (5,500 of 1,000 tokens), its limit is 4"
    )
    assert "can have 3,132 tokens" in (caught.value.hint or "")  # 3,500 stored tokens are 350 rows: 87 batches of 36
    assert "share of 0.7000" in (caught.value.hint or "")
    fits = mixture([{"tokens": 900, "mix": {"en": 0.5, "de": 0.5}}, {"tokens": 3132, "mix": {"de": 1.0}}])
    assert planned(tmp_path, fits).phases[1].uses[0].epochs == 3.98


def test_limits_and_repeats(tmp_path: Path) -> None:
    stages = [{"mix": {"de": {"epochs": 6}}}]
    with pytest.raises(UsageError, match="E104"):
        planned(tmp_path, mixture(stages))
    own = mixture(stages, sources={"de": {"filter": "language == 'de'", "max_epochs": 6}})
    assert [w.split()[0] for w in planned(tmp_path, own).warnings] == ["W201"]
    repeat = mixture(stages, defaults={"on_short": "repeat"}, sources={"de": {"filter": "language == 'de'"}})
    assert planned(tmp_path, repeat).warnings == ["W201 source `de` is seen 6.00 times, its limit is 4"]
    endless = mixture([{"tokens": 10**9, "mix": {"de": 1.0}}], defaults={"on_short": "repeat"})
    with pytest.raises(UsageError, match="E104"):
        planned(tmp_path, endless)


def test_exactly_the_limit_is_allowed(tmp_path: Path) -> None:
    plan = planned(tmp_path, mixture([{"mix": {"de": {"epochs": 4}, "en": {"epochs": 4}}}]))
    assert rows(plan) == [{"de": 400, "en": 800}]


def test_too_small(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        planned(tmp_path, mixture([{"mix": {"de": {"epochs": 1}}}, {"mix": {"de": {"epochs": 0.1}}}]), de=10)
    assert "E109 phase `p1` has 2.0 rows of 9 tokens, one global batch is 4 rows" in caught.value.message
    assert "stages.1.global_batch to 18" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="E109 phase `p0`: nothing is left"):
        planned(tmp_path, mixture([{"tokens": 100, "mix": {"en": {"epochs": 1}, "de": "rest"}}]))


def test_empty_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"E103 source `de` has no documents: filter .* selects none, of 100 encoded"):
        planned(tmp_path, mixture([{"mix": {"de": {"epochs": 1}, "en": {"epochs": 1}}}]), de=0)
    assert [w.split()[0] for w in planned(tmp_path, mixture([{"mix": {"en": {"epochs": 1}}}]), de=0).warnings] == [
        "W203"
    ]


def test_warnings(tmp_path: Path) -> None:
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
    found = planned(tmp_path, mixture(stages, sources=sources)).warnings
    assert [w.split()[0] for w in found] == ["W203", "W202", "W204", "W210", "W210"]
    uneven = planned(tmp_path, mixture([{"tokens": 900, "mix": {"en": 0.954, "de": 0.046}}])).warnings
    assert uneven == ["W205 source `de` in phase `p0` gets 5 whole rows for 4.60"]


def test_held_out_goes_by_cluster_and_limit(tmp_path: Path) -> None:
    clusters = [f"{i // 4:032x}" for i in range(400)]
    spec = {"per_source": {"docs": 0.2}}
    mix = mixture([{"mix": {"en": {"epochs": 1}}}], heldout=spec)
    found = documents(
        tmp_path, mix, table([20] * 400, clusters=clusters), table([20] * 100, "de", clusters=clusters[:100])
    )
    by_name = {s.name: s for s in stocks(mix, found)}
    keys = found.columns["dup_cluster"].to_pylist()
    held = {keys[i] for s in by_name.values() for i in s.heldout}
    kept = {keys[i] for s in by_name.values() for i in s.documents}
    assert not held & kept
    assert 10 < len(held) < 32  # 100 clusters at 0.2
    assert len(by_name["en"].heldout) == 4 * len(held)
    capped = mixture([{"mix": {"en": {"epochs": 1}}}], heldout={"per_source": {"docs": 0.2, "max_tokens": 200}})
    limited = {s.name: s for s in stocks(capped, found)}
    assert 0 < limited["en"].heldout_tokens <= 200
    assert limited["de"].heldout_tokens <= 200
    assert set(limited["en"].heldout) < set(by_name["en"].heldout)


def test_held_out_does_not_depend_on_listing(tmp_path: Path) -> None:
    mix = mixture([{"mix": {"en": {"epochs": 1}}}], heldout={"per_source": {"docs": 0.3}})
    one, two = table([20] * 60, file="a"), table([20] * 60, file="b")
    ids = []
    for order in ((one, two), (two, one)):
        found = documents(tmp_path, mix, *order)
        stock = next(s for s in stocks(mix, found) if s.name == "en")
        ids.append(set(found.columns["id"].take(pa.array(stock.heldout)).to_pylist()))
    assert ids[0] == ids[1]
    assert ids[0]


def test_path_selects_files(tmp_path: Path) -> None:
    sources = {"new": {"path": "2024/*"}, "old": {"path": "2023/*.warc.gz", "filter": "quality < 0.5"}}
    mix = mixture([{"mix": {"new": {"epochs": 1}, "old": {"epochs": 1}}}], sources=sources)
    found = documents(tmp_path, mix, table([20] * 30, file="2024/a.warc.gz"), table([20] * 30, file="2023/b.warc.gz"))
    assert [(s.name, len(s.documents)) for s in stocks(mix, found)] == [("new", 30), ("old", 15)]


def test_damaged_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "docs.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(FormatError, match=r"docs\.parquet"):
        read_documents([path], mixture([{"mix": {"en": {"epochs": 1}}}]))


def test_table_shows_sources_and_phases(tmp_path: Path) -> None:
    text = render(
        planned(
            tmp_path, mixture([{"mix": {"en": {"epochs": 1}}}, {"mix": {"en": {"epochs": 0.5}, "de": {"epochs": 1}}}])
        )
    )
    en = next(line for line in text.splitlines() if line.startswith("en"))
    assert "2.00K 100.0%   1.00" in en
    assert "1.00K  50.0%   1.50" in en
    assert en.endswith("1.50     4  ok")


def test_short() -> None:
    assert [short(n) for n in (0, 812, 999_950, 1_200_000, 5.1e12)] == ["0", "812", "1.00M", "1.20M", "5.10T"]
