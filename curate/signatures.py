"""The stage `curate.signatures`: exact hash, band keys and sketch of every document that the rules kept."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from gristmill.core.docshards import TableWriter
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
from gristmill.curate.final_text import KEPT_FILES, kept_documents, kept_files, per_file_tasks
from gristmill.curate.schema import Dedup, MinHash


def signature_schema(minhash: MinHash | None) -> pa.Schema:
    """Columns of `signatures.parquet`. `keys`, `sketch` and `shingles` are there only when MinHash is on."""
    fields = [("id", pa.string()), ("hash128", pa.binary(16))]
    if minhash is not None:
        fields += [
            ("keys", pa.list_(pa.uint64(), minhash.bands)),  # zeros for a document without words
            ("sketch", pa.binary(minhash.bands * minhash.rows)),
            ("shingles", pa.int64()),  # word n-grams, repeats included; 0 = no words, never paired by MinHash
        ]
    fields += [("length", pa.int64()), ("date", pa.string()), ("language_score", pa.float32())]
    return pa.schema(fields)


class Signatures(Stage):
    """One `signatures.parquet` per input file, over kept documents in row order.

    Config: `{"dedup": Dedup as a dict}`. Only its `minhash.{bands,rows,ngram,seed}` reach the task id, so that another
    threshold or keep policy makes no new signatures.
    """

    name: ClassVar[str] = "curate.signatures"
    version: ClassVar[int] = 1
    upstream: tuple[str, ...] = tuple(KEPT_FILES)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.settings = Dedup.model_validate(self.config["dedup"])
        self.upstream = tuple(kept_files(self.config))

    def uses(self) -> Mapping[str, str]:
        # lower-casing and NFD follow the interpreter's tables, permutations come from datasketch
        return {"unicode": unicodedata.unidata_version, "datasketch": version("datasketch")}

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        minhash = self.settings.minhash
        config = {"minhash": minhash.model_dump(include={"bands", "rows", "ngram", "seed"}) if minhash else None}
        return per_file_tasks(self, config, inputs, kept_files(self.config))

    def run(self, task: Task, out: Outbox) -> Counters:
        from gristmill.curate.dedup.signature import band_keys, signatures, sketches, text_hash

        counters = Counters()
        minhash = self.settings.minhash
        schema = signature_schema(minhash)
        with TableWriter(out.path("signatures.parquet"), schema) as writer:
            for kept in kept_documents(task, ["id", "date", "language_score"]):
                texts = kept["text"].to_pylist()
                columns: dict[str, Any] = {
                    "id": kept["id"],
                    "hash128": pa.array([text_hash(t) for t in texts], pa.binary(16)),
                    "length": pa.array([len(t) for t in texts], pa.int64()),
                    "date": kept["date"],
                    "language_score": kept["language_score"],
                }
                if minhash is not None:
                    minima, counts = signatures(texts, minhash)
                    some = counts > 0
                    keys = np.where(some[:, None], band_keys(minima, minhash.bands), 0).astype(np.uint64)
                    sketch = np.where(some[:, None], sketches(minima), 0).astype(np.uint8)
                    width = minhash.bands * minhash.rows
                    columns["keys"] = pa.FixedSizeListArray.from_arrays(pa.array(keys.ravel()), minhash.bands)
                    columns["sketch"] = pa.array([row.tobytes() for row in sketch], pa.binary(width))
                    columns["shingles"] = pa.array(counts)
                    if not some.all():
                        counters.notes["dedup.without_words"] += int((~some).sum())
                writer.write(pa.table({name: columns[name] for name in schema.names}))
        counters.rows_in = counters.rows_out = writer.rows
        return counters
