"""Reads the label list out of a fastText model file without loading the model (GlotLID's takes 1.7 GB of memory).

Layout (facebookresearch/fastText, `FastText::saveModel`, `Args::save`, `Dictionary::save`; little-endian): int32 magic
and version; 12 int32 and one float64 of training arguments; int32 entries, words and labels, int64 tokens and pruned
entries; then per entry a NUL-terminated name, an int64 count and an int8 type (1: a label).
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from functools import lru_cache
from pathlib import Path

from gristmill.core.errors import UsageError

MAGIC = 793712314
VERSIONS = (11, 12)
_HEAD = struct.Struct("<2i12id3i2q")
_LOSS_AND_MODEL = slice(8, 10)  # of the unpacked head: 2 + dim, ws, epoch, minCount, neg, wordNgrams
SUPERVISED = 3
PREFIX = "__label__"
_TAIL = 9  # count and type of an entry
_MAX_NAME = 1 << 16


def model_labels(path: Path) -> tuple[str, ...]:
    """The labels of a supervised fastText model, without `__label__`, in the file's order.

    Read once per process for each (path, size, time). Raises UsageError when the file cannot be read, is no such model
    or ends early.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UsageError(f"cannot read the language model {path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"the language model {path} is not a plain file")
    return _labels(str(path), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _labels(path: str, size: int, mtime_ns: int) -> tuple[str, ...]:
    if size < _HEAD.size:
        raise UsageError(f"{path} is not a fastText model: it has {size} bytes")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = _HEAD.unpack_from(data)
        if head[0] != MAGIC or head[1] not in VERSIONS:
            raise UsageError(f"{path} is not a fastText model: it begins otherwise")
        entries, words, labels = head[-5:-2]
        if head[_LOSS_AND_MODEL][1] != SUPERVISED or labels < 1 or words < 0 or entries != words + labels:
            raise UsageError(f"{path} is a fastText model without labels", hint="a language model is a supervised one")
        at = _HEAD.size
        out: list[str] = []
        for _ in range(entries):
            end = data.find(b"\0", at, at + _MAX_NAME)
            if end < 0 or end + _TAIL >= size:
                raise UsageError(f"{path} ends inside its dictionary", hint=f"copy it again ({os.path.basename(path)})")
            if data[end + _TAIL] == 1:
                out.append(bytes(data[at:end]).decode("utf-8", "replace").removeprefix(PREFIX))
            at = end + 1 + _TAIL
        if len(out) != labels:
            raise UsageError(f"{path} is damaged: {len(out)} labels where its head says {labels}")
        return tuple(out)
