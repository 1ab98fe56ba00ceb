"""Where things live: packaged recipes by name, files named by another file, and the root of a run.

Inputs may be any fsspec URL. The root itself is a folder on a POSIX file system in this version: token shards are
memory-mapped and the lease is a file lock.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from gristmill.core.errors import UsageError

ROOT_VARIABLE = "GRISTMILL_ROOT"


def recipes_in(package: str) -> dict[str, Path]:
    """Packaged YAML files of a room by name: `recipes_in("gristmill.mixes")["demo"]`."""
    folder = resources.files(package).joinpath("recipes")
    found = {}
    for item in sorted(folder.iterdir(), key=lambda i: i.name) if folder.is_dir() else []:
        if item.name.endswith((".yaml", ".yml")):
            with resources.as_file(item) as path:
                found[item.name.rsplit(".", 1)[0]] = Path(path)
    return found


def find_yaml(name: str, package: str, beside: Path | None = None) -> tuple[Path, str]:
    """A YAML file by packaged name or by path (relative to `beside`, else to the working directory).

    Returns the path and the name to print. Raises UsageError when there is none.
    """
    if not name.endswith((".yaml", ".yml")) and "/" not in name:
        known = recipes_in(package)
        if name in known:
            return known[name], known[name].name if beside else _short(known[name])
        raise UsageError(
            f"no recipe named {name!r}", hint=f"packaged: {', '.join(known) or 'none'}; or give a .yaml path"
        )
    path = Path(name)
    for candidate in [path] if path.is_absolute() or beside is None else [beside / path, path]:
        if candidate.is_file():
            return candidate, _short(candidate)
    raise UsageError(f"no such file: {name}")


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def find_root(option: str | None) -> Path:
    """The root given by --root or $GRISTMILL_ROOT. Raises UsageError when neither is set or a URL is given."""
    text = option or os.environ.get(ROOT_VARIABLE)
    if not text:
        raise UsageError("no root", hint=f"give --root DIR or set ${ROOT_VARIABLE}")
    if "://" in text:
        raise UsageError(
            f"the root {text} is a URL", hint="a root must be a folder; inputs may be s3://, https:// or any fsspec URL"
        )
    return Path(text).absolute()
