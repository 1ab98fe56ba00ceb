"""Loads spaCy and numba without what they would load for others: 1.7 s of CPU in a process that has torch and scipy.

spaCy's thinc imports torch if it is there, spaCy its command line (web clients and templates, 0.2 s), numba scipy's BLAS
and every package that extends it; nothing here needs any of them. All can be imported as ever afterwards, and numba then
finds them. Only thinc stays without torch, which matters to neural pipelines in the same process; where torch or thinc
was loaded before nothing changes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_BLAS = "numba.np.arraymath"


@contextmanager
def _held_back(name: str, unless: str) -> Iterator[bool]:
    """`import name` fails inside, unless it or `unless` is loaded already. Gives whether it does."""
    held = name not in sys.modules and unless not in sys.modules
    if held:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield held
    finally:
        if held:
            del sys.modules[name]


def load_spacy() -> ModuleType:
    """`import spacy`, for its rule-based tokenizers."""
    with _held_back("torch", "thinc"), _spacy_without_cli():
        import spacy
    return spacy


@contextmanager
def _spacy_without_cli() -> Iterator[None]:
    """`import spacy` inside imports its command line not yet, but for one function that does so when it is called."""
    names = ("spacy.cli", "spacy.cli.info")
    held = "spacy" not in sys.modules and not any(name in sys.modules for name in names)
    if held:
        sys.modules.update({name: ModuleType(name) for name in names})
        sys.modules["spacy.cli.info"].info = _spacy_info  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in names if held else ():
            del sys.modules[name]


def _spacy_info(*args: Any, **options: Any) -> Any:
    from spacy.cli.info import info

    return info(*args, **options)


@contextmanager
def light_numba() -> Iterator[None]:
    """For numba's first use, to compile or load a function that needs neither linear algebra nor other packages' types."""
    from numba.core import entrypoints

    waiting = getattr(entrypoints, "_already_initialized", None) is False
    if waiting:
        entrypoints._already_initialized = True
    try:
        with _held_back("scipy.linalg", _BLAS) as held:
            yield
        found = sys.modules.get(_BLAS)
        if held and hasattr(found, "_HAVE_BLAS") and importlib.util.find_spec("scipy") is not None:
            found._HAVE_BLAS = True  # type: ignore[union-attr]  # numba looks again when a function calls np.dot
    finally:
        if waiting:
            entrypoints._already_initialized = False
