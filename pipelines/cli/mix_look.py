"""Commands of the `mix` group that look into packed shards: verify, show."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gristmill.core.errors import EXIT_FAILED, UsageError
from gristmill.pipelines.cli.mix_export import mix_export
from gristmill.pipelines.cli.options import json_option, print_json, root_option, say, show_text


@click.command("verify")
@root_option()
@click.option("--no-hashes", is_flag=True, help="Do not hash the shard files again.")
@json_option
def mix_verify(root: Path, no_hashes: bool, as_json: bool) -> None:
    """Check a root's packed dataset: exit code 0 when it is sound, 1 with every fault by its code and place.

    Hashes of all files; tokens, boundaries and provenance of every row; each source's rows within one of its share at
    every prefix of a phase; no held-out document, nor a near duplicate of one; no stretch of a document twice in an epoch.

    \b
    Examples:
      gristmill mix verify --root mill
      gristmill mix verify --root mill --json | jq '.problems[].code'
    """
    from gristmill.mixes.verify import check
    from gristmill.pipelines.tracing import dataset_folder

    report = check(dataset_folder(root), root, digests=not no_hashes)
    if as_json:
        print_json(report.to_json())
    else:
        for problem in report.problems:
            click.echo(f"{problem.code}  {problem.text}")
        say(
            f"{len(report.problems)} problems in {report.counts.get('rows', 0):,} rows of {report.counts.get('shards', 0):,} shards"
        )
    sys.exit(0 if report.ok else EXIT_FAILED)


@click.command("show")
@click.argument("stage", metavar="STAGE")
@root_option()
@click.option("--row", type=click.IntRange(0), help="A stored row of the stage, from 0.")
@click.option("--position", type=click.IntRange(0), help="The row at this place of the stage's order, from 0.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    help="All rows of this global batch of the stage, from 1; --position counts in it.",
)
@click.option(
    "--run", "run_id", metavar="RUN", help="A training run: its edits may have moved rows. Default: the latest."
)
@json_option
def mix_show(
    stage: str,
    root: Path,
    row: int | None,
    position: int | None,
    batch: int | None,
    run_id: str | None,
    as_json: bool,
) -> None:
    """The documents of packed rows of a curriculum stage, and their decoded text.

    \b
    Examples:
      gristmill mix show warm --row 17 --root mill
      gristmill mix show warm --batch 3 --root mill --json
      gristmill mix show warm --position 2 --batch 3 --root mill
    """
    from gristmill.pipelines import tracing

    if (row is None) == (position is None and batch is None):
        raise UsageError("give --row R, or --position N, --batch B or both")
    rows = tracing.show_rows(root, stage, row=row, position=position, batch=batch, run_id=run_id)
    if as_json:
        one = {"text": rows[0]["text"]} if len(rows) == 1 else {}
        pieces = [piece for found in rows for piece in found["pieces"]]
        print_json({"format": "gristmill-rows-1", "stage": stage, **one, "pieces": pieces, "rows": rows})
        return
    for found in rows:
        for piece in found["pieces"]:
            show_text(tracing.render(piece))
        show_text(found["text"])


COMMANDS = (mix_verify, mix_show, mix_export)
"""What `mix.py` adds to the group, in the order of its help."""
