"""Serves the peer's encoding to benchmarks/tokens_encode.py: datatrove's DocumentTokenizer on the peer's own interpreter.

Usage: .venv-parity/bin/python benchmarks/peer_tokens_encode.py TOKENIZER_JSON FOLDER; imports nothing of gristmill. Every
line `WHAT FILE` on stdin (FILE: JSONL with `id` and `text`) is answered by one JSON line with the CPU and wall seconds, the
tokens, and the file of ids: WHAT is `store` (the step as a pipeline runs it, documents in memory, without its shuffle)
or `ids` (its tokenizer's batches alone). One thread: RAYON_NUM_THREADS and TOKENIZERS_PARALLELISM are set by the caller.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

EOS = "<|eos|>"


def main(tokenizer: str, folder: str) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    logger.remove()
    print(json.dumps({name: version(name) for name in ("datatrove", "tokenizers")}), flush=True)
    for turn, line in enumerate(sys.stdin):
        what, path = line.split(maxsplit=1)
        with open(path.strip(), encoding="utf-8") as file:
            rows = [json.loads(row) for row in file]
        documents = [Document(text=row["text"], id=row["id"]) for row in rows]
        out = Path(folder) / f"peer-{turn}"
        step = DocumentTokenizer(
            str(out), tokenizer_name_or_path=tokenizer, eos_token=EOS, shuffle_documents=False, save_filename="a"
        )
        encoder = step.tokenizer  # built on first use, and not part of the time
        encoder.encode_batch(["A first document."])
        cpu, wall = time.process_time(), time.perf_counter()
        if what == "store":
            for _ in step.run(iter(documents)) or ():
                pass
            tokens = -1
        else:
            tokens = 0
            for at in range(0, len(documents), step.batch_size):
                batch = encoder.encode_batch([d.text for d in documents[at : at + step.batch_size]])
                tokens += sum(len(e.ids) for e in batch)
        answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "tokens": tokens}
        files = sorted(map(str, out.rglob("*.ds"))) if what == "store" else []
        print(json.dumps({**answer, "files": files, "token_bytes": step.token_size}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
