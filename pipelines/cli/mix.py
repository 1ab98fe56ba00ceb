"""The `mix` group and `mix plan`: what a mixture takes of its sources, before anything is packed."""

from __future__ import annotations

from pathlib import Path

import click

from gristmill.core.errors import UsageError
from gristmill.pipelines.cli.mix_look import COMMANDS
from gristmill.pipelines.cli.options import json_option, print_json, root_option, say, set_option


@click.group()
def mix() -> None:
    """Plan a mixture and look into its packed shards."""


@mix.command("plan")
@click.argument("mixture")
@root_option(required=False)
@click.option("--available", metavar="FILE", help="JSON table of available tokens, or a packaged one's name; no root.")
@click.option(
    "--ablation", metavar="NAME", help="Plan this annealing ablation: the stages up to its place, and the branch."
)
@click.option(
    "--new-run", is_flag=True, help="Plan for a new run: stages that the root's runs have trained may change."
)
@click.option("--vocab-size", type=click.IntRange(1), help="With --available: decides between 2 and 4 bytes a token.")
@click.option("-o", "--lock", type=click.Path(dir_okay=False, path_type=Path), help="Write the lock there as well.")
@set_option
@json_option
def mix_plan(
    mixture: str,
    root: Path | None,
    available: str | None,
    ablation: str | None,
    new_run: bool,
    vocab_size: int | None,
    lock: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Tokens available and used, batches, bytes, epochs and warnings of a mixture.

    Counts come from a root's encoded documents, or from FILE: {"SOURCE": "5.1T", …}, whose keys are sources, their
    children (NAME.VALUE) or groups. What it does not list is unknown, and printed so. Over a root whose training runs
    have begun stages that this mixture changes, the plan is refused (E120) and names each field: those runs could not go
    on. Later stages may change.

    \b
    Examples:
      gristmill mix plan demo --root runs/demo
      gristmill mix plan demo --root runs/demo --new-run --set stages.0.mix.english.epochs=2
      gristmill mix plan smollm3 --available smollm3
      gristmill mix plan smollm3 --available smollm3 --ablation try-megamath
      gristmill mix plan my-mix.yaml --available tokens.json --vocab-size 128256 --json -o mix.lock.json
    """
    from gristmill.mixes.api import load_mixture, plan_from_table
    from gristmill.mixes.plan_lock import lock_of, write_lock
    from gristmill.mixes.plan_text import as_json as plan_json
    from gristmill.mixes.plan_text import render

    chosen = [f"branch={ablation}"] if ablation is not None else []
    loaded, document = load_mixture(mixture, [*overrides, *chosen])
    if available is not None:
        found = plan_from_table(loaded, available, vocab_size, document)
    elif root is not None:
        from gristmill.pipelines.mixplan import plan_in_root

        found = plan_in_root(root, loaded, document, new_run)
    else:
        raise UsageError(
            "nothing to count: no root and no table of available tokens", hint="give --root DIR, or --available FILE"
        )
    if lock is not None:
        write_lock(lock, lock_of(found, loaded))
        say(f"wrote {lock}")
    if as_json:
        print_json(plan_json(found, loaded, document))
    else:
        click.echo(render(found, loaded, document))


for _command in COMMANDS:
    mix.add_command(_command)
