"""Input paths to names, URLs and tags; opening with back-off."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gristmill.core.errors import InputError, UsageError
from gristmill.curate.warc import expand_inputs, open_warc
from gristmill.curate.warc_inputs import COMMON_CRAWL, fixed_prefix
from gristmill.curate.warc_open import ATTEMPTS, is_transient, wait

WARC = gzip.compress(b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 0\r\n\r\n\r\n\r\n")


@pytest.fixture
def web(tmp_path: Path) -> Path:
    for name in ("a/x.warc.gz", "a/y.warc.gz", "b/x.warc.gz", "b/deep/z.warc.gz", "b/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WARC + name.encode())
    return tmp_path


def names(paths: list[str]) -> list[str]:
    return [item.name for item in expand_inputs(paths)]


def test_names_are_relative_to_the_fixed_part(web: Path) -> None:
    assert names([f"{web}/a/x.warc.gz"]) == ["x.warc.gz"]
    assert names([f"{web}/a/*.warc.gz"]) == ["x.warc.gz", "y.warc.gz"]
    assert names([f"{web}/*/*.warc.gz"]) == ["a/x.warc.gz", "a/y.warc.gz", "b/x.warc.gz"]
    assert names([f"{web}/**/*.warc.gz"]) == ["a/x.warc.gz", "a/y.warc.gz", "b/deep/z.warc.gz", "b/x.warc.gz"]
    assert names([f"{web}/a/y*", f"{web}/a/x.warc.gz", f"{web}/a/*.gz"]) == ["x.warc.gz", "y.warc.gz"]
    assert fixed_prefix("/data/x-*/y/*.gz") == "/data/"
    assert fixed_prefix("*.gz") == ""


def test_relative_paths_become_absolute(web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(web)
    (item,) = expand_inputs(["a/x*"])
    assert (item.name, item.url) == ("x.warc.gz", str(web / "a/x.warc.gz"))


def test_two_files_of_one_name(web: Path) -> None:
    with pytest.raises(UsageError, match="the name x") as e:
        expand_inputs([f"{web}/a/*.gz", f"{web}/b/*.gz"])
    assert str(web / "a/x.warc.gz") in e.value.message
    assert str(web / "b/x.warc.gz") in e.value.message
    assert e.value.hint


def test_nothing_folder_missing(web: Path) -> None:
    with pytest.raises(UsageError, match="matched nothing"):
        expand_inputs([f"{web}/*.warc.gz"])
    with pytest.raises(UsageError, match="is a folder"):
        expand_inputs([f"{web}/a"])
    (item,) = expand_inputs([f"{web}/gone.warc.gz"])
    assert (item.name, item.bytes, item.tag) == ("gone.warc.gz", 0, "missing")
    with pytest.raises(InputError, match="no such file"):
        open_warc(item.url)
    with pytest.raises(InputError, match="is a folder"):
        open_warc(str(web))


def test_tags_follow_the_content(web: Path) -> None:
    path = web / "a/x.warc.gz"
    cache: dict[str, str] = {}
    (first,) = expand_inputs([str(path)], cache)
    assert first.tag.startswith("sha256:")
    assert first.bytes == path.stat().st_size
    (key,) = cache
    cache[key] = "sha256:known"  # the file is not read again
    assert expand_inputs([str(path)], cache)[0].tag == "sha256:known"
    path.write_bytes(WARC + b"changed")
    assert expand_inputs([str(path)], cache)[0].tag not in (first.tag, "sha256:known")
    with open(web / "big.warc", "wb") as f:
        f.truncate((8 << 20) + 1)
    (big,) = expand_inputs([f"{web}/big.warc"], cache)
    assert big.tag == f"mtime:{os.stat(web / 'big.warc').st_mtime_ns}"


def test_local_list_of_files_beside_it(web: Path) -> None:
    (web / "warc.paths").write_text("a/x.warc.gz\n\nb/x.warc.gz\nb/none.warc.gz\n")
    found = expand_inputs([f"{web}/warc.paths"])
    assert [(i.name, i.url) for i in found] == [
        (n, str(web / n)) for n in ("a/x.warc.gz", "b/none.warc.gz", "b/x.warc.gz")
    ]
    assert found[1].tag == "missing"


def test_lists_of_common_crawl(web: Path) -> None:
    keys = [f"crawl-data/CC-MAIN-2024-10/segments/1/warc/{i}.warc.gz" for i in range(3)]
    text = "\n".join([*keys, "s3://other/deep/9.warc.gz"]) + "\n"
    (web / "warc.paths.gz").write_bytes(gzip.compress(text.encode()))
    found = expand_inputs([f"{web}/warc.paths.gz"])
    assert [i.url for i in found] == [COMMON_CRAWL + k for k in keys] + ["s3://other/deep/9.warc.gz"]
    assert [i.name for i in found] == [*keys, "deep/9.warc.gz"]
    assert {i.tag for i in found} == {"listed"}
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/crawl-data/CC-MAIN-2024-10/warc.paths.gz", gzip.compress(text.encode()))
    found = expand_inputs(["memory://bucket/crawl-data/CC-MAIN-2024-10/warc.paths.gz"])
    assert [i.url for i in found[:3]] == [f"memory://bucket/{k}" for k in keys]
    memory.pipe("/bucket/mine/warc.paths", b"x/1.warc.gz\n")
    assert expand_inputs(["memory://bucket/mine/warc.paths"])[0].url == "memory://bucket/mine/x/1.warc.gz"
    (web / "bad.paths.gz").write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(InputError, match="unpacked"):
        expand_inputs([f"{web}/bad.paths.gz"])


def test_remote_files_and_globs() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/store/2024/a.warc.gz", WARC)
    memory.pipe("/store/2025/a.warc.gz", WARC)
    found = expand_inputs(["memory://store/*/a.warc.gz"])
    assert [(i.name, i.url) for i in found] == [
        (f"{y}/a.warc.gz", f"memory:///store/{y}/a.warc.gz") for y in (2024, 2025)
    ]
    assert found[0].bytes == len(WARC)
    assert found[0].tag.split(":")[0] in ("etag", "mtime")
    with open_warc(found[0].url) as stream:
        assert stream.read() == WARC
    assert expand_inputs(["memory://store/2026/none.warc.gz"])[0].tag == "missing"
    with pytest.raises(UsageError, match="matched nothing"):
        expand_inputs(["memory://store/*/none"])


class Answer(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class SlowDown(OSError):
    """As s3fs raises it."""


class FlakyFile(io.BytesIO):
    def __init__(self, data: bytes, faults: Iterator[Exception | None], seekable: bool) -> None:
        super().__init__(data)
        self.faults = faults
        self.can_seek = seekable

    def seekable(self) -> bool:
        return self.can_seek

    def read(self, size: int | None = -1, /) -> bytes:
        if fault := next(self.faults, None):
            raise fault
        return super().read(size)


class Flaky(MemoryFileSystem):
    protocol = "flaky"
    cachable = False
    data = bytes(range(256)) * 1000
    on_open: Iterator[Exception | None] = iter(())
    on_read: Iterator[Exception | None] = iter(())
    can_seek = True

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> FlakyFile:
        if fault := next(Flaky.on_open, None):
            raise fault
        return FlakyFile(Flaky.data, Flaky.on_read, Flaky.can_seek)


@pytest.fixture
def flaky() -> type[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.on_open = Flaky.on_read = iter(())
    Flaky.can_seek = True
    return Flaky


def test_back_off_then_success(flaky: type[Flaky]) -> None:
    waits: list[float] = []
    flaky.on_open = iter([Answer(503), Answer(403), SlowDown(errno.EBUSY, "SlowDown"), None])
    flaky.on_read = iter([None, ConnectionResetError("lost"), Answer(429), None, TimeoutError("late"), None])
    with open_warc("flaky://x/a", sleep=waits.append) as stream:
        assert stream.read(100_000) + stream.read() == flaky.data
        stream.seek(1000)
        assert stream.read(5) == flaky.data[1000:1005]
    assert len(waits) == 6
    assert waits[:3] == [wait("flaky://x/a", i) for i in range(3)]


def test_waits_grow_and_differ_between_files() -> None:
    waits = [wait("s3://b/1", i) for i in range(ATTEMPTS)]
    assert all(2.0**i * 0.5 <= w < 2.0**i for i, w in enumerate(waits[:6]))
    assert max(wait("s3://b/1", i) for i in range(40)) <= 60
    assert waits == [wait("s3://b/1", i) for i in range(ATTEMPTS)]
    assert wait("s3://b/2", 0) != waits[0]
    assert sum(waits[:-1]) < 123


@pytest.mark.parametrize("fault", [Answer(503), Answer(403), PermissionError("denied"), SlowDown("SlowDown")])
def test_giving_up_names_file_and_cause(flaky: type[Flaky], fault: Exception) -> None:
    waits: list[float] = []
    flaky.on_open = itertools.repeat(fault)
    with pytest.raises(InputError, match="flaky://x/a") as e:
        open_warc("flaky://x/a", attempts=4, sleep=waits.append)
    assert "after 4 attempts" in e.value.message
    assert str(fault) in e.value.message
    assert len(waits) == 3


@pytest.mark.parametrize("fault", [FileNotFoundError("gone"), Answer(404), ValueError("no"), OSError(errno.EIO, "I/O")])
def test_final_errors_are_not_retried(flaky: type[Flaky], fault: Exception) -> None:
    waits: list[float] = []
    flaky.on_open = iter([fault])
    with pytest.raises(InputError, match="flaky://x/a"):
        open_warc("flaky://x/a", sleep=waits.append)
    assert waits == []


def test_transient_errors_are_found_behind_others() -> None:
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = ConnectionResetError("lost")
    assert is_transient(wrapped)
    assert not is_transient(FileNotFoundError())
    assert not is_transient(KeyError())


def test_a_store_without_ranges_is_copied_to_disk(flaky: type[Flaky]) -> None:
    flaky.can_seek = False
    flaky.on_read = iter([ConnectionResetError("lost")])
    with open_warc("flaky://x/a", sleep=lambda s: None) as stream:
        assert stream.seekable()
        assert stream.read() == flaky.data


def test_unreadable_local_file(web: Path) -> None:
    path = web / "a/x.warc.gz"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything (root)")
    with pytest.raises(InputError, match="not allowed"):
        open_warc(str(path))
    assert expand_inputs([str(path)])[0].tag == "unreadable"
