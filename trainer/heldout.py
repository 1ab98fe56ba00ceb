"""Texts that a run measures itself on: documents the mixture holds out, and files of one's own. No torch here.

Documents are chosen by a hash of their ids, so that the choice depends neither on order nor on a random generator; they
are used whole, since a part of one has no byte count of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import hash64, mix64, seed_of, sha256_file
from gristmill.core.tokshards import PackedDataset
from gristmill.core.tokstore import TokenStore
from gristmill.trainer.jsonl import read_jsonl
from gristmill.trainer.watch_schema import Evaluate, HeldoutText

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HELDOUT, DOCS, TOKENS = "heldout.parquet", "docs.parquet", "tokens.bin"
ROOT_DEPTH = 6  # a dataset lies at ROOT/stages/shards/TASK; some layouts nest it deeper

Say = Callable[[str], None]


@dataclass(frozen=True)
class HeldOut:
    """One source's held-out documents: their ids without the closing eos, and the UTF-8 bytes of all their texts."""

    name: str
    documents: list[np.ndarray]
    bytes: int


def load_heldout(dataset: PackedDataset, settings: Evaluate, tokenizer: Tokenizer, say: Say) -> list[HeldOut]:
    """All that a run is to be measured on, sources of the mixture first, by name.

    What the mixture holds out is left out with a word where its token stores are not found. Raises UsageError on a
    missing or foreign file of one's own, FormatError on damaged token stores.
    """
    found = _of_mixture(dataset, settings, say) if settings.mixture else []
    for text in settings.heldout:
        if any(h.name == text.name for h in found):
            raise UsageError(
                f"evaluate.heldout: {text.name!r} is also a source of the mixture", hint="give it another name"
            )
        found.append(_of_file(text, dataset, settings, tokenizer, say))
    for source in found:
        if not source.documents:
            say(f"held-out {source.name}: no document fits evaluate.max_tokens {settings.max_tokens}; not measured")
    return [source for source in found if source.documents]


def _of_mixture(dataset: PackedDataset, settings: Evaluate, say: Say) -> list[HeldOut]:
    path = dataset.folder / HELDOUT
    if not path.is_file():
        return []
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    try:
        rows = list(zip(*(table[n].to_pylist() for n in ("source", "id", "store", "doc", "length")), strict=True))
    except KeyError as error:
        raise FormatError(f"{path} is damaged: no column {error}") from error
    if not rows:
        return []
    used = sorted({row[2] for row in rows})
    root = _root(dataset, used, settings.stores)
    if root is None:
        say(
            f"the mixture holds out {len(rows)} documents, but the token stores of {dataset.folder} are not found: "
            "not measured (evaluate.stores names their root)"
        )
        return []
    folders = {i: (root / dataset.manifest.stores[i]["path"]).parent for i in used}
    out = []
    for source in sorted({row[0] for row in rows}):
        members = [row for row in rows if row[0] == source]
        ranked = _chosen([(row[1], row) for row in members], source, settings.max_documents)
        opened: dict[int, TokenStore] = {}
        candidates = []
        for _, _, store, doc, length in ranked:
            if store not in opened:
                opened[store] = TokenStore(folders[store] / TOKENS, folders[store] / DOCS)
            if not 0 <= doc < len(opened[store]) or int(opened[store].lengths[doc]) != length:
                raise FormatError(f"{folders[store]} is not the token store of {path}")
            candidates.append((_text_ids(opened[store], doc), int(opened[store].docs["bytes"][doc].as_py())))
        out.append(_within(source, candidates, settings.max_tokens))
    return out


def _root(dataset: PackedDataset, used: list[int], named: str | None) -> Path | None:
    """The folder that the manifest's store paths are relative to: where all of `used` lie with their hashes."""
    folder = dataset.folder.resolve()
    places = [Path(named)] if named else [folder, *folder.parents[:ROOT_DEPTH]]
    for place in places:
        wanted = [(place / dataset.manifest.stores[i]["path"], dataset.manifest.stores[i]["sha256"]) for i in used]
        if all(docs.is_file() and docs.with_name(TOKENS).is_file() for docs, _ in wanted):
            if all(sha256_file(docs) == sha256 for docs, sha256 in wanted):
                return place
            if named:
                raise UsageError(f"evaluate.stores: the token stores in {place} are not those of the dataset")
    if named:
        raise UsageError(f"evaluate.stores: {named} does not hold the dataset's token stores")
    return None


def _of_file(text: HeldoutText, dataset: PackedDataset, settings: Evaluate, tokenizer: Tokenizer, say: Say) -> HeldOut:
    path = Path(text.path)
    if (path / TOKENS).is_file():
        return _of_store(text, dataset, settings)
    bad = 0

    def rows() -> Iterator[tuple[str, str]]:
        nonlocal bad
        for number, row in _parquet(path, text.field) if path.suffix == ".parquet" else read_jsonl(path):
            words = row.get(text.field) if row is not None else None
            if isinstance(words, str):
                yield str((row or {}).get("id", number)), words
            else:
                bad += 1

    texts = _chosen(rows(), text.name, settings.max_documents)
    if not texts:
        raise UsageError(f"evaluate.heldout: {path} holds no text", hint=f"texts are read from the key {text.field!r}")
    if bad:
        say(f"held-out {text.name}: {bad} rows of {path} without a text")
    encoded = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    good = [(ids, t) for ids, t in zip(encoded, texts, strict=True) if tokenizer.decode(ids, False) == t]
    if len(good) < len(texts):  # bits of other characters are not bits of this text
        say(f"held-out {text.name}: {len(texts) - len(good)} of {len(texts)} texts are lost in tokens and left out")
    if not good:
        raise UsageError(f"evaluate.heldout: no text of {path} survives encoding and decoding by the run's tokenizer")
    return _within(text.name, [(np.array(ids), len(t.encode())) for ids, t in good], settings.max_tokens)


def _of_store(text: HeldoutText, dataset: PackedDataset, settings: Evaluate) -> HeldOut:
    folder = Path(text.path)
    store = TokenStore(folder / TOKENS, folder / DOCS)
    if len(store.data) and int(store.data.max()) >= dataset.manifest.vocab_size:
        raise UsageError(f"evaluate.heldout: {folder} holds ids beyond the vocabulary", hint="encode it again")
    docs = _chosen(zip(store.docs["id"].to_pylist(), range(len(store)), strict=True), text.name, settings.max_documents)
    candidates = [(_text_ids(store, doc), int(store.docs["bytes"][doc].as_py())) for doc in docs]
    return _within(text.name, candidates, settings.max_tokens)


def _text_ids(store: TokenStore, doc: int) -> np.ndarray:
    """A document's ids but the closing eos, which is no text."""
    return np.asarray(store.tokens(doc)[:-1]).astype(np.int64)


def _parquet(path: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise UsageError(
                    f"evaluate.heldout: {path} has no column {field!r}", hint=f"its columns: {', '.join(names)}"
                )
            at = 0
            for batch in file.iter_batches(batch_size=256, columns=[n for n in ("id", field) if n in names]):
                yield from enumerate(batch.to_pylist(), at + 1)
                at += len(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _chosen(rows: Any, name: str, most: int) -> list[Any]:
    """The values of the `most` (id, value) pairs whose ids hash lowest, in that order; holds no more than those."""
    seed = seed_of("heldout", name)
    kept: list[tuple[int, int, Any]] = []  # a heap, the highest hash on top
    for order, (key, value) in enumerate(rows):
        rank = int(mix64(np.array([hash64(key)], np.uint64), seed)[0])
        entry = (-rank, -order, value)
        if len(kept) < most:
            heapq.heappush(kept, entry)
        elif entry[:2] > kept[0][:2]:
            heapq.heapreplace(kept, entry)
    return [value for _, _, value in sorted(kept, key=lambda e: (-e[0], -e[1]))]


def _within(name: str, candidates: list[tuple[np.ndarray, int]], most: int) -> HeldOut:
    """Those documents, in their order, that keep within `most` tokens; empty ones count for nothing."""
    documents, size, used = [], 0, 0
    for ids, length in candidates:
        if len(ids) and used + len(ids) <= most:
            documents.append(ids)
            used += len(ids)
            size += length
    return HeldOut(name, documents, size)
