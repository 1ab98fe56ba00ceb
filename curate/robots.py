"""robots.txt as RFC 9309 reads it: groups by product token, the longest matching rule, `allow` where two are equal.

The standard library's `urllib.robotparser` takes the first rule that fits and knows no wildcards, so it can't be used.
Of RFC 9309: groups of the same token are joined (section 2.2.1), tokens compare without case, `*` is the group of those
that no group names, `*` and `$` are special in paths (2.2.3), paths compare after percent-encoding is normalised
(2.2.2), and the file is read up to 500 KiB (2.5). Lines with other fields do not end a group's list of agents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_CHARS = 500 << 10
MAX_RULE = 8192
"""Rules with a longer path are left out, as crawlers do with addresses of that length."""
_TOKEN = re.compile(r"[A-Za-z_-]+")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_LINE = re.compile(r"[\r\n]+")


@dataclass
class Robots:
    """The rules of one robots.txt by lower-case product token, as (normalised path pattern, allowed)."""

    groups: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Robots:
        """Read a robots.txt leniently: what is no field is skipped."""
        found = cls()
        agents: list[str] = []
        in_rules = False
        for key, value in _fields(text[:MAX_CHARS].removeprefix("\ufeff")):
            if key == "user-agent":
                if in_rules:
                    agents, in_rules = [], False
                token = _token_of(value)
                if token:
                    agents.append(token)
                    found.groups.setdefault(token, [])
            elif key in ("allow", "disallow"):
                in_rules = True
                if 0 < len(value) <= MAX_RULE:  # an empty path matches nothing
                    rule = (normal_path(value), key == "allow")
                    for agent in dict.fromkeys(agents):
                        found.groups[agent].append(rule)
        return found

    def allows(self, agent: str, target: str) -> bool:
        """Whether a crawler with this product token may fetch a path with its query (`/a?b`). `*` is one without a group."""
        rules = self.groups.get(agent.lower(), self.groups.get("*", []))
        if not rules:
            return True
        path = normal_path(target or "/")
        if path == "/robots.txt":
            return True
        best, allowed = -1, True
        for pattern, allow in rules:
            if len(pattern) < best or (len(pattern) == best and not allow):
                continue
            if matches(pattern, path):
                best, allowed = len(pattern), allow
        return allowed


def matches(pattern: str, path: str) -> bool:
    """Whether a rule's path pattern holds a path: a prefix, with `*` for any characters and a last `$` for the end."""
    to_end = pattern.endswith("$")
    first, *rest = (pattern[:-1] if to_end else pattern).split("*")
    if not path.startswith(first):
        return False
    if not rest:
        return not to_end or path == first
    at = len(first)
    for piece in rest[:-1]:  # taking the leftmost place of each piece leaves the most room for those after it
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    last = rest[-1]
    if to_end:
        return len(path) - len(last) >= at and path.endswith(last)
    return path.find(last, at) >= 0


def normal_path(path: str) -> str:
    """Percent-encoding as RFC 9309 section 2.2.2 compares it: unreserved characters plain, all else in upper-case hex."""

    def plain(match: re.Match[str]) -> str:
        char = chr(int(match[1], 16))
        return char if char in _UNRESERVED else match[0].upper()

    path = _ESCAPE.sub(plain, path)
    if path.isascii():
        return path
    return "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogatepass")) for c in path)


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in _LINE.split(text):
        key, colon, value = line.partition("#")[0].partition(":")
        if colon:
            yield key.strip().lower(), value.strip()


def _token_of(value: str) -> str:
    """`GPTBot/1.0 (+…)` -> gptbot; `*`, also with something after a space, -> `*`; empty where there is none."""
    if value.startswith("*") and (len(value) == 1 or value[1].isspace()):
        return "*"
    found = _TOKEN.match(value)
    return found[0].lower() if found else ""
