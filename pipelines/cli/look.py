"""Commands that only read: show, drops, diff, find, trace, report, schema."""

from __future__ import annotations

from pathlib import Path

import click

from gristmill.core.errors import UsageError
from gristmill.core.places import find_root
from gristmill.pipelines.cli.options import json_option, print_json, root_option, say

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
LATEST = 1 << 62  # stands for `--spike` without a step


@click.command()
@root_option()
@click.option("--by", type=click.Choice(["file"]), help="Also one ledger per input file.")
@json_option
def show(root: Path, by: str | None, as_json: bool) -> None:
    """The ledger: rows in and out of every stage, every drop reason with its count, and a content digest.

    \b
    Example:
      gristmill show --root mill --by file
    """
    from gristmill.pipelines import views

    view = views.show(root, by_file=by == "file")
    if as_json:
        print_json(view)
    else:
        click.echo(views.render_show(view))


@click.command()
@click.argument("reason", required=False)
@root_option()
@click.option("-n", "count", default=5, show_default=True, help="Documents to print.")
@click.option("--seed", default=0, show_default=True, help="Which sample.")
@click.option("--chars", default=300, show_default=True, help="Characters of each text.")
@json_option
def drops(reason: str | None, root: Path, count: int, seed: int, chars: int, as_json: bool) -> None:
    """Print dropped documents with the measured value and its threshold; without REASON, list reasons.

    \b
    Example:
      gristmill drops gopher.too_few_stop_words -n 3 --root mill
    """
    from gristmill.pipelines import dropped

    if reason is None:
        totals = dropped.reasons(root)
        if as_json:
            print_json(totals)
        for stage, name, n in [] if as_json else totals:
            click.echo(f"{n:>9,}  {name:<36} {stage}")
        return
    found = dropped.sample_of(root, reason, count, seed, chars)
    if as_json:
        print_json(found)
        return
    for row in found:
        click.echo(dropped.render(row))


@click.command()
@click.argument("one", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("two", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
def diff(one: Path, two: Path, as_json: bool) -> None:
    """Compare two roots stage by stage, by content: same digests, or which files and counts differ.

    \b
    Example:
      gristmill diff mill mill-before
    """
    from gristmill.pipelines import views

    rows = views.diff_roots(one, two)
    if as_json:
        print_json({"format": "gristmill-diff-1", "stages": rows})
        return
    for row in rows:
        if row.get("only_in"):
            click.echo(f"{row['stage']:<18} only in {row['only_in']}")
        elif row["same"]:
            click.echo(f"{row['stage']:<18} same")
        else:
            changes = [f"{k} {a:,} → {b:,}" for k, (a, b) in {**row["counts"], **row["drops"]}.items()]
            click.echo(f"{row['stage']:<18} DIFFERS in {len(row['files'])} tasks  {'; '.join(changes)}")


@click.command()
@click.argument("what")
@root_option()
@json_option
def find(what: str, root: Path, as_json: bool) -> None:
    """What became of a document (by id or URL): kept or dropped and why, and every row that trains on it.

    \b
    Example:
      gristmill find https://docs.example/page-1 --root mill
    """
    from gristmill.pipelines import tracing

    found = tracing.find(root, what)
    if as_json:
        print_json(found)
        return
    if not found["documents"]:
        raise UsageError(f"no record of {what!r} in {root}")
    for doc in found["documents"]:
        click.echo(
            f"{doc['id']}  {doc['url']}\n  {doc['warc_file']} {doc['warc_offset']}+{doc['warc_length']}\n  {doc['fate']}"
        )
    for place in found["places"]:
        step = f"step {place['step']}, " if place["step"] else "no step, "
        where = f"phase {place['phase']} row {place['row']} position {place['row_start']}"
        click.echo(f"  trained on: {step}{where} ({place['length']} tokens)")


@click.command()
@root_option(required=False)
@click.option("--step", type=click.IntRange(1), help="All documents of this step (from 1) of a training run.")
@click.option(
    "--token",
    metavar="PHASE:ROW:POS",
    help="The document behind one token: a position of the packed mixture, not of a run.",
)
@click.option(
    "--spike",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=LATEST,
    metavar="[STEP]",
    help="Documents of the batch at which a guard acted, worst first. STEP is a step of the run; none: the latest event.",
)
@click.option(
    "--run",
    "run_id",
    metavar="RUN",
    help="A training run: its id in this root, the beginning of it, or (with --spike) its folder. Default: the latest.",
)
@click.option("--dataset", type=FOLDER, help="With --spike: the run's packed dataset, where it was moved.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="With --spike: documents to print.")
@click.option(
    "--block",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With --spike: append the documents printed to a blocklist, which `data.blocklist` of a training run reads.",
)
@click.option(
    "--verify", is_flag=True, help="Cut each range, extract and encode it again, compare with the row's tokens."
)
@click.option(
    "--text", "with_text", is_flag=True, help="With --json: each document's text, extracted again and verified."
)
@json_option
def trace(
    root: Path | None,
    step: int | None,
    token: str | None,
    spike: int | None,
    run_id: str | None,
    dataset: Path | None,
    top: int,
    block: Path | None,
    verify: bool,
    with_text: bool,
    as_json: bool,
) -> None:
    """From tokens back to WARC records: URL, file, offset, length, source and span.

    Steps belong to a training run (--run), with its batch ramp and the edits of its data order. Positions belong to the
    packed mixture: they are the same for every run. --spike needs no root for a run given by its folder.

    \b
    Examples:
      gristmill trace --root runs/demo --step 12
      gristmill trace --root runs/demo --token warm:17:40 --verify
      gristmill trace --root runs/demo --run 3fa9 --spike --block garbage.txt
    """
    from gristmill.pipelines import tracing

    if sum(option is not None for option in (step, token, spike)) != 1:
        raise UsageError("give one of --step N, --token PHASE:ROW:POS and --spike [STEP]")
    if spike is not None:
        if verify or with_text:
            raise UsageError("--verify and --text do not go with --spike", hint="take --step with the step it prints")
        _trace_spike(root, None if spike == LATEST else spike, run_id, dataset, top, block, as_json)
        return
    if dataset is not None or block is not None:
        raise UsageError("--dataset and --block go with --spike")
    root = root or find_root(None)
    rows = (
        tracing.trace_step(root, step, run_id) if step is not None else [tracing.trace_token(root, token or "", run_id)]
    )
    if verify or with_text:
        tracing.verify(root, rows, run_id, with_text=with_text)
    if as_json:
        print_json(rows)
        return
    if step is not None:
        say(tracing.whose_step(step, tracing.run_dataset(root, run_id)[0]))
    for row in rows:
        click.echo(tracing.render(row))


def _trace_spike(
    root: Path | None,
    step: int | None,
    run_id: str | None,
    dataset: Path | None,
    top: int,
    block: Path | None,
    as_json: bool,
) -> None:
    from gristmill.pipelines import spikes

    found = spikes.trace_spike(spikes.find_run(run_id, root, dataset), step, root, top)
    if block is not None:
        added = spikes.block(block, found)
        say(
            f"{added} of {len(found['documents'])} documents added to {block}; `data.blocklist` of a training run reads it"
        )
    if as_json:
        print_json(found)
    else:
        click.echo(spikes.render(found))


@click.command()
@root_option()
@json_option
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write one page about the training run: losses, evaluations, guards, samples by checkpoint.",
)
def report(root: Path, as_json: bool, html: Path | None) -> None:
    """A summary of a root: the funnel, the tokenizer, the plan, the training run and a line of generated text.

    \b
    Example:
      gristmill report --root runs/demo --html runs/demo/report.html
    """
    from gristmill.pipelines import summary

    found = summary.collect(root)
    if html is not None:
        from gristmill.pipelines.report import training
        from gristmill.pipelines.views import manifests

        receipts = manifests(root)["train"].receipts if "train" in manifests(root) else []
        if not receipts:
            raise UsageError(f"{root} has no finished training run", hint="gristmill run RECIPE --root DIR --to train")
        folder = Path(receipts[0].output("metrics.jsonl").path).parent
        html.write_text(training.page(training.collect(folder)), encoding="utf-8")
        say(f"wrote {html}")
    if as_json:
        print_json(found)
    else:
        click.echo(summary.render(found))


@click.command()
@click.argument("kind", type=click.Choice(["recipe", "mixture", "train", "slurm"]), default="recipe")
def schema(kind: str) -> None:
    """Print the JSON Schema of a YAML file, for editors and for reading: every setting with its unit.

    \b
    Example:
      gristmill schema mixture > mixture.schema.json
    """
    from gristmill.core.settings import Settings
    from gristmill.mixes.schema import Mixture
    from gristmill.pipelines.schema import Recipe
    from gristmill.trainer.schema import TrainRun
    from gristmill.trainer.slurm_schema import SlurmProfile

    models: dict[str, type[Settings]] = {
        "recipe": Recipe,
        "mixture": Mixture,
        "train": TrainRun,
        "slurm": SlurmProfile,
    }
    model = models[kind]
    print_json(model.model_json_schema(by_alias=True))
