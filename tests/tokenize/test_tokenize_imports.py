"""Token stores of Megatron and datatrove as ours: ids kept to the bit, and every lie of a header or an index refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import document_id
from gristmill.core.imports import Import
from gristmill.core.stage import Counters, Shard
from gristmill.core.tokstore import TokenStore
from gristmill.core.vocabulary import TokenizerFacts
from gristmill.tokenize import imports_tokens
from gristmill.tokenize.imports_tokens import import_store, read_datatrove, read_megatron

EOS = 1
FACTS = TokenizerFacts(400, {"bos": 0, "eos": EOS, "pad": 2}, "a" * 64)
DOCUMENTS = [[5, 6, EOS], [7], [], [8, 9, 10, 399], [EOS]]


def megatron(folder: Path, documents: list[list[int]] = DOCUMENTS, code: int = 8) -> tuple[Path, Path]:
    """SOURCE.idx and SOURCE.bin, one sequence a document."""
    dtype = {8: "<u2", 4: "<i4", 5: "<i8"}[code]
    lengths = np.array([len(d) for d in documents], "<i4")
    pointers = ((np.cumsum(lengths) - lengths) * np.dtype(dtype).itemsize).astype("<i8")
    index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, len(documents), len(documents) + 1)
    index += lengths.tobytes() + pointers.tobytes() + np.arange(len(documents) + 1, dtype="<i8").tobytes()
    (folder / "s.idx").write_bytes(index)
    (folder / "s.bin").write_bytes(np.array([i for d in documents for i in d], dtype).tobytes())
    return folder / "s.idx", folder / "s.bin"


def datatrove(folder: Path, documents: list[list[int]] = DOCUMENTS, dtype: str = "<u2") -> tuple[Path, Path]:
    (folder / "s.ds").write_bytes(np.array([i for d in documents for i in d], dtype).tobytes())
    np.cumsum([len(d) for d in documents]).astype("<u8").tofile(folder / "s.ds.index")
    return folder / "s.ds.index", folder / "s.ds"


def imported(
    files: tuple[Path, Path], kind: str, facts: TokenizerFacts = FACTS, **spec: Any
) -> tuple[Counters, TokenStore, list[Any]]:
    folder = files[0].parent / "out"
    folder.mkdir(exist_ok=True)
    paths = [folder / n for n in ("tokens.bin", "docs.parquet", "drops.parquet")]
    given = Import.model_validate({kind: "x", "vocab_size": 400, **spec})
    shards = [Shard(str(f), f"mine/{f.name}", "", f.stat().st_size) for f in files]
    counters = import_store({"import": "mine", **given.for_task()}, shards, facts, *paths)
    counters.check("import")
    return counters, TokenStore(paths[0], paths[1]), pq.read_table(paths[2]).to_pylist()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (megatron, "megatron"),
        (lambda f: megatron(f, code=4), "megatron"),
        (lambda f: megatron(f, code=5), "megatron"),
        (datatrove, "datatrove"),
        (lambda f: datatrove(f, dtype="<u4"), "datatrove"),
    ],
)
@pytest.mark.parametrize("batch", [1 << 20, 2])
def test_every_document_with_its_eos(
    make: Callable[[Path], tuple[Path, Path]], kind: str, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports_tokens, "BATCH_TOKENS", batch)
    files = make(tmp_path)
    counters, store, drops = imported(files, kind, constants={"language": "fr", "tier": 2})
    kept = [(i, d) for i, d in enumerate(DOCUMENTS) if d]
    assert [store.tokens(i).tolist() for i in range(len(store))] == [d if d[-1] == EOS else [*d, EOS] for _, d in kept]
    name = f"mine/{files[1].name}"
    assert store.docs["id"].to_pylist() == [document_id(name, i) for i, _ in kept]
    assert set(store.docs["source"].to_pylist()) == {"mine"}
    assert set(store.docs["language"].to_pylist()) == {"fr"}
    assert set(store.docs["tier"].to_pylist()) == {2}
    assert store.docs["warc_offset"].to_pylist() == [i for i, _ in kept]
    assert [(d["warc_offset"], d["reason"]) for d in drops] == [(2, "import.empty")]
    assert counters.notes["eos_appended"] == 2
    assert (counters.rows_in, counters.rows_out) == (5, 4)


def test_the_tokenizer_must_be_the_one_declared(tmp_path: Path) -> None:
    files = megatron(tmp_path)
    with pytest.raises(UsageError, match=r"E106 imports\.mine has ids of a vocabulary of 500"):
        imported(files, "megatron", vocab_size=500)
    with pytest.raises(UsageError, match=r"E106 imports\.mine has ids of tokenizer bbbb"):
        imported(files, "megatron", vocab_size=None, tokenizer_sha256="b" * 64)
    imported(files, "megatron", vocab_size=None, tokenizer_sha256="a" * 64)
    small = TokenizerFacts(399, FACTS.special_ids, FACTS.sha256)
    with pytest.raises(UsageError, match=r"E106 document 3 of .* has token id 399, the vocabulary has 399"):
        imported(files, "megatron", small, vocab_size=399)
    with pytest.raises(UsageError, match="no end-of-document"):
        imported(files, "megatron", TokenizerFacts(400, {"pad": 2}, "a" * 64))
    negative = megatron(tmp_path, [[3, -7]], code=4)
    with pytest.raises(UsageError, match="token id -7"):
        imported(negative, "megatron")


def test_documents_of_several_sequences(tmp_path: Path) -> None:
    index, data = megatron(tmp_path, [[3, 4], [5], [6, 7, 8]])
    raw = index.read_bytes()
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 3, 3)
    index.write_bytes(head + raw[34:-32] + np.array([0, 2, 3], "<i8").tobytes())
    found = read_megatron(index, data)
    assert [found.data[f : f + n].tolist() for f, n in zip(found.first, found.length, strict=True)] == [
        [3, 4, 5],
        [6, 7, 8],
    ]
    index.write_bytes(head + raw[34:46] + np.array([0, 6, 6], "<i8").tobytes() + np.array([0, 2, 3], "<i8").tobytes())
    with pytest.raises(FormatError, match="stand apart"):
        read_megatron(index, data)


def at(offset: int, form: str, value: Any) -> Callable[[bytes], bytes]:
    """Overwrite one field of an .idx."""
    return lambda raw: raw[:offset] + struct.pack(form, value) + raw[offset + struct.calcsize(form) :]


N = len(DOCUMENTS)
LENGTHS, POINTERS, MARKS = 34, 34 + 4 * N, 34 + 12 * N


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:20], "too short"),
        (at(0, "<8s", b"MMIDIDXX"), "no Megatron index"),
        (at(9, "<Q", 2), "no Megatron index of version 1"),
        (at(17, "<B", 7), "type code 7"),
        (at(17, "<B", 99), "type code 99"),
        (at(18, "<Q", N + 1), "its header says"),
        (at(18, "<Q", 1 << 61), "its header says"),  # 12 times it overflows 64 bits
        (at(26, "<Q", (1 << 64) - 1), "its header says"),
        (lambda raw: raw + b"\0" * N, "multimodal"),
        (at(LENGTHS, "<i", -1), "negative length"),
        (at(LENGTHS + 12, "<i", 0x7FFFFFFF), "points beyond"),
        (at(LENGTHS, "<i", 4), "overlap"),
        (at(POINTERS, "<q", -2), "negative length or a pointer"),
        (at(POINTERS + 8, "<q", 7), "inside a token"),
        (at(POINTERS + 8 * (N - 1), "<q", 0x7FFFFFFFFFFFFFFE), "points beyond"),
        (at(POINTERS, "<q", 12), "do not ascend"),
        (at(MARKS, "<q", 1), "do not ascend from 0"),
        (at(MARKS + 8, "<q", 4), "do not ascend from 0"),
        (at(MARKS + 8 * N, "<q", N - 1), "do not ascend from 0"),
        (at(MARKS + 8, "<q", -1), "do not ascend from 0"),
    ],
)
def test_lies_of_a_megatron_index(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    index, data = megatron(tmp_path)
    assert len(read_megatron(index, data).length) == N
    index.write_bytes(change(index.read_bytes()))
    with pytest.raises(FormatError, match=message):
        read_megatron(index, data)


def test_an_index_repeats_its_tokens_a_bounded_number_of_times(tmp_path: Path) -> None:
    index, data = megatron(tmp_path, [[5, EOS]])

    def repeated(times: int) -> None:
        head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, times, times + 1)
        body = np.full(times, 2, "<i4").tobytes() + np.zeros(times, "<i8").tobytes()
        index.write_bytes(head + body + np.arange(times + 1, dtype="<i8").tobytes())

    repeated(1000)
    assert len(read_megatron(index, data).length) == 1000
    repeated(1001)
    with pytest.raises(FormatError, match="more than 1,000 times"):
        read_megatron(index, data)


def test_lies_about_the_data(tmp_path: Path) -> None:
    index, data = megatron(tmp_path)
    whole = data.read_bytes()
    for cut, message in ((whole[:-2], "points beyond"), (whole[:-1], "whole number"), (b"", "points beyond")):
        data.write_bytes(cut)
        with pytest.raises(FormatError, match=message):
            read_megatron(index, data)
    data.unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        read_megatron(index, data)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([3, 4, 4, 8, 10], "says 10 tokens"),
        ([3, 2, 4, 8, 9], "do not ascend"),
        ([3, 4, 4, 8, 1 << 62], "beyond"),
        ([3, 4, 4, 8, (1 << 64) - 1], "beyond"),
        ([], "says 0 tokens"),
    ],
)
def test_lies_of_a_datatrove_index(ends: list[int], message: str, tmp_path: Path) -> None:
    index, data = datatrove(tmp_path)
    assert len(read_datatrove(index, data).length) == N
    np.array(ends, "<u8").tofile(index)
    with pytest.raises(FormatError, match=message):
        read_datatrove(index, data)


def test_metadata_of_another_width_is_refused(tmp_path: Path) -> None:
    index, data = datatrove(tmp_path)
    Path(f"{data}.metadata").write_text("tok|4\n9\n9 T")
    with pytest.raises(FormatError, match="says tokens of 4 bytes"):
        read_datatrove(index, data)
    index.write_bytes(index.read_bytes()[:-3])
    with pytest.raises(FormatError, match="uint64"):
        read_datatrove(index, data)


def test_nothing_in_it(tmp_path: Path) -> None:
    for files, kind in ((megatron(tmp_path, []), "megatron"), (datatrove(tmp_path, []), "datatrove")):
        counters, store, _ = imported(files, kind)
        assert (counters.rows_in, len(store)) == (0, 0)


def test_packed_rows_are_no_documents(tmp_path: Path) -> None:
    """`mix export datatrove` writes OUT/STAGE/00042.ds beside OUT/export.json."""
    (tmp_path / "warm").mkdir()
    files = datatrove(tmp_path / "warm")
    body = {"format": "gristmill-export-1", "written": "datatrove"}
    (tmp_path / "export.json").write_text(json.dumps(body))
    with pytest.raises(UsageError, match="packed rows") as error:
        imported(files, "datatrove")
    assert "mix export megatron" in str(error.value.hint)
    for other in ({**body, "written": "megatron"}, {"format": "another"}, [body]):
        (tmp_path / "export.json").write_text(json.dumps(other))
        imported(files, "datatrove")
