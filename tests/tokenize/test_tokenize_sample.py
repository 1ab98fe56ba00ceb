"""The sample: the same whatever the order of files and rows, within its budgets, cut where pre-tokens are long."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.core.errors import InputError
from gristmill.core.hashing import hash64
from gristmill.tokenize import sample as module
from gristmill.tokenize.api import train_files
from gristmill.tokenize.sample import cut_pretokens, divide, pick, texts
from gristmill.tokenize.schema import Sample, Tokenizer
from gristmill.tokenize.split import PRESETS, pattern

Row = tuple[str, str, str | None]


def documents(n: int = 200) -> list[Row]:
    rng = random.Random(7)
    rows: list[Row] = []
    for i in range(n):
        language = rng.choice(["en", "en", "en", "de", None])
        words = [rng.choice(["alpha", "beta", "gamma", "straße", "maß", "delta"]) for _ in range(rng.randint(1, 60))]
        rows.append((f"{hash64(str(i)):032x}", " ".join(words), language))
    return rows


def write(folder: Path, rows: list[Row], cuts: list[int], row_group: int = 1000) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    edges = [0, *sorted(cuts), len(rows)]
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        ids, text, language = zip(*rows[a:b], strict=True) if b > a else ((), (), ())
        table = pa.table(
            {
                "text": pa.array(text, pa.string()),
                "id": pa.array(ids, pa.string()),
                "language": pa.array(language, pa.string()),
            }
        )
        paths.append(folder / f"{i}.parquet")
        pq.write_table(table, paths[-1], row_group_size=row_group)
    return paths


def chosen(paths: list[Path], sample: Sample, docs: int | None = None) -> list[tuple[str, str]]:
    return sorted(texts(paths, pick(paths, sample, 3, docs), sample.doc_cap_chars))


@pytest.mark.parametrize("policy", ["natural", "temperature", "unimax"])
def test_sample_does_not_depend_on_files_or_order(tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = documents()
    sample = Sample.model_validate({"bytes": 9_000, "policy": policy})
    want = chosen(write(tmp_path / "one", rows, []), sample)
    assert 20 < len(want) < 180
    monkeypatch.setattr(module, "PRUNE_ROWS", 16)  # so that cutting off candidates is exercised too
    for seed in range(4):
        rng = random.Random(seed)
        rng.shuffle(rows)
        cuts = [rng.randint(0, len(rows)) for _ in range(seed)]
        paths = write(tmp_path / f"{seed}", rows, cuts, row_group=rng.randint(1, 40))
        assert chosen(paths, sample) == want
        rng.shuffle(paths)
        assert chosen(paths, sample) == want


def test_a_tokenizer_does_not_depend_on_files_or_order(tmp_path: Path) -> None:
    rows = documents()
    settings = Tokenizer(vocab_size=384, reserved=8, sample=Sample(bytes=9_000), fertility_docs=10)
    first = train_files(write(tmp_path / "a", rows, []), settings)
    rows.reverse()
    second = train_files(write(tmp_path / "b", rows, [50, 120], 7), settings)
    assert first.files == second.files


def test_sample_follows_hash_order_within_its_budget(tmp_path: Path) -> None:
    rows = documents()
    paths = write(tmp_path, rows, [70])
    picked = pick(paths, Sample(bytes=5_000), 3)
    longest = max(len(t.encode()) for _, t, _ in rows)
    assert picked.available_docs == len(rows)
    assert sum(picked.available.values()) == sum(len(t.encode()) for _, t, _ in rows)
    total = sum(picked.available.values())
    for language, size in picked.bytes.items():
        share = 5_000 * picked.available[language] / total
        assert share - 1 <= size < share + longest
    inside = {text for language, text in texts(paths, picked, 10_000) if language == "de"}
    order = sorted((hash64(i, 3), text) for i, text, language in rows if language == "de")
    assert inside == {text for _, text in order[: picked.docs["de"]]}
    assert pick(paths, Sample(bytes=5_000), 4).rows[0].tolist() != picked.rows[0].tolist()


def test_documents_per_language(tmp_path: Path) -> None:
    paths = write(tmp_path, documents(), [70])
    assert pick(paths, Sample(), 3, 5).docs == {"de": 5, "en": 5, "und": 5}


def test_documents_are_capped(tmp_path: Path) -> None:
    paths = write(tmp_path, [("a", "ßß" * 50, "de"), ("b", "xx", "de")], [])
    picked = pick(paths, Sample(bytes=1_000, doc_cap_chars=10), 0)
    assert picked.bytes == {"de": 22}
    assert sorted(texts(paths, picked, 10)) == [("de", "xx"), ("de", "ß" * 10)]


def test_divide_by_temperature() -> None:
    available = {"en": 8_000, "de": 1_000, "is": 1}
    assert divide(available, Sample(bytes=100_000)) == available
    assert divide(available, Sample(bytes=900)) == {"en": 799, "de": 99, "is": 0}  # floor of 900 * n / 9001
    # cube roots 20 : 10 : 1 of 900 bytes would give `is` 29; it has 1, and the rest of 899 goes 2 : 1
    assert divide(available, Sample(bytes=900, policy="temperature", temperature=3)) == {"en": 599, "de": 299, "is": 1}
    assert divide({}, Sample()) == {}


def test_divide_by_unimax() -> None:
    available = {"en": 8_000, "de": 1_000, "is": 10}
    unimax = {"policy": "unimax"}
    # a third of 900 is 300: `is` has 10; a half of 890 is 445
    assert divide(available, Sample.model_validate({"bytes": 900, **unimax})) == {"en": 445, "de": 445, "is": 10}
    four = Sample.model_validate({"bytes": 9_000, "max_epochs": 4, **unimax})
    assert divide(available, four) == {"en": 4_960, "de": 4_000, "is": 40}
    more = Sample.model_validate({"bytes": 100_000, "max_epochs": 2.5, **unimax})
    assert divide(available, more) == {"en": 20_000, "de": 2_500, "is": 25}


SIZES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 10**7), max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    SIZES,
    st.integers(1, 10**8),
    st.sampled_from(["natural", "temperature", "unimax"]),
    st.sampled_from([1.0, 2.5, 4.0]),
)
def test_budgets_are_within_bounds_and_spent(sizes: dict[str, int], total: int, policy: str, epochs: float) -> None:
    sample = Sample.model_validate({"bytes": total, "policy": policy, "max_epochs": epochs})
    found = divide(sizes, sample)
    most = epochs if policy == "unimax" else 1.0
    assert set(found) == set(sizes)
    assert all(0 <= found[name] <= int(sizes[name] * most) for name in sizes)
    room = sum(int(n * most) for n in sizes.values())
    assert sum(found.values()) <= min(total, room)
    assert sum(found.values()) >= min(total, room) - 2 * len(sizes) - total * 1e-9, "nothing is left over but roundings"
    if policy == "unimax":  # a larger group never has less, and only a group that is used up has less than another
        order = sorted(found, key=lambda name: (sizes[name], name))
        for low, high in itertools.pairwise(order):
            assert found[low] <= found[high]
            assert found[low] == int(sizes[low] * most) or found[high] - found[low] <= 1
    if policy != "natural":
        return
    assert all(abs(found[n] - min(1, total / max(1, room)) * sizes[n]) <= 1 + total * 1e-9 for n in sizes)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(500, 60_000), st.sampled_from(["natural", "temperature", "unimax"]))
def test_any_order_of_rows_and_files_gives_the_same_sample(tmp_path_factory, seed: int, size: int, policy: str) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(seed)
    rows = documents(60)
    sample = Sample.model_validate({"bytes": size, "policy": policy, "max_epochs": 3, "by": "language"})
    want = chosen(write(tmp_path_factory.mktemp("one"), rows, []), sample)
    rng.shuffle(rows)
    cuts = [rng.randint(0, len(rows)) for _ in range(rng.randint(0, 3))]
    assert chosen(write(tmp_path_factory.mktemp("two"), rows, cuts, rng.randint(1, 20)), sample) == want


def test_unimax_passes_small_groups_again_in_hash_order(tmp_path: Path) -> None:
    rows: list[Row] = [(f"{i}", f"de {i:02}", "de") for i in range(10)]
    rows += [(f"e{i}", f"en {i:06}", "en") for i in range(90)]
    paths = write(tmp_path, rows, [30])
    sample = Sample.model_validate({"bytes": 1_000, "policy": "unimax", "max_epochs": 2.5})
    picked = pick(paths, sample, 3)
    assert picked.available == {"de": 50, "en": 810}
    assert picked.docs == {"de": 10, "en": 90}
    assert picked.bytes["de"] == 125
    found = Counter(text for group, text in texts(paths, picked, 100) if group == "de")
    order = sorted((hash64(i, 3), text) for i, text, group in rows if group == "de")
    assert [found[text] for _, text in order] == [3] * 5 + [2] * 5


def test_groups_may_be_sources(tmp_path: Path) -> None:
    table = pa.table({"id": ["1", "2", "3"], "text": ["a", "bb", "ccc"], "source": ["web", "books", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert pick([tmp_path / "a.parquet"], Sample(by="source"), 0).bytes == {"books": 2, "und": 3, "web": 1}
    pq.write_table(table.drop_columns(["source"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column source"):
        pick([tmp_path / "a.parquet"], Sample(by="source"), 0)


def test_missing_columns_and_damaged_files_say_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column id"):
        pick([tmp_path / "a.parquet"], Sample(), 0)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="does not read as Parquet"):
        pick([tmp_path / "b.parquet"], Sample(), 0)
    pq.write_table(pa.table({"id": ["1"], "text": ["a"]}), tmp_path / "c.parquet")
    assert pick([tmp_path / "c.parquet"], Sample(), 0).docs == {"und": 1}


ODD = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.sampled_from(["x" * 100, " " * 90, "\n" * 33, "世界" * 40, "!" * 70, "ab1" * 50, "ि" * 30]),
    ),
    max_size=6,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(ODD, st.integers(8, 64), st.sampled_from(list(PRESETS)))
def test_cutting_keeps_the_text_and_bounds_pretokens(text: str, cap: int, preset: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    pieces = list(cut_pretokens(text, PRESETS[preset], cap))
    assert "".join(pieces) == text
    split = pre_tokenizers.Split(Regex(PRESETS[preset]), "isolated")
    for piece in pieces:
        assert all(len(token) <= 2 * cap + 1 for token, _ in split.pre_tokenize_str(piece))


def test_ordinary_text_is_not_cut() -> None:
    text = "An ordinary sentence, with a long-ish URL https://example.org/a/b?c=d&e=f#ghijklmnopqrstuvwxyz/0123456789/etc.\n"
    assert list(cut_pretokens(text * 5, pattern(Tokenizer()), 64)) == [text * 5]
    assert list(cut_pretokens("a " + "b" * 150, pattern(Tokenizer()), 64)) == ["a " + "b" * 64, "b" * 64, "b" * 22]
