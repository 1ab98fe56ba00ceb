"""The command line: help without heavy imports, exit codes, streams, and every fault of a recipe at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import REPO, gristmill, page, response, write_warc

from gristmill.pipelines.cli.main import COMMANDS

HEAVY = [
    "torch",
    "distributed",
    "dask",
    "pyarrow",
    "numpy",
    "trafilatura",
    "spacy",
    "numba",
    "fasttext",
    "tokenizers",
    "pydantic",
]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom gristmill.pipelines.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0, e.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=REPO
    )
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout[-200:]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    from gristmill.pipelines.cli.main import cli

    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.help
    children = getattr(command, "commands", {})
    for child in children.values():
        assert child.help
    if name not in ("status", "report") and not children:
        assert "Example" in command.help


def test_four_planted_errors_are_all_printed_and_nothing_runs(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(
        "gristmill: 1\n"
        "input: {paths: ['*.warc.gz']}\n"
        "curate:\n"
        "  language: !keep [en]\n"
        "  rules:\n"
        "    gopher@datatrove: {min_wrods: 40}\n"
        "  dedup:\n"
        "    minhash: {bands: many}\n"
        "tokenizer: {vocab_size: 10}\n"
    )
    done = gristmill("run", str(recipe), "--root", str(tmp_path / "root"))
    assert done.returncode == 2
    for place in ("bad.yaml:4:13: error", "bad.yaml:6:24: error", "bad.yaml:8:22: error", "bad.yaml:9:25: error"):
        assert place in done.stderr, done.stderr
    assert "did you mean `min_words`?" in done.stderr
    assert "nothing was run" in done.stderr
    assert not done.stdout
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["frobnicate"], "No such command"),
        (["run", "nope", "--root", "x"], "no recipe named 'nope'"),
        (["run", "demo"], "no root"),
        (["run", "demo", "--root", "s3://x/y"], "is a URL"),
        (["show", "--root", "/nonexistent/root"], "holds no finished stage"),
        (["run", "demo", "--root", "x", "--cluster", "moon:3"], "no such cluster"),
        (["trace", "--root", "/nonexistent", "--token", "x"], "PHASE:ROW:POS"),
    ],
)
def test_usage_errors_exit_with_2_and_a_word_of_help(args: list[str], word: str, tmp_path: Path) -> None:
    done = gristmill(*args, cwd=tmp_path, env={"GRISTMILL_ROOT": ""})
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_lists_the_stages_in_order_without_root_or_input() -> None:
    done = gristmill("plan", "web", "--json")
    assert done.returncode == 0, done.stderr
    names = [s["stage"] for s in json.loads(done.stdout)["stages"]]
    assert names[0] == "curate.pages"
    assert [n for n in names if n in ("curate", "tokenizer", "shards", "train")] == [
        "curate",
        "tokenizer",
        "shards",
        "train",
    ]


def test_plan_check_exits_with_3_when_there_is_work(tmp_path: Path) -> None:
    write_warc(tmp_path / "in" / "a.warc.gz", [response("http://a.example/", page("A", ["Some words."]))])
    paths = f"input.paths={json.dumps([str(tmp_path / 'in' / '*.warc.gz')])}"
    done = gristmill("plan", "web", "--root", str(tmp_path / "root"), "--set", paths, "--check", "--to", "curate")
    assert done.returncode == 3, done.stderr
    assert "never run here" in done.stdout
    assert not (tmp_path / "root").exists()


def test_schema_describes_every_setting() -> None:
    for kind in ("recipe", "mixture", "train"):
        done = gristmill("schema", kind)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["type"] == "object"


def test_data_goes_to_stdout_and_the_rest_to_stderr() -> None:
    done = gristmill("check", "demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok: ")
    assert not done.stderr
