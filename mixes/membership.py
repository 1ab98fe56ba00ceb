"""Which documents of a token store each source of a mixture draws from, and how often: filters, file globs, `split_by`
children, rehydration weights.

One store's document table at a time, so that no more than that is ever in memory; never a token.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.core.errors import ConfigError, FormatError, UsageError
from gristmill.core.expression import ExpressionError, compile_expression
from gristmill.core.settings import Document
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA
from gristmill.core.tokstore import extra_fields
from gristmill.mixes.schema import Mixture, filter_schema

NO_VALUE = "none"
"""A null's child: NAME.none."""
MAX_CHILDREN = 4096
"""Children of one source; a column with more values is an id, not a category."""
SAMPLE_BITS = 4
"""W210 looks at one document in 2^4, by hash of its id."""


def store_schema(paths: Sequence[Path]) -> pa.Schema:
    """The columns that filters and `split_by` may name over these docs.parquet: the fixed ones, then any store's own.

    A column that only some stores have is null in the others. Raises FormatError on a file that is no store's table, or
    when two stores have one column in two types.
    """
    found = {f.name: f for f in filter_schema()}
    for path in paths:
        try:
            extra = extra_fields(pq.read_schema(path))
        except (OSError, pa.ArrowException, ValueError) as error:
            raise FormatError(f"{path} is no document table of a token store: {error}") from error
        for field in extra:
            if found.setdefault(field.name, field).type != field.type:
                raise FormatError(f"{path}: column `{field.name}` is {field.type}, elsewhere {found[field.name].type}")
    return pa.schema(list(found.values()))


def read_columns(path: Path, names: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Columns of one docs.parquet in the types of `store_schema`; null where this store lacks one. Raises FormatError."""
    try:
        with pq.ParquetFile(path) as file:
            have = [n for n in names if n in file.schema_arrow.names]
            table = file.read(columns=have)
        for name in set(names) - set(have):
            if name in TOKEN_DOC_SCHEMA.names:
                raise ValueError(f"no column `{name}`")
            table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
        return table.select(list(names)).cast(pa.schema([schema.field(n) for n in names]))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise FormatError(f"{path} is no document table of a token store: {error}") from error


def check_columns(mixture: Mixture, schema: pa.Schema, document: Document | None = None) -> None:
    """Filters and split_by against the columns that there are. Raises UsageError with every E102, with `document` at
    their places in the YAML (ConfigError)."""
    faults: list[tuple[tuple[str, str, str], str, str | None]] = []
    for name, source in mixture.sources.items():
        if source.filter:
            try:
                compile_expression(source.filter, schema)
            except ExpressionError as error:
                faults.append((("sources", name, "filter"), f"E102 {error.message}", error.hint))
        if source.split_by is not None and source.split_by not in schema.names:
            known = ", ".join(schema.names)
            text = f"E102 unknown column `{source.split_by}`"
            faults.append((("sources", name, "split_by"), text, f"columns: {known}"))
    if faults and document is not None:
        raise ConfigError([document.problem(loc, text, hint) for loc, text, hint in faults])
    if faults:
        lines = [f"sources.{loc[1]}.{loc[2]}: {text}" for loc, text, _ in faults]
        raise UsageError("\n".join(lines), hint=faults[0][2])


def columns_of(mixture: Mixture) -> set[str]:
    """The columns of docs.parquet that `memberships` and `draw_weights` read."""
    names = {"length"}
    for source in mixture.sources.values():
        if source.filter:
            names.update(compile_expression(source.filter, filter_schema(), closed=False).columns)
        names.update(["warc_file"] if source.path else ())
        names.update([source.split_by] if source.split_by else ())
        names.update(["dup_count"] if source.rehydrate else ())
    return names


def memberships(mixture: Mixture, table: pa.Table) -> dict[str, np.ndarray]:
    """Per drawable source the documents it has: name -> (D,) bool over the rows of one store's document table.

    The table has at least `columns_of(mixture)`. A source with `split_by` is left out; its children NAME.VALUE that this
    table holds stand in its place, by value. So stores may have different names: a missing one has no document there.
    Empty documents, and those of weight 0, belong to no source. Raises UsageError (E102) when a filter does not fit the
    table's columns (`check_columns` says where), or split_by has more than MAX_CHILDREN values.
    """
    filled = table["length"].to_numpy() > 0
    out: dict[str, np.ndarray] = {}
    for name, source in mixture.sources.items():
        keep = filled.copy()
        if source.filter:
            expression = compile_expression(source.filter, table.schema)
            keep &= expression.mask(table).to_numpy(zero_copy_only=False)
        if source.path:
            keep &= _from_files(table["warc_file"], source.path)
        if source.rehydrate:
            keep &= draw_weights(mixture, name, table) > 0
        if source.split_by is None:
            out[name] = keep
        else:
            out |= _children(name, source.split_by, keep, table[source.split_by])
    return out


def draw_weights(mixture: Mixture, name: str, table: pa.Table) -> np.ndarray:
    """(D,) int32: how often each document is drawn in one epoch of a source or child; 1 where it has no `rehydrate`.

    The weight of the highest threshold that `dup_count` (1 where null) reaches. One epoch of a source has
    sum(weight x length) tokens.
    """
    rehydrate = mixture.sources[mixture.parent(name)].rehydrate
    if not rehydrate:
        return np.ones(table.num_rows, np.int32)
    thresholds = np.array(sorted(rehydrate))
    weights = np.array([1, *(rehydrate[int(t)] for t in thresholds)], np.int32)
    copies = pc.fill_null(table["dup_count"], 1).to_numpy()
    return np.asarray(weights[np.searchsorted(thresholds, copies, side="right")])


class Nones:
    """Children NAME.none that are nulls in some documents and the text "none" in others, counted batch by batch."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[bool]] = {}

    def add(self, mixture: Mixture, table: pa.Table, members: Mapping[str, np.ndarray]) -> None:
        """One batch and its `memberships`."""
        for name in mixture.split:
            member = members.get(f"{name}.{NO_VALUE}")
            if member is not None:
                null = table[mixture.sources[name].split_by].is_null().to_numpy()
                self._counts.setdefault(name, Counter()).update(
                    {True: (member & null).sum(), False: (member & ~null).sum()}
                )

    def faults(self, mixture: Mixture) -> list[tuple[tuple[str, str, str], str, str]]:
        """E102 of each source that has both: (place, message, hint)."""
        out = []
        for name, counts in self._counts.items():
            if counts[True] and counts[False]:
                column = mixture.sources[name].split_by
                text = (
                    f"E102 source `{name}`: {counts[True]:,} documents have no `{column}` and {counts[False]:,} have the "
                    f"text {NO_VALUE!r}, and both would be `{name}.{NO_VALUE}`"
                )
                hint = f'leave the first out: filter: "{column} is not None"'
                out.append((("sources", name, "split_by"), text, hint))
        return out


class Overlaps:
    """Documents that two sources share, counted on a sample by hash of the id (W210), store by store."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, members: Mapping[str, np.ndarray], hashes: np.ndarray) -> None:
        """One store: `memberships` and the (D,) uint64 hashes of its ids."""
        sampled = np.flatnonzero(hashes >> np.uint64(64 - SAMPLE_BITS) == 0)
        names = list(members)
        masks = np.array([members[name][sampled] for name in names]).reshape(len(names), len(sampled))
        shared = masks[:, masks.sum(axis=0) > 1]
        if not shared.shape[1]:
            return
        # few patterns, however many children there are: a document has one child of each source
        patterns, counts = np.unique(shared, axis=1, return_counts=True)
        for pattern, n in zip(patterns.T, counts.tolist(), strict=True):
            for one, other in itertools.combinations(np.flatnonzero(pattern).tolist(), 2):
                self._counts[names[one], names[other]] += n

    def found(self) -> dict[tuple[str, str], int]:
        """{pair: shared documents, estimated as the sample's times 2^SAMPLE_BITS}, sorted by the pairs' names."""
        return {pair: n << SAMPLE_BITS for pair, n in sorted(self._counts.items())}


def _from_files(files: pa.ChunkedArray, glob: str) -> np.ndarray:
    coded = files.combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    good = np.array([n is not None and fnmatch.fnmatchcase(n, glob) for n in names] + [False])
    return np.asarray(good[coded.indices.fill_null(len(names)).to_numpy()])


def _children(name: str, column: str, keep: np.ndarray, values: pa.ChunkedArray) -> Mapping[str, np.ndarray]:
    coded = pc.cast(values, pa.string()).combine_chunks().dictionary_encode()
    texts: Sequence[str] = [*coded.dictionary.to_pylist(), NO_VALUE]
    codes = coded.indices.fill_null(len(texts) - 1).to_numpy()
    present = np.unique(codes[keep])
    if len(present) > MAX_CHILDREN:
        raise UsageError(
            f"E102 source `{name}`: split_by {column} gives {len(present):,} children, at most {MAX_CHILDREN:,} are allowed",
            hint="split by a column of few values, such as language",
        )
    out: dict[str, np.ndarray] = {}
    for code in sorted(present.tolist(), key=lambda c: texts[c]):
        child = f"{name}.{texts[code]}"
        member = keep & (codes == code)
        out[child] = out[child] | member if child in out else member
    return out
