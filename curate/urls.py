"""Decides on a page by its URL: datatrove's URLFilter verdicts with its lists, 4.6 million domains held in 36 MB.

The rules, in order, first match wins (datatrove's `URLFilter.filter`; its names in brackets):
url.domain [domain]               the registered domain is listed
url.subdomain [subdomain]         the whole host name is listed
url.url [url]                     the URL is listed
url.hard_word [hard_blacklisted]  a word of the URL, split at non-alphanumerics and case-sensitive, is a hard word
url.soft_words [soft_blacklisted] at least `soft_words` different words of the URL are soft words
url.subword [blacklisted_subword] a banned subword stands in the URL, lower-cased and stripped of non-alphanumerics
url.list.NAME                     a list of the recipe's own holds the URL (curate.url_lists)

Two quirks are datatrove's and kept. The entries of its URL list have no scheme and are compared with the whole URL,
so `url.url` almost never applies. Host names are compared as written, so upper case escapes.
One thing differs: domains are split by the public suffix list that tldextract brings along (curate.public_suffix), never
by one from the network, so that verdicts are the same everywhere.
"""

from __future__ import annotations

import gzip
import importlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from xxhash import xxh3_64_intdigest as _hash

from gristmill.core.hashing import digest, sha256_file
from gristmill.curate import url_lists
from gristmill.curate.kept_arrays import kept_array
from gristmill.curate.public_suffix import host_of, split_host
from gristmill.curate.schema import Urls

if TYPE_CHECKING:
    import numpy as np

_ARCHIVE = "url_filterblacklistsv0_3_0.tar.gz"
_FILES = (_ARCHIVE, "banned_words.txt", "banned_subwords.txt", "soft_banned_words.txt")
_NOT_ALPHANUMERIC = re.compile(r"[^a-zA-Z0-9]+")
_PIECE = 1 << 20
_HASH = ord("#")
_MORE_THAN_LINES = tuple(bytes([c]) for c in b"# \t\r\x0b\x0c")


@dataclass(frozen=True)
class UrlLists:
    """datatrove's lists: domains as sorted 64-bit hashes, the rest as sets of words.

    4,558,939 domains, so a URL that is not listed is taken for listed with odds of 2 x 4.6e6 / 2^64 = 5e-13.
    """

    domains: np.ndarray  # (n,) uint64, sorted
    urls: frozenset[str]
    hard_words: frozenset[str]
    soft_words: frozenset[str]
    subwords: tuple[str, ...]

    def has_domain(self, name: str) -> bool:
        import numpy as np

        if not name:
            return False
        key = np.uint64(_hash(name.encode("utf-8", "surrogatepass")))
        place = int(self.domains.searchsorted(key))
        return place < len(self.domains) and bool(self.domains[place] == key)


class UrlRules:
    """The URL rules of a recipe. Building it reads datatrove's lists once per process (1 s, or 0.05 s once they are kept)."""

    def __init__(self, settings: Urls) -> None:
        self.settings = settings
        self._lists: UrlLists | None = None
        self._own = url_lists.ListedUrls(settings)
        if settings.lists == "off":
            return
        self._lists = load_lists()
        self._subwords = _automaton(self._lists.subwords)

    def check(self, url: str) -> str | None:
        """The reason to drop this URL, or None to keep it."""
        if not url:
            return None
        return self._by_datatrove(url) or self._own.check(url)

    def _by_datatrove(self, url: str) -> str | None:
        lists = self._lists
        if lists is None:
            return None
        registered, full = split_host(host_of(url))
        if lists.has_domain(registered):
            return "url.domain"
        if lists.has_domain(full):
            return "url.subdomain"
        if url in lists.urls:
            return "url.url"
        words = set(_NOT_ALPHANUMERIC.split(url))
        if not words.isdisjoint(lists.hard_words):
            return "url.hard_word"
        if len(words & lists.soft_words) >= self.settings.soft_words:
            return "url.soft_words"
        if next(self._subwords.iter(_normal(url)), None) is not None:
            return "url.subword"
        return None


def uses(settings: Urls) -> dict[str, str]:
    """What decides the verdicts: the lists' digests and the version of tldextract with its suffix list."""
    own = url_lists.uses(settings)
    if settings.lists == "off":
        return own
    theirs = {
        "url_lists": f"datatrove {version('datatrove')} {lists_digest()[:16]}",
        "tldextract": version("tldextract"),
    }
    return {**theirs, **own}


def lists_digest() -> str:
    """sha256 over the digests of the four list files."""
    stats = [(path, path.stat()) for path in map(asset, _FILES)]
    return digest([_file_digest(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats])


@lru_cache(maxsize=16)
def _file_digest(path: str, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


@lru_cache(maxsize=1)
def _automaton(words: tuple[str, ...]) -> Any:
    import ahocorasick

    found = ahocorasick.Automaton(ahocorasick.STORE_INTS)
    for i, word in enumerate(words):
        found.add_word(word, i)
    found.make_automaton()
    return found


@lru_cache(maxsize=1)
def load_lists() -> UrlLists:
    """Read datatrove's lists from its package data; the hashed domains are kept for the next process."""
    import numpy as np

    words = {name: frozenset(_word_list(asset(name))) for name in _FILES[1:]}
    urls = frozenset(line.decode() for lines in _member("urls") for line in lines)
    domains = kept_array(f"url-domains-{lists_digest()[:32]}-xxh3", np.uint64, _hashed_domains)
    subwords = tuple(sorted(words["banned_subwords.txt"] - {""}))
    return UrlLists(domains, urls, words["banned_words.txt"], words["soft_banned_words.txt"], subwords)


def _hashed_domains() -> np.ndarray:
    import numpy as np

    domains = np.concatenate([np.fromiter(map(_hash, lines), np.uint64, len(lines)) for lines in _member("domains")])
    domains.sort()  # np.unique hashes first: five times slower here
    return domains


def _member(name: str) -> Iterator[list[bytes]]:
    """The lines of the one member of the archive whose name ends so, in pieces."""
    with _inflate(asset(_ARCHIVE)) as raw, tarfile.open(fileobj=raw, mode="r|") as archive:
        for member in archive:
            if member.name.endswith(name) and (file := archive.extractfile(member)) is not None:
                return (yield from _lines(file))
    raise AssertionError(f"{_ARCHIVE} holds no {name}")


@lru_cache(maxsize=8)
def asset(name: str) -> Path:
    """A file of datatrove's package data, found without importing datatrove (0.5 s)."""
    spec = find_spec("datatrove")
    assert spec is not None, "datatrove is a dependency"
    assert spec.submodule_search_locations, "datatrove is a package"
    return Path(next(iter(spec.submodule_search_locations))) / "assets" / name


def _inflate(path: Path) -> IO[bytes]:
    """A gzip file's bytes, with isal in half of zlib's time."""
    try:
        reader = importlib.import_module("isal.igzip")
    except ImportError:
        reader = gzip
    return cast("IO[bytes]", io.BufferedReader(reader.open(path, "rb"), _PIECE))


def _lines(file: IO[bytes]) -> Iterator[list[bytes]]:
    """Lines stripped, without comments and empty ones, in pieces of about 1 MiB."""
    rest = b""
    while True:
        piece = file.read(_PIECE)
        whole = rest + piece
        lines = whole.split(b"\n")
        rest = lines.pop() if piece else b""
        if not any(mark in whole for mark in _MORE_THAN_LINES) and all(lines):
            yield lines  # nothing to strip, as nearly always: 0.3 s less for all domains
        else:
            yield [line for line in map(bytes.strip, lines) if line and line[0] != _HASH]
        if not piece:
            return


def _word_list(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as f:
        for line in f:
            if not line.startswith("#"):
                yield _normal(line)


def _normal(text: str) -> str:
    return _NOT_ALPHANUMERIC.sub("", text).lower()
