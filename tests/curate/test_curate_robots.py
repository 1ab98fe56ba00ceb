"""robots.txt by RFC 9309: longest match, groups, wildcards, encoding; beside what the standard library would have said."""

from __future__ import annotations

import random
import re
import urllib.robotparser

import pytest

from gristmill.curate.robots import MAX_CHARS, Robots, matches, normal_path

# The example of RFC 9309, section 5.2: the longest rule decides, not the first.
LONGEST = """
User-Agent: foobot
Allow: /example/page/
Disallow: /example/page/disallowed.gif
"""


@pytest.mark.parametrize(
    ("text", "agent", "path", "allowed"),
    [
        (LONGEST, "foobot", "/example/page/disallowed.gif", False),
        (LONGEST, "FooBot", "/example/page/", True),
        (LONGEST, "barbot", "/example/page/disallowed.gif", True),
        ("User-agent: a\nUser-agent: b\nDisallow: /x\n", "a", "/x", False),
        ("User-agent: a\nDisallow: /x\nUser-agent: b\nDisallow: /y\n", "a", "/y", True),
        ("User-agent: a\nDisallow: /x\n\nUser-agent: *\nDisallow: /\n\nUser-agent: a\nDisallow: /y", "a", "/y", False),
        ("User-agent: a\nDisallow: /x\n\nUser-agent: *\nDisallow: /\n", "a", "/z", True),
        ("User-agent: a\nDisallow: /x\n\nUser-agent: *\nDisallow: /\n", "c", "/z", False),
        ("User-agent: a\nSitemap: http://s/\nUser-agent: b\nDisallow: /\n", "a", "/", False),
        ("User-agent: a\nCrawl-delay: 3\nUser-agent: b\nDisallow: /\n", "a", "/", False),
        ("User-agent: a\nDisallow:\n", "a", "/x", True),
        ("Disallow: /\n", "a", "/x", True),  # rules before any agent are nobody's
        ("User-agent: *\nDisallow: /\nAllow: /", "a", "/x", True),  # equal length: allow
        ("User-agent: *\nAllow: /p\nDisallow: /", "a", "/page", True),
        ("User-agent: *\nDisallow: /*.php$", "a", "/d/index.php", False),
        ("User-agent: *\nDisallow: /*.php$", "a", "/d/index.php?q", True),
        ("User-agent: *\nDisallow: /*.php", "a", "/d/index.php?q", False),
        ("User-agent: *\nDisallow: /$", "a", "/", False),
        ("User-agent: *\nDisallow: /$", "a", "/a", True),
        ("User-agent: *\nDisallow: /fish*", "a", "/fishheads", False),
        ("User-agent: *\nDisallow: /Fish", "a", "/fish", True),
        ("User-agent: *\nDisallow: /a?x=", "a", "/a?x=1", False),
        ("User-agent: *\nDisallow: /", "a", "/robots.txt", True),
        ("User-agent: *\nDisallow: /ä", "a", "/%C3%A4x", False),
        ("User-agent: *\nDisallow: /%c3%a4", "a", "/äx", False),
        ("User-agent: *\nDisallow: /%7Ejoe", "a", "/~joe/", False),
        ("User-agent: *\nDisallow: /a%2fb", "a", "/a/b", True),
        ("User-agent: *\nDisallow: /a%2fb", "a", "/a%2Fb", False),
        ("user-agent : GPTBot/1.1 (+https://x)\r\ndisallow : / # all\r\n", "gptbot", "/x", False),
        ("User-agent: GPTBot-User\nDisallow: /", "gptbot", "/x", True),
        ("User-agent: * # everyone\nDisallow: /", "a", "/x", False),
        ("\ufeffUser-agent: *\nDisallow: /", "a", "/x", False),
        ("User-agent: *\rDisallow: /", "a", "/x", False),
        ("<html><title>404: not found</title></html>", "a", "/x", True),
        ("", "a", "/x", True),
    ],
)
def test_rules(text: str, agent: str, path: str, allowed: bool) -> None:
    assert Robots.parse(text).allows(agent, path) is allowed


def test_the_standard_library_would_have_been_wrong() -> None:
    parser = urllib.robotparser.RobotFileParser()
    parser.parse(LONGEST.splitlines())
    assert parser.can_fetch("foobot", "/example/page/disallowed.gif")  # it stops at the first rule
    assert not Robots.parse(LONGEST).allows("foobot", "/example/page/disallowed.gif")


def test_patterns_against_a_regular_expression() -> None:
    rng = random.Random(3)
    seen = set()
    for _ in range(20_000):
        pattern = "/" + "".join(rng.choice("ab*/") for _ in range(rng.randrange(6))) + rng.choice(["", "$"])
        path = "/" + "".join(rng.choice("ab/") for _ in range(rng.randrange(7)))
        body = ".*".join(map(re.escape, pattern.removesuffix("$").split("*")))
        expected = re.match(body + (r"\Z" if pattern.endswith("$") else ""), path) is not None
        assert matches(pattern, path) is expected, (pattern, path)
        seen.add((pattern.endswith("$"), "*" in pattern, expected))
    assert len(seen) == 8


def test_encoding_is_normalised_once() -> None:
    assert normal_path("/%7e%41%2f%zz%é") == "/~A%2F%zz%%C3%A9"
    assert normal_path("/a\ud800") == "/a%ED%A0%80"


def test_a_hostile_file_takes_bounded_time() -> None:
    long = "User-agent: *\n" + "Disallow: /" + "*a" * 4000 + "b\n" * 2 + ("Disallow: /" + "*a" * 40 + "$\n") * 5000
    robots = Robots.parse(long + "x" * (2 * MAX_CHARS))
    assert robots.allows("bot", "/" + "a" * 30 + "c")
