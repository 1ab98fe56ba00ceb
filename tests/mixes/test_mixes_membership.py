"""Which documents a source has, over stores on disk: filters, extra columns, globs, children, weights, held-out clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.core.errors import ConfigError, FormatError, UsageError
from gristmill.core.hashing import document_id, hash64
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.core.tokstore import StoreWriter, TokenStore
from gristmill.mixes.api import load_mixture
from gristmill.mixes.catalogue import DOCUMENT
from gristmill.mixes.membership import (
    MAX_CHILDREN,
    Overlaps,
    check_columns,
    columns_of,
    draw_weights,
    memberships,
    read_columns,
    store_schema,
)
from gristmill.mixes.schema import HeldOut, Mixture
from gristmill.mixes.sources import _held_clusters, scan


def table(n: int, file: str = "a.warc.gz", **columns: Any) -> pa.Table:
    """A document table of n documents of 20 tokens; further columns become extra ones."""
    ids = [document_id(file, i) for i in range(n)]
    data: dict[str, Any] = {f.name: pa.nulls(n, f.type) for f in TOKEN_DOC_SCHEMA}
    data |= {"id": ids, "dup_cluster": ids, "warc_file": [file] * n, "language": ["en"] * n, "length": [20] * n}
    data |= {"quality": [i / n for i in range(n)]} | columns
    data["offset"] = np.cumsum([0, *data["length"]])[:-1]
    types = {f.name: f.type for f in TOKEN_DOC_SCHEMA}
    return pa.table({k: pa.array(v, types.get(k)) if not isinstance(v, pa.Array) else v for k, v in data.items()})


def written(tmp_path: Path, *tables: pa.Table) -> list[Path]:
    paths = [tmp_path / f"{i}.parquet" for i in range(len(tables))]
    for path, one in zip(paths, tables, strict=True):
        pq.write_table(one, path)
    return paths


def mixture(sources: dict[str, Any], mix: dict[str, Any] | None = None, **more: Any) -> Mixture:
    stage = {"name": "a", "seq_len": 9, "global_batch": 36, "mix": mix or {n: {"epochs": 1} for n in sources}}
    return Mixture.model_validate({"gristmill_mix": 1, "sources": sources, "stages": [stage], **more})


def test_filters_over_extra_columns(tmp_path: Path) -> None:
    mix = mixture({"math": {"filter": "score >= 3 and flag"}, "all": {}})
    assert columns_of(mix) == {"length", "score", "flag"}
    one = table(4, score=pa.array([1, 3, 4, None], pa.int32()), flag=[True, True, False, True])
    found = memberships(mix, one)
    assert found["math"].tolist() == [False, True, False, False]
    assert found["all"].all()
    # a store without the columns has no document there; the types are those of the store that has them
    paths = written(tmp_path, one, table(3, "b.warc.gz"))
    schema = store_schema(paths)
    check_columns(mix, schema)
    read = read_columns(paths[1], sorted(columns_of(mix)), schema)
    assert read.schema.field("score").type == pa.int32()
    assert memberships(mix, read)["math"].tolist() == [False] * 3
    assert [(s.name, s.documents) for s in scan(paths, mix).stock] == [("math", 1), ("all", 7)]


def test_unknown_columns_have_their_place(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(
        "gristmill_mix: 1\nsources:\n  en: {filter: \"scores >= 3\"}\n  fw: {split_by: kinds}\n  ok: {filter: 'score < 2'}\n"
        "stages:\n  - {name: a, seq_len: 9, global_batch: 36, mix: {en: {epochs: 1}, fw: {epochs: 1}}}\n"
    )
    mix, document = load_mixture(str(path))
    paths = written(tmp_path, table(3, score=[1, 2, 3]))
    with pytest.raises(ConfigError) as caught:
        scan(paths, mix, document=document)
    found = [(p.line, p.column, p.path, p.message) for p in caught.value.problems]
    assert [f[:3] for f in found] == [(3, 16, "sources.en.filter"), (4, 18, "sources.fw.split_by")]
    assert all(f[3].startswith("E102 unknown column") for f in found)
    assert "did you mean `score`?" in str(caught.value)
    with pytest.raises(UsageError, match=r"sources\.en\.filter: E102"):
        scan(paths, mix)
    wrong = mixture({"en": {"filter": "score == 'high'"}})
    with pytest.raises(UsageError, match="`score` is a number column"):
        scan(paths, wrong)


def test_one_column_has_one_type(tmp_path: Path) -> None:
    paths = written(tmp_path, table(2, score=[1, 2]), table(2, "b", score=["1", "2"]))
    with pytest.raises(FormatError, match=r"1\.parquet: column `score` is string, elsewhere int64"):
        store_schema(paths)
    (tmp_path / "list.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(FormatError, match=r"list\.parquet is no document table"):
        store_schema([tmp_path / "list.parquet"])
    with pytest.raises(FormatError, match="no text, number or truth value"):
        store_schema(written(tmp_path, table(1, tags=[["a"]])))


def test_the_store_keeps_extra_columns(tmp_path: Path) -> None:
    own = table(2, score=pa.array([0.5, None], pa.float32()), dup_count=pa.array([7, None], pa.int32()))
    with StoreWriter(tmp_path / "t.bin", tmp_path / "d.parquet", 300, [own.schema.field("score")]) as store:
        store.write([np.array([5, 1], np.uint16), np.array([1], np.uint16)], own.drop_columns(["offset", "length"]))
        without = own.slice(1).drop_columns(["offset", "length", "dup_count"])
        store.write([np.array([9, 9, 1], np.uint16)], without)
    read = TokenStore(tmp_path / "t.bin", tmp_path / "d.parquet")
    assert read.docs["score"].to_pylist() == [0.5, None, None]
    assert read.docs["dup_count"].to_pylist() == [7, 1, 1]
    assert read.docs.schema.names == [*TOKEN_DOC_SCHEMA.names, "score"]
    with pytest.raises(ValueError, match="`tags` is no text"):
        StoreWriter(tmp_path / "x.bin", tmp_path / "x.parquet", 300, [pa.field("tags", pa.list_(pa.string()))])
    pq.write_table(read.docs.append_column("tags", pa.array([["a"]] * 3)), tmp_path / "d.parquet")
    with pytest.raises(FormatError, match="`tags` is no text"):
        TokenStore(tmp_path / "t.bin", tmp_path / "d.parquet")


def test_children_by_value(tmp_path: Path) -> None:
    sources = {"fw": {"split_by": "language", "filter": "quality < 0.9"}, "year": {"split_by": "year"}}
    mix = mixture(sources, {"fw": {"epochs": 1}, "year.2024": {"epochs": 1}})
    languages = ["de", "en", None, "C#", "de", "zh-Hant", "en", "en", "en", "en"]
    one = table(10, language=languages, year=[2024, 2023, 2024, None, 2024, 1, 1, 1, 1, 1])
    found = memberships(mix, one)
    assert list(found) == [
        "fw.C#",
        "fw.de",
        "fw.en",
        "fw.none",
        "fw.zh-Hant",
        "year.1",
        "year.2023",
        "year.2024",
        "year.none",
    ]
    assert np.flatnonzero(found["fw.de"]).tolist() == [0, 4]
    assert np.flatnonzero(found["fw.none"]).tolist() == [2]
    assert found["fw.en"].sum() == 4  # quality 0.9 of the last is not below it
    assert sum(m.sum() for n, m in found.items() if n.startswith("fw.")) == 9
    stock = scan(written(tmp_path, one, table(5, "b", language=["fr"] * 5, year=[2024] * 5)), mix).stock
    assert [(s.name, s.documents) for s in stock if s.name in ("fw.fr", "year.2024", "fw.de")] == [
        ("fw.de", 2),
        ("fw.fr", 5),
        ("year.2024", 8),
    ]
    many = mixture({"fw": {"split_by": "id"}})
    with pytest.raises(UsageError, match="E102 source `fw`: split_by id gives"):
        memberships(many, table(MAX_CHILDREN + 1))


def test_a_child_that_is_none(tmp_path: Path) -> None:
    from gristmill.mixes.plan import make_plan

    mix = mixture({"fw": {"split_by": "language"}}, {"fw.xx": {"epochs": 1}})
    found = scan(written(tmp_path, table(30)), mix)
    with pytest.raises(UsageError, match=r"E102 unknown child `fw\.xx`\n  hint: children: fw\.en"):
        make_plan(mix, found.stock, 300)


def test_rehydration_weights(tmp_path: Path) -> None:
    mix = mixture({"web": {"rehydrate": {2: 3, 10: 2, 100: 0}}, "plain": {}})
    one = table(7, dup_count=pa.array([1, None, 2, 9, 10, 99, 100], pa.int32()))
    assert draw_weights(mix, "web", one).tolist() == [1, 1, 3, 3, 2, 2, 0]
    assert draw_weights(mix, "plain", one).tolist() == [1] * 7
    assert memberships(mix, one)["web"].tolist() == [True] * 6 + [False]
    stock = {s.name: s for s in scan(written(tmp_path, one), mix).stock}
    assert (stock["web"].documents, stock["web"].draws, stock["web"].tokens) == (6, 12, 240)
    assert stock["plain"].tokens == 140


def test_overlaps_are_estimated_from_a_sample() -> None:
    ids = np.array([hash64(str(i)) for i in range(20_000)], np.uint64)
    even = np.arange(20_000) % 2 == 0
    overlaps = Overlaps()
    for part in np.array_split(np.arange(20_000), 7):
        overlaps.add({"all": np.ones(len(part), bool), "even": even[part], "odd": ~even[part]}, ids[part])
    found = overlaps.found()
    assert set(found) == {("all", "even"), ("all", "odd")}
    assert all(abs(n - 10_000) < 1_000 for n in found.values())


def test_path_selects_files(tmp_path: Path) -> None:
    mix = mixture({"new": {"path": "2024/*"}, "old": {"path": "2023/*.warc.gz", "filter": "quality < 0.5"}})
    paths = written(tmp_path, table(30, "2024/a.warc.gz"), table(30, "2023/b.warc.gz"))
    assert [(s.name, s.documents) for s in scan(paths, mix).stock] == [("new", 30), ("old", 15)]


def test_empty_sources_have_their_place(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(
        "gristmill_mix: 1\nsources:\n  de: {filter: \"language == 'de'\"}\n  all: {}\n"
        "stages:\n  - {name: a, seq_len: 9, global_batch: 36, mix: {de: {epochs: 1}, all: {epochs: 1}}}\n"
    )
    mix, document = load_mixture(str(path))
    paths = written(tmp_path, table(100))
    with pytest.raises(
        ConfigError, match=r"mix\.yaml:3:16: error: .*E103 source `de` has no documents: filter .* of 100"
    ):
        scan(paths, mix, document=document)
    with pytest.raises(UsageError, match="E103 source `de` has no documents") as caught:
        scan(paths, mix)
    assert "look at its filter" in (caught.value.hint or "")


def test_held_out_goes_by_cluster_and_limit(tmp_path: Path) -> None:
    clusters = [f"{i // 4:032x}" for i in range(400)]
    paths = written(
        tmp_path,
        table(400, dup_cluster=clusters),
        table(100, "b", language=["de"] * 100, dup_cluster=clusters[:100]),
    )
    sources = {"en": {"filter": "language == 'en'"}, "de": {"filter": "language == 'de'"}}
    found = scan(paths, mixture(sources, heldout={"per_source": {"docs": 0.2}}))
    where = dict(zip(found.heldout_table()["id"].to_pylist(), found.heldout_of, strict=True))
    tables = [pq.read_table(p) for p in paths]
    cluster_of = {i: c for t in tables for i, c in zip(t["id"].to_pylist(), t["dup_cluster"].to_pylist(), strict=True)}
    held = {cluster_of[i] for i in where}
    assert 10 < len(held) < 32  # 100 clusters at 0.2
    assert {i for i, c in cluster_of.items() if c in held} == set(where)  # whole clusters, in both sources
    assert sum(s == "en" for s in where.values()) == 4 * len(held)
    capped = scan(paths, mixture(sources, heldout={"per_source": {"docs": 0.2, "max_tokens": 200}}))
    assert 0 < capped["en"].heldout_tokens <= 200
    assert capped["de"].heldout_tokens <= 200
    assert set(capped.heldout_table()["id"].to_pylist()) < set(where)


def test_held_out_by_id_may_not_leak(tmp_path: Path) -> None:
    clusters = [f"{i // 2:032x}" for i in range(200)]
    paths = written(tmp_path, table(200, dup_cluster=clusters))
    sources: dict[str, Any] = {"en": {}}
    path = tmp_path / "mix.yaml"
    path.write_text(
        "gristmill_mix: 1\nsources: {en: {}}\nheldout: {per_source: {docs: 0.1}, key: id}\n"
        "stages:\n  - {name: a, seq_len: 9, global_batch: 36, mix: {en: {epochs: 1}}}\n"
    )
    mix, document = load_mixture(str(path))
    with pytest.raises(
        ConfigError, match=r"mix\.yaml:3:41: error: heldout\.key: E108 \d+ documents that are trained on"
    ):
        scan(paths, mix, document=document)
    alone = written(tmp_path, table(200))  # deduplicated: every document a cluster of its own
    assert len(scan(alone, mix).heldout) > 5
    assert len(scan(paths, mixture(sources, heldout={"per_source": {"docs": 0.1}})).heldout) > 5


def test_held_out_does_not_depend_on_listing(tmp_path: Path) -> None:
    mix = mixture({"en": {}}, heldout={"per_source": {"docs": 0.3}})
    one, two = written(tmp_path, table(60, "a"), table(60, "b"))
    ids = [set(scan(order, mix).heldout_table()["id"].to_pylist()) for order in ([one, two], [two, one])]
    assert ids[0] == ids[1]
    assert ids[0]


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_held_out_clusters_are_those_of_one_after_the_other(seed: int, sources: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = {}
    for name in range(sources):
        documents = np.zeros(rng.integers(0, 40), DOCUMENT)
        documents["length"] = rng.integers(1, 50, len(documents))
        candidates[str(name)] = (documents, rng.integers(0, 30, len(documents)).astype(np.uint64))
    spec = HeldOut.model_validate({"per_source": {"docs": 0.5, "max_tokens": most or 1}})
    used, want = dict.fromkeys(candidates, 0), []
    for cluster in sorted({int(r) for _, ranks in candidates.values() for r in ranks}):
        more = {n: int(d["length"][r == cluster].sum()) for n, (d, r) in candidates.items()}
        if all(used[n] + more[n] <= (most or 1) for n in candidates):
            used = {n: used[n] + more[n] for n in candidates}
            want.append(cluster)
    assert _held_clusters(spec, candidates).tolist() == want


def test_nulls_and_the_text_none_are_no_one_child(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(
        "gristmill_mix: 1\nsources:\n  fw: {split_by: language}\n"
        "stages:\n  - {name: a, seq_len: 9, global_batch: 36, mix: {fw: {epochs: 1}}}\n"
    )
    mix, document = load_mixture(str(path))
    nulls, texts = table(20, language=[None] * 20), table(20, "b", language=["none", "en"] * 10)
    paths = written(tmp_path, nulls, texts)
    with pytest.raises(
        ConfigError, match=r"mix\.yaml:3:18: error: .*E102 source `fw`: 20 documents have no `language` and 10 have"
    ):
        scan(paths, mix, document=document)
    named = mixture({"fw": {"split_by": "language", "filter": "language is not None"}}, {"fw": {"epochs": 1}})
    assert [(s.name, s.documents) for s in scan(paths, named).stock] == [("fw.en", 10), ("fw.none", 10)]
    assert [s.name for s in scan(paths[:1], mix).stock] == ["fw.none"]
