"""Opening archives anywhere: local files and any fsspec URL, read in pieces, with back-off when a store says slow down."""

from __future__ import annotations

import errno
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from gristmill.core.errors import InputError
from gristmill.core.hashing import hash64

ATTEMPTS = 8
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
"""Eight attempts wait 1, 2, 4, … 60 s, each times a factor in [0.5, 1): at most 123 s in all before a file is given up."""

SLOW_DOWN = frozenset({403, 408, 429, 500, 502, 503, 504})
"""Statuses worth another try. Common Crawl's servers answer 403 as well as 503 to readers that come too fast."""
_NAMES = frozenset(
    {"ClientConnectionError", "ClientPayloadError", "EndpointConnectionError", "ReadTimeoutError", "IncompleteRead"}
    | {"ConnectionClosedError", "ServerTimeoutError", "FSTimeoutError", "IncompleteReadError", "ProtocolError"}
)
_ERRNOS = frozenset(
    {errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH}
)

T = TypeVar("T")
Sleep = Callable[[float], None]


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith(("file://", "local://"))


def open_warc(url: str, *, attempts: int = ATTEMPTS, sleep: Sleep = time.sleep) -> BinaryIO:
    """A seekable binary stream of a local path or fsspec URL, never the whole file in memory.

    Opening and every later read are retried on 403, 429, 5xx, SlowDown and lost connections, `attempts` times in all,
    with exponential waits whose jitter is a hash of (url, attempt). A store that gives no byte ranges is copied to a
    temporary file. Raises InputError, naming the file and the cause, for everything that stays wrong.
    """
    if is_local(url):
        try:
            # A local file needs no retries: what fails once will fail again.
            return _Local(open(url.removeprefix("file://").removeprefix("local://"), "rb"), url)
        except OSError as e:
            raise _input_error(url, e) from e
    remote = Remote(url, attempts, sleep)
    if not remote.seekable():
        return remote.spooled()
    return io.BufferedReader(remote, buffer_size=1 << 16)


def retrying(url: str, action: Callable[[], T], *, attempts: int = ATTEMPTS, sleep: Sleep = time.sleep) -> T:
    """Runs `action`, again after a wait when it fails in a way that may pass. Raises InputError when it stays wrong."""
    for attempt in range(attempts):
        try:
            return action()
        except Exception as e:
            if attempt + 1 >= attempts or not is_transient(e):
                raise _input_error(url, e, attempt + 1) from e
            sleep(wait(url, attempt))
    raise AssertionError("attempts must be at least 1")


def wait(url: str, attempt: int) -> float:
    """Seconds before attempt `attempt` + 2: min(60, 2^attempt) times a factor in [0.5, 1) that differs between files."""
    factor = 0.5 + hash64(f"{url}\0{attempt}") / 2.0**65
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt) * factor


def is_transient(error: BaseException | None) -> bool:
    """Whether another try may help: by status, errno or class name along the chain of causes."""
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, FileNotFoundError):
            return False
        if _status(error) in SLOW_DOWN or isinstance(error, (PermissionError, ConnectionError, TimeoutError)):
            return True
        if isinstance(error, OSError) and error.errno in _ERRNOS:
            return True
        if any(c.__name__ in _NAMES for c in type(error).__mro__) or "SlowDown" in str(error):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _status(error: BaseException) -> int | None:
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int):
            return value
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")  # type: ignore[no-any-return]
    return getattr(response, "status_code", None)


def _input_error(url: str, error: BaseException, tried: int = 1) -> InputError:
    if isinstance(error, InputError):
        return error
    after = f" (after {tried} attempts)" if tried > 1 else ""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{url}: no such file", hint="the rest of the run is kept; put the file back and run again")
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return InputError(f"{url}: not allowed to read it{after}: {error}", hint="check permissions or credentials")
    if isinstance(error, IsADirectoryError):
        return InputError(f"{url}: is a folder", hint=f"name its files: {url.rstrip('/')}/*.warc.gz")
    if isinstance(error, ImportError):
        return InputError(f"{url}: {error}", hint="pip install 'gristmill[s3]', 'gristmill[gcs]' or 'gristmill[http]'")
    return InputError(f"{url}: cannot be read{after}: {type(error).__name__}: {error}")


class _Local(io.BufferedReader):
    """A local file whose read errors come as InputError."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        super().__init__(file.detach(), buffer_size=1 << 16)  # type: ignore[attr-defined]
        self.url = url

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return super().read(size)
        except OSError as e:
            raise _input_error(self.url, e) from e


class Remote(io.RawIOBase):
    """One fsspec file that is opened again, at the same place, when a read fails in a way that may pass."""

    def __init__(self, url: str, attempts: int, sleep: Sleep) -> None:
        super().__init__()
        self.url = url
        self.attempts = attempts
        self.sleep = sleep
        self.at = 0
        self.file: Any = None
        self._try(self._open)

    def _try(self, action: Callable[[], T]) -> T:
        return retrying(self.url, action, attempts=self.attempts, sleep=self.sleep)

    def _open(self) -> Any:
        import fsspec

        if self.file is None:
            self.file = fsspec.open(self.url, "rb").open()
            if self.at:
                self.file.seek(self.at)
        return self.file

    def _drop(self) -> None:
        file, self.file = self.file, None
        try:
            if file is not None:
                file.close()
        except Exception:  # the connection is lost already; the error that lost it is the one to report
            pass

    def readinto(self, buffer: Any, /) -> int:
        def action() -> bytes:
            try:
                return bytes(self._open().read(len(buffer)))
            except Exception:
                self._drop()
                raise

        data = self._try(action)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        def action() -> int:
            try:
                return int(self._open().seek(offset, whence))
            except Exception:
                self._drop()
                raise

        self.at = self._try(action)
        return self.at

    def tell(self) -> int:
        return self.at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._open().seekable())

    def spooled(self) -> BinaryIO:
        """The whole file in a temporary file. Starts over when the connection is lost."""

        def action() -> BinaryIO:
            target = tempfile.TemporaryFile()  # noqa: SIM115
            try:
                shutil.copyfileobj(self._open(), target, 1 << 20)
            except Exception:
                self._drop()
                raise
            target.seek(0)
            return target

        try:
            return self._try(action)
        finally:
            self._drop()

    def close(self) -> None:
        self._drop()
        super().close()
