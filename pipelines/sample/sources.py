"""Where the sample's prose comes from: help topics and docstrings, read from source files with `ast`, nothing imported.

Only the standard library and gristmill's base dependencies (and two packages that those require) are read, so
the text is on every machine that can run the sample; a package that is absent is skipped.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STDLIB = """
argparse asyncio bdb calendar cmd code codeop collections concurrent configparser contextlib copy csv ctypes
dataclasses datetime decimal difflib dis doctest email enum filecmp fileinput fractions ftplib functools getopt
gettext glob graphlib gzip hashlib heapq hmac html http imaplib importlib inspect ipaddress json linecache
locale logging lzma mailbox mimetypes multiprocessing netrc numbers optparse pathlib pdb pickle pickletools
pkgutil platform plistlib poplib pprint profile pyclbr queue random re sched selectors shelve shlex shutil
smtplib socket socketserver sqlite3 ssl statistics string stringprep struct subprocess symtable tarfile tempfile
textwrap threading timeit tkinter tomllib trace traceback tracemalloc turtle types typing unittest urllib uuid
venv warnings wave weakref webbrowser wsgiref xml xmlrpc zipapp zipfile zoneinfo
"""
_PACKAGES = """
click dask distributed fsspec pyarrow pydantic datasketch numpy tokenizers rich spacy trafilatura resiliparse
tldextract regex lxml datatrove zstandard llvmlite thinc catalogue jinja2 tornado toolz urllib3 requests
cloudpickle scipy numba huggingface_hub
"""
_SKIPPED_FOLDERS = """
test tests testing _vendor vendored vendor __pycache__ examples _pyinstaller idlelib lib2to3 site-packages cuda
inference lang f2py distutils typing_tests _repository
"""
_MAX_FILE_BYTES = 600_000
"""Larger files are tables, not prose."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One text as found: the package it belongs to, a dotted name and the text, margin removed."""

    package: str
    name: str
    text: str


def topics() -> Iterator[Raw]:
    """The language reference of `pydoc_data.topics`: about 80 topics, 0.5 MB."""
    path = _package_root("pydoc_data")
    if path is None:
        return
    tree = ast.parse((path / "topics.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            found: dict[str, str] = ast.literal_eval(node.value)
            for name in sorted(found):
                yield Raw("python", name, found[name])


def docstrings() -> Iterator[Raw]:
    """Docstrings of the fixed module list, package by package, files and definitions in order."""
    for package in [*_STDLIB.split(), *_PACKAGES.split()]:
        root = _package_root(package)
        if root is None:
            continue
        for path in _files(root):
            yield from _file_docstrings(package, root, path)


def versions() -> dict[str, str]:
    """Installed versions of the packages that are read; those without metadata (the standard library) are left out."""
    found = {}
    for package in _PACKAGES.split():
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _package_root(name: str) -> Path | None:
    """The folder of a package or the file of a module, found without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    if spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    return None


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    found = []
    skipped = set(_SKIPPED_FOLDERS.split())
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        folders = path.relative_to(root).parts[:-1]
        if not skipped.intersection(folders) and path.stat().st_size <= _MAX_FILE_BYTES:
            found.append(path)
    return found


def _file_docstrings(package: str, root: Path, path: Path) -> Iterator[Raw]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return
    relative = () if root.is_file() else path.relative_to(root).with_suffix("").parts
    module = ".".join([package, *[x for x in relative if x != "__init__"]])
    yield from _walk(package, module, tree)


def _walk(
    package: str, name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[Raw]:
    doc = ast.get_docstring(node, clean=False)
    if doc:
        yield Raw(package, name, inspect.cleandoc(doc))
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(package, f"{name}.{child.name}", child)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _added(package, name, child.value)


def _added(package: str, name: str, call: ast.Call) -> Iterator[Raw]:
    """numpy's `add_newdoc(module, name, text)`: documentation of compiled objects."""
    texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if isinstance(call.func, ast.Name) and call.func.id in ("add_newdoc", "add_docstring") and len(texts) >= 2:
        yield Raw(package, f"{name}.{texts[-2][:40]}", inspect.cleandoc(texts[-1]))
