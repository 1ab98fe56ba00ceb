"""Settings: every fault at once, each with its place; nothing in a YAML file can run code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator

from gristmill.core.errors import ConfigError, UsageError
from gristmill.core.settings import (
    MAX_DEPTH,
    Settings,
    apply_overrides,
    flatten,
    load,
    parse,
    parse_overrides,
    validate,
)


class Inner(Settings):
    min_words: int = 5
    ratio: float = Field(0.1, ge=0, le=1)


class Outer(Settings):
    inner: Inner = Inner()
    aliased: Inner = Field(Inner(), alias="gopher@datatrove")
    languages: list[str] = []
    maybe: Inner | str | None = None


def faults(text: str) -> list[str]:
    _, problems = validate(parse(text, "t.yaml"), Outer)
    return [f"{p.line}:{p.column} {p.path}: {p.message}" + (f" [{p.hint}]" if p.hint else "") for p in problems]


def test_all_faults_of_a_file_are_reported_with_their_places() -> None:
    text = "inner:\n  min_wrods: 5\n  ratio: lots\nlanguages: [en]\nb: !foo 3\nlanguages: []\n"
    # b's tag and b's name are two faults: neither hides the other
    assert sorted(faults(text)) == [
        "2:3 inner.min_wrods: unknown setting [did you mean `min_words`?]",
        "3:10 inner.ratio: Input should be a valid number, unable to parse string as a number "
        "[expected a number, for example 0.5, 0 to 1]",
        "5:1 b: unknown setting [allowed here: inner, gopher@datatrove, languages, maybe]",
        "5:4 b: unknown tag `!foo` [write plain values; tags run no code here]",
        "6:1 languages: duplicate key [keep one of the two; the first is at line 4]",
    ]


def test_a_tag_never_hides_other_faults_and_never_runs() -> None:
    found = faults("inner: !!python/object/apply:os.system ['true']\nlanguages: 3\n")
    assert any("unknown tag" in f for f in found)
    assert any(f.startswith("2:12 languages") for f in found)


def test_hints_know_aliased_names() -> None:
    assert faults("gopher@datatrov: {}\n") == [
        "1:1 gopher@datatrov: unknown setting [did you mean `gopher@datatrove`?]"
    ]


def test_yaml_12_scalars() -> None:
    data = parse("a: no\nb: 3e-4\nc: 012\nd: 22:30\ne: 1_000\nf: '5'\ng: ~\nh: true\ni: 2026-11-24\n", "t").data
    assert data == {
        "a": "no", "b": 3e-4, "c": 12, "d": "22:30", "e": 1000, "f": "5", "g": None, "h": True, "i": "2026-11-24",
    }  # fmt: skip


def test_syntax_faults_and_merge_conflicts_have_places() -> None:
    problems = parse("a: 1\n<<<<<<< HEAD\nb: 2\n", "t.yaml").problems
    assert len(problems) == 1
    assert problems[0].line >= 2
    problem = parse("a: [1, 2\nb: 3\n", "t.yaml").problems[0]
    assert (problem.line, problem.column, problem.source) == (1, 4, "a: [1, 2"), "where the bracket opens"


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("inner:\n  ratio 0.5\n  min_words: 3\n", "2:3", "colon is missing"),
        ("inner\n  min_words: 3\n", "1:1", "colon is missing"),
        ("languages: [en, de\ninner: {}\n", "1:12", "bracket opened at line 1 is not closed"),
        ("languages: [en]]\n", "1:16", "closing bracket too many"),
        ("maybe: 'a\ninner: {}\n", "1:8", "quote opened here is not closed"),
        ("inner:\n\tmin_words: 3\n", "2:1", "spaces"),
        ("inner: {}\n   languages: []\n", "2:4", "bad indentation"),
        ("maybe: x\n   languages: []\n", "2:13", "bad indentation"),
        ("inner:\n   min_words: 3\n  ratio: 0.1\n", "3:3", "bad indentation"),
        ("maybe: a: b\n", "1:9", "quotes"),
        ("maybe: @x\n", "1:8", "quotes"),
        ("maybe: *x\n", "1:8", "anchor"),
        ("maybe: a\x01\n", "1:9", "control character"),
        ("inner: {}\n---\nmaybe: a\n", "2:1", "one document"),
        ("<<<<<<< HEAD\nmaybe: a\n=======\nmaybe: b\n>>>>>>> x\n", "1:1", "merge conflict"),
    ],
)
def test_a_syntax_fault_has_a_place_and_a_hint_and_hides_nothing(text: str, place: str, hint: str) -> None:
    found = faults(text + "languagse: [en]\naliased: !t 3\ngopher@datatrove: {ratio: 7}\n")
    assert any(f.startswith(f"{place} : ") and hint in f for f in found), found
    assert any("languagse: unknown setting [did you mean `languages`?]" in f for f in found)
    assert any("unknown tag `!t`" in f for f in found)
    assert any("gopher@datatrove.ratio: Input should be less than or equal to 1 [allowed: 0 to 1]" in f for f in found)


def test_several_syntax_faults_are_reported_and_what_they_hide_is_not_called_missing() -> None:
    class Needs(Settings):
        must: int
        text: str = ""

    _, problems = validate(parse("text: @a\nmust: @b\ntexd: x\n", "t.yaml"), Needs)
    assert [(p.line, p.path) for p in problems] == [(1, ""), (2, ""), (3, "texd")]


@pytest.mark.parametrize("text", ["[" * 3000, "a: " + "{x: " * 3000, "- " * 3000])
@pytest.mark.parametrize("limit", [1_000, 100_000])
def test_very_deep_nesting_is_a_fault(text: str, limit: int) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, before))
    try:
        problems = parse(text, "t.yaml").problems
    finally:
        sys.setrecursionlimit(before)
    assert [p.message.split(" levels")[0] for p in problems] == [f"nested deeper than {MAX_DEPTH}"]
    assert problems[0].hint


def test_every_fault_has_a_hint() -> None:
    class Every(Settings):
        gristmill_x: Literal[1]
        must: int
        mode: Literal["a", "b"] = "a"
        few: list[str] = Field(["x"], min_length=1)
        on: bool = True
        count: int = Field(3, gt=0)
        block: Inner = Inner()
        table: dict[int, float] = {}
        name: str = Field("x", pattern="^[a-z]+$")
        either: list[str] | Literal["all"] = "all"

    text = (
        "gristmill_x: 2\nmode: c\nfew: []\non: 7\ncount: true\nblock: 3\ntable: {x: 1, 2: much}\nname: 3 4\n"
        "either: some\nzzz: 1\ncou: 1\n"
    )
    _, problems = validate(parse(text, "t.yaml"), Every)
    hints = {p.path: p.hint or "" for p in problems}
    assert all(hints.values())
    assert len(hints) == len(problems) == 13
    assert hints["gristmill_x"].startswith("write `gristmill_x: 1`")
    assert hints["must"] == "add `must: 1`"
    assert hints["mode"] == "allowed: 'a' or 'b'"
    assert hints["on"] == "expected true or false"
    assert hints["count"] == "expected a whole number, for example 5, greater than 0"
    assert hints["block"] == "expected a block of settings: min_words, ratio"
    assert hints["either"] == "expected a list, for example [en, de] or allowed: 'all'"
    assert hints["zzz"].startswith("allowed here: gristmill_x, must, ")
    assert hints["cou"] == "did you mean `count`?"
    assert faults("gopher: {}\n") == ["1:1 gopher: unknown setting [did you mean `gopher@datatrove`?]"]


def test_faults_of_one_block_are_all_reported() -> None:
    assert [f.split()[1] for f in faults("inner: {min_words: x, ratio: true}\n")] == [
        "inner.min_words:",
        "inner.ratio:",
    ]


@pytest.mark.parametrize("value", ["inf", ".inf", "-inf", "nan", ".nan", "1e999", "true"])
def test_a_number_is_finite_and_no_truth(value: str) -> None:
    class Free(Settings):
        x: float = 0

    _, problems = validate(parse(f"x: {value}\n", "t.yaml"), Free)
    assert [p.path for p in problems] == ["x"]


@pytest.mark.parametrize("text", ["[" * (MAX_DEPTH + 10) + "]" * (MAX_DEPTH + 10), "- 1\n- 2\n", "just text"])
def test_what_is_no_mapping_is_a_fault_not_a_crash(text: str) -> None:
    assert faults(text)


def test_alias_bombs_are_bounded() -> None:
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert any("larger than" in p.message for p in parse("\n".join(lines), "t.yaml").problems)


def test_overrides_reach_lists_and_keep_their_own_place() -> None:
    doc = parse("inner: {min_words: 3}\nlanguages: [en, de]\n", "t.yaml")
    apply_overrides(doc, parse_overrides(["inner.min_words=7", "languages.1=fr", "inner.ratio=5"]))
    assert doc.data == {"inner": {"min_words": 7, "ratio": 5}, "languages": ["en", "fr"]}
    _, problems = validate(doc, Outer)
    assert [(p.file, p.path) for p in problems] == [("--set:3", "inner.ratio")]


@pytest.mark.parametrize("text", ["novalue", "=3", "languages.9=x"])
def test_bad_overrides_are_usage_errors(text: str) -> None:
    doc = parse("languages: []\n", "t")
    with pytest.raises(UsageError):  # noqa: PT012 - a bad form is found by the first, a bad path by the second
        apply_overrides(doc, parse_overrides([text]))
        raise ConfigError(doc.problems) if doc.problems else AssertionError


def test_bad_overrides_are_reported_together_and_beside_the_files_faults(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("languages: 3\n")
    sets = ["novalue", "inner.ratio=!x 7", "maybe=[", "inner.foo=!y 1", "aliased=1", "inner..x=1", "maybe.foo=2"]
    with pytest.raises(ConfigError) as caught:
        load(path, Outer, overrides=sets, name="bad.yaml")
    assert [(p.file, p.path) for p in caught.value.problems] == [
        ("--set:1", ""),
        ("--set:2", "inner.ratio"),
        ("--set:2", "inner.ratio"),
        ("--set:3", "maybe"),
        ("--set:4", "inner.foo"),
        ("--set:4", "inner.foo"),
        ("--set:5", "aliased"),
        ("--set:6", ""),
        ("--set:7", "maybe.foo"),
        ("bad.yaml", "languages"),
    ]
    assert all(p.hint for p in caught.value.problems)


def test_overrides_keep_the_place_that_they_were_given() -> None:
    doc = parse("{}", "t.yaml")
    apply_overrides(doc, parse_overrides(["maybe=x", "inner.ratio=5", "languages=3"])[1:])
    _, problems = validate(doc, Outer)
    assert [(p.file, p.path) for p in problems] == [("--set:2", "inner.ratio"), ("--set:3", "languages")]


def test_an_override_reaches_a_numeric_key() -> None:
    doc = parse("{}", "t.yaml")
    apply_overrides(doc, parse_overrides(["table.2=0.5", "list.0=a", "list.1=b"]))
    assert doc.data == {"table": {"2": 0.5}, "list": ["a", "b"]}
    assert doc.mark(("table", "2")).file == "--set:1"


def test_load_raises_every_problem_and_says_nothing_was_run(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("inner: {ratio: 2}\nlanguage: en\n")
    with pytest.raises(ConfigError) as caught:
        load(path, Outer)
    assert len(caught.value.problems) == 2
    text = str(caught.value)
    assert "did you mean `languages`?" in text
    assert "2 errors" in text
    assert "nothing was run" in text
    assert caught.value.exit_code == 2


def test_missing_and_binary_files_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "none.yaml", Outer)
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "x.yaml", Outer)


def test_flatten_names_leaves() -> None:
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": {}}) == {("a", "b"): 1, ("a", "c"): [1, 2], ("d",): {}}


class Sum(Settings):
    parts: dict[str, float] = {}
    total: int = 1

    @model_validator(mode="after")
    def _adds_up(self) -> Sum:
        if sum(self.parts.values()) != self.total:
            raise ValueError("parts do not add up")
        return self


class Sums(Settings):
    first: Sum = Sum(parts={"a": 1.0})
    second: Sum = Sum(parts={"a": 1.0})
    limit: int = 3

    @model_validator(mode="after")
    def _together(self) -> Sums:
        if self.first.total + self.second.total > self.limit:
            raise ValueError("more than the limit")
        return self


def test_a_faulty_field_hides_no_check_of_other_blocks_and_invents_none() -> None:
    def found(text: str) -> list[str]:
        _, problems = validate(parse(text, "t.yaml"), Sums)
        return sorted(f"{p.path}: {p.message}" for p in problems)

    assert found("first: {parts: {a: 2}, totl: 1}\nsecond: {parts: {a: 3}, total: 3}\nlimit: few\n") == [
        "first.totl: unknown setting",
        "first: parts do not add up",
        "limit: Input should be a valid integer, unable to parse string as an integer",
    ]
    # without its faulty part the first block would not add up: that would be our own doing
    assert found("first: {parts: {a: 1, b: x}}\nsecond: {parts: {a: 1}, totals: 2}\n") == [
        "first.parts.b: Input should be a valid number, unable to parse string as a number",
        "second.totals: unknown setting",
    ]
    assert found("first: {parts: {a: 2}, total: 2}\nsecond: {parts: {a: 2}, total: 2}\nlimits: 4\n") == [
        ": more than the limit",
        "limits: unknown setting",
    ]
