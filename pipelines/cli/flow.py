"""Commands that make things happen: sample, check, plan, run, status, clean."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from gristmill.core.errors import EXIT_WORK_FOUND
from gristmill.pipelines.cli.options import json_option, print_json, root_option, say, set_option


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--pages", type=int, help="About how many pages. Default: a small web of about a thousand.")
@click.option("--files", default=4, show_default=True, help="WARC files to write.")
def sample(out: Path, seed: int, pages: int | None, files: int) -> None:
    """Write a small web as genuine WARC files, with a truth file that says what was planted.

    \b
    Example:
      gristmill sample runs/sample
    """
    from gristmill.pipelines import sample as samples

    if samples.is_complete(out, seed, pages, files):
        say(f"{out} is complete: nothing to do")
        return
    truth = samples.write_sample(out, seed=seed, pages=pages, files=files)
    say(truth.summary())


@click.command()
@click.argument("recipe")
@set_option
def check(recipe: str, overrides: tuple[str, ...]) -> None:
    """Read a recipe and the files it names; print every fault with its place, or what it would do.

    RECIPE is a packaged name (demo, web) or a path.

    \b
    Example:
      gristmill check web --set curate.language.keep='[en, de]'
    """
    from gristmill.pipelines.graph import build
    from gristmill.pipelines.schema import load_recipe

    nodes = build(load_recipe(recipe, overrides))
    click.echo(f"ok: {len(nodes)} stages: {', '.join(n.name for n in nodes)}")


@click.command()
@click.argument("recipe")
@root_option(required=False)
@set_option
@click.option("--to", metavar="STAGE", help="Plan this stage and what it needs.")
@click.option("--check", "check_only", is_flag=True, help="Exit with 3 if there is work to do.")
@json_option
def plan(
    recipe: str, root: Path | None, overrides: tuple[str, ...], to: str | None, check_only: bool, as_json: bool
) -> None:
    """Say for each stage what is fresh, what must run, and why. Reads receipts, not data.

    \b
    Examples:
      gristmill plan web --root mill
      gristmill plan web --root mill --set curate.rules.gopher@datatrove.min_words=40
    """
    from gristmill.pipelines import planner
    from gristmill.pipelines.graph import ancestors, build
    from gristmill.pipelines.inputs import TagCache, list_imports, list_inputs
    from gristmill.pipelines.schema import load_recipe

    loaded = load_recipe(recipe, overrides)
    nodes = ancestors(build(loaded), to)
    if loaded.recipe.curates and not loaded.recipe.input.paths:
        why = "the recipe has no input: --set input.paths='[\"crawl/*.warc.gz\"]'"
        plans = [planner.StagePlan(n.name, None, 0, None, [why if i == 0 else "waits"]) for i, n in enumerate(nodes)]
    else:
        with tempfile.TemporaryDirectory() as nowhere:
            base = root if root is not None else Path(nowhere)
            inputs, cache = (
                list_inputs(loaded.recipe.input.paths, base) if loaded.recipe.curates else ([], TagCache(base))
            )
            imports = list_imports(loaded.recipe.imports, loaded.path.parent, cache)
            plans = planner.plan(nodes, base, inputs, {"imports": imports})
    work = any(p.run is None or p.run for p in plans)
    if as_json:
        print_json({"format": "gristmill-plan-1", "work": work, "stages": [p.as_json() for p in plans]})
    else:
        click.echo(planner.render(plans))
    if check_only and work:
        sys.exit(EXIT_WORK_FOUND)


@click.command()
@click.argument("recipe")
@root_option()
@set_option
@click.option("--to", metavar="STAGE", help="Run this stage and what it needs.")
@click.option(
    "--cluster",
    default="local",
    show_default=True,
    metavar="SPEC",
    help="local:N, tcp://HOST:PORT, slurm:PROFILE or inline.",
)
@click.option("-k", "--keep-going", is_flag=True, help="After failed tasks, run later stages on what succeeded.")
@click.option(
    "--retries", type=click.IntRange(0), default=2, show_default=True, help="Times a failed task is tried again."
)
@json_option
def run(
    recipe: str,
    root: Path,
    overrides: tuple[str, ...],
    to: str | None,
    cluster: str,
    keep_going: bool,
    retries: int,
    as_json: bool,
) -> None:
    """Run a recipe. The same command resumes after a crash, a Ctrl-C or a change.

    \b
    Examples:
      gristmill run demo --root runs/demo
      gristmill run web --root mill --set input.paths='["crawl/*.warc.gz"]' --to curate --cluster local:8
    """
    import orjson

    from gristmill.pipelines import cluster as clusters
    from gristmill.pipelines import runner
    from gristmill.pipelines.graph import ancestors, build
    from gristmill.pipelines.inputs import TagCache, list_imports, list_inputs, remember_inputs
    from gristmill.pipelines.schema import load_recipe

    clusters.parse(cluster)
    loaded = load_recipe(recipe, overrides)
    everything = build(loaded)
    nodes = ancestors(everything, to)
    inputs, cache = list_inputs(loaded.recipe.input.paths, root) if loaded.recipe.curates else ([], TagCache(root))
    imports = list_imports(loaded.recipe.imports, loaded.path.parent, cache)

    def prepare() -> None:
        cache.save()
        remember_inputs(root, [*inputs, *imports])

    def emit(event: dict[str, Any]) -> None:
        if as_json:
            sys.stdout.write(orjson.dumps(event).decode() + "\n")
            sys.stdout.flush()

    outcome = runner.run(
        nodes,
        root,
        inputs,
        cluster=cluster,
        keep_going=keep_going,
        retries=retries,
        say=say,
        emit=emit,
        given={"imports": imports},
        prepare=prepare,
        dependents=everything,
    )
    sys.exit(outcome.exit_code)


@click.command()
@root_option()
@json_option
def status(root: Path, as_json: bool) -> None:
    """Who holds the root, how the last run ended, and how far each stage is."""
    from gristmill.pipelines.views import status_of

    found = status_of(root)
    if as_json:
        print_json(found)
        return
    holder = found["holder"]
    click.echo(f"held by {holder['host']}:{holder['pid']} since {holder['since']}" if holder else "no live run")
    if found["last_run"]:
        last = found["last_run"]
        click.echo(f"last run {last['number']:04d}: {last['outcome']}, started {last['started']}")
    for s in found["stages"]:
        click.echo(f"{s['stage']:<20} {s['tasks']:>5} tasks  {'complete' if s['complete'] else 'INCOMPLETE'}")


@click.command()
@root_option()
@click.option("--all", "everything", is_flag=True, help="Also what is current: empties the root.")
@click.option("--yes", is_flag=True, help="Delete; without it, only say what would go.")
def clean(root: Path, everything: bool, yes: bool) -> None:
    """Delete what no manifest names: outputs of old settings and leftovers of crashes.

    \b
    Example:
      gristmill clean --root mill --yes
    """
    from gristmill.pipelines.lease import Lease
    from gristmill.pipelines.views import clean_root

    folders, size = clean_root(root, everything=everything, delete=False)
    if yes:
        with Lease(root, "clean"):
            folders, size = clean_root(root, everything=everything, delete=True)
    click.echo(f"{'deleted' if yes else 'would delete (--yes does it)'}: {folders} task folders, {size / 1e6:,.1f} MB")
