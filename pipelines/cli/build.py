"""Commands that build one part by hand: tokenizer, mix, quality."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gristmill.core.errors import EXIT_FAILED, UsageError
from gristmill.pipelines.cli.options import json_option, print_json, root_option, say, set_option

FILES = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def tokenizer() -> None:
    """Train a BPE tokenizer and report its fertility."""


@tokenizer.command("train")
@click.argument("parquet", nargs=-1, required=True, type=FILES)
@click.option("-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option("--vocab-size", default=32768, show_default=True)
@click.option("--sample-bytes", default=2_000_000_000, show_default=True, help="UTF-8 bytes of text to learn from.")
def tokenizer_train(parquet: tuple[Path, ...], out: Path, vocab_size: int, sample_bytes: int) -> None:
    """Train on curated Parquet files; writes tokenizer.json and fertility.json.

    \b
    Example:
      gristmill tokenizer train mill/stages/curate/*/documents.parquet -o tok --vocab-size 32768
    """
    from gristmill.tokenize.api import train_from_parquet
    from gristmill.tokenize.schema import Sample, Tokenizer

    settings = Tokenizer(vocab_size=vocab_size, sample=Sample(bytes=sample_bytes))
    train_from_parquet(list(parquet), settings, out)
    say(f"wrote {out / 'tokenizer.json'}")


@tokenizer.command("report")
@click.argument("tokenizer_json", type=FILES)
@click.argument("parquet", nargs=-1, required=True, type=FILES)
@json_option
def tokenizer_report(tokenizer_json: Path, parquet: tuple[Path, ...], as_json: bool) -> None:
    """Fertility per language of any tokenizer.json on curated Parquet files."""
    from gristmill.tokenize.api import report
    from gristmill.tokenize.fertility import render

    found = report(tokenizer_json, list(parquet))
    if as_json:
        print_json(found)
    else:
        click.echo(render(found))


@click.group()
def mix() -> None:
    """Plan a mixture and look into its packed shards."""


@mix.command("plan")
@click.argument("mixture")
@root_option()
@set_option
@json_option
def mix_plan(mixture: str, root: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Tokens available and used, epochs and warnings of a mixture, from a root's encoded documents.

    \b
    Example:
      gristmill mix plan demo --root runs/demo --set stages.0.mix.english.epochs=2
    """
    from dataclasses import asdict

    from gristmill.mixes.api import load_mixture, plan_from_stores
    from gristmill.mixes.plan import render
    from gristmill.pipelines.views import manifests

    loaded, _ = load_mixture(mixture, list(overrides))
    known = manifests(root)
    if "tokens" not in known or "tokenizer" not in known:
        raise UsageError(f"{root} has no encoded documents", hint="gristmill run RECIPE --root DIR --to tokens")
    docs = [Path(r.output("docs.parquet").path) for r in known["tokens"].receipts]
    found = plan_from_stores(loaded, docs, Path(known["tokenizer"].receipts[0].output("tokenizer.json").path))
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(render(found))


@mix.command("verify")
@root_option()
def mix_verify(root: Path) -> None:
    """Check a root's packed dataset: hashes, rows, boundaries, provenance, held-out documents."""
    from gristmill.mixes.api import verify_dataset
    from gristmill.pipelines.tracing import dataset_folder

    problems = verify_dataset(dataset_folder(root))
    for problem in problems:
        click.echo(problem)
    say(f"{len(problems)} problems")
    sys.exit(EXIT_FAILED if problems else 0)


@mix.command("show")
@click.argument("phase")
@root_option()
@click.option("--row", required=True, type=click.IntRange(0))
@json_option
def mix_show(phase: str, root: Path, row: int, as_json: bool) -> None:
    """The documents of one packed row of a phase, and its decoded text."""
    from gristmill.pipelines import tracing

    found = tracing.show_row(root, phase, row)
    if as_json:
        print_json(found)
        return
    for piece in found["pieces"]:
        click.echo(tracing.render(piece))
    click.echo(found["text"])


@click.group()
def quality() -> None:
    """Train a fastText quality model from labelled texts."""


@quality.command("train")
@click.argument("labels", type=FILES)
@click.option(
    "-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Model file to write (.bin)."
)
@click.option("--dim", default=16, show_default=True)
@click.option("--epochs", default=5, show_default=True, help="More for small sets: 300 texts want about 50.")
@click.option("--lr", default=0.1, show_default=True, help="Learning rate.")
def quality_train(labels: Path, out: Path, dim: int, epochs: int, lr: float) -> None:
    """LABELS is JSONL with `text` and `label`. fastText training is not reproducible: a run uses the file's digest.

    \b
    Example:
      gristmill quality train runs/sample/quality-labels.jsonl -o quality.bin
    """
    from gristmill.curate.quality import train_quality

    found = train_quality(labels, out, dim=dim, epochs=epochs, lr=lr)
    print_json(found)
