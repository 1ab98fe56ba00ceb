"""Reading WARC and ARC files record by record, through any damage, with bounded memory and honest offsets.

Reading never raises on bad bytes. What is no record comes back as `Damage`, one row per damaged stretch:

| reason | meaning |
|---|---|
| `warc.truncated_member` | the file ends inside a compressed member |
| `warc.truncated_record` | an uncompressed file ends inside a record |
| `warc.bad_gzip`, `warc.bad_lz4`, `warc.bad_zstd` | compressed bytes do not decode |
| `warc.bad_crc` | they decode, but fail their checksum or length check |
| `warc.member_too_large` | a member inflates past `Limits.max_member_bytes` |
| `warc.bad_header` | a record begins, but its header cannot be read |
| `warc.garbage` | bytes between records or members that are none |
| `warc.not_an_archive` | no record in the whole file |
| `warc.empty_file` | 0 bytes |
| `warc.no_decoder` | an LZ4 or Zstandard file without its package |

After damage reading goes on at the next gzip magic that inflates to a record header, or the next header line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from gristmill.curate.warc_container import open_container
from gristmill.curate.warc_inputs import Input, expand_inputs
from gristmill.curate.warc_open import open_warc
from gristmill.curate.warc_page import Page, Skip, page_of
from gristmill.curate.warc_reader import Reader
from gristmill.curate.warc_types import Damage, Limits, Record

__all__ = [
    "Damage",
    "Input",
    "Limits",
    "Page",
    "Record",
    "Skip",
    "expand_inputs",
    "open_warc",
    "page_of",
    "read_records",
]

DEFAULT_LIMITS = Limits()


def read_records(stream: BinaryIO, name: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[Record | Damage]:
    """All records of one seekable stream in file order, damage between them; no (offset, inner) comes twice.

    The format (WARC or ARC; plain, gzip, LZ4, Zstandard) is told by the bytes, not by `name`, which only labels
    Damage rows. Raises only what the stream's own `read` and `seek` raise.
    """
    try:
        source = open_container(stream, limits)
    except ImportError as e:
        size = stream.seek(0, 2)
        hint = f"no decompressor for this file ({e}); pip install lz4 zstandard"
        yield Damage(name, 0, 0, size, "warc.no_decoder", hint)
        return
    if source.size == 0:
        yield Damage(name, 0, 0, 0, "warc.empty_file", "the file has 0 bytes")
        return
    yield from Reader(source, name, limits).run()
