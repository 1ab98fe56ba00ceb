"""How often each id occurs in encoded tokens: token stores or a packed dataset, as the model will see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.tokshards import PackedDataset
from gristmill.core.tokstore import TokenStore

_PIECE = 1 << 24  # tokens counted at once: 128 MB as int64


def count_ids(folders: Sequence[Path], vocab_size: int, tokenizer_sha256: str) -> np.ndarray:
    """(vocab_size,) int64 occurrences over folders that hold tokens.bin and docs.parquet, or a packed dataset's
    manifest.json (of every phase the rows that are trained on; padding is a special id).

    Raises UsageError when a folder is neither, or was packed with another tokenizer; FormatError when an id is out of range.
    """
    counts = np.zeros(vocab_size, np.int64)
    for folder in folders:
        for tokens in _tokens(folder, tokenizer_sha256):
            for start in range(0, len(tokens), _PIECE):
                found = np.bincount(tokens[start : start + _PIECE], minlength=vocab_size)
                if len(found) > vocab_size:
                    raise FormatError(
                        f"{folder} holds the id {len(found) - 1:,}, the tokenizer has {vocab_size:,}",
                        hint="report on the tokenizer that encoded it",
                    )
                counts += found
    return counts


def _tokens(folder: Path, tokenizer_sha256: str) -> Iterator[np.ndarray]:
    if (folder / "tokens.bin").is_file():
        yield TokenStore(folder / "tokens.bin", folder / "docs.parquet").data
    elif (folder / "manifest.json").is_file():
        dataset = PackedDataset(folder)
        if dataset.manifest.tokenizer_sha256 != tokenizer_sha256:
            raise UsageError(
                f"{folder} was packed with another tokenizer ({dataset.manifest.tokenizer_sha256[:12]})",
                hint="report on the tokenizer.json of that run",
            )
        for phase in dataset.manifest.phases:
            trained = phase.rows if phase.until_rows is None else phase.until_rows
            for first in range(0, trained, phase.rows_per_shard):
                reader, _ = dataset.locate(phase.name, first)
                yield reader.tokens[: trained - first].reshape(-1)
    else:
        raise UsageError(f"{folder} holds neither tokens.bin nor a packed dataset's manifest.json")
