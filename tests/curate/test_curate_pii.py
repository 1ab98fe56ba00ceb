"""Addresses in texts: datatrove finds the same ones, what replaces them depends on nothing but the document, in linear time."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from curated_files import Page, advance, prose, upstream
from data_helper import shared_data

from gristmill.curate.curated import Curated
from gristmill.curate.pii import _kinds, clean, email_spans
from gristmill.curate.schema import Pii

TEXT = "Write to Jane.Doe+news@mail.example.net, or jane@x.co; servers 8.8.8.8, 10.0.0.1 and 8.8.8.8."


def test_what_is_replaced_and_what_is_not() -> None:
    mail, network = _kinds()
    done = clean(TEXT, "a" * 32)
    assert (done.emails, done.ips) == (2, 2)
    assert "10.0.0.1" in done.text  # private
    for gone in ("Jane", "jane@x.co", "8.8.8.8"):
        assert gone not in done.text
    words = done.text.split()
    assert words[2].rstrip(",") in mail.stand_ins
    assert words[4].rstrip(";") in mail.stand_ins
    assert words[6].rstrip(",") == words[9].rstrip(".")  # one address in a document stays one
    assert words[6].rstrip(",") in network.stand_ins


def test_stand_ins_depend_on_document_and_seed_alone() -> None:
    texts = {clean(TEXT, f"{i:032x}").text for i in range(50)}
    assert len(texts) > 5
    assert len({clean(TEXT, "b" * 32, seed=s).text for s in range(50)}) > 5
    assert clean(TEXT, "b" * 32) == clean(TEXT, "b" * 32)
    assert clean(TEXT, "b" * 32, emails=False, ips=False).text == TEXT
    assert clean(TEXT, "b" * 32, emails=False).emails == 0
    assert clean(TEXT, "b" * 32, ips=False).emails == 2


def theirs(text: str) -> tuple[str, int]:
    """datatrove's own formatter with every stand-in made equal, so that rotation can't differ; and how many it made."""
    from datatrove.pipeline.formatters.pii import PIIFormatter

    out = PIIFormatter(email_replacement="<mail>", ip_replacement="<ip>").format(text)
    return out, out.count("<mail>") + out.count("<ip>")


def ours(text: str) -> tuple[str, int]:
    mail, network = _kinds()
    for begin, end in reversed(email_spans(text, mail.pattern)):
        text = text[:begin] + "<mail>" + text[end:]
    for found in reversed([m for m in network.pattern.finditer(text) if network.valid and network.valid(m[0])]):
        text = text[: found.start()] + "<ip>" + text[found.end() :]
    return text, text.count("<mail>") + text.count("<ip>")


def test_spans_equal_the_patterns_own() -> None:
    pattern = _kinds()[0].pattern
    rng = random.Random(5)
    pieces = [
        "a",
        "b1",
        "é",
        ".",
        "..",
        "@",
        "-",
        "+",
        " ",
        "!",
        "x.org",
        "[1.2.3.4]",
        "]",
        "\n",
        "(",
        "a@b.co",
        "=",
        "%",
    ]
    found = 0
    for _ in range(30_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 14)))
        spans = [m.span() for m in pattern.finditer(text)]
        assert email_spans(text, pattern) == spans, text
        found += len(spans)
    assert found > 5_000


def test_the_same_addresses_as_datatrove_on_real_text() -> None:
    import zstandard

    total = 0
    for name in ("text/en-docs.jsonl.zst", "text/code.jsonl.zst"):
        data = zstandard.ZstdDecompressor().stream_reader(shared_data(name).read_bytes()).read()
        for line in data.splitlines():
            text = json.loads(line)["text"]
            done = clean(text, "c" * 32)
            expected, count = theirs(text)
            assert ours(text) == (expected, count)
            assert done.emails + done.ips == count
            total += count
    assert total > 50


@pytest.mark.parametrize("unit", ["a-", "a@", "a.", "@", "1.", "x" * 999 + "@", "!", "@[1.", "@a."])
def test_hostile_texts_take_linear_time(unit: str) -> None:
    text = (unit * 300_000)[:300_000] + "@b"
    clean(text, "d" * 32)


def test_the_stage_counts_and_rewrites(tmp_path: Path) -> None:
    pages: list[Page] = [
        {"text": TEXT},
        {"text": prose(1)},
        {"text": TEXT, "reason": "x.y"},
        {"text": "m", "c4": "q a@b.co"},
    ]
    receipts = upstream(tmp_path, {"f": pages})
    off = advance(tmp_path, Curated({"dedup": False}), receipts)[0]
    table = pq.read_table(off.output("documents.parquet").path)
    assert table["text"].to_pylist()[0] == TEXT
    assert table["pii_emails"].to_pylist() == [None] * 3
    stage = Curated({"dedup": False, "pii": Pii(seed=3).model_dump()})
    on = advance(tmp_path, stage, receipts)[0]
    assert on.task != off.task
    assert set(on.uses) == {"datatrove", "ipaddress", "unicode"}
    rows = pq.read_table(on.output("documents.parquet").path).to_pylist()
    assert [(r["pii_emails"], r["pii_ips"]) for r in rows] == [(2, 2), (0, 0), (1, 0)]
    assert rows[0]["text"] == clean(TEXT, rows[0]["id"], seed=3).text
    assert rows[1]["text"] == prose(1)
    assert "a@b.co" not in rows[2]["text"]
    some = advance(tmp_path, Curated({"dedup": False, "pii": {"ips": False}}), receipts)[0]
    assert pq.read_table(some.output("documents.parquet").path)["pii_ips"].to_pylist() == [None] * 3
