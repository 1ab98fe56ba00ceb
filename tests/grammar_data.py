"""Packed datasets of text from a small seeded grammar, or of given texts, a character a token; for tests of the trainer.

Sentences agree in number, names come back within a document, and sums are right, so a model has something to learn beyond
the counts of characters. Only random.Random.random() decides, whose values Python never changes.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.core.hashing import document_id, sha256_file
from gristmill.core.tokshards import (
    PROVENANCE_SCHEMA,
    PackedDataset,
    PackedManifest,
    PackedPhase,
    PackedShard,
    token_dtype,
    write_manifest,
    write_rows,
)

SPECIAL = {"bos": 0, "eos": 1, "pad": 2}
LETTERS = "\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-+*/=<>[]{}_#%&@$|\\^~`\t"
VOCAB = len(SPECIAL) + len(LETTERS) + 1  # the last one is any other character
IDS = {letter: i for i, letter in enumerate(LETTERS, len(SPECIAL))}
SUFFIXES = ("bin", "bnd.npy", "prov.parquet")

NAMES = ("Ada", "Bruno", "Chidi", "Dorothea", "Emre", "Fatima", "Goran", "Hina", "Ivo", "Juno")
NOUNS = ("mill", "river", "loaf", "lantern", "goat", "ledger", "bridge", "kettle", "stone", "sparrow")
VERBS = ("turn", "mend", "carry", "count", "paint", "borrow", "weigh", "follow")
PLACES = ("by the water", "at the market", "under the old roof", "before noon", "in the rain")


def sentences(seed: int, length: int = 400) -> str:
    """A document of about `length` characters."""
    draw = random.Random(seed)

    def pick(words: tuple[str, ...]) -> str:
        return words[int(draw.random() * len(words))]

    hero, thing, out = pick(NAMES), pick(NOUNS), ""
    while len(out) < length:
        form = draw.random()
        if form < 0.35:
            out += f"{hero} {pick(VERBS)}s the {thing} {pick(PLACES)}. "
        elif form < 0.6:
            out += f"The {pick(NOUNS)}s {pick(VERBS)} the {thing}s, and {hero} {pick(VERBS)}s along. "
        elif form < 0.8:
            a, b = int(draw.random() * 10), int(draw.random() * 10)
            out += f"{a} {thing}s and {b} {thing}s are {a + b} {thing}s. "
        else:
            thing = pick(NOUNS)
            out += f'"Where is the {thing}?" asks {hero}. '
    return out.strip() + "\n"


def encode(text: str) -> list[int]:
    """A document's ids with its closing eos."""
    return [*(IDS.get(letter, VOCAB - 1) for letter in text), SPECIAL["eos"]]


def grammar_documents(seed: int, longest: int = 600) -> Iterator[list[int]]:
    """Documents without end, of 20 to `longest` characters; the last sentence may be cut."""
    draw = random.Random(seed)
    while True:
        length = 20 + int(draw.random() * (longest - 20))
        yield encode(sentences(int(draw.random() * 2**31), length)[:length])


ZIPF = [(i + 1) ** -1.3 for i in range(len(LETTERS))]  # how likely a letter's i-th follower is, unscaled


def chain_documents(seed: int, longest: int = 200) -> Iterator[list[int]]:
    """Documents without end of a Markov chain over the letters: each has its own order of followers, Zipf-distributed.

    What a model cannot know is the chain's entropy; what it can is a matrix, more of it the wider it is.
    """
    draw = random.Random(seed)
    n = len(LETTERS)
    followers = [sorted(range(n), key=lambda _: draw.random()) for _ in range(n)]
    sums = list(itertools.accumulate(ZIPF))
    while True:
        out = [int(draw.random() * n)]
        for _ in range(20 + int(draw.random() * (longest - 20))):
            out.append(followers[out[-1]][min(bisect.bisect(sums, draw.random() * sums[-1]), n - 1)])
        yield [*(letter + len(SPECIAL) for letter in out), SPECIAL["eos"]]


def chain_entropy() -> float:
    """Nats per letter of `chain_documents`, but for each document's first letter and end."""
    total = sum(ZIPF)
    return -sum(x / total * math.log(x / total) for x in ZIPF)


def write_dataset(
    folder: Path, phases: list[tuple[str, int, int, int, dict[str, Any]]], documents: Iterable[list[int]], **more: Any
) -> PackedDataset:
    """Pack documents back to back into phases of (name, seq_len, rows of a batch, batches, lr block), with a tokenizer.

    Documents are cut at the rows' ends and go on in the next row; every seventh row ends in a tenth of padding. `more`
    adds to a phase's rows: `spare` rows beyond the last batch. Raises StopIteration where the documents run out.
    """
    write_tokenizer(folder)
    stream = iter(documents)
    spare = int(more.get("spare", 0))
    rest: list[int] = []
    done, number = 0, -1  # of the current document: ids already packed
    packed = []
    for name, seq_len, batch, batches, lr in phases:
        rows, starts, table = [], [], []
        for row in range(batch * batches + spare):
            width = seq_len + 1
            padding = width // 10 if row % 7 == 6 else 0
            tokens: list[int] = []
            borders: list[int] = []
            while len(tokens) < width - padding:
                if not rest:
                    rest, done, number = next(stream), 0, number + 1
                part = rest[: width - padding - len(tokens)]
                borders.append(len(tokens))
                table.append((row, len(tokens), len(part), number, done))
                tokens += part
                rest, done = rest[len(part) :], done + len(part)
            if padding:
                borders.append(len(tokens))
                tokens += [SPECIAL["pad"]] * padding
            rows.append(tokens)
            starts.append(np.array(borders, np.int32))
        packed.append(_write_phase(folder, (name, seq_len, batch, lr), rows, starts, table))
    sha = sha256_file(folder / "tokenizer.json")
    dtype = token_dtype(VOCAB).str
    write_manifest(folder, PackedManifest(dtype, VOCAB, SPECIAL, sha, 0, "0" * 64, packed, []))
    return PackedDataset(folder)


def _write_phase(folder: Path, phase: Any, rows: Any, starts: Any, pieces: Any) -> PackedPhase:
    name, seq_len, batch, lr = phase
    (folder / name).mkdir(parents=True)
    per_shard = 64
    shards = []
    for index, first in enumerate(range(0, len(rows), per_shard)):
        base = folder / name / f"{index:05d}"
        mine = [p for p in pieces if first <= p[0] < first + per_shard]
        columns: dict[str, Any] = {
            "row": [p[0] for p in mine],
            "row_start": [p[1] for p in mine],
            "length": [p[2] for p in mine],
            "source": pa.array(["text"] * len(mine)).dictionary_encode().cast(PROVENANCE_SCHEMA.field("source").type),
            "id": [bytes.fromhex(document_id("grammar", p[3])) for p in mine],
            "doc_start": [p[4] for p in mine],
            "store": [0] * len(mine),
            "doc": [p[3] for p in mine],
            "epoch": [0] * len(mine),
        }
        table = pa.table([pa.array(columns[f.name], f.type) for f in PROVENANCE_SCHEMA], schema=PROVENANCE_SCHEMA)
        mine_rows = np.array(rows[first : first + per_shard], token_dtype(VOCAB))
        write_rows(base, mine_rows, starts[first : first + per_shard], table)
        digests = {suffix: sha256_file(f"{base}.{suffix}") for suffix in SUFFIXES}
        shards.append(PackedShard(f"{name}/{index:05d}.bin", len(mine_rows), digests))
    shares = {"text": {"target": 1.0, "realised": 1.0}}
    return PackedPhase(name, seq_len, len(rows), batch, per_shard, lr, shares, shards)


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer.json that splits text into the characters of LETTERS."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    words = {**SPECIAL, **IDS, "\ufffd": VOCAB - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="\ufffd"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
