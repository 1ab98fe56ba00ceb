"""Check a packed dataset folder against itself and, with a root, against its token stores: every fault with its code.

Codes: `manifest.lock`, `manifest.tokenizer`, `manifest.field`, `hash`, `missing`; `rows` (counts), `pieces` (tokens, boundaries and provenance
disagree), `vocabulary`, `padding`; `share`, `prefix`, `mixed_row`; `heldout.id`, `heldout.cluster`, `twice`, `store`.
One shard is in memory at a time; what must be compared across shards is spilled (verify_repeats.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PackedDataset, PackedManifest, PackedPhase, ShardReader
from gristmill.mixes import index
from gristmill.mixes.verify_prefix import Prefix
from gristmill.mixes.verify_repeats import Repeats

VERIFY_FORMAT = "gristmill-verify-1"

OPTIONAL = ("until_rows", "loss_weights", "chain", "spec")
ABSENT = {
    f.name: f.default_factory() if f.default_factory is not MISSING else f.default
    for f in fields(PackedPhase)
    if f.name in OPTIONAL
}
"""What the manifest has where the lock leaves a field out."""


@dataclass(frozen=True)
class Problem:
    """One fault: a code of the module's list, the file or PHASE:ROW where it is, and what it is in words."""

    code: str
    where: str
    what: str

    @property
    def text(self) -> str:
        return f"{self.where}{' ' if self.what.startswith(('is ', 'differs ')) else ': '}{self.what}"


@dataclass
class Report:
    """What `check` found. `counts`: phases, shards, rows, pieces, tokens, files_hashed, stores_read and so on."""

    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int | float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, code: str, where: str, what: str) -> None:
        self.problems.append(Problem(code, where, what))

    def count(self, name: str, n: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + n

    def to_json(self) -> dict[str, Any]:
        return {
            "format": VERIFY_FORMAT,
            "ok": self.ok,
            "problems": [asdict(p) for p in self.problems],
            "counts": self.counts,
        }


def problems(folder: str | Path, digests: bool = True) -> list[str]:
    """Everything wrong with a dataset folder in words; empty when it is sound. `digests` also hashes every shard file.

    Raises FormatError when there is no readable manifest.
    """
    return [p.text for p in check(folder, digests=digests).problems]


def check(folder: str | Path, root: str | Path | None = None, digests: bool = True) -> Report:
    """Verify a dataset folder. With a `root` its token stores are read, too: held-out clusters, and the stores' digests.

    `digests` also hashes every shard file. Raises FormatError when there is no readable manifest.
    """
    dataset = PackedDataset(folder)
    report = Report()
    lock = _identity(dataset, report)
    if digests:
        _hashes(dataset, report)
    forbidden = _forbidden(dataset, Path(root), lock, report) if root is not None else np.empty(0, np.int64)
    heldout = _heldout(dataset.folder)
    report.counts["heldout_documents"] = len(heldout)
    locked = {p["name"]: p for p in lock.get("phases", []) if isinstance(p, dict) and "name" in p}
    with Repeats(dataset) as repeats:
        for phase in dataset.manifest.phases:
            _phase(dataset, phase, locked.get(phase.name), heldout, forbidden, repeats, report)
        for where, what in repeats.found():
            report.add("twice", where, what)
    return report


def _identity(dataset: PackedDataset, report: Report) -> dict[str, Any]:
    """The lock and the tokenizer are those of the manifest. Returns the lock as plain data, {} where there is none."""
    for code, name, want in (
        ("manifest.lock", "mix.lock.json", dataset.manifest.lock_sha256),
        ("manifest.tokenizer", "tokenizer.json", dataset.manifest.tokenizer_sha256),
    ):
        path = dataset.folder / name
        if not path.exists() or sha256_file(path) != want:
            report.add(code, name, "is missing or differs from the manifest")
    try:
        lock = orjson.loads((dataset.folder / "mix.lock.json").read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(lock, dict):
        return {}
    for where, key in _edited(dataset.manifest, lock):
        report.add("manifest.field", where, f"{key} is not what the lock says")
    return lock


def _edited(manifest: PackedManifest, lock: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(where, field) of what manifest.json has from the lock and says otherwise."""
    for key in ("dtype", "vocab_size", "special_ids", "tokenizer_sha256", "seed"):
        if getattr(manifest, key) != lock.get(key):
            yield "manifest.json", key
    locked = [p for p in lock.get("phases", []) if isinstance(p, dict)]
    if [p.get("name") for p in locked] != [phase.name for phase in manifest.phases]:
        yield "manifest.json", "the list of phases"
        return
    for phase, said in zip(manifest.phases, locked, strict=True):
        for key in ("seq_len", "rows", "batch_rows", "rows_per_shard", "lr", "shares", *OPTIONAL):
            if getattr(phase, key) != said.get(key, ABSENT.get(key)):
                yield phase.name, key


def _hashes(dataset: PackedDataset, report: Report) -> None:
    for phase in dataset.manifest.phases:
        for shard in phase.shards:
            base = shard.file.removesuffix(".bin")
            for suffix, want in shard.sha256.items():
                report.count("files_hashed")
                try:
                    if sha256_file(dataset.folder / f"{base}.{suffix}") != want:
                        report.add("hash", f"{base}.{suffix}", "differs from the manifest")
                except OSError as error:
                    report.add("missing", f"{base}.{suffix}", f"is gone: {error.strerror}")
    for name, what in index.faults(dataset.folder):
        report.add("hash", name, what)


def _heldout(folder: Path) -> pa.Array:
    path = folder / "heldout.parquet"
    ids = pq.read_table(path, columns=["id"])["id"].to_pylist() if path.exists() else []
    return pa.array(sorted({bytes.fromhex(i) for i in ids}), pa.binary(16))


def _forbidden(dataset: PackedDataset, root: Path, lock: Mapping[str, Any], report: Report) -> np.ndarray:
    """(F,) int64, sorted: store << 32 | doc of every document in a cluster of which one is held out."""
    by_cluster = ((lock.get("mixture") or {}).get("heldout") or {}).get("key") == "dup_cluster"
    held = dataset.folder / "heldout.parquet"
    places: dict[int, list[int]] = {}
    if by_cluster and held.exists():
        for row in pq.read_table(held, columns=["store", "doc"]).to_pylist():
            places.setdefault(row["store"], []).append(row["doc"])
    keys: set[str] = set()
    tables: dict[int, Path] = {}
    for i, store in enumerate(dataset.manifest.stores):
        path = root / store["path"]
        if not path.is_file():
            report.add("store", store["path"], "the token store is gone: its documents cannot be traced or checked")
        elif sha256_file(path) != store["sha256"]:
            report.add("store", store["path"], "the token store is not the one that was packed")
        else:
            tables[i] = path
            report.count("stores_read")
    for i, docs in places.items():
        if i in tables:
            keys.update(_clusters(tables[i]).take(pa.array(docs)).to_pylist())
    if not keys:
        return np.empty(0, np.int64)
    wanted = pa.array(sorted(keys), pa.string())
    report.counts["heldout_clusters"] = len(keys)
    out = []
    for i, path in tables.items():
        mask = pc.is_in(_clusters(path), value_set=wanted).to_numpy(zero_copy_only=False)
        out.append(np.flatnonzero(mask) + (i << 32))
    return np.concatenate(out)


def _clusters(docs: Path) -> pa.ChunkedArray:
    """A document's cluster, its own id where it has none."""
    table = pq.read_table(docs, columns=["id", "dup_cluster"])
    return pc.coalesce(table["dup_cluster"], table["id"])


def _phase(
    dataset: PackedDataset,
    phase: PackedPhase,
    locked: Mapping[str, Any] | None,
    heldout: pa.Array,
    forbidden: np.ndarray,
    repeats: Repeats,
    report: Report,
) -> None:
    report.count("phases")
    stored = sum(s.rows for s in phase.shards)
    if stored != phase.rows or phase.rows % phase.batch_rows:
        what = f"{stored} rows in shards, {phase.rows} in the manifest, batches of {phase.batch_rows}"
        report.add("rows", phase.name, what)
    tokens: Counter[str] = Counter()
    prefix = Prefix.of(phase, locked)
    if prefix is None and locked is not None:
        report.add("share", phase.name, "the lock does not say how many rows each source has")
    for i, shard in enumerate(phase.shards):
        if shard.rows != min(phase.rows_per_shard, phase.rows - i * phase.rows_per_shard):
            what = f"{shard.rows} rows, expected {phase.rows_per_shard} but for the last shard"
            report.add("rows", shard.file, what)
        first = i * phase.rows_per_shard
        try:
            reader, _ = dataset.locate(phase.name, first)
            table = reader.provenance()
        except (FormatError, OSError, pa.ArrowException, ValueError) as error:
            report.add("missing" if isinstance(error, FileNotFoundError) else "pieces", shard.file, str(error))
            if prefix is not None:
                prefix.lost()
            continue
        report.count("shards")
        report.count("rows", shard.rows)
        report.count("pieces", table.num_rows)
        fault = shard_fault(reader, table, first, dataset.manifest.special_ids["pad"], dataset.manifest.vocab_size)
        if fault is not None:
            report.add(fault[0], shard.file, fault[1])
        _leaks(phase.name, table, heldout, forbidden, report)
        names, code = _sources(table)
        sums = np.bincount(code, table["length"].to_numpy(), len(names)) if len(names) else np.empty(0)
        for name, n in zip(names, sums.astype(np.int64).tolist(), strict=True):
            tokens[name] += n
        row = table["row"].to_numpy() - first
        if fault is None:
            mixed = np.flatnonzero((np.diff(row) == 0) & (np.diff(code) != 0))
            if len(mixed):
                where = f"{phase.name}:{first + int(row[mixed[0]])}"
                report.add("mixed_row", where, f"a row of two sources, one of {len(mixed)} such places in {shard.file}")
            if prefix is not None:
                firsts = np.flatnonzero(np.diff(row, prepend=-1))
                prefix.add(names, code[firsts])
        elif prefix is not None:
            prefix.lost()
        repeats.add(phase.name, table)
    _shares(phase, tokens, prefix, report)


def _leaks(phase: str, table: pa.Table, heldout: pa.Array, forbidden: np.ndarray, report: Report) -> None:
    def first(mask: np.ndarray, code: str, what: str) -> None:
        at = np.flatnonzero(mask)
        if len(at):
            rows, ids = table["row"].to_numpy(), table["id"]
            where = f"{phase}:{int(rows[at[0]])}"
            report.add(code, where, f"{what} {ids[int(at[0])].as_py().hex()}, in {len(at)} pieces of this shard")

    if len(heldout):
        found = pc.is_in(table["id"], value_set=heldout).to_numpy(zero_copy_only=False)
        first(found, "heldout.id", "holds the held-out document")
    if len(forbidden):
        place = (table["store"].to_numpy().astype(np.int64) << 32) | table["doc"].to_numpy()
        found = np.isin(place, forbidden) & ~pc.is_in(table["id"], value_set=heldout).to_numpy(zero_copy_only=False)
        first(found, "heldout.cluster", "holds a near duplicate of a held-out document:")


def _sources(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """Names, and each piece's index into them."""
    column = table["source"].combine_chunks()
    return column.dictionary.to_pylist(), column.indices.to_numpy().astype(np.int64)


def _shares(phase: PackedPhase, tokens: Counter[str], prefix: Prefix | None, report: Report) -> None:
    total = sum(tokens.values())
    report.count("tokens", total)
    for source, share in phase.shares.items():
        if total and abs(tokens[source] / total - share["realised"]) > 1e-9:
            what = f"{source} is {tokens[source] / total:.6f} of the tokens, the manifest says {share['realised']:.6f}"
            report.add("share", phase.name, what)
    unknown = sorted(s for s, n in tokens.items() if n and s not in phase.shares)
    if unknown:
        report.add("share", phase.name, f"sources {unknown} are not in the manifest")
    if prefix is not None:
        for code, what in prefix.faults():
            report.add(code, phase.name, what)
        report.counts["prefix_error_rows"] = max(report.counts.get("prefix_error_rows", 0.0), prefix.worst)


def shard_fault(
    reader: ShardReader, provenance: pa.Table, first_row: int, pad: int, vocab_size: int
) -> tuple[str, str] | None:
    """The first disagreement (code, what) of tokens, boundaries and provenance: every token is in one piece or padding."""
    rows, capacity = reader.tokens.shape
    local = provenance["row"].to_numpy() - first_row
    start = provenance["row_start"].to_numpy().astype(np.int64)
    length = provenance["length"].to_numpy().astype(np.int64)
    if len(local) and (local.min() < 0 or local.max() >= rows or length.min() < 1):
        return "pieces", "a piece lies outside the shard"
    if len(local) and (np.diff(local * capacity + start) <= 0).any():
        return "pieces", "the provenance is not in order"
    filled = np.bincount(local, length, rows).astype(np.int64)  # sums below 2^53 are exact
    before = np.cumsum(length) - length  # pieces must stand back to back from each row's start
    base = (np.cumsum(filled) - filled)[local]
    if (start != before - base).any() or filled.max(initial=0) > capacity or filled.min(initial=1) < 1:
        return "pieces", "pieces leave a gap or overlap"
    padded = np.flatnonzero(filled < capacity)
    want = np.sort(np.concatenate([local * capacity + start, padded * capacity + filled[padded]]))
    got = np.concatenate([np.empty(0, np.int64), *_starts(reader, rows, capacity)])
    if not np.array_equal(want, got):
        return "pieces", "boundaries and provenance disagree"
    if any((reader.tokens[r, filled[r] :] != pad).any() for r in padded):
        return "padding", "padding holds other tokens than the pad id"
    if rows and int(reader.tokens.max()) >= vocab_size:
        return "vocabulary", "a token is not in the vocabulary"
    return None


def _starts(reader: ShardReader, rows: int, capacity: int) -> Iterator[np.ndarray]:
    return (r * capacity + reader.starts(r).astype(np.int64) for r in range(rows))
