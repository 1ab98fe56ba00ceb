"""URL lists of a user's own and UT1-style folders: which list, in the recipe's order, is the first to hold a URL.

A domain entry holds the domain and every name below it. A URL entry holds the address itself and what lies below its
path, compared without scheme, fragment and a leading `www.` (squidGuard's reading, which UT1 is written for). A word
entry holds every URL with that word in it. Entries are kept as 64-bit hashes, 10 bytes each: a list of 5 million takes
50 MB, and a URL that is not listed is taken for listed with odds of some 10 x 5e6 / 2^64 = 3e-12.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from xxhash import xxh3_64_intdigest

from gristmill.core.errors import FormatError, GristmillError, UsageError
from gristmill.core.hashing import digest, sha256_file
from gristmill.curate.schema import Urls
from gristmill.curate.url_parts import ascii_host, domains_of, url_parts

if TYPE_CHECKING:
    import numpy as np

KINDS = ("domains", "urls", "words")
MAX_LINE = 1 << 16
MAX_PREFIXES = 64
"""Path prefixes of one URL that are looked up; deeper ones are not."""
_GZIP = b"\x1f\x8b"
_PIECE = 1 << 14  # lines hashed at a time
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_STEP = re.compile(r"[/?&]")


@dataclass(frozen=True)
class ListFiles:
    """One list: its name, its files as (kind, path) in order of kind, and their digest."""

    name: str
    files: tuple[tuple[str, Path], ...]
    digest: str

    @classmethod
    def of(cls, name: str, files: dict[str, Path]) -> ListFiles:
        ordered = tuple(sorted(files.items()))
        return cls(name, ordered, digest([[kind, file_digest(path)] for kind, path in ordered]))


class ListedUrls:
    """The lists of a recipe, ready to look URLs up. Building it reads the files (about 1 s a million entries)."""

    def __init__(self, settings: Urls) -> None:
        lists = list_files(settings)
        self.names = [one.name for one in lists]
        self.keys, self.codes, self.words = _load(tuple(lists))

    def check(self, url: str) -> str | None:
        """`url.list.NAME` of the first list that holds this URL, or None."""
        import numpy as np

        if not self.names:
            return None
        parts = url_parts(url)
        best = len(self.names)
        if self.words:
            hits = [self.words[w] for w in set(_NOT_ALPHANUMERIC.split(url.lower())) if w in self.words]
            best = min([best, *hits])
        if len(self.keys):
            wanted = [_hash("d" + name) for name in domains_of(parts.host)]
            wanted += [_hash("u" + prefix) for prefix in _prefixes(_without_www(parts.place))]
            keys = np.array(wanted, np.uint64)
            at = np.minimum(self.keys.searchsorted(keys), len(self.keys) - 1)
            hit = self.keys[at] == keys
            if hit.any():
                best = min(best, int(self.codes[at[hit]].min()))
        return f"url.list.{self.names[best]}" if best < len(self.names) else None


def list_files(settings: Urls) -> list[ListFiles]:
    """The lists of a recipe in order. Raises UsageError where a file or a category is missing."""
    out = []
    for one in settings.own:
        named = {kind: getattr(one, kind) for kind in KINDS}
        files = {kind: Path(path) for kind, path in named.items() if path is not None}
        for kind, path in files.items():
            if not path.is_file():
                raise UsageError(f"the URL list {one.name} has no file {path}", hint=f"it is named as `{kind}`")
        out.append(ListFiles.of(one.name, files))
    if settings.ut1 is not None:
        folder = Path(settings.ut1.folder)
        for category in settings.ut1.categories:
            names = [(kind, folder / category / (kind + end)) for kind in ("domains", "urls") for end in (".gz", "")]
            found = {kind: path for kind, path in names if path.is_file()}
            if not found:
                known = sorted(p.name for p in folder.iterdir() if p.is_dir())[:40] if folder.is_dir() else []
                raise UsageError(
                    f"no category {category!r} in {folder}: neither `domains` nor `urls` is there",
                    hint=f"categories: {', '.join(known)}" if known else "name the folder that holds the categories",
                )
            out.append(ListFiles.of(category, found))
    return out


def uses(settings: Urls) -> dict[str, str]:
    """A digest of each list's files, by `url_list.NAME`."""
    return {f"url_list.{one.name}": one.digest[:32] for one in list_files(settings)}


def same_files(settings: Urls, planned: Mapping[str, str]) -> None:
    """Raises GristmillError where a list is not the one that a task was planned with."""
    for name, found in uses(settings).items():
        if planned.get(name, found) != found:
            raise GristmillError(
                f"{name} is not the list this task was planned with (sha256 {planned[name]})",
                hint="it changed since, or differs on this machine: run the same command again",
            )


def without_paths(urls: dict[str, Any]) -> dict[str, Any]:
    """The block as a task's config: files count by their digests in `uses`, wherever they lie."""
    out = {name: value for name, value in urls.items() if name not in ("own", "ut1")}
    if urls.get("own"):
        out["own"] = [one["name"] for one in urls["own"]]
    if urls.get("ut1"):
        out["ut1"] = urls["ut1"]["categories"]
    return out


def file_digest(path: Path) -> str:
    """sha256 of a file, computed once while its size and time stay."""
    stat = path.stat()
    return _digest_of(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_of(path: str, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


def entries(path: Path) -> Iterator[tuple[int, str]]:
    """(line, entry) of a list file, one a line: stripped, without empty lines and remarks. Gzip is told by its first bytes.

    Raises FormatError on a line over 64 KiB and on a damaged gzip file.
    """
    with open(path, "rb") as raw:
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        file = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if packed else raw)
        number = 0
        try:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise FormatError(f"{path}:{number}: a line of more than {MAX_LINE} bytes", hint="one entry a line")
                text = line.decode("utf-8", "replace").strip().removeprefix("\ufeff")
                if text and not text.startswith("#"):
                    yield number, text
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FormatError(f"{path} is damaged after line {number}: {error}", hint="get the list again") from error


@lru_cache(maxsize=1)
def _load(lists: tuple[ListFiles, ...]) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Sorted keys (n,) uint64, the first list that holds each (n,) uint16, and words with their list."""
    import numpy as np

    keys: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    words: dict[str, int] = {}
    for code, (kind, path) in [(code, file) for code, one in enumerate(lists) for file in one.files]:
        if kind == "words":
            for number, word in entries(path):
                if not word.isalnum():
                    raise FormatError(f"{path}:{number}: {word!r} is no word", hint="letters and digits only")
                words.setdefault(word.lower(), code)
            continue
        lines = entries(path)
        while held := [_key(kind, entry) for _, entry in islice(lines, _PIECE)]:
            keys.append(np.array(held, np.uint64))
            codes.append(np.full(len(held), code, np.uint16))
    if not keys:
        return np.empty(0, np.uint64), np.empty(0, np.uint16), words
    joined = np.concatenate(keys)
    order = np.argsort(joined, kind="stable")  # of equal keys the first list's comes first, which searchsorted finds
    return joined[order], np.concatenate(codes)[order], words


def _key(kind: str, entry: str) -> int:
    if kind == "domains":
        return _hash("d" + ascii_host(entry.removeprefix("*.").removeprefix(".")))
    return _hash("u" + _without_www(url_parts(entry).place).rstrip("/"))


def _hash(text: str) -> int:
    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _without_www(place: str) -> str:
    return place.removeprefix("www.")


def _prefixes(place: str) -> list[str]:
    """`a.org/b/c?d` -> a.org, a.org/b, a.org/b/c and the whole, each without a slash at its end."""
    cuts = [match.start() for _, match in zip(range(MAX_PREFIXES), _STEP.finditer(place), strict=False)]
    return [*dict.fromkeys(place[:cut].rstrip("/") for cut in cuts), place.rstrip("/")]
