"""A page's title, date, language and canonical address: where they stand, what is not believed, hostile heads."""

from __future__ import annotations

import gzip
import json
import random

import pytest
from data_helper import shared_data

from gristmill.curate import page_head
from gristmill.curate.extract import page_text
from gristmill.curate.page_head import Facts, absolute, iso_date, page_facts
from gristmill.curate.schema import Extract

HEAD = """<!DOCTYPE html><!-- <title>no</title> --><HTML class="x" LANG='en-GB'><head>
<script>var a = "<title>not this</title>";</script><style>/* <meta name=date content=2001-01-01> */</style>
<META content="2019-05-04T23:59:00+02:00" property="article:published_time"><title lang=en>
 Salt &amp;
 pepper</title><link rel="alternate" href="http://a.example/feed"><link href=' https://a.example/p?a=1&amp;b=2 ' rel="nofollow Canonical">
</head><body><svg><title>late</title></svg></body></html>"""


def test_all_of_a_head() -> None:
    assert page_facts(HEAD) == Facts("Salt & pepper", "2019-05-04", "en-gb", "https://a.example/p?a=1&b=2")


def test_a_page_that_says_nothing() -> None:
    for html in ("", "words", "<html><head></head><body><title>x</title></body></html>", "<html lang><title></title>"):
        assert page_facts(html) == Facts()
        assert page_facts(html).as_dict() == {}


def test_no_name_that_counts_is_passed_over() -> None:
    assert all(page_head._SAYS["meta"].search(name) for name in (*page_head._PUBLISHED, "og:title"))


@pytest.mark.parametrize(
    ("head", "day"),
    [
        ('<meta name="date" content="2001-02-03"><meta property="article:published_time" content="2002-02-03">', "2002-02-03"),
        ('<meta itemprop="datePublished" content="2002-02-03"><meta name=date content=2001-02-03>', "2002-02-03"),
        ('<meta name="article:published_time" content="soon"><meta name="dc.date" content="20240229">', "2024-02-29"),
        ('<script type="application/ld+json">{"datePublished" : "2020-06-01T10:00:00Z"}</script>', "2020-06-01"),
        ('<meta property="article:modified_time" content="2002-02-03">', None),
        ('<!-- <meta name=date content=2001-02-03> -->', None),
        ('<noscript><meta name=date content=2001-02-03></noscript>', None),
    ],
)  # fmt: skip
def test_dates(head: str, day: str | None) -> None:
    assert page_facts(f"<html><head>{head}</head><body></body></html>").published == day


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2024-03-12", "2024-03-12"),
        (" 2024/3/2 10:00", "2024-03-02"),
        ("2024.03.12", "2024-03-12"),
        ("20240312T101500", "2024-03-12"),
        ("Tue, 12 Mar 2024 10:00:00 GMT", "2024-03-12"),
        ("Tuesday, March 12, 2024", "2024-03-12"),
        ("12 March 2024", "2024-03-12"),
        ("2024-02-30", None),
        ("2024-13-01", None),
        ("1970-01-01", None),
        ("0001-01-01", None),
        ("2024-03/12", None),
        ("12.03.2024", None),
        ("March 2024", None),
        ("٢٠٢٤-٠٣-١٢", None),
        ("", None),
    ],
)
def test_iso_date(text: str, day: str | None) -> None:
    assert iso_date(text) == day


def test_bounds() -> None:
    html = (
        f"<title>{'t' * 9_000}</title><link rel=canonical href='http://a.example/{'x' * 3_000}'><html lang={'e' * 50}>"
    )
    assert page_facts(html) == Facts(title="t" * page_head.MAX_TITLE)
    assert page_facts("<p>" * page_head.MAX_HEAD + "<title>late</title>").title is None
    assert page_facts("<title>a\0b\ud800&#xD800;&#0;</title>").title == "ab\ufffd\ufffd\ufffd"


@pytest.mark.parametrize("lang", ["en us", "{{lang}}", "1", "", "e"])
def test_what_is_no_language_tag(lang: str) -> None:
    assert page_facts(f'<html lang="{lang}">').html_lang is None


@pytest.mark.parametrize(
    ("canonical", "whole"),
    [
        ("/b?c", "https://a.example/b?c"),
        ("//b.example/", "https://b.example/"),
        ("http://b.example/x", "http://b.example/x"),
        ("//[x/", None),
    ],
)
def test_addresses_are_completed(canonical: str, whole: str | None) -> None:
    assert absolute(canonical, "https://a.example/p/q") == whole
    assert page_facts(f'<link rel="canonical" href="{canonical}">').canonical_url == canonical


@pytest.mark.parametrize("href", ["b/c", "javascript:alert(1)", "data:text/html,x", "", "#", "http://a.example/a b"])
def test_addresses_that_are_not_kept(href: str) -> None:
    assert page_facts(f'<link rel="canonical" href="{href}">').canonical_url is None


def test_it_can_be_switched_off() -> None:
    body = HEAD.replace("</body>", "<p>" + "Words of a page. " * 20 + "</p></body>").encode()
    assert page_text(body, "", Extract()).facts["html_lang"] == "en-gb"
    assert page_text(body, "", Extract(metadata=False)).facts == {}
    assert page_text(body, "", Extract()).text == page_text(body, "", Extract(metadata=False)).text


HOSTILE = {
    "open": "<", "metas": "<meta ", "quote": '<meta "', "half": "<meta content='", "comments": "<!--", "titles": "<title>",
    "scripts": "<script>", "pairs": "a=", "spaces": " ", "dates": '"datePublished" ', "empty": '""', "entities": "&amp;",
    "done": "<meta name=a content=b>", "closed": "<!---->", "links": "<link rel=canonical href=x>", "html": "<html lang=",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_time_is_linear(kind: str) -> None:
    """A square of 2 M characters would take hours."""
    for start in ("", "<meta ", "<title>"):
        page_facts(start + HOSTILE[kind] * (2_000_000 // len(HOSTILE[kind])))


def test_random_heads_never_raise() -> None:
    rng = random.Random(9)
    pieces = [
        *HOSTILE.values(),
        ">",
        "</title>",
        "-->",
        "<link rel=canonical href='//[",
        "'",
        "\0",
        "\ud800",
        "&#x110000;",
        "é",
    ]
    for _ in range(2_000):
        facts = page_facts("".join(rng.choice(pieces) for _ in range(rng.randrange(40))))
        for value in facts.as_dict().values():
            value.encode()


@pytest.mark.slow
def test_dates_of_real_pages() -> None:
    """Of the published dates that people noted for real pages, those that we tell are nearly all right."""
    from gristmill.curate.charset import decode_html
    from gristmill.curate.warc import Damage, Limits, Skip, open_warc, page_of, read_records

    noted: dict[str, str] = {}
    for name in ("dates", "snippets"):
        with gzip.open(shared_data(f"gold/{name}.jsonl.gz")) as f:
            noted |= {r["record_id"].strip("<>"): str(r["date"])[:10] for r in map(json.loads, f) if r.get("date")}
    told = right = 0
    for path in sorted(shared_data("warc/pages").glob("*.warc.gz")):
        with open_warc(str(path)) as stream:
            for record in read_records(stream, path.name, Limits()):
                page = None if isinstance(record, Damage) else page_of(record, Limits())
                if page is None or isinstance(page, Skip) or (key := page.record_id.strip("<>")) not in noted:
                    continue
                found = page_facts(decode_html(page.html, page.content_type)[0]).published
                told += found is not None
                right += found == noted[key]
    assert told > 0.4 * len(noted)
    assert right > 0.9 * told
