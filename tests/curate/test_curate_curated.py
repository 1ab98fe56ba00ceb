"""The end of curation as stages: signatures, clusters, quality scores and curated Parquet over hand-made upstream files."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated_files import Page, advance, prose, upstream, word

from gristmill.core.document import CURATED_SCHEMA, DROP_SCHEMA
from gristmill.core.errors import FormatError
from gristmill.core.hashing import document_id
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt
from gristmill.curate.clusters import Clusters
from gristmill.curate.curated import Curated
from gristmill.curate.final_text import cluster_file, kept_documents
from gristmill.curate.quality import train_quality
from gristmill.curate.quality_stage import QualityScores
from gristmill.curate.schema import Dedup, MinHash
from gristmill.curate.signatures import Signatures


def line(
    root: Path, files: Mapping[str, Sequence[Page]], dedup: Dedup, quality: dict[str, Any] | None = None
) -> dict[str, list[Receipt]]:
    """Run every stage of this part; all receipts by stage."""
    receipts = upstream(root, files)
    config: dict[str, Any] = {"dedup": dedup.model_dump()}
    if dedup.exact or dedup.minhash:
        advance(root, Signatures(config), receipts)
        advance(root, Clusters(config), receipts)
    if quality is not None:
        advance(root, QualityScores({"quality": quality, **config}), receipts)
    advance(root, Curated({"quality": quality, **config}), receipts)
    return receipts


def rows(receipts: Sequence[Receipt], name: str) -> list[dict[str, Any]]:
    return [row for r in receipts for row in pq.read_table(r.output(name).path).to_pylist()]


def edited(text: str, changes: int, seed: int = 0) -> str:
    words = text.split()
    for i in random.Random(seed).sample(range(len(words)), changes):
        words[i] = "edit"
    return " ".join(words)


FILES: dict[str, list[Page]] = {
    "a/one.warc.gz": [
        {"text": prose(1)},
        {"text": prose(2)},
        {"text": prose(3), "reason": "gopher.too_few_words"},
        {"text": f"menu\n{prose(4)}", "c4": prose(4)},
        {"text": edited(prose(1), 3)},
        {"text": ""},
        {"text": "!!! ..."},
        *({"text": prose(100 + i)} for i in range(20)),
    ],
    "b/two.warc.gz": [
        {"text": prose(2).replace(" ", "\n")},
        {"text": prose(3)},
        {"text": prose(4)},
        {"text": prose(1) + " and some more words at the end"},
        {"text": "three short words"},
        {"text": "Three, short: words!"},
        {"text": "three short texts"},
    ],
}


def test_two_files_through_the_line(tmp_path: Path) -> None:
    receipts = line(tmp_path, FILES, Dedup())
    curated = receipts["curate"]
    assert [r.key for r in curated] == list(FILES)
    assert [r.rows_in for r in curated] == [26, 7]
    # Of text 1 the longest of three versions stays (b/3); of 2 and 4 the copy in a; of the short pair the longer one.
    assert [r.drops for r in curated] == [{"dedup.minhash": 2}, {"dedup.exact": 2, "dedup.minhash": 1}]
    documents = rows(curated, "documents.parquet")
    kept = {(d["warc_file"][0], d["warc_offset"] // 1000) for d in documents}
    gone = {(d["warc_file"][0], d["warc_offset"] // 1000) for d in rows(curated, "drops.parquet")}
    assert gone == {("a", 0), ("a", 4), ("b", 0), ("b", 2), ("b", 4)}
    assert kept.isdisjoint(gone)
    assert [r.rows_out for r in curated] == [24, 4]
    assert [d["warc_offset"] for d in documents if d["warc_file"][0] == "a"] == [
        1000 * i for i in range(27) if i not in (0, 2, 4)
    ], "row order"
    assert {d["dup_cluster_size"] for d in documents if d["text"].startswith(prose(1)[:20])} == {3}
    for receipt in curated:
        assert pq.read_schema(receipt.output("documents.parquet").path).equals(CURATED_SCHEMA)
        assert pq.read_schema(receipt.output("drops.parquet").path).equals(DROP_SCHEMA)
    assert sum(d["dup_cluster_size"] for d in documents) == 33
    assert all(d["dup_cluster"] == d["id"] and d["quality"] is None for d in documents)


@pytest.mark.parametrize("seed", [0, 1])
def test_output_depends_on_neither_order_nor_split(tmp_path: Path, seed: int) -> None:
    """The same documents in other files, in another order: the same are kept, for the same keepers."""
    base = [dict(page, id=document_id(key, 1000 * i)) for key, pages in FILES.items() for i, page in enumerate(pages)]
    reference = line(tmp_path / "reference", {"all": base}, Dedup())
    shuffled = base[:]
    random.Random(seed).shuffle(shuffled)
    parts = {"z": shuffled[:5], "y": [], "x": shuffled[5:21], "w": shuffled[21:]}
    other = line(tmp_path / "other", parts, Dedup())

    def facts(receipts: dict[str, list[Receipt]]) -> list[tuple[Any, ...]]:
        found = [
            row for r in receipts["curate.clusters"] for s in r.outputs for row in pq.read_table(s.path).to_pylist()
        ]
        return sorted(tuple(row.values()) for row in found)

    assert facts(reference) == facts(other)
    turned = line(tmp_path / "turned", dict(reversed(parts.items())), Dedup())
    assert turned["curate.clusters"][0].task == other["curate.clusters"][0].task
    assert {s.name: s.sha256 for s in turned["curate.clusters"][0].outputs} == {
        s.name: s.sha256 for s in other["curate.clusters"][0].outputs
    }


def test_curating_the_survivors_again_removes_nothing(tmp_path: Path) -> None:
    first = line(tmp_path / "first", FILES, Dedup())
    again = {
        r.key: [{"text": d["text"], "id": d["id"]} for d in rows([r], "documents.parquet")] for r in first["curate"]
    }
    second = line(tmp_path / "second", again, Dedup())
    assert [r.drops for r in second["curate"]] == [{}, {}]
    assert [r.rows_out for r in second["curate"]] == [r.rows_out for r in first["curate"]]


def test_dedup_and_quality_off(tmp_path: Path) -> None:
    receipts = line(tmp_path, FILES, Dedup(exact=False, minhash=None))
    assert "curate.clusters" not in Curated({"dedup": False, "quality": None}).upstream
    assert sum(r.rows_out for r in receipts["curate"]) == 33
    documents = rows(receipts["curate"], "documents.parquet")
    assert {(d["dup_cluster_size"], d["dup_exact_copies"], d["dup_cluster"] == d["id"]) for d in documents} == {
        (1, 1, True)
    }


def test_exact_only_needs_no_signature_columns(tmp_path: Path) -> None:
    receipts = line(tmp_path, FILES, Dedup(minhash=None))
    assert sum(r.drops["dedup.exact"] for r in receipts["curate"] if r.drops) == 2
    names = pq.read_schema(receipts["curate.signatures"][0].output("signatures.parquet").path).names
    assert "keys" not in names


def test_signatures_have_a_row_per_kept_document(tmp_path: Path) -> None:
    receipts = upstream(tmp_path, FILES)
    one, two = advance(tmp_path, Signatures({"dedup": Dedup().model_dump()}), receipts)
    assert (one.rows_in, one.rows_out, two.rows_in) == (26, 26, 7)
    assert one.notes == {"dedup.without_words": 2}
    table = pq.read_table(one.output("signatures.parquet").path)
    kept = [p for p in FILES[one.key] if "reason" not in p]
    assert table["length"].to_pylist() == [len(p["c4"] if "c4" in p else p["text"]) for p in kept]
    assert table["shingles"].to_pylist()[4:6] == [0, 0]


def test_signature_ids_ignore_what_does_not_change_them(tmp_path: Path) -> None:
    receipts = upstream(tmp_path, FILES)

    def ids(**changes: Any) -> list[str]:
        return [t.id for t in Signatures({"dedup": Dedup(**changes).model_dump()}).tasks(receipts)]

    assert ids() == ids(minhash=MinHash(verify=0.8)) == ids(keep=["earliest"]) == ids(exact=False)
    assert ids() != ids(minhash=MinHash(ngram=6))


def test_final_text_follows_the_verdict(tmp_path: Path) -> None:
    receipts = upstream(tmp_path, FILES)
    task = Signatures({"dedup": Dedup().model_dump()}).tasks(receipts)[0]
    for size in (1, 4, 1000):
        tables = list(kept_documents(task, ["url"], rows=size))
        assert all(0 < t.num_rows <= size for t in tables)
        whole = pa.concat_tables(tables)
        assert whole["text"].to_pylist() == [p.get("c4", p["text"]) for p in FILES[task.key] if "reason" not in p]
        assert whole["text_version"].to_pylist().count("c4") == 1


def test_files_out_of_step_are_refused(tmp_path: Path) -> None:
    receipts = upstream(tmp_path, FILES)
    short = upstream(tmp_path / "short", {key: pages[:-1] for key, pages in FILES.items()})
    renamed = upstream(
        tmp_path / "renamed", {k: [dict(p, id=f"{i:032x}") for i, p in enumerate(v)] for k, v in FILES.items()}
    )
    stage = Signatures({"dedup": Dedup().model_dump()})
    for wrong, message in ((short, "rows"), (renamed, "row order")):
        for broken in ("curate.measure", "curate.decide"):
            task = stage.tasks({**receipts, broken: wrong[broken]})[0]
            with pytest.raises(FormatError, match=message):
                run_task(stage, task, tmp_path / "out")
    task = stage.tasks({**short, "curate.decide": receipts["curate.decide"]})[0]
    with pytest.raises(FormatError, match="more rows"):
        run_task(stage, task, tmp_path / "out")


def test_a_repeated_id_is_refused(tmp_path: Path) -> None:
    files = {"a": [{"text": prose(1), "id": "f" * 32}], "b": [{"text": prose(2), "id": "f" * 32}]}
    with pytest.raises(FormatError, match="two documents have the id"):
        line(tmp_path, files, Dedup())


def test_failed_siblings_are_left_out(tmp_path: Path) -> None:
    receipts = upstream(tmp_path, FILES)
    receipts["curate.measure"] = receipts["curate.measure"][1:]
    config = {"dedup": Dedup().model_dump()}
    advance(tmp_path, Signatures(config), receipts)
    advance(tmp_path, Clusters(config), receipts)
    receipts["curate.measure"] = upstream(tmp_path / "later", FILES)["curate.measure"]
    assert [r.key for r in advance(tmp_path, Curated(config), receipts)] == ["b/two.warc.gz"]


def test_no_input_files_at_all(tmp_path: Path) -> None:
    receipts = line(tmp_path, {}, Dedup())
    assert receipts["curate"] == []
    assert receipts["curate.clusters"][0].rows_in == 0


def test_keep_policy_reaches_the_output(tmp_path: Path) -> None:
    pages = [{"text": prose(1), "date": f"20{20 + i}-05-05T00:00:00Z"} for i in range(4)]
    for keep, year in (("earliest", "2020"), ("latest", "2023")):
        receipts = line(tmp_path / keep, {"a": pages[2:], "b": pages[:2]}, Dedup.model_validate({"keep": [keep]}))
        (document,) = rows(receipts["curate"], "documents.parquet")
        assert document["date"].startswith(year)
        assert (document["dup_cluster_size"], document["dup_exact_copies"]) == (4, 4)


def test_drops_carry_estimate_and_threshold(tmp_path: Path) -> None:
    receipts = line(tmp_path, FILES, Dedup())
    drops = rows(receipts["curate"], "drops.parquet")
    assert {d["reason"] for d in drops} == {"dedup.exact", "dedup.minhash"}
    for drop in drops:
        if drop["reason"] == "dedup.minhash":
            assert 0.7 <= drop["value"] <= 1
            assert drop["threshold"] == 0.7
        else:
            assert drop["value"] is drop["threshold"] is None
        assert drop["url"]
        assert drop["warc_length"] == 900


def test_quality_scores_drop_survivors_only(tmp_path: Path) -> None:
    good = ["theorem proof lemma", "history of the empire", "the cell and its membrane", "a river in the valley"]
    bad = ["buy now cheap", "click here to win", "casino bonus free", "subscribe and like"]
    rng = random.Random(0)
    labels = tmp_path / "labels.jsonl"
    with labels.open("w") as f:
        for i in range(400):
            text = " ".join(rng.choice(good if i % 2 else bad) + f" {word(rng)}" for _ in range(8))
            f.write(json.dumps({"text": f"{text} {i}", "label": i % 2}) + "\n")
    model = tmp_path / "quality.bin"
    report = train_quality(labels, model, bucket=5000, epochs=10, lr=0.5)
    assert report["accuracy"] > 0.95
    pages = [
        {"text": " ".join(rng.choice(kind) + f" {word(rng)}" for _ in range(30))} for kind in [good] * 5 + [bad] * 5
    ]
    pages += [dict(pages[0]), dict(pages[5])]
    quality = {"model": str(model), "label": "hq", "sha256": report["sha256"], "min_score": 0.5}
    receipts = line(tmp_path / "run", {"a": pages[:7], "b": pages[7:]}, Dedup(), quality)
    assert sum(r.rows_in for r in receipts["curate.quality"]) == 12
    assert sum(r.rows_out for r in receipts["curate.quality"]) == 10
    assert all(r.drops is None for r in receipts["curate.quality"])
    total: dict[str, int] = {}
    for r in receipts["curate"]:
        for reason, count in (r.drops or {}).items():
            total[reason] = total.get(reason, 0) + count
    assert total == {"dedup.exact": 2, "quality.low_score": 5}
    documents = rows(receipts["curate"], "documents.parquet")
    assert len(documents) == 5
    assert all(d["quality"] >= 0.5 for d in documents)
    low = [d for d in rows(receipts["curate"], "drops.parquet") if d["reason"] == "quality.low_score"]
    assert all(d["value"] < 0.5 == d["threshold"] for d in low)
    # Another threshold, or the model elsewhere, scores nothing anew.
    moved = {**quality, "min_score": 0.9, "model": "/elsewhere.bin"}
    config = {"dedup": Dedup().model_dump()}
    ids = [[t.id for t in QualityScores({"quality": q, **config}).tasks(receipts)] for q in (quality, moved)]
    assert ids[0] == ids[1]
    off = line(tmp_path / "off", {"a": pages}, Dedup(exact=False, minhash=None), quality)
    assert off["curate"][0].drops == {"quality.low_score": 6}


def test_cluster_files_are_named_by_key() -> None:
    assert cluster_file("a/one.warc.gz") != cluster_file("a/two.warc.gz")
    assert cluster_file("x\ud800").endswith(".parquet")
