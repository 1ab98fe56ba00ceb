"""What a recipe's `input.paths` name: files, globs and Common Crawl path lists, each with a stable name and a tag.

A path is one of
- a file: its name is its base name;
- a glob (`*`, `?`, `[`, `**`), local or fsspec: names are relative to the folder before the first magic character;
- a list of files (`*.paths`, `*.paths.gz`, as Common Crawl publishes them), one key a line: names are the keys. A line
  with `://` or a leading `/` stands for itself. Relative lines of a remote list are keys of the same store
  (`s3://commoncrawl/crawl-data/X/warc.paths.gz` has keys under `s3://commoncrawl/`: what stands before the part that
  the list's own address shares with the key, else the list's folder). Relative lines of a local list are files beside
  it if any of them exists there, else keys under https://data.commoncrawl.org/.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.core.errors import InputError, UsageError
from gristmill.curate.warc_open import is_local, open_warc, retrying

COMMON_CRAWL = "https://data.commoncrawl.org/"
HASHED_BYTES = 8 << 20
"""Local files up to this size are tagged by their content, larger ones by their modification time."""
MAX_LIST_BYTES = 256 << 20
"""A path list larger than this, unpacked, is refused (Common Crawl's are about 10 MB)."""
MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Input:
    """One input file."""

    name: str
    """Relative, forward slashes, unique in a run: the document ids hang on it."""
    url: str
    """An absolute local path or an fsspec URL."""
    bytes: int
    """Size; 0 when it is missing or was not asked for (files of a remote list)."""
    tag: str
    """Changes when the content does: `sha256:…`, `mtime:<ns>`, `etag:…`, `size:…`; `listed` for files named by a remote
    list, which are asked for nothing (90,000 of them); `missing` or `unreadable`, so that the run says it, not the plan."""


def expand_inputs(paths: list[str], cache: MutableMapping[str, str] | None = None) -> list[Input]:
    """All files that `paths` name, sorted by name. `cache` keeps digests of small local files between calls.

    Raises UsageError for a glob that matches nothing, a folder, or two files of one name; InputError for a path list
    that cannot be read. A missing file is no error here: its tag is `missing`.
    """
    found: dict[str, Input] = {}
    memo = {} if cache is None else cache
    for path in paths:
        for name, url, listed in _expand(path):
            item = Input(name, url, 0, "listed") if listed else _describe(name, url, memo)
            other = found.get(name)
            if other is not None and other.url != url:
                raise UsageError(
                    f"two inputs have the name {name}: {other.url} and {url}",
                    hint="documents are identified by file name: use one glob over a common folder, such as DIR/*/*.warc.gz",
                )
            found[name] = item
    return [found[name] for name in sorted(found)]


def _expand(path: str) -> Iterator[tuple[str, str, bool]]:
    """(name, url, listed by a remote list) of each file."""
    base = path.rsplit("/", 1)[-1]
    if base.endswith((".paths", ".paths.gz")) and not MAGIC.intersection(path):
        yield from _listed(path)
    elif is_local(path):
        yield from _local(path.removeprefix("file://").removeprefix("local://"))
    elif MAGIC.intersection(path.split("://", 1)[1]) and not path.startswith(("http://", "https://")):
        yield from _remote_glob(path)
    else:
        yield base, path, False


def _local(path: str) -> Iterator[tuple[str, str, bool]]:
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder", hint=f"name its files: '{path.rstrip('/')}/*.warc.gz'")
    if not MAGIC.intersection(path) or os.path.exists(path):
        yield os.path.basename(path), os.path.abspath(path), False
        return
    prefix = os.path.abspath(fixed_prefix(path) or ".")
    matches = [os.path.abspath(m) for m in glob.glob(path, recursive=True) if not os.path.isdir(m)]
    if not matches:
        raise UsageError(f"{path} matched nothing", hint="quote the glob, and check the folder before the first *")
    for match in sorted(matches):
        yield Path(os.path.relpath(match, prefix)).as_posix(), match, False


def _remote_glob(path: str) -> Iterator[tuple[str, str, bool]]:
    import fsspec

    fs, plain = fsspec.core.url_to_fs(path)
    matches = retrying(path, lambda: fs.glob(plain, detail=True))
    files = sorted(name for name, info in matches.items() if info.get("type") != "directory")
    if not files:
        raise UsageError(f"{path} matched nothing", hint="check the bucket and the part before the first *")
    prefix = fixed_prefix(plain)
    for name in files:
        yield name.removeprefix(prefix).lstrip("/"), fs.unstrip_protocol(name), False


def fixed_prefix(path: str) -> str:
    """The folders before the first magic character, with a trailing slash; empty when there are none."""
    first = min(path.index(c) for c in MAGIC if c in path)
    return path[: path.rfind("/", 0, first) + 1]


def _listed(path: str) -> Iterator[tuple[str, str, bool]]:
    with open_warc(path) as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            data = (gzip.GzipFile(fileobj=raw) if packed else raw).read(MAX_LIST_BYTES + 1)
        except (EOFError, gzip.BadGzipFile, ValueError) as e:
            raise InputError(f"{path}: the path list cannot be unpacked: {e}") from e
    if len(data) > MAX_LIST_BYTES:
        raise InputError(f"{path}: a path list of more than {MAX_LIST_BYTES} bytes")
    keys = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    if not keys:
        raise UsageError(f"{path} lists no files")
    here = is_local(path)
    folder = (
        path.removeprefix("file://").removeprefix("local://").rpartition("/")[0] if here else path.rpartition("/")[0]
    )
    relative = [key for key in keys if "://" not in key and not key.startswith("/")]
    if here and any(os.path.exists(os.path.join(folder, key)) for key in relative):
        prefix = os.path.abspath(folder or ".") + "/"
    else:
        prefix = COMMON_CRAWL if here else (_store(path, relative[0]) if relative else "")
    for key in keys:
        url = key if "://" in key or key.startswith("/") else prefix + key
        name = key.split("://", 1)[1].partition("/")[2] if "://" in key else key.lstrip("/")
        yield name, url, not is_local(url)


def _store(path: str, key: str) -> str:
    """What to put before the keys of a remote list: up to where the list's own address goes on like its keys."""
    shared = path.find("/" + key.split("/", 1)[0] + "/", path.index("://") + 3)
    return path[: shared + 1] if shared >= 0 else path.rpartition("/")[0] + "/"


def changed(url: str, tag: str) -> bool:
    """Whether a file is no longer what a tag of `expand_inputs` says; False for tags that say nothing of its content."""
    if not tag.startswith(("sha256:", "mtime:", "etag:")):
        return False
    return _describe("", url, {}).tag != tag


def _describe(name: str, url: str, cache: MutableMapping[str, str]) -> Input:
    if not is_local(url):
        return _describe_remote(name, url)
    try:
        stat = os.stat(url)
    except OSError as e:
        return Input(name, url, 0, "missing" if isinstance(e, FileNotFoundError) else "unreadable")
    tag = f"mtime:{stat.st_mtime_ns}"
    if stat.st_size <= HASHED_BYTES:
        key = f"{url}\0{stat.st_size}\0{stat.st_mtime_ns}"
        if key not in cache:
            try:
                cache[key] = "sha256:" + hashlib.sha256(Path(url).read_bytes()).hexdigest()
            except OSError:
                return Input(name, url, stat.st_size, "unreadable")
        tag = cache[key]
    return Input(name, url, stat.st_size, tag)


def _describe_remote(name: str, url: str) -> Input:
    import fsspec

    def ask() -> dict[str, Any]:
        fs, plain = fsspec.core.url_to_fs(url)
        return dict(fs.info(plain))

    try:
        info = retrying(url, ask)
    except InputError as e:
        return Input(name, url, 0, "missing" if isinstance(e.__cause__, FileNotFoundError) else "unreadable")
    size = int(info.get("size") or 0)
    for key in ("ETag", "etag", "md5Hash", "content_md5", "checksum", "crc32c"):
        if info.get(key):
            tag = str(info[key]).strip('"')
            return Input(name, url, size, f"etag:{tag}")
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(key):
            return Input(name, url, size, f"mtime:{info[key]}")
    return Input(name, url, size, f"size:{size}")
