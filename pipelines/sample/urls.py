"""URLs: paths in each template's style that no URL rule objects to, and domains drawn from datatrove's block list."""

from __future__ import annotations

import importlib.util
import re
import tarfile
from functools import cache
from pathlib import Path

from gristmill.core.errors import InputError
from gristmill.pipelines.sample.chrome import Site
from gristmill.pipelines.sample.draw import Draw

_NOT_ALNUM = re.compile(r"[^a-zA-Z0-9]+")
_PLAIN_DOMAIN = re.compile(rb"[a-z0-9][a-z0-9-]{2,40}\.(com|net|org)")


@cache
def _assets() -> Path:
    """datatrove's package data, found without importing it. Raises InputError when it is not installed."""
    spec = importlib.util.find_spec("datatrove")
    where = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if where is None or not (Path(where) / "assets").is_dir():
        raise InputError("datatrove's URL lists are missing", hint="pip install 'datatrove>=0.10.1,<0.11'")
    return Path(where) / "assets"


@cache
def _lists() -> tuple[frozenset[str], tuple[str, ...]]:
    """Words (hard and soft) and subwords that datatrove's URL filter objects to."""

    def read(name: str) -> set[str]:
        lines = (_assets() / name).read_text(encoding="utf-8").splitlines()
        return {_NOT_ALNUM.sub("", x).lower() for x in lines if x and not x.startswith("#")} - {""}

    words = read("banned_words.txt") | read("soft_banned_words.txt")
    return frozenset(words), tuple(sorted(read("banned_subwords.txt")))


def harmless(url: str) -> bool:
    """No listed word or subword in the URL, by datatrove's matching (one soft word already counts here)."""
    words, subwords = _lists()
    squeezed = _NOT_ALNUM.sub("", url).lower()
    return not words.intersection(_NOT_ALNUM.split(url)) and not any(s in squeezed for s in subwords)


class Urls:
    """Gives every page a URL of its own."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def new(self, site: Site, title: str, draw: Draw) -> str:
        words = [w for w in _NOT_ALNUM.split(title.lower()) if w][:6]
        slug = "-".join(words)[:60].strip("-") or "page"
        number = draw.between(1000, 99_999)
        for attempt in range(100):
            url = f"https://{site.host}{_path(site.template, slug if attempt < 1 else 'page', number + attempt, draw)}"
            if url not in self.taken and harmless(url):
                self.taken.add(url)
                return url
        raise AssertionError(f"no free URL for {title!r} on {site.host}")

    def on_domain(self, domain: str, n: int) -> str:
        url = f"http://{domain}/reading/{n}.html"
        self.taken.add(url)
        return url


def _path(template: str, slug: str, number: int, draw: Draw) -> str:
    year, month = draw.between(2012, 2023), draw.between(1, 12)
    if template == "docs":
        return f"/{draw.pick(('guide', 'manual', 'reference'))}/{draw.pick(('stable', 'v2', 'latest'))}/{slug}-{number}.html"
    if template == "blog":
        return f"/{year}/{month:02d}/{slug}-{number}/"
    if template == "news":
        return f"/{draw.pick(('science', 'technology', 'local', 'culture'))}/{year}/{slug}-{number}"
    if template == "wiki":
        return f"/wiki/{slug.replace('-', '_').capitalize()}_{number}"
    if template == "forum":
        return f"/questions/{number}/{slug}"
    return f"/article.php?id={number}&topic={slug}"


def blocked_domains(seed: int, n: int) -> list[str]:
    """`n` domains of datatrove's adult-content list, at offsets drawn by the seed; plain .com, .net and .org names only."""
    with tarfile.open(_assets() / "url_filterblacklistsv0_3_0.tar.gz", "r:gz") as archive:
        member = archive.extractfile("domains")
        if member is None:
            raise InputError("datatrove's block list has no `domains`", hint="pip install 'datatrove>=0.10.1,<0.11'")
        data = member.read()
    draw = Draw(seed, "blocked domains")
    found: dict[str, None] = {}
    while len(found) < n:
        start = data.find(b"\n", draw.below(len(data) - 200)) + 1
        line = data[start : data.find(b"\n", start)].strip()
        if _PLAIN_DOMAIN.fullmatch(line):
            found[line.decode("ascii")] = None
    return list(found)
