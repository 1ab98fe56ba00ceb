"""Text without a parser: what it takes, what it leaves out, and that no page takes it long."""

from __future__ import annotations

import pytest

from gristmill.curate.quick_text import MAX_CHARS, body_start, body_text, html_lang, paragraphs

LONG = "A paragraph of more than sixty characters, as those of articles mostly are."


def test_paragraphs() -> None:
    html = f"""<head><p>{LONG} head</head><body class="a"><P id=x>{LONG} <b>bold</b>&amp;more</P><p>short</p>
    <pre>{LONG} pre</pre><p>{LONG} two<p>{LONG} three</div></p>"""
    assert paragraphs(html, body_start(html)) == f"{LONG} bold&more {LONG} two {LONG} three"
    assert paragraphs("<p>" + LONG) == LONG
    assert paragraphs("no markup at all " * 9) == paragraphs("") == paragraphs("<p" + LONG) == ""


def test_body() -> None:
    html = f"""<html><head><title>{LONG}</title></head><body><nav>Home</nav><script>var a = "<b>{LONG}</b>";</script>
    <div>{LONG} one</div><!-- {LONG} <i>{LONG}</i> --><STYLE>p &gt; b {{ content: "{LONG}" }}</STYLE>
    <noscript>{LONG}</noscript><td>&Auml;rger   mit\nUmlauten</td><svg><text>{LONG}</text></svg><p>{LONG} two</p>"""
    assert body_text(html, body_start(html)) == f"{LONG} one Ärger mit Umlauten {LONG} two"
    assert body_text("") == body_text("<p>") == ""


def test_a_long_body_is_read_from_first_to_last() -> None:
    html = "".join(f"<p>piece number {i:05d}</p>" for i in range(5_000))
    text = body_text(html)
    assert text.startswith("piece number 00000")
    assert "piece number 049" in text
    assert len(text) <= MAX_CHARS + 100
    assert len(body_text("<p>" + "word " * 100_000)) <= MAX_CHARS


def test_where_a_body_begins() -> None:
    assert body_start("<html><head></head ><div>") == 12
    assert body_start("<BODY\n>") == 0
    assert body_start("x<body>") == 1
    assert body_start("<bodyguard>") == 0


@pytest.mark.parametrize(
    ("tag", "lang"),
    [
        ('<!DOCTYPE html><HTML class="x" LANG="en-GB">', "en"),
        ("<html lang=de>", "de"),
        ("<html xml:lang='zh_Hans'>", "zh"),
        ('<html lang = " fil">', None),
        ("<html>", None),
        ('<html lang="english">', None),
        ('<htmlx lang="en">', None),
        ('<html><body lang="en">', None),
        (" " * 3_000 + '<html lang="en">', None),
    ],
)
def test_what_the_html_tag_names(tag: str, lang: str | None) -> None:
    assert html_lang(tag) == lang


@pytest.mark.parametrize(
    "piece",
    [
        "<p ",
        "<p>",
        "<p><",
        "<script>",
        "<script",
        "<!--",
        "<!-->",
        "<",
        ">",
        "<>",
        "</head ",
        "<body",
        "&#1",
        "<p>&lt;<!",
        "<html lang",
    ],
)
def test_hostile_pages_take_linear_time(piece: str) -> None:
    """Two megabytes each; a search that went over the rest again from every place would take minutes."""
    html = piece * (2_000_000 // len(piece))
    start = body_start(html)
    assert len(paragraphs(html, start)) <= 2 * MAX_CHARS
    assert len(body_text(html, start)) <= 2 * MAX_CHARS
    assert html_lang(html) is None
