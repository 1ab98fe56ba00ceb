"""Options and output helpers that commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gristmill.core.places import find_root
from gristmill.core.printable import printable

F = TypeVar("F", bound=Callable[..., Any])


def root_option(required: bool = True) -> Callable[[F], F]:
    """--root DIR, resolved to an absolute Path ($GRISTMILL_ROOT when not given)."""

    def resolve(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
        if value is None and not required:
            try:
                return find_root(None)
            except Exception:
                return None
        return find_root(value)

    return click.option(
        "--root",
        metavar="DIR",
        callback=resolve,
        help="Folder that holds everything a run writes. Default: $GRISTMILL_ROOT.",
    )


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting of the recipe (VALUE is YAML); mixture.… and train.… reach into the files it names.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def print_json(value: Any) -> None:
    import orjson

    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    sys.stdout.flush()


def show_text(text: str) -> None:
    """Text with names, URLs or documents in it on stdout: control characters but line ends and tabs are written out."""
    click.echo(printable(text, "\n\t"))


def say(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(text, err=True)
