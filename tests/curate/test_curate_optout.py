"""Opt-out signals in headers and page heads, and which of them a recipe lets decide."""

from __future__ import annotations

import pytest

from gristmill.curate.headers import Headers
from gristmill.curate.optout import MAX_HEAD, refused, signals


def head(inner: str) -> bytes:
    return f"<!doctype html><html><head>{inner}</head><body>text</body></html>".encode()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([("X-Robots-Tag", "index, follow, max-snippet:-1")], None),
        (
            [("x-robots-tag", "NoIndex, noai , noimageai")],
            "x-robots-tag:noai,x-robots-tag:noimageai,x-robots-tag:noindex",
        ),
        (
            [("X-Robots-Tag", "noindex"), ("X-Robots-Tag", "CCBot: noai")],
            "x-robots-tag:ccbot:noai,x-robots-tag:noindex",
        ),
        ([("X-Robots-Tag", "unavailable_after: 25 Jun 2030 15:00:00 PST")], None),
        ([("X-Robots-Tag", "no ai, ;;, " + "x" * 50)], None),
        ([("TDM-Reservation", " 1 ")], "tdm-header"),
        ([("tdm-reservation", "0"), ("tdm-policy", "https://x/")], None),
    ],
)
def test_headers(headers: list[tuple[str, str]], expected: str | None) -> None:
    assert signals(Headers(headers), head("")) == expected


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ('<meta name="robots" content="noai, noimageai">', "meta:noai,meta:noimageai"),
        ("<META content='NoAI' NAME=Robots />", "meta:noai"),
        ("<meta name=robots content=noai>", "meta:noai"),
        ('<meta name="robots" content="index,follow">', None),
        (
            '<meta name="description" content="robots noai > <"><meta name="robots" content="noarchive">',
            "meta:noarchive",
        ),
        ('<meta name="GPTBot" content="noindex">', "meta:gptbot:noindex"),
        ('<meta name="tdm-reservation" content="1">', "tdm-meta"),
        ('<meta name="tdm-reservation" content="0">', None),
        ('<!-- <meta name="robots" content="noai"> -->', None),
        ('<!--><meta name="robots" content="noai"><!-- -->', "meta:noai"),
        ('<!-- <body> --><meta name="robots" content="noai">', "meta:noai"),
        ('<script>var a = \'<meta name="robots" content="noai">\'</script>', None),
        ('<meta property="og:x" content="a"><meta name="robots" content="no&#97;i">', "meta:noai"),
    ],
)
def test_meta_elements(inner: str, expected: str | None) -> None:
    assert signals(Headers(), head(inner)) == expected


def test_only_the_head_is_searched() -> None:
    element = b'<meta name="robots" content="noai">'
    assert signals(Headers(), b"<html><body><p>" + element + b"</p></body>") is None
    assert signals(Headers(), element + b"<p>no head at all") == "meta:noai"
    assert signals(Headers(), b" " * MAX_HEAD + element) is None
    assert signals(Headers(), head(element.decode()).decode().encode("utf-16")) == "meta:noai"


@pytest.mark.parametrize(
    "unit", ['<meta "', "<meta '", "<!--", "<script>", "<meta a=", "<meta name=robots content=", "<"]
)
def test_a_hostile_head_takes_bounded_time(unit: str) -> None:
    page = b"<meta robots" + (unit * MAX_HEAD).encode()[: 2 * MAX_HEAD]
    signals(Headers(), page)


@pytest.mark.parametrize(
    ("optout", "reason"),
    [
        ("meta:noai,x-robots-tag:noai,tdm-meta", "optout.x_robots_tag"),
        ("meta:noai,tdm-meta", "optout.meta"),
        ("tdm-header", "optout.tdm"),
        ("meta:noindex,x-robots-tag:noarchive", None),
        ("x-robots-tag:ccbot:noai", "optout.x_robots_tag"),
        ("meta:otherbot:noai", None),
    ],
)
def test_what_a_recipe_lets_decide(optout: str, reason: str | None) -> None:
    assert refused(optout, ["noai"], ["noai"], True, ["CCBot", "*"]) == reason
    assert refused(optout, [], [], False, ["CCBot"]) is None
