"""Commands that build one part by hand: quality."""

from __future__ import annotations

from pathlib import Path

import click

from gristmill.pipelines.cli.options import print_json

FILES = click.Path(exists=True, dir_okay=False, path_type=Path)


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
