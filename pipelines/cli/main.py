"""The command group, its lazy commands, and the mapping of errors to exit codes 0, 1, 2, 3 and 130."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from gristmill.core.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, GristmillError
from gristmill.core.printable import printable

COMMANDS = {
    "sample": "flow",
    "check": "flow",
    "plan": "flow",
    "run": "flow",
    "status": "flow",
    "clean": "flow",
    "show": "look",
    "drops": "look",
    "diff": "look",
    "find": "look",
    "trace": "look",
    "report": "look",
    "schema": "look",
    "tokenizer": "tokenizer",
    "mix": "mix",
    "train": "training",
    "quality": "build",
    "takedown": "policy",
    "export": "policy",
    "rules": "rules",
}


class LazyGroup(click.Group):
    """Commands are imported when named; `--help` imports the command modules, which import nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"gristmill.pipelines.cli.{COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command


EPILOG = """\b
Exit codes: 0 done, 1 failed but resumable, 2 bad usage or config (nothing was run),
            3 `plan --check` found work, 130 interrupted.
Environment: GRISTMILL_ROOT (default for --root), GRISTMILL_NO_PROGRESS, GRISTMILL_TRACEBACK,
             GRISTMILL_LID_MODEL (path of lid.176.ftz), GRISTMILL_ENCODERS (gigatoken,tiktoken: what may
             encode beside tokenizers); DASK_* and NO_COLOR pass through.
\b
Examples:
  gristmill sample crawl/
  gristmill run web --root mill --set input.paths='["crawl/*.warc.gz"]' --to curate
  gristmill show --root mill
"""


@click.group(
    cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="gristmill", prog_name="gristmill")
def cli() -> None:
    """Turn a web crawl into a pretrained language model, and answer for every token on the way."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Always ends in SystemExit with one of the documented codes."""
    try:
        code = cli.main(args=list(argv) if argv is not None else None, prog_name="gristmill", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = EXIT_USAGE
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = EXIT_INTERRUPTED
    except GristmillError as error:
        _explain(error)
        code = error.exit_code
    except UnicodeEncodeError as error:
        click.echo(f"error: a name or text that is not UTF-8: {error.object!r}", err=True)
        code = EXIT_FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    except OSError as error:
        if os.environ.get("GRISTMILL_TRACEBACK"):
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {where}{error.strerror or error}", err=True)
        code = EXIT_FAILED
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: GristmillError) -> None:
    if os.environ.get("GRISTMILL_TRACEBACK"):
        traceback.print_exc()
    text = printable(str(error), "\n\t")
    click.echo(text if ": error: " in text.split("\n", 1)[0] else f"error: {text}", err=True)
