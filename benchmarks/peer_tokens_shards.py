"""The peer of benchmarks/tokens_end.py: datatrove's DocumentTokenizer, then DocumentTokenizerMerger, with their shuffles.

Usage: .venv-parity/bin/python benchmarks/peer_tokens_shards.py TOKENIZER_JSON FOLDER WARM.jsonl FILE.jsonl ...; imports
nothing of gristmill. Documents are in memory before the clock starts. Prints one JSON object: CPU and wall seconds of
either step, tokens and versions. One thread: the caller sets RAYON_NUM_THREADS and TOKENIZERS_PARALLELISM.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

EOS = "<|eos|>"


def documents(path: str) -> list:
    from datatrove.data import Document

    with open(path, encoding="utf-8") as file:
        rows = [json.loads(row) for row in file]
    return [Document(text=row["text"], id=row["id"]) for row in rows]


def line(tokenizer: str, folder: Path, files: list[list]) -> dict[str, float]:
    from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger

    start = time.perf_counter(), time.process_time()
    step = DocumentTokenizer(str(folder / "one"), tokenizer_name_or_path=tokenizer, eos_token=EOS, seed=1)
    for rank, rows in enumerate(files):
        for _ in step.run(iter(rows), rank, len(files)) or ():
            pass
    middle = time.perf_counter(), time.process_time()
    merger = DocumentTokenizerMerger(str(folder / "one"), str(folder / "two"), "all", seed=1, progress=False)
    merger.run(None)
    end = time.perf_counter(), time.process_time()
    tokens = sum(p.stat().st_size for p in (folder / "two").rglob("*.ds")) // step.token_size
    return {
        "wall": end[0] - start[0],
        "cpu": end[1] - start[1],
        "tokenise": middle[0] - start[0],
        "merge": end[0] - middle[0],
        "tokens": tokens,
    }


def main(tokenizer: str, folder: str, warm: str, *files: str) -> None:
    from loguru import logger

    logger.remove()
    line(tokenizer, Path(folder) / "warm", [documents(warm)])
    rows = [documents(path) for path in files]
    found = line(tokenizer, Path(folder) / "timed", rows)
    print(json.dumps({**found, "versions": {name: version(name) for name in ("datatrove", "tokenizers")}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
