"""A blocklist: documents that a person or a guard wants out of training, as a file that any room reads.

One document a line, either its id alone (32 hex digits, with an optional `# remark`) or a JSON object whose `id` holds it.
Empty lines and lines that begin with # are remarks. `gristmill trace --spike --block FILE` appends to one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import orjson

from gristmill.core.errors import FormatError, UsageError

MAX_BYTES = 1 << 28  # 256 MiB: 8 million bare ids; more are no list of exceptions but another curation
MAX_LINE = 1 << 16
ID = re.compile(r"[0-9a-f]{32}")


def read_blocklist(path: str | Path) -> tuple[str, ...]:
    """The document ids in the order of the file, each once.

    Raises UsageError when the file cannot be read, FormatError with the line's number on a line that holds no id, a line
    over 64 KiB or a file over 256 MiB.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path} is larger than {MAX_BYTES >> 20} MiB", hint="a blocklist holds one id a line")
        with open(path, "rb") as file:
            ids: dict[str, None] = {}
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                found = _id_in(line, f"{path}:{number}")
                if found is not None:
                    ids[found] = None
    except OSError as error:
        raise UsageError(f"cannot read the blocklist {path}: {error.strerror or error}") from error
    return tuple(ids)


def _id_in(line: bytes, place: str) -> str | None:
    if len(line) > MAX_LINE:
        raise FormatError(f"{place}: a line of more than {MAX_LINE} bytes", hint="a blocklist holds one id a line")
    text = line.strip()
    if not text or text.startswith(b"#"):
        return None
    value: object
    if text.startswith(b"{"):
        try:
            value = orjson.loads(text).get("id")
        except ValueError as error:
            raise FormatError(f"{place}: no JSON: {error}", hint='for example {"id": "00…32 hex digits"}') from error
    else:
        value = text.partition(b"#")[0].strip().decode("ascii", "replace")
    if not isinstance(value, str) or not ID.fullmatch(value):
        shown = str(value)[:40]
        raise FormatError(f"{place}: {shown!r} is no document id", hint="an id has 32 hex digits in lower case")
    return value


def append_blocklist(path: str | Path, entries: Iterable[tuple[str, str]]) -> int:
    """Add (id, remark) pairs that the file does not hold yet, making it if need be. Returns how many were added."""
    path = Path(path)
    known = set(read_blocklist(path)) if path.exists() else set()
    lines = []
    for document, remark in entries:
        if not ID.fullmatch(document):
            raise ValueError(f"{document!r} is no document id")
        if document not in known:
            known.add(document)
            lines.append(f"{document}  # {' '.join(remark.split())[:200]}\n" if remark else f"{document}\n")
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with open(path, "a", encoding="utf-8", errors="replace") as file:
        file.write(("" if whole else "\n") + "".join(lines))
    return len(lines)
