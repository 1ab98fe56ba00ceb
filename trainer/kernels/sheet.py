"""The tables of docs/kernels.md: committed figures of the ahead-of-time compiler, and the roofline's predictions.

  python -m gristmill.trainer.kernels.sheet docs/kernels.md

Rewrites what lies between the marks of a Markdown file; the rest is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gristmill.trainer.kernels import aot_limits, roofline
from gristmill.trainer.kernels.aot_measure import CHIPS, MATRIX, WIDE


def compiled() -> str:
    """A line per kernel, a column per chip. Figures of the newest compiler that has any."""
    newest = {target: max(aot_limits.load(target).items(), default=("none", {}), key=_version) for target in CHIPS}
    versions = "; ".join(f"{target}: {toolchain}" for target, (toolchain, _) in newest.items())
    lines = [f"{versions}.", "", "| kernel | " + " | ".join(CHIPS) + " |", "|---|" + "---|" * len(CHIPS)]
    for kernel in sorted({kernel for _, table in newest.values() for kernel in table}):
        cells = (_cell(table.get(kernel)) for _, table in newest.values())
        lines.append(f"| {kernel} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _version(entry: tuple[str, object]) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", entry[0])]


def _cell(row: aot_limits.Figures | None) -> str:
    if row is None:
        return "–"
    cells = [f"{row['registers']} r", f"{row['shared'] / 1024:.0f} K"]
    cells += [f"{row[kind]} {kind}" for kind in MATRIX if kind in row]
    cells += [f"{sum(row.get(kind, 0) for kind in WIDE)} wide", f"{row['instructions']} i"]
    cells += [f"**{row[key]} {key}**" for key in ("stack", "spills") if row.get(key, 0)]
    return ", ".join(cells)


def predicted() -> str:
    """The roofline's sheet of every preset that has a name in the world."""
    return "\n\n".join(f"### {name}\n{roofline.render(roofline.sheet(name))}" for name in roofline.PRESETS)


SECTIONS: dict[str, Callable[[], str]] = {"compiled": compiled, "predicted": predicted}


def filled(text: str) -> str:
    """`text` with every section's table between `<!-- begin NAME -->` and `<!-- end NAME -->`."""
    for name, table in SECTIONS.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.S)
        assert len(pattern.findall(text)) == 1, f"there must be one section {name}"
        body = table()
        text = pattern.sub(lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text)  # type: ignore[misc]
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    (name,) = sys.argv[1:] if arguments is None else arguments
    path = Path(name)
    path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
