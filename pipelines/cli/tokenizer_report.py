"""Commands that measure tokenizers: `tokenizer report` and `tokenizer compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gristmill.core.errors import EXIT_FAILED, UsageError
from gristmill.pipelines.cli.options import F, json_option, print_json, say

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _shared(command: F) -> F:
    """Options of both commands."""
    for option in reversed(
        [
            click.option("--aligned", type=FILE, help="JSONL of lang, index, text: what premiums are measured on."),
            click.option("--reference", default="en", show_default=True, help="Language that premiums compare with."),
            click.option("--words", multiple=True, metavar="LANG=FILE", help="Word list for STRR, one word a line."),
            click.option(
                "--segmenter",
                "segmenters",
                multiple=True,
                metavar="NAME",
                help="auto (default), runs, or LANG=NAME: jieba, fugashi, pythainlp, kiwi, laonlp.",
            ),
            click.option("--docs", default=200, show_default=True, type=click.IntRange(1), help="Of each language."),
            click.option("--seed", default=0, show_default=True, help="Which documents."),
            click.option("--domains", default=25, show_default=True, type=click.IntRange(0), help="Domains by size."),
            click.option(
                "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write one self-contained page."
            ),
            json_option,
        ]
    ):
        command = option(command)
    return command


@click.command("report")
@click.argument("files", nargs=-1, metavar="[TOKENIZER] [PARQUET]...")
@click.option(
    "--baseline", "baselines", multiple=True, metavar="[NAME=]FILE", help="A tokenizer to compare with; repeat."
)
@click.option(
    "--tokens",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Token store or packed dataset to count unused ids on; repeat.",
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A run: its packed dataset (else its token stores) for --tokens; its tokenizer and its curated documents where "
    "none are given.",
)
@click.option(
    "--sweep", type=FILE, help="sweep.json of `tokenizer train` with several sizes; default: the one beside TOKENIZER."
)
@click.option("--gate", "gates", multiple=True, metavar="NAME=NUMBER", help="Fail (exit 1) when broken; repeat.")
@click.option("--recipe", help="Recipe whose tokenizer.gates are checked too; --gate of the same name wins.")
@_shared
def tokenizer_report(
    files: tuple[str, ...],
    baselines: tuple[str, ...],
    tokens: tuple[Path, ...],
    root: Path | None,
    sweep: Path | None,
    gates: tuple[str, ...],
    recipe: str | None,
    aligned: Path | None,
    reference: str,
    words: tuple[str, ...],
    segmenters: tuple[str, ...],
    docs: int,
    seed: int,
    domains: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """How a tokenizer fits texts: fertility, compression, premium, unused ids, suspicious tokens.

    TOKENIZER and baselines: a tokenizer.json, tiktoken ranks (NAME.tiktoken with NAME.meta.json), or encoder.json with
    vocab.bpe; all may be gzipped. PARQUET has the columns id, text, and maybe language, source and url.

    \b
    Examples:
      gristmill tokenizer report tok/tokenizer.json curated/*.parquet --baseline gpt2=gpt2/encoder.json
      gristmill tokenizer report --root mill --aligned flores.jsonl --html report.html
      gristmill tokenizer report tok/tokenizer.json c.parquet --aligned flores.jsonl --gate max_premium=2.5
    """
    from gristmill.tokenize.baselines import open_tokenizer
    from gristmill.tokenize.gates import check, parse_gates, render
    from gristmill.tokenize.report import Options, build
    from gristmill.tokenize.report_text import render as table

    wanted = parse_gates([*_recipe_gates(recipe), *gates])
    given = list(files)
    own = given.pop(0) if given and not given[0].endswith(".parquet") else None
    parquet = _parquet(given)
    if root is not None:
        theirs, stores, curated = _of_root(root)
        own, tokens, parquet = own or theirs, (*tokens, *stores), parquet or curated
    if own is None or not parquet:
        raise UsageError(f"no {'tokenizer' if own is None else 'documents'}", hint="name files, or a run with --root")
    beside = Path(own.partition("=")[2] or own)
    beside = (beside if beside.is_dir() else beside.parent) / "sweep.json"
    sweep = sweep or (beside if beside.is_file() else None)
    options = Options(
        aligned, reference, _word_files(words), tokens, docs, seed=seed, segmenters=segmenters, top_domains=domains, sweep=sweep
    )  # fmt: skip
    found = build([open_tokenizer(t) for t in (own, *baselines)], parquet, options)
    found["gates"] = check(found["tokenizers"][0], wanted)
    _put(found, html, as_json, table(found), f"Tokenizer {found['tokenizers'][0]['name']}")
    if found["gates"]:
        say(render(found["gates"]))
    if not all(result["passed"] for result in found["gates"]):
        sys.exit(EXIT_FAILED)


@click.command("compare")
@click.argument("files", nargs=-1, required=True, metavar="TOKENIZER... -- PARQUET...")
@_shared
def tokenizer_compare(
    files: tuple[str, ...],
    aligned: Path | None,
    reference: str,
    words: tuple[str, ...],
    segmenters: tuple[str, ...],
    docs: int,
    seed: int,
    domains: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Several tokenizers side by side on the same documents. Arguments that end in .parquet are the documents.

    \b
    Example:
      gristmill tokenizer compare tok/tokenizer.json o200k=o200k_base.tiktoken gpt2=gpt2/encoder.json -- c.parquet
    """
    from gristmill.tokenize.baselines import open_tokenizer
    from gristmill.tokenize.report import Options, build
    from gristmill.tokenize.report_text import render_compare

    parquet = _parquet([f for f in files if f.endswith(".parquet")])
    given = [f for f in files if not f.endswith(".parquet")]
    if len(given) < 2 or not parquet:
        raise UsageError(f"{len(given)} tokenizers and {len(parquet)} documents", hint="two or more, and one .parquet")
    options = Options(
        aligned, reference, _word_files(words), (), docs, seed=seed, segmenters=segmenters, top_domains=domains
    )
    found = build([open_tokenizer(t) for t in given], parquet, options)
    _put(found, html, as_json, render_compare(found), "Tokenizers compared")


def _put(found: dict[str, Any], html: Path | None, as_json: bool, text: str, title: str) -> None:
    if html is not None:
        from gristmill.pipelines.report.tokenizer import page

        html.write_text(page(found, title), encoding="utf-8")
        say(f"wrote {html}")
    if as_json:
        print_json(found)
    else:
        click.echo(text)


def _word_files(given: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in given:
        language, equals, name = text.partition("=")
        if not equals or not Path(name).is_file():
            raise UsageError(f"--words {text!r}: no such word list", hint="--words en=words-en.txt")
        found[language] = Path(name)
    return found


def _parquet(given: Sequence[str]) -> list[Path]:
    for name in given:
        if not Path(name).is_file():
            raise UsageError(f"no such file: {name}")
    return [Path(name) for name in given]


def _recipe_gates(recipe: str | None) -> list[str]:
    """tokenizer.gates of a recipe as NAME=NUMBER. Raises UsageError when it has no tokenizer or no gates."""
    if recipe is None:
        return []
    from gristmill.pipelines.schema import load_recipe

    settings = load_recipe(recipe).recipe.tokenizer
    if settings is None or not settings.gates:
        raise UsageError(f"{recipe} has no tokenizer.gates", hint="tokenizer: {gates: {max_premium: 2.5}}")
    return [f"{name}={limit!r}" for name, limit in settings.gates.items()]


def _of_root(root: Path) -> tuple[str | None, list[Path], list[Path]]:
    """Of a run: its tokenizer.json, the folders to count ids in (the packed dataset, else the token stores), and the
    documents that its tokenizer was trained on."""
    from gristmill.pipelines.tracing import dataset_folder
    from gristmill.pipelines.views import manifests

    known = manifests(root)
    stores: list[Path] = []
    if "shards" in known and known["shards"].receipts:
        stores = [dataset_folder(root)]
    elif "tokens" in known:
        stores = [Path(r.output("tokens.bin").path).parent for r in known["tokens"].receipts]
    trained = known["tokenizer"].receipts if "tokenizer" in known else []
    name = root.resolve().name.replace("=", "-")
    own = f"{name}={trained[0].output('tokenizer.json').path}" if trained else None
    texts = [r for stage in ("curate", "imports.text") if stage in known for r in known[stage].receipts]
    return own, stores, [Path(r.output("documents.parquet").path) for r in texts]
