"""Decontamination: planted test items are found and named, their training cousins are not, and action decides who goes."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from curated_files import Page, advance, prose, upstream
from data_helper import shared_data

from gristmill.core.errors import FormatError, GristmillError, UsageError
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt
from gristmill.curate.clusters import Clusters
from gristmill.curate.contamination import MAX_SHARED, Index, WordHashes, grams, words_of
from gristmill.curate.contamination_stage import Contamination, benchmark_files
from gristmill.curate.curated import Curated
from gristmill.curate.schema import Decontaminate, Dedup
from gristmill.curate.signatures import Signatures

QUESTION = prose(900, 30)
SHORT = "Which of these nine words is of the ninth kind?"


def bench(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def settings(*paths: Path | str, **more: Any) -> Decontaminate:
    return Decontaminate.model_validate({"benchmarks": [str(p) for p in paths], **more})


def index(path: Path, **more: Any) -> Index:
    return Index([(path.name.partition(".")[0], path)], settings(path, **more))


def test_what_counts_as_the_same_words(tmp_path: Path) -> None:
    found = index(
        bench(tmp_path / "b.jsonl.gz", {"id": 7, "question": QUESTION, "answer": "4"}, {"id": 8, "question": SHORT})
    )
    shouted = QUESTION.upper().replace(" ", " —\n").replace(".", "!")
    texts = ["", shouted, prose(1) + QUESTION + prose(2), SHORT[:-5], f"He asked: “{SHORT}”", prose(3)]
    matches = list(found.find(texts, 0.5))
    assert [[m.item for m in ms] for ms in matches] == [[], ["7"], ["7"], [], ["8"], []]
    assert matches[1][0].overlap == 1
    assert matches[1][0].quote == " ".join(words_of(QUESTION)[:13])
    assert matches[4][0].grams == 1
    assert found.skipped == {"b": 1}  # the answer "4"


def test_overlap_is_the_share_of_distinct_grams(tmp_path: Path) -> None:
    found = index(bench(tmp_path / "b.jsonl.gz", {"question": QUESTION}))
    words = QUESTION.split()
    half = " ".join(words[:21])  # 9 of 18 grams
    assert [m.overlap for (m,) in found.find([half, half + " x " + half], 0.5)] == [0.5, 0.5]
    assert [m.item for (m,) in found.find([half], 0.5)] == ["line 1"]
    assert list(found.find([" ".join(words[:20])], 0.5)) == [[]]
    assert [ms[0].matched for ms in found.find([" ".join(words[:20])], 0.01)] == [8]


def test_no_gram_spans_two_documents_of_a_batch(tmp_path: Path) -> None:
    found = index(bench(tmp_path / "b.jsonl.gz", {"question": SHORT}))
    words = SHORT.split()
    for cut in range(1, len(words)):
        texts = [" ".join(words[:cut]), " ".join(words[cut:])]
        assert list(found.find(texts, 0.5)) == [[], []]
        assert [len(ms) for ms in found.find([*texts, " ".join(words)], 0.5)] == [0, 0, 1]


def test_grams_against_a_plain_count() -> None:
    rng = random.Random(2)
    words = [rng.choice("abcd") for _ in range(400)]
    hashes = WordHashes().of(words)
    for width in (1, 2, 3, 7):
        runs = [tuple(words[i : i + width]) for i in range(len(words) - width + 1)]
        got = grams(hashes, width).tolist()
        assert len(set(zip(runs, got, strict=True))) == len(set(runs)) == len(set(got))
    assert len(grams(hashes[:3], 4)) == 0
    assert not set(grams(hashes, 2).tolist()) & set(grams(hashes, 3).tolist())


def test_a_batch_decides_nothing(tmp_path: Path) -> None:
    rows = [{"id": i, "question": prose(i, 15 + i % 9)} for i in range(60)]
    found = index(bench(tmp_path / "b.jsonl.gz", *rows))
    texts = [prose(1000 + i) + str(rows[i]["question"]) * (i % 3) for i in range(60)]
    whole = list(found.find(texts, 0.3))
    assert [ms for text in texts for ms in found.find([text], 0.3)] == whole
    assert [bool(ms) for ms in whole] == [i % 3 > 0 for i in range(60)]


def test_templates_tell_nothing(tmp_path: Path) -> None:
    rows = [{"id": i, "question": f"{SHORT} {i} is here"} for i in range(MAX_SHARED + 1)]
    found = index(bench(tmp_path / "b.jsonl.gz", *rows), ngram=9)
    assert list(found.find([SHORT], 0.01)) == [[]]
    assert [ms[0].item for ms in found.find([str(rows[5]["question"])], 0.5)] == ["5"]


def test_faulty_benchmarks_say_where(tmp_path: Path) -> None:
    path = bench(tmp_path / "b.jsonl.gz", {"question": "x"}, {"prompt": "y"})
    with pytest.raises(FormatError, match=r"b.jsonl.gz:2: none of the fields question, answer") as caught:
        index(path)
    assert "prompt" in str(caught.value.hint)
    assert index(path, fields=["prompt", "question"]).skipped == {"b": 2}
    with pytest.raises(UsageError, match="no benchmark file"):
        benchmark_files(settings(tmp_path / "*.parquet"))
    (tmp_path / "b.other.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="both name the benchmark 'b'"):
        benchmark_files(settings(tmp_path / "b.*"))


def line(root: Path, pages: list[Page], chosen: Decontaminate) -> dict[str, list[Receipt]]:
    receipts = upstream(root, {"f": pages})
    config: dict[str, Any] = {"dedup": Dedup(minhash=None).model_dump(), "decontaminate": chosen.model_dump()}
    advance(root, Signatures(config), receipts)
    advance(root, Clusters(config), receipts)
    advance(root, Contamination(config), receipts)
    final = {**config, "decontaminate": {"action": chosen.action, "min_overlap": chosen.min_overlap}}
    advance(root, Curated({**final, "quality": None}), receipts)
    return receipts


def test_the_stages_drop_or_report(tmp_path: Path) -> None:
    path = bench(
        tmp_path / "exam.jsonl.gz", {"id": "e1", "question": QUESTION}, {"id": "e2", "question": prose(901, 20)}
    )
    planted = prose(5) + QUESTION
    pages: list[Page] = [
        {"text": prose(4)},
        {"text": planted},
        {"text": planted},  # an exact copy goes as such
        {"text": planted + "x", "reason": "gopher.too_few_words"},
        {"text": "menu " + QUESTION, "c4": prose(6)},  # the final text holds none
        {"text": QUESTION + prose(901, 20)},
    ]
    receipts = line(tmp_path, pages, settings(path))
    rows = pq.read_table(receipts["curate.contamination"][0].output("contamination.parquet").path).to_pylist()
    assert [(r["rank"], r["benchmark"], r["item"], r["matched"], r["grams"], r["overlap"]) for r in rows] == [
        (0, "exam", "e1", 18, 18, 1.0),
        (0, "exam", "e1", 18, 18, 1.0),
        (1, "exam", "e2", 8, 8, 1.0),
    ]
    assert receipts["curate.contamination"][0].notes == {"contamination.exam": 2}
    curated = receipts["curate"][0]
    assert curated.drops == {"dedup.exact": 1, "decontaminate.exam": 2}
    drops = pq.read_table(curated.output("drops.parquet").path).to_pylist()
    assert [(d["value"], d["threshold"]) for d in drops if d["reason"] == "decontaminate.exam"] == [(1.0, 0.5)] * 2
    told = line(tmp_path, pages, settings(path, action="report"))
    assert told["curate.contamination"][0].task == receipts["curate.contamination"][0].task
    assert told["curate"][0].drops == {"dedup.exact": 1}


def test_a_task_knows_benchmarks_by_content(tmp_path: Path) -> None:
    path = bench(tmp_path / "b.jsonl.gz", {"question": QUESTION})
    stage = Contamination({"decontaminate": settings(path).model_dump(), "dedup": False})
    receipts = upstream(tmp_path, {"f": [{"text": QUESTION}]})
    (task,) = stage.tasks(receipts)
    assert str(tmp_path) not in str(task.config)
    bench(path, {"question": prose(7, 40)})
    assert stage.tasks(receipts)[0].id != task.id
    with pytest.raises(GristmillError, match="changed since"):
        run_task(stage, task, tmp_path)


def math_texts() -> list[str]:
    import zstandard

    raw = zstandard.ZstdDecompressor().stream_reader(shared_data("text/math.jsonl.zst").read_bytes())
    return [json.loads(line)["text"] for line in io.TextIOWrapper(raw, "utf-8")]


def test_gsm8k_train_stays_and_every_planted_test_item_goes() -> None:
    folder = shared_data("bench")
    chosen = settings(folder / "*.jsonl.gz")
    found = Index(benchmark_files(chosen), chosen)
    train = math_texts()
    assert len(train) > 2000
    assert not any(found.find(train, chosen.min_overlap))
    assert (
        sum(bool(ms) for ms in found.find(train, 0.01)) > 0
    )  # the near misses share n-grams, so the threshold is needed
    with gzip.open(folder / "gsm8k.jsonl.gz", "rt") as file:
        items = [json.loads(line) for line in file]
    rng = np.random.default_rng(0)
    missed = []
    for item in items:
        host = train[int(rng.integers(len(train)))]
        (matches,) = found.find([f"{host}\n\nQ: {item['question']}\n\n{host}"], chosen.min_overlap)
        if item["id"] not in [m.item for m in matches]:
            missed.append(item)
    assert [i["question"] for i in missed if len(words_of(i["question"])) >= chosen.min_words] == []
