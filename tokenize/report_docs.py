"""The documents a tokenizer report is measured on: seeded per language, with their source and registered domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.core.errors import InputError
from gristmill.core.hashing import hash64
from gristmill.tokenize.sample import UNKNOWN, Picked, pick, sample_seed
from gristmill.tokenize.schema import Sample

PARTS = 10
"""The sample curve has this many points; a document's part is a hash of its id, so the order of files is no matter."""


@dataclass(frozen=True)
class Document:
    """`source` is the column of that name, else the file's name; `domain` the registered domain of `url`, "" without
    one; `part` in [0, PARTS) by hash of the id."""

    language: str
    source: str
    domain: str
    part: int
    text: str


def choose(paths: Sequence[Path], docs_per_language: int, seed: int) -> Picked:
    """The same choice as `api.report_on` makes. Raises InputError when a file lacks the columns id and text."""
    return pick(paths, Sample(), sample_seed(seed, "fertility"), docs_per_language)


def read(paths: Sequence[Path], picked: Picked, cap: int, seed: int) -> Iterator[Document]:
    """The chosen documents in file and row order, at most `cap` leading characters of each."""
    domain_of = _domains()
    key = sample_seed(seed, "curve")
    for path, rows in zip(paths, picked.rows, strict=True):
        if not len(rows):
            continue
        try:
            with pq.ParquetFile(path) as file:
                yield from _file(file, rows, cap, key, path, domain_of)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path} does not read as Parquet: {error}") from error


def _file(
    file: pq.ParquetFile, rows: np.ndarray, cap: int, key: int, path: Path, domain_of: Callable[[str], str]
) -> Iterator[Document]:
    names = file.schema_arrow.names
    columns = [c for c in ("id", "text", "language", "source", "url") if c in names]
    ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
    for group in np.unique(np.searchsorted(ends, rows, "right")).tolist():
        first = int(ends[group - 1]) if group else 0
        for batch in file.iter_batches(batch_size=1024, columns=columns, row_groups=[group]):
            mine = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(batch))] - first
            first += len(batch)
            if not len(mine):
                continue
            few = batch.take(pa.array(mine))
            values = {c: pc.fill_null(few[c].cast(pa.string()), "").to_pylist() for c in columns}
            for i in range(len(few)):
                yield Document(
                    values["language"][i] if "language" in values and few["language"][i].is_valid else UNKNOWN,
                    (values["source"][i] if "source" in values else "") or path.name.removesuffix(".parquet"),
                    domain_of(values["url"][i]) if "url" in values else "",
                    hash64(values["id"][i], key) * PARTS >> 64,
                    values["text"][i][:cap],
                )


def _domains() -> Callable[[str], str]:
    """Registered domain of a URL (the host's last label where it has no public suffix), by tldextract's own copy of the public suffix list."""
    import tldextract

    extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    @lru_cache(maxsize=1 << 16)
    def of(host: str) -> str:
        found = extract(host)
        return str(found.top_domain_under_public_suffix or found.domain or host)

    def domain(url: str) -> str:
        return of(url.split("://", 1)[-1].split("/", 1)[0][:300]) if url else ""

    return domain
