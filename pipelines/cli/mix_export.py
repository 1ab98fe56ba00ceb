"""`mix export`: a packed dataset in the formats that other trainers read."""

from __future__ import annotations

from pathlib import Path

import click

from gristmill.pipelines.cli.options import json_option, print_json, root_option, say


@click.command("export")
@click.argument("kind", metavar="FORMAT", type=click.Choice(["megatron", "datatrove", "parquet"]))
@root_option()
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write; must not exist.")
@click.option("--stage", "stages", multiple=True, metavar="STAGE", help="Only this curriculum stage; repeatable.")
@json_option
def mix_export(kind: str, root: Path, out: Path, stages: tuple[str, ...], as_json: bool) -> None:
    """Write the packed mixture for another trainer.

    \b
    megatron   documents of each source as NAME.bin and NAME.idx, and a blend for --data-path per stage:
               Megatron packs and shuffles itself, so rows and their order are not kept
    datatrove  the rows in order as STAGE/00042.ds (.index, .metadata), for nanotron and datatrove's datasets
    parquet    a row of input_ids, seq_lengths and source per packed row, in order

    \b
    Examples:
      gristmill mix export megatron --root mill -o out/megatron
      gristmill mix export parquet --stage anneal --root mill -o out/anneal
    """
    from gristmill.mixes.exports import export
    from gristmill.pipelines.tracing import dataset_folder

    found = export(kind, dataset_folder(root), root, out, stages)
    if as_json:
        print_json(found)
        return
    for line in found.get("data_path", {}).values():
        click.echo(line)
    say(f"{found['tokens']:,} tokens in {len(found['files'])} files written to {out}")
