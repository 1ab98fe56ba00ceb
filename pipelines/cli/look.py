"""Commands that only read: show, drops, diff, find, trace, report, schema."""

from __future__ import annotations

from pathlib import Path

import click

from gristmill.core.errors import UsageError
from gristmill.core.places import find_root
from gristmill.pipelines.cli.options import json_option, print_json, root_option, say, show_text

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
LATEST = 1 << 62  # stands for `--spike` without a step


@click.command()
@click.argument("stage", required=False)
@root_option()
@click.option("--by", metavar="KEYS", help="`file`: one ledger per input file. `language`, `domain` or both: a funnel.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Groups of a funnel to print.")
@json_option
def show(stage: str | None, root: Path, by: str | None, top: int, as_json: bool) -> None:
    """The ledger: rows in and out of every stage, every drop reason with its count, and a content digest.

    With --by language or domain, a funnel: how many documents of each group every stage dropped, what was kept, and
    the commonest reasons. STAGE prints one stage alone; a funnel is always of the whole of `curate`.

    \b
    Examples:
      gristmill show --root mill --by file
      gristmill show curate --root mill --by language,domain --top 30
    """
    from gristmill.pipelines import funnel, views

    keys = tuple(dict.fromkeys(by.split(","))) if by else ()
    if keys in ((), ("file",)):
        view = views.show(root, by_file=bool(keys))
        if stage is not None:
            view["stages"] = [s for s in view["stages"] if s["stage"] == stage]
            if not view["stages"]:
                raise UsageError(f"{stage} has not run in {root}", hint="gristmill show --root DIR lists what has")
        print_json(view) if as_json else click.echo(views.render_show(view))
        return
    if unknown := [key for key in keys if key not in funnel.KEYS]:
        raise UsageError(f"--by {unknown[0]!r} is not known", hint="file, language, domain, or language,domain")
    if stage not in (None, "curate"):
        raise UsageError(f"a funnel is of the whole of `curate`, not of {stage}")
    found = funnel.funnel(root, keys, top)
    print_json(found) if as_json else click.echo(funnel.render(found))


@click.command()
@click.argument("reason", required=False)
@root_option()
@click.option(
    "--doc", metavar="ID|URL", help="Every rule's value against its threshold for this document, kept or not."
)
@click.option(
    "-n", "count", type=click.IntRange(1), default=5, show_default=True, help="Documents to print of a reason."
)
@click.option("--sample", type=click.IntRange(1), metavar="N", help="N documents of every reason, to --out.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where --sample writes: .jsonl, or .html for one page.",
)
@click.option("--seed", default=0, show_default=True, help="Which sample.")
@click.option("--chars", default=300, show_default=True, help="Characters of each text.")
@click.option("--all", "every", is_flag=True, help="With --doc: rules that are off, too.")
@json_option
def drops(
    reason: str | None,
    root: Path,
    doc: str | None,
    count: int,
    sample: int | None,
    out: Path | None,
    seed: int,
    chars: int,
    every: bool,
    as_json: bool,
) -> None:
    """Print dropped documents with the measured value, its threshold and the text that was measured.

    REASON is a reason or a family of them (gopher). Without it, list reasons with their counts. Samples are seeded: the
    same documents from any number of workers.

    \b
    Examples:
      gristmill drops gopher.too_few_stop_words -n 3 --root mill
      gristmill drops --doc https://docs.example/page-1 --root mill
      gristmill drops --sample 20 --out drops.html --root mill
    """
    from gristmill.pipelines import dropped, explained

    if sum(given is not None for given in (reason, doc, sample)) > 1:
        raise UsageError("give one of REASON, --doc and --sample")
    if (sample is None) != (out is None):
        raise UsageError("--sample N goes with --out FILE")
    if doc is not None:
        documents = explained.explain_document(root, doc, chars)
        if as_json:
            print_json(documents)
        for document in [] if as_json else documents:
            show_text(explained.render(document, every=every))
    elif sample is not None and out is not None:
        from gristmill.pipelines.report import curation, page

        rows = dropped.samples(root, sample, seed, chars)
        html = out.suffix in (".html", ".htm")
        text = page.page(root.name, curation.section(curation.collect(root, rows))).encode() if html else b""
        out.write_bytes(text if html else dropped.lines(rows))
        say(f"{sum(map(len, rows.values())):,} documents of {len(rows)} reasons written to {out}")
    elif reason is None:
        totals = dropped.reasons(root)
        if as_json:
            print_json(totals)
        for stage, name, n in [] if as_json else totals:
            click.echo(f"{n:>9,}  {name:<36} {stage}")
    else:
        found = dropped.sample_of(root, reason, count, seed, chars)
        if as_json:
            print_json(found)
        for row in [] if as_json else found:
            show_text(dropped.render(row))


@click.command()
@click.argument("one", type=FOLDER)
@click.argument("two", type=FOLDER)
@click.option(
    "-n", "count", type=click.IntRange(0), default=3, show_default=True, help="Documents per changed verdict."
)
@click.option("--seed", default=0, show_default=True, help="Which of them.")
@json_option
def diff(one: Path, two: Path, count: int, seed: int, as_json: bool) -> None:
    """Compare two roots: digests stage by stage, settings that differ, and which documents changed verdict and why.

    \b
    Example:
      gristmill diff mill mill-with-other-thresholds -n 5
    """
    from gristmill.pipelines import verdicts, views

    rows = views.diff_roots(one, two)
    documents = verdicts.compare(one, two, count, seed)
    if as_json:
        print_json({"format": "gristmill-diff-2", "stages": rows, "documents": documents})
        return
    for row in rows:
        if row.get("only_in"):
            click.echo(f"{row['stage']:<20} only in {row['only_in']}")
        elif row["same"]:
            click.echo(f"{row['stage']:<20} same")
        else:
            changes = [f"{k} {a:,} → {b:,}" for k, (a, b) in {**row["counts"], **row["drops"]}.items()]
            click.echo(f"{row['stage']:<20} DIFFERS in {len(row['files'])} tasks  {'; '.join(changes)}")
    click.echo(verdicts.render(documents))


@click.command()
@click.argument("what", required=False)
@click.option("--doc", metavar="ID|URL", help="Only the rows that hold it, from the index: no other file is read.")
@click.option("--run", "run_id", metavar="RUN", help="With --doc: the training run whose steps are told, by id.")
@root_option()
@json_option
def find(what: str | None, doc: str | None, run_id: str | None, root: Path, as_json: bool) -> None:
    """What became of a document (by id or URL): kept or dropped and why, and every row that trains on it.

    Exit code 2 where nothing is known of it. With --doc, its places in the packed mixture alone: stage, row, position and, of a training run, the step. They come
    from an index beside the dataset, so the answer takes as long on a small root as on a large one.

    \b
    Examples:
      gristmill find https://docs.example/page-1 --root mill
      gristmill find --doc 0f3c…32 hex digits --root mill --run 3fa9 --json
    """
    from gristmill.pipelines import finding

    if (what is None) == (doc is None):
        raise UsageError("give one of ID|URL and --doc ID|URL")
    if run_id is not None and doc is None:
        raise UsageError("--run goes with --doc")
    found = finding.find_places(root, doc, run_id) if doc is not None else finding.find(root, what or "")
    if as_json:
        print_json(found)
    if not found["documents"]:
        raise UsageError(f"no record of {what!r} in {root}" if doc is None else f"no row of {root} holds {doc!r}")
    if not as_json:
        show_text(finding.render(found))


@click.command()
@root_option(required=False)
@click.option("--step", type=click.IntRange(1), help="All documents of this step (from 1) of a training run.")
@click.option(
    "--token",
    metavar="PHASE:ROW:POS",
    help="The document behind one token: a position of the packed mixture, not of a run.",
)
@click.option("--row", metavar="PHASE:ROW", help="All documents of one packed row.")
@click.option(
    "--position",
    metavar="PHASE:N",
    help="All documents of the row at this place of a phase's order: a run's edits move rows.",
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
    row: str | None,
    position: str | None,
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

    Steps belong to a training run (--run), with its batch ramp and the edits of its data order. Rows and tokens belong to
    the packed mixture: they are the same for every run. --spike needs no root for a run given by its folder.

    \b
    Examples:
      gristmill trace --root runs/demo --step 12
      gristmill trace --root runs/demo --token warm:17:40 --verify
      gristmill trace --root runs/demo --row warm:17 --json
      gristmill trace --root runs/demo --run 3fa9 --spike --block garbage.txt
    """
    from gristmill.pipelines import tracing

    if sum(option is not None for option in (step, token, row, position, spike)) != 1:
        raise UsageError(
            "give one of --step N, --token PHASE:ROW:POS, --row PHASE:ROW, --position PHASE:N and --spike [STEP]"
        )
    if spike is not None:
        if verify or with_text:
            raise UsageError("--verify and --text do not go with --spike", hint="take --step with the step it prints")
        _trace_spike(root, None if spike == LATEST else spike, run_id, dataset, top, block, as_json)
        return
    if dataset is not None or block is not None:
        raise UsageError("--dataset and --block go with --spike")
    root = root or find_root(None)
    if step is not None:
        rows = tracing.trace_step(root, step, run_id)
    elif token is not None:
        rows = [tracing.trace_token(root, token, run_id)]
    else:
        rows = tracing.trace_row(root, row or position or "", run_id, position=position is not None)
    if verify or with_text:
        tracing.verify(root, rows, run_id, with_text=with_text)
    if as_json:
        print_json(rows)
        return
    if step is not None:
        say(tracing.whose_step(step, tracing.run_dataset(root, run_id)[0]))
    for piece in rows:
        show_text(tracing.render(piece))


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
        show_text(spikes.render(found))


@click.command()
@root_option()
@json_option
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write one page: what curation kept and dropped, with samples, and the training run: losses, evaluations, guards.",
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
        from gristmill.pipelines.report import whole

        html.write_text(whole.page(root), encoding="utf-8")
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
