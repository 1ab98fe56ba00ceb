"""Cloze tasks: the right answers of a bigram model by hand, every known field layout, the real files, odd lines."""

from __future__ import annotations

import gzip
import math

import numpy as np
import orjson
import pytest

torch = pytest.importorskip("torch")

from data_helper import shared_data  # noqa: E402

from gristmill.core.errors import UsageError  # noqa: E402
from gristmill.trainer import cloze  # noqa: E402
from gristmill.trainer.jsonl import read_jsonl  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402
from gristmill.trainer.scoring import pack, score  # noqa: E402
from gristmill.trainer.watch_schema import ClozeTask  # noqa: E402

CPU = World(torch.device("cpu"))
WORDS = ["?", "sky", "grass", "is", "blue", "green", "very", "sour", "the"]


class Bigram(torch.nn.Module):  # type: ignore[name-defined]
    """log p(next | last) from a table; looks at position 0 too, which must be where a sequence starts."""

    def __init__(self, table_VV):
        super().__init__()
        self.log_VV = torch.log_softmax(torch.as_tensor(table_VV, dtype=torch.float32), -1)
        self.starts: list[int] = []

    def forward(self, tokens_BT, position_BT):
        return self.log_VV[tokens_BT]

    def token_loss(self, tokens_BT, labels_BT, position_BT):
        self.starts.append(int((position_BT == 0).sum()))
        nll_BT = -self(tokens_BT, position_BT).gather(-1, labels_BT.clamp(min=0)[..., None])[..., 0]
        return torch.where(labels_BT == -100, 0.0, nll_BT)


@pytest.fixture(scope="module")
def words():
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.fixture(scope="module")
def bigram():
    table = np.zeros((len(WORDS), len(WORDS)))
    for last, following, weight in [("is", "blue", 3), ("is", "green", 2), ("is", "very", 1.5), ("very", "sour", 4)]:
        table[WORDS.index(last), WORDS.index(following)] = weight
    return Bigram(table)


def task_of(tmp_path, rows, words, form="cloze", **changes):
    path = tmp_path / "task.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else orjson.dumps(row) for row in rows))
    said: list[str] = []
    return cloze.load(ClozeTask(name="t", path=str(path), format=form, **changes), words, 8, said.append), said


def test_the_likeliest_answer_is_counted_whole_and_per_character(tmp_path, words, bigram):
    rows = [
        {"context": "the sky is", "choices": [" blue", " green"], "gold": 0},
        {"context": "the grass is", "choices": [" blue", " green"], "gold": 1},  # the bigram says blue
        {"context": "the sky is", "choices": [" green", " very sour"], "gold": 1},  # wrong whole, right per character
    ]
    task, _ = task_of(tmp_path, rows, words)
    found = cloze.measure(bigram, task, 2, 8, CPU)
    log = bigram.log_VV.double().numpy()

    def p(last, following):
        return log[WORDS.index(last), WORDS.index(following)]

    gold = (p("is", "blue") / 4 + p("is", "green") / 5 + (p("is", "very") + p("very", "sour")) / 9) / 3
    assert found == {
        "items": 3,
        "bad_lines": 0,
        "truncated": 0,
        "accuracy": pytest.approx(1 / 3),
        "accuracy_stderr": pytest.approx(math.sqrt(2 / 27)),
        "accuracy_per_char": pytest.approx(2 / 3),
        "accuracy_per_char_stderr": pytest.approx(math.sqrt(2 / 27)),
        "random": 0.5,
        "gold_logprob_per_char": pytest.approx(gold, rel=1e-6),
        "sha256": task.sha256,
    }


def test_the_rest_after_a_blank_and_the_last_word(tmp_path, words, bigram):
    blank = [{"question": "the _ is blue", "choices": ["sky", "grass"], "gold": 1}]
    task, _ = task_of(tmp_path, blank, words, "winogrande")
    assert [s.first for s in task.sequences] == [2, 2]  # "is blue" of "the sky is blue"
    found = cloze.measure(bigram, task, 2, 8, CPU)
    assert found["accuracy"] == 0.0  # nothing tells the two apart: the first one is taken, so a tie is no luck
    last = [{"question": "the sky is", "answer": "blue"}, {"question": "the grass is", "answer": "green"}]
    task, _ = task_of(tmp_path, last, words, "lambada")
    found = cloze.measure(bigram, task, 2, 8, CPU)
    assert found["accuracy"] == 0.5
    assert "random" not in found
    assert "accuracy_per_char" not in found


def test_odd_lines_are_counted_and_said(tmp_path, words):
    good = {"context": "the sky is", "choices": [" blue", " green"], "gold": 0}
    bad = [b"{", b"[1]", b"\xff", {}, good | {"gold": 2}, good | {"gold": True}, good | {"choices": [" blue"]}]
    bad += [good | {"choices": [" blue", 3]}, good | {"context": " "}, good | {"choices": "blue"}, good | {"gold": "Z"}]
    task, said = task_of(tmp_path, [good, *bad, b"", good], words)
    assert (len(task.items), task.bad_lines) == (2, len(bad))
    assert said == [f"task t: {len(bad)} of {len(bad) + 2} lines not read, first line 2"]
    with pytest.raises(UsageError, match="no line"):
        task_of(tmp_path, bad, words)
    with pytest.raises(UsageError, match="cannot read"):
        cloze.load(ClozeTask(name="t", path=str(tmp_path / "absent.jsonl")), words, 8, print)


def test_a_long_context_is_cut_on_the_left(tmp_path, words, bigram):
    row = {"context": "the " * 20 + "sky is", "choices": [" blue", " very sour"], "gold": 0}
    task, _ = task_of(tmp_path, [row], words)
    assert task.truncated == 2
    assert [len(s.ids) for s in task.sequences] == [9, 9]
    assert [s.first for s in task.sequences] == [8, 7]
    assert cloze.measure(bigram, task, 2, 8, CPU)["accuracy"] == 1.0


def test_limit_takes_the_same_lines_each_time(tmp_path, words):
    rows = [{"context": f"the sky is {'very ' * n}", "choices": [" blue", " green"], "gold": 0} for n in range(9)]
    first, again = (task_of(tmp_path, rows, words, limit=4)[0] for _ in range(2))
    assert first.items == again.items
    assert len(first.items) == 4
    assert first.items != task_of(tmp_path, rows[:4], words)[0].items


LAYOUTS = {
    "arc": {
        "question": {"stem": "why", "choices": [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]},
        "answerKey": "2",
    },
    "openbookqa": {"question_stem": "why", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    "hellaswag": {"ctx": "why", "endings": ["a", "b"], "label": "1"},
    "piqa": {"goal": "why", "sol1": "a", "sol2": "b", "label": 1},
    "mmlu": {"question": "why", "choices": ["a", "b"], "answer": "B"},
    "winogrande": {"sentence": "x _ y", "option1": "a", "option2": "b", "answer": "2"},
    "lambada": {"text": "why not b"},
}


@pytest.mark.parametrize("form", LAYOUTS)
def test_published_field_names_are_known(form):
    found = cloze.item(LAYOUTS[form], form)
    wanted = {
        "winogrande": (("x a", " y"), ("x b", " y")),
        "lambada": (("why not", " b"),),
        "hellaswag": (("why", " a"), ("why", " b")),
        "openbookqa": (("why", " a"), ("why", " b")),
    }
    assert found.pairs == wanted.get(form, tuple(("Question: why\nAnswer:", f" {c}") for c in "ab"))
    assert found.gold == (0 if form == "lambada" else 1)


REAL = {
    "arc_challenge": ("arc", 142),
    "arc_easy": ("arc", 298),
    "gsm8k": ("answer", 651),
    "hellaswag": ("hellaswag", 508),
    "humaneval": ("answer", 85),
    "lambada": ("lambada", 583),
    "mmlu": ("mmlu", 774),
    "openbookqa": ("openbookqa", 268),
    "piqa": ("piqa", 488),
    "winogrande": ("winogrande", 605),
}


@pytest.mark.parametrize("name", REAL)
def test_real_task_files_are_read_whole(name):
    form, lines = REAL[name]
    rows = [row for _, row in read_jsonl(shared_data(f"bench/{name}.jsonl.gz"))]
    items = [cloze.item(row, form) for row in rows]
    assert len(items) == lines
    assert all(0 <= it.gold < len(it.pairs) and all(a.strip() and b.strip() for a, b in it.pairs) for it in items)


def test_a_real_file_is_scored_by_a_uniform_model(tmp_path):
    """Every answer is as likely as it is short: the accuracies are those of two rules that need no model."""
    packed = shared_data("tokenizers/gpt-neox-olmo-dolma-v1_5.tokenizer.json.gz")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(gzip.decompress(packed.read_bytes()).decode())
    path = shared_data("bench/arc_easy.jsonl.gz")
    task = cloze.load(ClozeTask(name="arc", path=str(path), format="arc", limit=100), tokenizer, 64, print)
    size = tokenizer.get_vocab_size()

    class Uniform(torch.nn.Module):
        def token_loss(self, tokens_BT, labels_BT, position_BT):
            return torch.where(labels_BT == -100, 0.0, math.log(size))

    found = cloze.measure(Uniform(), task, 4, 64, CPU)
    right = characters = 0.0
    for it in task.items:
        tokens = [len(tokenizer.encode(rest, add_special_tokens=False).ids) for _, rest in it.pairs]
        right += tokens.index(min(tokens)) == it.gold
        characters += -math.log(size) * tokens[it.gold] / it.characters[it.gold]
    assert found["accuracy"] == pytest.approx(right / 100)
    assert found["gold_logprob_per_char"] == pytest.approx(characters / 100, rel=1e-5)
    assert found["random"] == pytest.approx(0.25, abs=0.01)


def test_rows_are_full_and_hold_every_sequence_once():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 17, 200)]
    rows = pack(lengths, 16)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 16
    assert len(rows) <= 1.05 * sum(lengths) / 16 + 1


def test_packed_scores_are_those_of_each_sequence_alone(bigram):
    from gristmill.trainer.scoring import Scored

    rng = np.random.default_rng(1)
    sequences = [Scored(rng.integers(0, len(WORDS), n), int(rng.integers(1, n))) for n in rng.integers(2, 10, 40)]
    together = score(bigram, sequences, 3, 9, CPU).nats
    log = bigram.log_VV.double().numpy()
    alone = [-sum(log[a, b] for a, b in zip(s.ids[s.first - 1 :], s.ids[s.first :], strict=False)) for s in sequences]
    assert together == pytest.approx(np.array(alone), rel=1e-6)


def test_bombs_and_damage_end_a_file(tmp_path, monkeypatch):
    from gristmill.trainer import jsonl

    line = orjson.dumps({"a": 1}) + b"\n"
    whole = gzip.compress(line * 3, mtime=0)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    assert list(read_jsonl(tmp_path / "cut.jsonl.gz"))[-1][1] is None
    (tmp_path / "foreign.jsonl.zst").write_bytes(b"no zstd at all")
    assert list(read_jsonl(tmp_path / "foreign.jsonl.zst")) == [(1, None)]
    monkeypatch.setattr(jsonl, "MAX_LINE", 64)
    (tmp_path / "long.jsonl").write_bytes(line + b'{"a": "' + b"x" * 500 + b'"}\n' + line)
    assert [row for _, row in read_jsonl(tmp_path / "long.jsonl")] == [{"a": 1}, None, {"a": 1}]
    monkeypatch.setattr(jsonl, "MAX_BYTES", 4096)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b"0" * 1_000_000))
    with pytest.raises(UsageError, match="longer than"):
        list(read_jsonl(tmp_path / "bomb.jsonl.gz"))
