"""Export the documents of every source as Megatron's .bin and .idx, and each stage's blend for --data-path.

Megatron cuts, shuffles and repeats by itself, so it gets documents, not rows: all that a source may draw from (held-out
clusters left out), in the order of the token stores, once per draw of one epoch. NAME.bin has the tokens back to back,
eos included; NAME.idx is `MMIDIDX\\0\\0`, version 1 (<u8), the type's code (u1), the counts of sequences and of document
indices (<u8), then per sequence its tokens (<i4), per sequence its first byte (<i8), and the document indices 0..D (<i8):
20 B a document. A document that is drawn more than once is stored once and indexed as often.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError
from gristmill.core.tokshards import PackedDataset, PackedPhase
from gristmill.core.tokstore import TokenStore
from gristmill.mixes.membership import columns_of, draw_weights, memberships, read_columns, store_schema
from gristmill.mixes.schema import Mixture

MAGIC = b"MMIDIDX\x00\x00"
UINT16_BELOW = 65_500
"""Megatron's own limit for 2-byte tokens (DType.optimal_dtype); from there on it takes int32."""
CODES = {"<u2": 8, "<i4": 4}
ENTRY = np.dtype([("length", "<i4"), ("pointer", "<i8")])
CHUNK = 1 << 20


def write_megatron(dataset: PackedDataset, phases: Sequence[PackedPhase], root: Path, out: Path) -> dict[str, Any]:
    """SOURCE.bin, SOURCE.idx and STAGE.data_path. Memory is bounded by one token store's document table.

    Returns the facts for export.json: documents and tokens of each source, and the blend of each stage. Raises
    FormatError when a token store is gone or another one than was packed.
    """
    mixture = Mixture.model_validate(orjson.loads((dataset.folder / "mix.lock.json").read_bytes())["mixture"])
    used = {source for phase in phases for source in phase.shares}
    dtype = "<u2" if dataset.manifest.vocab_size < UINT16_BELOW else "<i4"
    sources = {name: _Source(out / file_name(name), dtype) for name in sorted(used)}
    stores = list(_stores(dataset, root))
    schema = store_schema([docs for _, docs in stores])
    held = dataset.folder / "heldout.parquet"
    out_of = set(pq.read_table(held, columns=["id"])["id"].to_pylist()) if held.exists() else set()
    for path, docs in stores:
        store = TokenStore(path, docs)
        for name, (chosen, weights) in _members(mixture, docs, schema, used, out_of).items():
            sources[name].add(store, chosen, weights)
    blends = {}
    for phase in phases:
        parts = [f"{share['target']:.10g} {file_name(name)}" for name, share in phase.shares.items()]
        blends[phase.name] = "--data-path " + " ".join(parts)
        (out / f"{phase.name}.data_path").write_text(blends[phase.name] + "\n")
    counts = {name: source.close() for name, source in sources.items()}
    return {
        "tokens": sum(c["tokens"] for c in counts.values()),
        "dtype": dtype,
        "sources": counts,
        "data_path": blends,
    }


def file_name(source: str) -> str:
    """A source's name as a file's: what is no letter, digit, `_`, `.` or `-` is replaced, and a hash keeps it apart."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", source)[:80]
    return safe if safe == source else f"{safe}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def _stores(dataset: PackedDataset, root: Path) -> Iterator[tuple[Path, Path]]:
    from gristmill.core.hashing import sha256_file

    for store in dataset.manifest.stores:
        docs = root / store["path"]
        if not docs.is_file() or sha256_file(docs) != store["sha256"]:
            raise FormatError(
                f"the token store {docs} is gone or not the one that was packed",
                hint="Megatron's documents come from the token stores; run the recipe again",
            )
        yield docs.with_name("tokens.bin"), docs


def _members(
    mixture: Mixture, docs: Path, schema: pa.Schema, used: set[str], out_of: set[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per used source the documents of one store, ascending, and how often each is drawn in an epoch."""
    table = read_columns(docs, sorted({*columns_of(mixture), "id", "length"}), schema)
    keep = np.fromiter((i not in out_of for i in table["id"].to_pylist()), bool, table.num_rows)
    found = {}
    for name, member in memberships(mixture, table).items():
        if name in used:
            chosen = np.flatnonzero(member & keep)
            found[name] = (chosen, draw_weights(mixture, name, table)[chosen])
    return found


class _Source:
    """Appends documents to BASE.bin and their entries to BASE.entries, from which `close` makes BASE.idx."""

    def __init__(self, base: Path, dtype: str) -> None:
        self.base, self.dtype = base, np.dtype(dtype)
        self.documents = self.tokens = self._bytes = 0
        for suffix in ("bin", "entries"):
            Path(f"{base}.{suffix}").touch()

    def add(self, store: TokenStore, chosen: np.ndarray, weights: np.ndarray) -> None:
        if not len(chosen):
            return
        lengths = store.lengths[chosen]
        entries = np.empty(len(chosen), ENTRY)
        entries["length"] = lengths
        entries["pointer"] = self._bytes + (np.cumsum(lengths) - lengths) * self.dtype.itemsize
        cuts = np.flatnonzero(np.diff(chosen, prepend=-2) != 1)  # neighbours are copied together
        with open(f"{self.base}.bin", "ab") as file:
            for first, end in zip(cuts, np.append(cuts[1:], len(chosen)), strict=True):
                begin = int(store.offsets[chosen[first]])
                stop = int(store.offsets[chosen[end - 1]] + lengths[end - 1])
                for at in range(begin, stop, CHUNK):
                    store.data[at : min(at + CHUNK, stop)].astype(self.dtype, copy=False).tofile(file)
        self._bytes += int(lengths.sum()) * self.dtype.itemsize
        repeated = np.repeat(entries, weights)
        with open(f"{self.base}.entries", "ab") as file:
            repeated.tofile(file)
        self.documents += len(repeated)
        self.tokens += int(repeated["length"].sum())

    def close(self) -> dict[str, Any]:
        path = Path(f"{self.base}.entries")
        with open(f"{self.base}.idx", "wb") as out:
            out.write(MAGIC + struct.pack("<QBQQ", 1, CODES[self.dtype.str], self.documents, self.documents + 1))
            for field in ("length", "pointer"):
                with open(path, "rb") as entries:
                    while len(part := np.fromfile(entries, ENTRY, CHUNK)):
                        part[field].tofile(out)
            for first in range(0, self.documents + 1, CHUNK):
                np.arange(first, min(first + CHUNK, self.documents + 1), dtype="<i8").tofile(out)
        path.unlink()
        return {"file": self.base.name, "documents": self.documents, "tokens": self.tokens}
