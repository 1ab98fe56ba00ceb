"""The documentation stays true: every command's help is in docs/cli.md, every setting is described, links lead somewhere.

`python tests/test_docs.py` writes docs/cli.md anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gristmill.pipelines.cli.main import cli

ROOT = Path(__file__).resolve().parents[1]


def commands(group: click.Group, path: str = "gristmill") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def reference() -> str:
    """docs/cli.md: the help of every command, at 100 columns."""
    parts = ["# Command line\n\nThe output of `--help`, command by command.\n"]
    for path, command in [("gristmill", cli), *commands(cli)]:
        names = cli.context_settings["help_option_names"]
        command._help_option = None  # made once per command, by whichever context came first
        context = click.Context(
            command, info_name=path, max_content_width=100, terminal_width=100, help_option_names=names
        )
        parts.append(f"## `{path}`\n\n```text\n{command.get_help(context).strip()}\n```\n")
    return "\n".join(parts)


def test_the_reference_is_what_help_prints() -> None:
    written = (ROOT / "docs" / "cli.md").read_text()
    assert written == reference(), "run `python tests/test_docs.py`"


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_every_setting_of_a_recipe_is_documented() -> None:
    from gristmill.mixes.schema import Mixture
    from gristmill.pipelines.schema import Recipe
    from gristmill.trainer.schema import TrainRun

    for model in (Recipe, Mixture, TrainRun):
        schema = model.model_json_schema(by_alias=True)
        for name, definition in {model.__name__: schema, **schema.get("$defs", {})}.items():
            assert definition.get("description"), f"{model.__name__}: {name} has no docstring"


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(reference())
