"""Arrays that every worker would compute anew from the same files, kept in the user's cache folder for the next process.

A file is named by what it is made of, so a changed list makes another one. It begins with a digest of all that follows:
a torn or damaged file, or one of another user, is not believed and written again. Nothing depends on it but time: where
the folder cannot be written or read the array is computed. It is `$XDG_CACHE_HOME/gristmill`, or `~/.cache/gristmill`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128

if TYPE_CHECKING:
    import numpy as np

_MAGIC = b"gristmill array\0"
_HEAD = len(_MAGIC) + 16


def folder() -> Path:
    """Where arrays are kept; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "gristmill"


def kept_array(name: str, dtype: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array (n,) of a plain `dtype` that `make` gives, from the file `name` if a process before left it there.

    `name` must tell all that `make` depends on, its code included.
    """
    path = folder() / name
    found = _read(path, name, dtype)
    if found is None:
        found = make()
        _write(path, name, found)
    return found


def _digest(name: str, data: Any) -> bytes:
    hasher = xxh3_128(name.encode())
    hasher.update(data)
    return hasher.digest()


def _read(path: Path, name: str, dtype: Any) -> np.ndarray | None:
    import numpy as np

    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            if len(head) < _HEAD or not head.startswith(_MAGIC):
                return None
            stat = os.fstat(file.fileno())
            if stat.st_uid not in (os.geteuid(), 0):
                return None
            found = np.fromfile(file, dtype)
    except (OSError, ValueError):
        return None
    if found.nbytes != stat.st_size - _HEAD or _digest(name, found) != head[len(_MAGIC) :]:
        return None
    return found


def _write(path: Path, name: str, array: np.ndarray) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(prefix=f".tmp-{name}-", dir=path.parent)
        with open(number, "wb") as file:
            file.write(_MAGIC + _digest(name, array))
            array.tofile(file)
        os.replace(temporary, path)
    except OSError:  # a full disk, a read-only home: the next process computes it again
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
