"""Train a tokenizer and report on one, from Parquet files: what the stage and the command line both call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gristmill.tokenize.codec import Codec
from gristmill.tokenize.fertility import measure
from gristmill.tokenize.sample import Picked, cut_pretokens, pick, sample_seed, texts
from gristmill.tokenize.schema import Sample, Tokenizer
from gristmill.tokenize.split import pattern
from gristmill.tokenize.train import single_thread, train_bpe, transformers_config


@dataclass(frozen=True)
class Trained:
    """The three files of a trained tokenizer by name, and what it was trained on."""

    files: dict[str, bytes]
    sample: Picked
    merges: int
    report: dict[str, Any]


def train_files(paths: Sequence[Path], settings: Tokenizer) -> Trained:
    """Sample, train and measure. Raises InputError when no document has text or a file lacks a column."""
    picked = pick(paths, settings.sample, sample_seed(settings.seed, "train"))
    split, caps = pattern(settings), settings.sample

    def pieces() -> Iterator[str]:
        for _, text in texts(paths, picked, caps.doc_cap_chars):
            yield from cut_pretokens(text, split, caps.pretoken_cap)

    built = train_bpe(pieces(), settings)
    raw = (built.to_str(pretty=True) + "\n").encode()
    found = report_on(Codec(raw), paths, settings.fertility_docs, settings.seed)
    found["sample"] = {
        "seed": settings.seed,
        "languages": {
            name: {"docs": picked.docs[name], "bytes": picked.bytes[name], "available_bytes": picked.available[name]}
            for name in sorted(picked.docs)
        },
    }
    option = orjson.OPT_INDENT_2
    files = {
        "tokenizer.json": raw,
        "tokenizer_config.json": orjson.dumps(transformers_config(), option=option) + b"\n",
        "fertility.json": orjson.dumps(found, option=option) + b"\n",
    }
    return Trained(files, picked, len(orjson.loads(raw)["model"]["merges"]), found)


def report_on(codec: Codec, paths: Sequence[Path], docs_per_language: int, seed: int) -> dict[str, Any]:
    """The fertility table over the same seeded documents each time: at most `docs_per_language` of each language and
    the first 10,000 characters of each."""
    caps = Sample()
    picked = pick(paths, caps, sample_seed(seed, "fertility"), docs_per_language)
    with single_thread():
        return measure(codec, texts(paths, picked, caps.doc_cap_chars))


def train_from_parquet(paths: Sequence[str | Path], settings: Tokenizer, out_folder: str | Path) -> dict[str, Any]:
    """Write tokenizer.json, tokenizer_config.json and fertility.json into a folder; returns the fertility table."""
    trained = train_files([Path(p) for p in paths], settings)
    folder = Path(out_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in trained.files.items():
        (folder / name).write_bytes(data)
    return trained.report


def report(
    tokenizer_path: str | Path, parquet_paths: Sequence[str | Path], docs_per_language: int = 200, seed: int = 0
) -> dict[str, Any]:
    """The fertility table of any byte-level tokenizer.json on curated Parquet. See `tokenize.fertility.render`."""
    return report_on(Codec(tokenizer_path), [Path(p) for p in parquet_paths], docs_per_language, seed)
