"""Registered domains and full names: tldextract's own answers, on seeded hosts around every kind of rule of its list."""

from __future__ import annotations

import contextlib
import random

import pytest

from gristmill.curate.public_suffix import _rules, host_of, split_host

LETTERS = "htp:/.@[]?#%-_\u3002\uff0e\uff61é日\ud800\x00 xn--a1*!"
LABELS = ["a", "", "www", "*", "!www", "city", "xn--p1ai", "é", "EX", "-", "xn--", "xn--a"]
BEFORE = ["", "http://", "https://", "HTTP://u:p@", "//", "a b://", "://", "ftp://u@v@"]
AFTER = ["", "/", ".", ":80", "?q", "#f", "/@b.com", "\u3002", " ", "\\x"]


def addresses() -> list[str]:
    """20,000 hosts that end in a rule, its upper case or its ASCII form, in all sorts of URLs, and 10,000 of noise."""
    rng = random.Random(1)
    rules, tails = _rules()
    special, ends = sorted(rule for rule in rules if rule[0] in "*!"), sorted(tails)
    found = [f"http://{rule.lstrip('!').replace('*', name)}/" for rule in special for name in ("a", "b.a", "*", "www")]
    for _ in range(20_000):
        end = rng.choice(special if rng.random() < 0.2 else ends)
        host = ".".join([*rng.choices(LABELS, k=rng.randrange(4)), end.lstrip("*!.")])
        if rng.random() < 0.3:
            host = host.upper()
        if rng.random() < 0.2:
            with contextlib.suppress(UnicodeError):
                host = host.encode("idna").decode()
        found.append(rng.choice(BEFORE) + host + rng.choice(AFTER))
    for _ in range(10_000):
        found.append(rng.choice(BEFORE) + "".join(rng.choices(LETTERS, k=rng.randrange(20))))
    return [
        *found,
        "http://127.0.0.1/",
        "http://[::1]:80/",
        "http://[::1.com",
        "[a.com].org",
        "localhost",
        "",
        ".",
        "[",
        "]",
    ]


def test_answers_are_those_of_tldextract() -> None:
    from tldextract import TLDExtract

    theirs = TLDExtract(cache_dir=None, suffix_list_urls=())
    urls = addresses()
    wanted = [(found.top_domain_under_public_suffix, found.fqdn) for found in map(theirs, urls)]
    assert [split_host(host_of(url)) for url in urls] == wanted
    assert sum(registered != "" for registered, _ in wanted) > 9_000
    assert sum(registered == "" for registered, _ in wanted) > 5_000


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("https://a.b.co.uk/x", ("b.co.uk", "a.b.co.uk")),
        ("http://co.uk/", ("", "")),
        ("http://user@X.Example.COM:8080", ("Example.COM", "X.Example.COM")),
        ("http://www.ck/", ("www.ck", "www.ck")),  # the exception of *.ck
        ("http://a.b.ck/", ("a.b.ck", "a.b.ck")),
        ("http://b.ck/", ("", "")),
        ("http://me.github.io/", ("github.io", "me.github.io")),  # a private suffix does not count
        ("http://10.0.0.1/", ("", "")),
    ],
)
def test_by_hand(url: str, answer: tuple[str, str]) -> None:
    assert split_host(host_of(url)) == answer
