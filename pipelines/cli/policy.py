"""Commands about what may be used and what leaves a root: takedown, export."""

from __future__ import annotations

from pathlib import Path

import click

from gristmill.pipelines.cli.options import json_option, print_json, root_option

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("list_file", metavar="LIST", type=FILE)
@root_option()
@click.option(
    "--run", "run_id", metavar="RUN", help="Rows and steps of this training run (its id or the beginning of it)."
)
@json_option
def takedown(list_file: Path, root: Path, run_id: str | None, as_json: bool) -> None:
    """Which documents a list of URLs, domains and ids holds, and every file, row and step that they are in.

    LIST has one URL, domain or document id a line; `curate.takedown: LIST` in a recipe drops them from the next run.

    \b
    Example:
      gristmill takedown requests.txt --root mill --json
    """
    from gristmill.pipelines import takedown as finder

    found = finder.find(root, list_file, run_id)
    if as_json:
        print_json(found)
    else:
        click.echo(finder.render(found))


@click.group()
def export() -> None:
    """Write what a root holds for use elsewhere."""


@export.command()
@root_option()
@click.option(
    "--to", "folder", required=True, type=click.Path(path_type=Path), metavar="DIR", help="A new or empty folder."
)
@click.option(
    "--shard-mb", type=click.FloatRange(0.01), default=256, show_default=True, help="Size of a file in MB (1e6 bytes)."
)
@click.option("--format", "form", type=click.Choice(["parquet", "jsonl.zst"]), default="parquet", show_default=True)
@click.option("--columns", default="", metavar="A,B", help="Only these columns. Default: all.")
@json_option
def documents(root: Path, folder: Path, shard_mb: float, form: str, columns: str, as_json: bool) -> None:
    """The curated documents as files of a target size, with a manifest of their sha256 digests.

    The same documents give the same files, whatever workers curated them.

    \b
    Example:
      gristmill export documents --root mill --to out --shard-mb 256 --format jsonl.zst
    """
    from gristmill.pipelines import document_export

    names = [name.strip() for name in columns.split(",") if name.strip()]
    size = int(shard_mb * 1e6)
    found = document_export.export(root, folder, shard_bytes=size, form=form, columns=names)  # type: ignore[arg-type]
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found['documents']:,} documents in {len(found['files'])} files, {found['bytes'] / 1e6:,.1f} MB")
