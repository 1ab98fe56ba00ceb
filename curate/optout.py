"""Signals by which a page or its server opts out of use, measured when the page is read; `curate.decide` weighs them.

| signal | where it stood |
|---|---|
| `x-robots-tag:TOKEN`, `x-robots-tag:AGENT:TOKEN` | the HTTP header X-Robots-Tag, for all crawlers or the named one |
| `meta:TOKEN`, `meta:AGENT:TOKEN` | `<meta name="robots">`, or `<meta name="AGENT">` where the name ends in `bot` |
| `tdm-header`, `tdm-meta` | `tdm-reservation: 1` as a header or a meta element (W3C TDM Reservation Protocol) |

Every robots token but `index`, `follow`, `all` and those with a value is kept, so that a recipe may weigh others than
`noai` without reading a page again. A reservation in either place counts: whoever made one meant it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import unescape
from itertools import islice

from gristmill.curate.headers import Headers

MAX_HEAD = 64 << 10
"""Bytes of a page that are searched for meta elements."""
MAX_SIGNALS = 32
MAX_VALUE = 2000
MAX_META = 256
"""Meta elements of one page that are read: pages have some 20, and the bound keeps a hostile one's time linear."""
_QUIET = frozenset({"index", "follow", "all"})
_TOKEN = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_AGENT = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]{0,63})\s*:\s*(.*)", re.DOTALL)
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_MARK = re.compile(rb"<(?:!--|script\b|style\b|noscript\b|/head\b|body\b)")
_META = re.compile(rb"<meta\b")
_NAMED = re.compile(rb"name\s{0,9}=\s{0,9}[\"']?\s{0,9}(?:robots|tdm-reservation|[a-z][a-z0-9_-]{0,28}bot)\b")
"""What any element of interest has: a page without one ends with this search."""
_REST = re.compile(rb"((?:[^<>\"']++|\"[^\"]*+\"|'[^']*+')*+)>")
_ATTRIBUTE = re.compile(r"""([a-zA-Z:_-]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)""")


def signals(headers: Headers, html: bytes) -> str | None:
    """The signals of one page, sorted and joined by commas, or None when there are none. Memory and time are bounded."""
    found: set[str] = set()
    if "X-Robots-Tag" in headers:
        for value in headers.get_all("X-Robots-Tag"):
            found.update(_header_tokens(value))
    if headers.get("tdm-reservation").strip() == "1":
        found.add("tdm-header")
    found.update(_meta_signals(html))
    return ",".join(sorted(found)[:MAX_SIGNALS]) or None


def refused(
    optout: str, x_robots_tag: Iterable[str], meta: Iterable[str], tdm: bool, agents: Sequence[str] = ()
) -> str | None:
    """The reason to drop a page with these signals, or None. Tokens for one agent count where `agents` names it."""
    heard: Mapping[str, set[str]] = {"x-robots-tag": set(), "meta": set()}
    named = {agent.lower() for agent in agents}
    reserved = False
    for signal in optout.split(","):
        kind, *rest = signal.split(":")
        if kind in heard and (len(rest) == 1 or (len(rest) == 2 and rest[0] in named)):
            heard[kind].add(rest[-1])
        reserved |= kind in ("tdm-header", "tdm-meta")
    if not heard["x-robots-tag"].isdisjoint(x_robots_tag):
        return "optout.x_robots_tag"
    if not heard["meta"].isdisjoint(meta):
        return "optout.meta"
    return "optout.tdm" if reserved and tdm else None


def _header_tokens(value: str) -> Iterable[str]:
    """`noindex, noai` for all; `ccbot: noai` for one: the agent holds for the rest of that header's value."""
    match = _AGENT.match(value)
    agent = ""
    if match and match[1].lower() not in _VALUED:
        agent, value = match[1].lower() + ":", match[2]
    return (f"x-robots-tag:{agent}{token}" for token in _tokens(value))


def _tokens(value: str) -> list[str]:
    words = [word.strip().lower() for word in value[:MAX_VALUE].split(",")]
    return [word for word in words if word not in _QUIET and _TOKEN.fullmatch(word)]


def _meta_signals(html: bytes) -> set[str]:
    head = html[:MAX_HEAD]
    if b"\0" in head[:64]:  # UTF-16 or UTF-32: markup is ASCII between zeros
        head = head.replace(b"\0", b"")
    head = head.lower()  # names and tokens compare without case
    if _NAMED.search(head) is None:
        return set()
    head = _visible(head)
    found: set[str] = set()
    for start in islice(_META.finditer(head), MAX_META):
        match = _REST.match(head, start.end())
        if match is None:
            continue
        text = match[1].decode("latin-1")  # names and tokens are ASCII in every charset that declares itself in ASCII
        attributes = {name.lower(): unescape(value.strip("\"'")).strip() for name, value in _ATTRIBUTE.findall(text)}
        name, content = attributes.get("name", ""), attributes.get("content", "")
        if name == "tdm-reservation" and content == "1":
            found.add("tdm-meta")
        elif name == "robots":
            found.update(f"meta:{token}" for token in _tokens(content))
        elif name.endswith("bot") and _TOKEN.fullmatch(name):
            found.update(f"meta:{name}:{token}" for token in _tokens(content))
    return found


def _visible(head: bytes) -> bytes:
    """The head up to its end or the body's begin, without comments, scripts and styles; one that isn't closed hides all."""
    parts, at = [], 0
    while (mark := _MARK.search(head, at)) is not None:
        parts.append(head[at : mark.start()])
        if mark[0] in (b"</head", b"<body"):
            return b"".join(parts)
        comment = mark[0] == b"<!--"
        closing = b"-->" if comment else b"</" + mark[0][1:]
        end = head.find(closing, mark.end() - 2 * comment)  # `<!-->` is a whole one
        at = end + len(closing) if end >= 0 else len(head)
    return b"".join([*parts, head[at:]])
