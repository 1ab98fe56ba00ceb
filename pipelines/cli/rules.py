"""Commands about rule sets: what they mean, put to this or any other tool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gristmill.core.errors import EXIT_FAILED, UsageError
from gristmill.pipelines.cli.options import json_option, print_json, say


@click.group()
def rules() -> None:
    """Check what rule sets mean, and fit their thresholds to languages."""


@rules.command("conformance")
@click.argument("semantics", nargs=-1)
@click.option(
    "--command", metavar="CMD", help="A tool that reads questions as JSON lines and writes one answer a line."
)
@click.option("--questions", is_flag=True, help="Print the questions as JSON lines and stop.")
@json_option
def rules_conformance(semantics: tuple[str, ...], command: str | None, questions: bool, as_json: bool) -> None:
    """Put the conformance suite, or the vectors of some SEMANTICS, to gristmill or to another tool.

    A question names a text, a rule and its threshold; the answer is {"id", "verdict": "keep" or "drop"} and, where the
    tool has them, "value", "reason" and "text_after"; or {"id", "unsupported": why}. Exits with 1 when an answer is wrong.

    \b
    Example:
      gristmill rules conformance gopher@datatrove --command 'python my_filters.py'
    """
    from gristmill.curate.rules import conformance

    suite = conformance.vectors(semantics)
    if questions:
        import json

        for vector in suite:
            click.echo(json.dumps(vector.question))
        return
    from gristmill.curate.rules.conformance_own import answer_all

    report = conformance.run(answer_all if command is None else conformance.command(command), suite)
    found = report.as_dict()
    if as_json:
        print_json(found)
    else:
        for name, counts in found["semantics"].items():
            click.echo(f"{name:20} " + ", ".join(f"{n} {what}" for what, n in counts.items() if n))
        for failure in report.failures:
            click.echo(f"  {failure.id}: {failure.what} {failure.found!r}, wanted {failure.wanted!r} ({failure.why})")
    if report.failures:
        sys.exit(EXIT_FAILED)


@rules.command("fit")
@click.argument("sample", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Table: .yaml, .json or .csv."
)
@click.option(
    "--method",
    type=click.Choice(["mean-std", "quantile", "median-ratio", "tail"]),
    default="mean-std",
    show_default=True,
    help="How FineWeb's English thresholds are carried over (tail: each rule drops 10 %, without a reference).",
)
@click.option("--reference", metavar="LABEL", default="en", show_default=True, help="Language they are carried from.")
@click.option("--documents", type=click.IntRange(1), default=10_000, show_default=True, help="At most, of a language.")
@click.option("--min-documents", type=click.IntRange(1), default=100, show_default=True, help="Fewer: no entry.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Which sample.")
@click.option("--text", metavar="COLUMN", default="text", show_default=True)
@click.option("--language", metavar="COLUMN", default="language", show_default=True)
@click.option("--score", metavar="COLUMN", default="language_score", show_default=True)
@json_option
def rules_fit(sample: tuple[Path, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Fit a table of thresholds, scores and stop words by language to SAMPLE files (Parquet or JSON lines).

    The sample must hold the reference language, and documents that no rule and no score has thinned. Thresholds that
    can never fire are switched off and told; so are those that fire on no document of the sample or on most.

    \b
    Example:
      gristmill rules fit mill/stages/curate.pages/*/pages.parquet -o mine.yaml
      gristmill run fineweb2 --set curate.rules.per_language=mine.yaml --root mill
    """
    from gristmill.curate.rules.fit import fit
    from gristmill.curate.rules.sample import Fields
    from gristmill.curate.rules.sample import sample as draw
    from gristmill.curate.rules.write import KINDS, write_table

    if out.suffix not in KINDS:
        raise UsageError(f"{out}: no kind of table", hint="end its name with .yaml, .json or .csv")
    fields = Fields(options["text"], options["language"], options["score"])
    documents = draw(sample, options["documents"], options["seed"], fields)
    method, reference = options["method"], options["reference"]
    try:
        found = fit(documents, method=method, reference=reference, min_documents=options["min_documents"])
    except ValueError as error:
        raise UsageError(str(error), hint="add English files, or name another --reference or --method tail") from None
    about = f"gristmill rules fit, {method} from {reference}, seed {options['seed']}, documents: "
    about += ", ".join(
        f"{label} {n}" for label, n in {reference: len(documents.get(reference, ())), **found.documents}.items()
    )
    write_table(out, found.languages, about)
    for warning in found.warnings:
        say(f"warning: {warning}")
    if as_json:
        warnings = [vars(warning) for warning in found.warnings]
        print_json(
            {"format": "gristmill-rules-fit-1", "about": about, "languages": found.languages, "warnings": warnings}
        )
    else:
        click.echo(f"wrote {out}: {len(found.languages)} languages, {len(found.warnings)} warnings")
