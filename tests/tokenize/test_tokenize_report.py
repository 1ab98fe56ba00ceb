"""`tokenizer report` and `compare` from the command line: JSON, page, gates, counts on the model mix, untrusted text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helper import shared_data

from gristmill.core.tokshards import (
    PROVENANCE_SCHEMA,
    TOKEN_DOC_SCHEMA,
    PackedManifest,
    PackedPhase,
    PackedShard,
    write_manifest,
    write_rows,
)
from gristmill.core.tokstore import StoreWriter
from gristmill.pipelines.cli.main import main
from gristmill.pipelines.report.tokenizer import short
from gristmill.tokenize.baselines import open_tokenizer
from gristmill.tokenize.report import FORMAT
from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.train import train_bpe
from gristmill.tokenize.vocabulary_report import script, suspicion

EVIL = "<script>alert(1)</script>"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["tokenizer", *map(str, argv)])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours/ and small/ (tokenizer.json), docs.parquet, aligned.jsonl, words.txt."""
    here = tmp_path_factory.mktemp("report")
    rng = random.Random(3)
    english = ["the", "old", "mill", "grinds", "corn", "and", "the", "river", "turns", "its", "wheel", "at", "night"]
    german = ["die", "alte", "Mühle", "mahlt", "Korn", "und", "der", "Fluss", "dreht", "nachts", "ihr", "Rad"]
    rows = []
    for n in range(60):
        language, words = ("en", english) if n % 3 else ("de", german)
        text = " ".join(rng.choices(words, k=50)) + f". {EVIL if n % 7 == 0 else ''}"
        url = f"https://www.site{n % 4}.co.uk/{n}"
        rows.append((f"id{n}", text, language, EVIL if n % 2 else "web", url))
    rows.append(("zh", "世界人权宣言世界人权宣言", "bo", "web", ""))
    names = ("id", "text", "language", "source", "url")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), here / "docs.parquet")
    for name, size in (("ours", 640), ("small", 384)):
        (here / name).mkdir()
        texts = [r[1] for r in rows] if name == "ours" else ["mill mill mill"]
        built = train_bpe(texts, Tokenizer(vocab_size=size, reserved=4))
        (here / name / "tokenizer.json").write_text(built.to_str())
    aligned = [("en", "the old mill grinds corn"), ("de", "die alte Mühle mahlt Korn"), (EVIL, "xyzxyzxyz" * 9)]
    (here / "aligned.jsonl").write_text(
        "".join(json.dumps({"lang": lang, "index": 1, "text": text}) + "\n" for lang, text in aligned)
    )
    (here / "words.txt").write_text("mill\nriver\nzzzz\nmill\n")
    return here


def test_report_json(place: Path, run: Run) -> None:
    code, out, _ = run(
        "report", place / "ours", place / "docs.parquet", "--baseline", f"base={place / 'small'}",
        "--aligned", place / "aligned.jsonl", "--words", f"en={place / 'words.txt'}", "--segmenter", "runs", "--domains", 3, "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found["format"] == FORMAT
    own, base = found["tokenizers"]
    assert (own["name"], base["name"]) == ("ours", "base")
    assert found["segmenters"] == {"bo": None, "de": "runs-1", "en": "runs-1"}
    assert own["languages"]["bo"]["fertility"] is None
    assert own["languages"]["bo"]["chars_per_token"] > 0
    assert own["languages"]["en"]["fertility"] < base["languages"]["en"]["fertility"]
    assert own["all"]["lossless"] == 1.0
    assert all(own["probes"].values())
    ratio = own["languages"]["de"]["tokens"] / base["languages"]["de"]["tokens"]
    assert own["nsl"]["base"]["languages"]["de"] == pytest.approx(ratio, abs=1e-6)
    assert (
        list(own["domains"]) == [*(f"site{i}.co.uk" for i in range(3)), "(other domains)"] or len(own["domains"]) == 4
    )
    assert sum(row["docs"] for row in own["domains"].values()) == 60  # one has no URL
    assert sum(row["bytes"] for row in own["sources"].values()) == own["all"]["bytes"] == found["documents"]["bytes"]
    assert own["strr"]["languages"]["en"] == {"words": 3, "strr": round(2 / 3, 6), "source": "list"}
    assert own["languages"]["de"]["premium"] == own["aligned"]["languages"]["de"]["premium"]
    assert own["aligned"]["worst"]["language"] == EVIL
    assert own["model_mix"] is None
    assert set(own["usage"]) >= {"unused", "under_trained", "examples"}
    assert sum(own["vocabulary"]["scripts"].values()) == own["vocab_size"] == own["vocabulary"]["ids"]
    assert found["best"]["en"]["bytes_per_token"] == "ours"


def test_the_same_whatever_the_order_of_files(place: Path, tmp_path: Path, run: Run) -> None:
    table = pq.read_table(place / "docs.parquet")
    pq.write_table(table.slice(30), tmp_path / "b.parquet", row_group_size=7)
    pq.write_table(table.slice(0, 30), tmp_path / "a.parquet")
    once = run("report", place / "ours", tmp_path / "a.parquet", tmp_path / "b.parquet", "--docs", 15, "--json")[1]
    again = run("report", place / "ours", tmp_path / "b.parquet", tmp_path / "a.parquet", "--docs", 15, "--json")[1]
    assert once == again
    assert json.loads(once)["documents"]["docs"] == 31


class Page(HTMLParser):
    """Counts tags and collects attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_self_contained_and_escaped(place: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "sweep": [
                    {
                        "vocab_size": v,
                        "metrics": {"bytes_per_token": 3 + v / 1e5, EVIL: 1.0, "fertility": None},
                        "languages": {"en": {"bytes_per_token": 3.0}},
                    }
                    for v in (16384, 32768)
                ]
            }
        )
    )
    code, out, err = run(
        "report", place / "ours", place / "docs.parquet", "--baseline", place / "small", "--aligned", place / "aligned.jsonl",
        "--sweep", tmp_path / "sweep.json", "--gate", "max_premium=2", "--html", tmp_path / "r.html",
    )  # fmt: skip
    assert code == 1
    assert "gate max_premium=2: BROKEN" in err
    assert EVIL in err
    assert "bytes/tok" in out
    raw = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(raw)
    assert "script" not in page.tags
    assert not {"img", "link", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in raw
    text = "".join(page.words)
    for heading in (
        "Gates", "By language", "Premium", "Vocabulary sizes", "Bytes per token by source", "Bytes per token by domain",
        "Rank and frequency", "Is the sample enough?", "The vocabulary by script", "Unused and under-trained ids", "Longest",
        "Suspicious",
    ):  # fmt: skip
        assert heading in text, heading
    assert EVIL in text
    assert page.tags.count("svg") >= 4
    rows = [r for r in re.findall(r"<tr>.*?</tr>", raw, re.S) if r.startswith("<tr><td>en<td")]
    assert len(rows[0].split("<td")) == 1 + 2 + 4 * 2  # language, segmenter, four metrics of two tokenizers


def test_gates_of_a_recipe(place: Path, tmp_path: Path, run: Run) -> None:
    recipe = tmp_path / "r.yaml"
    head = "gristmill: 1\ninput: {paths: [a.warc.gz]}\n"
    recipe.write_text(f"{head}tokenizer: {{gates: {{min_bytes_per_token: 99, min_lossless: 1}}}}\n")
    code, out, err = run("report", place / "ours", place / "docs.parquet", "--recipe", recipe, "--json")
    assert code == 1
    assert [(g["gate"], g["passed"]) for g in json.loads(out)["gates"]] == [
        ("min_bytes_per_token", False),
        ("min_lossless", True),
    ]
    assert re.search(r"en: [\d.]+ < 99", err)
    given = ("--recipe", recipe, "--gate", "min_bytes_per_token=1")
    assert run("report", place / "ours", place / "docs.parquet", *given)[0] == 0
    recipe.write_text(f"{head}tokenizer: {{}}\n")
    assert run("report", place / "ours", place / "docs.parquet", "--recipe", recipe)[0] == 2


def test_compare(place: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run(
        "compare", place / "ours", f"b={place / 'small'}", "--html", tmp_path / "c.html", "--", place / "docs.parquet"
    )
    assert code == 0
    assert re.search(r"^en +runs-1 +[\d.]+\* +[\d.]+ ", out, re.M)
    assert "NSL against ours" in out
    assert "Tokenizers compared" in (tmp_path / "c.html").read_text()
    assert run("compare", place / "ours", "--", place / "docs.parquet")[0] == 2
    assert run("compare", place / "ours", place / "ours", "--", place / "docs.parquet")[0] == 2  # two of one name


@pytest.mark.parametrize(
    "more",
    [
        ["--gate", "max_premium=2"],  # no aligned text
        ["--words", "en=none.txt"],
        ["--segmenter", "os"],
        ["--aligned", "ALIGNED", "--reference", "ja"],
        ["--baseline", "none.json"],
    ],
)
def test_bad_usage_is_exit_2(more: list[str], place: Path, run: Run) -> None:
    given = [str(place / "aligned.jsonl") if m == "ALIGNED" else m for m in more]
    code, out, err = run("report", place / "ours", place / "docs.parquet", *given)
    assert code == 2
    assert "error" in err.lower()
    assert not out


def stored(folder: Path, ids: np.ndarray, vocab_size: int) -> Path:
    folder.mkdir()
    given = {f.name: pa.nulls(1, f.type) for f in TOKEN_DOC_SCHEMA if f.name not in ("offset", "length")}
    with StoreWriter(folder / "tokens.bin", folder / "docs.parquet", vocab_size) as store:
        store.write([ids], pa.table(given))
    return folder


def packed(folder: Path, rows: np.ndarray, sha256: str, vocab_size: int, until: int | None = None) -> Path:
    (folder / "one").mkdir(parents=True)
    starts = [np.zeros(1, np.int32) for _ in rows]
    for i in range(0, len(rows), 2):
        write_rows(
            folder / "one" / f"{i // 2:05d}", rows[i : i + 2], starts[i : i + 2], PROVENANCE_SCHEMA.empty_table()
        )
    shards = [PackedShard(f"one/{i // 2:05d}.bin", len(rows[i : i + 2]), {}) for i in range(0, len(rows), 2)]
    phase = PackedPhase("one", rows.shape[1] - 1, len(rows), 1, 2, {}, {}, shards, until_rows=until)
    write_manifest(folder, PackedManifest("<u2", vocab_size, {}, sha256, 0, "", [phase], []))
    return folder


def test_unused_and_under_trained_on_the_model_mix(place: Path, tmp_path: Path, run: Run) -> None:
    ours = open_tokenizer(place / "ours")
    can = np.setdiff1d(np.arange(ours.vocab_size), ours.free_ids)
    often, seldom = can[:10], can[10:15]
    ids = np.concatenate([np.repeat(often, 60), np.repeat(seldom, 99), [int(ours.special_ids[0])] * 500]).astype("<u2")
    store = stored(tmp_path / "store", ids, ours.vocab_size)
    rows = np.repeat(often, 40)[:400].reshape(5, 80).astype("<u2")
    dataset = packed(tmp_path / "packed", rows, ours.sha256, ours.vocab_size)
    code, out, _ = run(
        "report", place / "ours", place / "docs.parquet", "--tokens", store, "--tokens", dataset, "--json"
    )  # fmt: skip
    use: dict[str, Any] = json.loads(out)["tokenizers"][0]["model_mix"]
    assert code == 0
    assert use["of"] == len(can)
    assert use["unused"] == len(can) - 15
    assert use["under_trained"] == len(can) - 10  # 60 + 40 is enough, 99 is not
    assert use["tokens"] == 600 + 5 * 99 + 400
    assert use["over"] == "store, packed"
    part = packed(tmp_path / "part", rows, ours.sha256, ours.vocab_size, until=3)
    out = run("report", place / "ours", place / "docs.parquet", "--tokens", part, "--json")[1]
    assert json.loads(out)["tokenizers"][0]["model_mix"]["tokens"] == 3 * 80
    other = packed(tmp_path / "other", rows, "f" * 64, ours.vocab_size)
    code, _, err = run("report", place / "ours", place / "docs.parquet", "--tokens", other)
    assert code == 2
    assert "another tokenizer" in err
    wide = stored(tmp_path / "wide", np.asarray([5000], "<u2"), 65_000)
    code, _, err = run("report", place / "ours", place / "docs.parquet", "--tokens", wide)
    assert code == 1
    assert "holds the id 5,000" in err
    assert run("report", place / "ours", place / "docs.parquet", "--tokens", tmp_path)[0] == 2


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" https://www", "url"),
        ("index.html", "url"),
        ("joe@example", "e-mail"),
        ("--------------", "repeated"),
        ("=-=-=-=-=-=-", "repeated"),
        ("deadbeef00112233", "hex"),
        ("aGVsbG8gd29ybGQ1", "base64"),
        ("a\x00", "control"),
        ("/Application", None),
        ("internationalisation", None),
        ("                ", None),
        ("\x00", None),
        ("...", None),
    ],
)
def test_suspicions(text: str, kind: str | None) -> None:
    assert suspicion(text) == kind


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" naïve", "Latin"),
        ("мир", "Cyrillic"),
        ("の世界", "Han"),
        (" 12", "digits"),
        ("  \n", "white space"),
        (" );", "punctuation and symbols"),
        ("ꦩꦤ", "other scripts"),
    ],
)
def test_scripts(text: str, name: str) -> None:
    assert script(text) == name


def test_long_repeats_are_counted() -> None:
    assert short(" " + "-" * 113) == "␣---…×113"
    assert short("x" * 5) == "xxxxx"
    assert len(short("".join(map(chr, range(65, 365))))) == 73


@pytest.mark.slow
def test_real_tokenizers_on_real_text(tmp_path: Path, run: Run) -> None:
    """The figures research prints: English near 1.1 to 1.6 in context, a premium for Hindi under GPT-2, NFC is lossy."""
    import io

    import zstandard

    rows: list[tuple[str, str, str]] = []
    count: dict[str, int] = {}
    for name in ("multi-docs", "en-prose"):
        with open(shared_data(f"text/{name}.jsonl.zst"), "rb") as f:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(f), encoding="utf-8"):
                row = json.loads(line)
                language = row.get("lang") or "en"
                count[language] = count.get(language, 0) + 1
                if count[language] <= 40:
                    rows.append((row["id"], row["text"], language))
    ids, text, language_column = zip(*rows, strict=True)
    pq.write_table(pa.table({"id": ids, "text": text, "language": language_column}), tmp_path / "d.parquet")
    folder = shared_data("tokenizers")
    code, out, _ = run(
        "report", folder / "gpt2-encoder.json.gz", tmp_path / "d.parquet", "--docs", 8, "--json",
        "--baseline", f"cl100k={folder / 'dolma2.tokenizer.json.gz'}", "--baseline", f"llama={folder / 'llama-test.tokenizer.json.gz'}",
        "--baseline", f"neox={folder / 'gpt-neox-olmo-dolma-v1_5.tokenizer.json.gz'}", "--segmenter", "runs",
    )  # fmt: skip
    assert code == 0
    found = {t["name"]: t for t in json.loads(out)["tokenizers"]}
    assert found["gpt2-encoder"]["vocab_size"] == 50_257
    for tokenizer in found.values():
        english = tokenizer["languages"]["en"]
        assert 1.0 < english["fertility"] < 1.6
        assert english["fertility_iso"] > english["fertility"]
        assert english["pcw"] < 0.33
        assert tokenizer["languages"]["zh"]["fertility"] is None
    assert found["gpt2-encoder"]["languages"]["hi"]["fertility"] > 2.5
    assert found["llama"]["kind"] == "byte-fallback"
    assert [n for n, ok in found["neox"]["probes"].items() if not ok] == ["NFD"]
    assert found["neox"]["all"]["lossless"] < 1
    assert all(found["cl100k"]["probes"].values())
    assert found["gpt2-encoder"]["nsl"]["cl100k"]["all"] > 1.2
