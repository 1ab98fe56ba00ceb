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
from gristmill.tokenize.sweep import table, train_sizes
from gristmill.tokenize.train import single_thread, transformers_config


@dataclass(frozen=True)
class Trained:
    """The files of a trained tokenizer by name, and what it was trained on."""

    files: dict[str, bytes]
    sample: Picked
    merges: int
    report: dict[str, Any]
    sweep: dict[str, Any] | None = None


def train_files(paths: Sequence[Path], settings: Tokenizer) -> Trained:
    """Sample, train and measure. Raises InputError when no document has text or a file lacks a column.

    Files: tokenizer.json, tokenizer_config.json, fertility.json; of several sizes also sweep.json and, per size,
    sweep/SIZE/tokenizer.json and sweep/SIZE/fertility.json.
    """
    caps = settings.sample
    picked = pick(paths, caps, sample_seed(settings.seed, "train"))

    def pieces(split: str) -> Iterator[str]:
        for _, text in texts(paths, picked, caps.doc_cap_chars):
            yield from cut_pretokens(text, split, caps.pretoken_cap)

    built = train_sizes(pieces, settings)
    raws = {size: (one.to_str(pretty=True) + "\n").encode() for size, one in built.items()}
    reports = {size: report_on(Codec(raw), paths, settings.fertility_docs, settings.seed) for size, raw in raws.items()}
    for found in reports.values():
        found["sample"] = {
            "seed": settings.seed,
            "by": caps.by,
            "policy": caps.policy,
            "languages": {
                name: {
                    "docs": picked.docs[name],
                    "bytes": picked.bytes[name],
                    "available_bytes": picked.available[name],
                }
                for name in sorted(picked.docs)
            },
        }
    used = settings.size
    files = {
        "tokenizer.json": raws[used],
        "tokenizer_config.json": _json(transformers_config()),
        "fertility.json": _json(reports[used]),
    }
    sweep = table(reports, used) if len(raws) > 1 else None
    if sweep is not None:
        files["sweep.json"] = _json(sweep)
        for size, raw in raws.items():
            files[f"sweep/{size}/tokenizer.json"] = raw
            files[f"sweep/{size}/fertility.json"] = _json(reports[size])
    return Trained(files, picked, len(orjson.loads(raws[used])["model"]["merges"]), reports[used], sweep)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"


def report_on(codec: Codec, paths: Sequence[Path], docs_per_language: int, seed: int) -> dict[str, Any]:
    """The fertility table over the same seeded documents each time: at most `docs_per_language` of each language and
    the first 10,000 characters of each."""
    caps = Sample()
    picked = pick(paths, caps, sample_seed(seed, "fertility"), docs_per_language)
    with single_thread():
        return measure(codec, texts(paths, picked, caps.doc_cap_chars))


def train_from_parquet(paths: Sequence[str | Path], settings: Tokenizer, out_folder: str | Path) -> dict[str, Any]:
    """Write the files of `train_files` into a folder, tokenizer.json last; returns the fertility table."""
    return write_trained(train_files([Path(p) for p in paths], settings), out_folder).report


def write_trained(trained: Trained, out_folder: str | Path) -> Trained:
    folder = Path(out_folder)
    for name, data in sorted(trained.files.items(), key=lambda item: item[0] == "tokenizer.json"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return trained


def report(
    tokenizer_path: str | Path, parquet_paths: Sequence[str | Path], docs_per_language: int = 200, seed: int = 0
) -> dict[str, Any]:
    """The fertility table of any byte-level tokenizer.json on curated Parquet. See `tokenize.fertility.render`."""
    return report_on(Codec(tokenizer_path), [Path(p) for p in parquet_paths], docs_per_language, seed)
