"""The `tokenizer` group: train one or a sweep of sizes, export it; `report` and `compare` stand in tokenizer_report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gristmill.core.errors import ConfigError
from gristmill.pipelines.cli.options import json_option, print_json, say
from gristmill.pipelines.cli.tokenizer_report import tokenizer_compare, tokenizer_report

FILES = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def tokenizer() -> None:
    """Train a BPE tokenizer, measure it, compare it and export it."""


@tokenizer.command("train")
@click.argument("parquet", nargs=-1, required=True, type=FILES)
@click.option("-o", "--out", required=True, type=FOLDER, help="Folder to write.")
@click.option(
    "-c",
    "--config",
    type=FILES,
    help="YAML of settings, or a recipe, whose `tokenizer:` block is taken. Else defaults.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting of the `tokenizer:` block; VALUE is YAML. `gristmill schema` describes all of them.",
)
@click.option("--vocab-size", metavar="N", help="Same as --set vocab_size=N.")
@click.option("--sample-bytes", metavar="N", help="Same as --set sample.bytes=N: UTF-8 bytes of text to learn from.")
@json_option
def tokenizer_train(
    parquet: tuple[Path, ...],
    out: Path,
    config: Path | None,
    overrides: tuple[str, ...],
    vocab_size: str | None,
    sample_bytes: str | None,
    as_json: bool,
) -> None:
    """Train on curated Parquet files (id, text, language); writes tokenizer.json, tokenizer_config.json, fertility.json.

    With a list of sizes, all are trained, `use` is the one that tokenizer.json holds, and sweep.json compares them.

    \b
    Examples:
      gristmill tokenizer train mill/stages/curate/*/documents.parquet -o tok --vocab-size 32k
      gristmill tokenizer train docs.parquet -o tok --set sample.policy=unimax --set sample.bytes=500_000_000
      gristmill tokenizer train docs.parquet -o tok --set vocab_size='[16k, 32k, 64k]' --set use=32k
      gristmill tokenizer train docs.parquet -o tok -c tokenizer.yaml --set digits=3
    """
    shorthand = [("vocab_size", vocab_size), ("sample.bytes", sample_bytes)]
    given = [f"{key}={value}" for key, value in shorthand if value is not None]
    settings = _settings(config, [*given, *overrides])
    from gristmill.tokenize.api import train_files, write_trained
    from gristmill.tokenize.sweep import render

    trained = write_trained(train_files(list(parquet), settings), out)
    if as_json:
        print_json({"folder": str(out), "files": sorted(trained.files), "sweep": trained.sweep, **trained.report})
    elif trained.sweep is not None:
        click.echo(render(trained.sweep))
    say(f"wrote {out / 'tokenizer.json'}: {trained.report['vocab_size']:,} ids, {trained.merges:,} merges")


def _settings(config: Path | None, overrides: list[str]) -> Any:
    """`tokenize.schema.Tokenizer` of a file (its `tokenizer:` block where it is a recipe) and overrides."""
    from gristmill.core.settings import apply_overrides, parse, parse_overrides, read_yaml, validate
    from gristmill.tokenize.schema import Tokenizer

    if config is None:
        document = parse("{}\n", "settings")
    else:
        document = read_yaml(config)
        if isinstance(document.data, dict) and "gristmill" in document.data:
            from gristmill.pipelines.schema import load_recipe

            found = load_recipe(str(config), [f"tokenizer.{text}" for text in overrides]).recipe.tokenizer
            if found is None:
                raise ConfigError(
                    [document.problem((), "the recipe has no tokenizer", "add `tokenizer:`, or leave out --config")]
                )
            return found
    apply_overrides(document, parse_overrides(overrides, document.problems))
    settings, problems = validate(document, Tokenizer)
    if settings is None:
        raise ConfigError(problems)
    return settings


@tokenizer.command("export")
@click.argument("tokenizer_json", metavar="TOKENIZER", type=FILES)
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["transformers", "tiktoken", "json"]),
    help="transformers: a folder for AutoTokenizer. tiktoken: ranks, and their regex and special tokens. json: the file.",
)
@click.option("-o", "--out", required=True, type=FOLDER, help="Folder to write.")
def tokenizer_export(tokenizer_json: Path, form: str, out: Path) -> None:
    """Write a tokenizer.json in the form that another library loads, with the same ids.

    tiktoken's ranks are compared with `tokenizers` on adversarial texts where tiktoken is installed, and refused where
    they differ. tokenizer.tiktoken has "base64 rank" lines, tokenizer.meta.json the regex and the special tokens.

    \b
    Examples:
      gristmill tokenizer export tok/tokenizer.json --format transformers -o hf
      gristmill tokenizer export tok/tokenizer.json --format tiktoken -o ranks
    """
    from gristmill.tokenize.export import export

    checked = export(tokenizer_json, form, out)  # type: ignore[arg-type]
    say(f"wrote {out}" + "".join(f"; the same ids in {name}" for name in checked))


tokenizer.add_command(tokenizer_report)
tokenizer.add_command(tokenizer_compare)
