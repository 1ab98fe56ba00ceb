"""Reads one export with its consumer's own reader and prints what it holds as JSON: KIND FOLDER SEQ_LEN TOKEN_SIZE.

Runs on gristmill's interpreter with `.venv-parity/readers` on its path: `make parity` puts megatron-core there.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any


def megatron(folder: Path) -> dict[str, Any]:
    """Per source its documents, as IndexedDataset gives them, and the type it found."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset  # type: ignore[import-not-found,unused-ignore]

    out = {}
    for path in sorted(folder.glob("*.idx")):
        dataset = IndexedDataset(str(path.with_suffix("")), mmap=True)
        marks = dataset.document_indices.tolist()
        out[path.stem] = {
            "documents": [dataset[i].tolist() for i in range(len(dataset))],
            "marks": marks,
            "dtype": dataset.index.dtype.__name__,
        }
    return out


def write_megatron(folder: Path) -> dict[str, Any]:
    """A store made by Megatron's own builder: three documents, the second of two sequences."""
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    documents = [[[5, 6, 1]], [[7, 8], [9, 1]], [[300]]]
    builder = IndexedDatasetBuilder(str(folder / "made.bin"), dtype=DType.optimal_dtype(384))
    for sequences in documents:
        for sequence in sequences:
            builder.add_item(torch.tensor(sequence, dtype=torch.int32))
        builder.end_document()
    builder.finalize(str(folder / "made.idx"))
    return {"documents": [[i for s in d for i in s] for d in documents]}


def datatrove(folder: Path, seq_len: int, token_size: int) -> list[dict[str, Any]]:
    """The windows that nanotron trains on, with the positions that its masks come from."""
    from datatrove.utils.dataset import DatatroveFolderDataset

    dataset = DatatroveFolderDataset(str(folder), seq_len, token_size=token_size, return_positions=True)
    return [{name: values.tolist() for name, values in dataset[i].items()} for i in range(len(dataset))]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "datatrove":
        print(json.dumps(datatrove(folder, int(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps({"megatron": megatron, "write-megatron": write_megatron}[kind](folder)))
