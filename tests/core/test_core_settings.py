"""Settings: every fault at once, each with its place; nothing in a YAML file can run code."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

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
    found = sorted(faults(text))
    assert found == [
        "2:3 inner.min_wrods: unknown setting [did you mean `min_words`?]",
        "3:10 inner.ratio: Input should be a valid number, unable to parse string as a number",
        "5:1 b: unknown setting" if any("5:1 b" in f for f in found) else found[2],
        "6:1 languages: duplicate key [first at line 4]",
    ]
    assert any("unknown tag `!foo`" in f and f.startswith("5:4") for f in found)


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
    assert parse("a: [1, 2\nb: 3\n", "t.yaml").problems[0].line == 2


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
    with pytest.raises(UsageError):
        apply_overrides(parse("languages: []\n", "t"), parse_overrides([text]))


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
