"""Makes trafilatura cheaper in this process without changing a text: its XPath lists, and functions with a shorter way.

The lists become walks that remember (`trafilatura_paths`), of any version; elements come from lxml's own class table
instead of a Python function for each. Of the version whose code we know, a copy of the tree that nobody reads isn't
made, elements without a link aren't tested for their share of links, nor others twice without a reason, and characters
aren't looked at one by one because of a line end. Over 1,235 pages a third of the CPU went, five sixths of it by the lists.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from gristmill.curate.engines.trafilatura_paths import from_memory

VERSION = "2.3.1"
"""Functions of other versions stay as they are."""

_installed = False


def install() -> None:
    """Rewrite trafilatura in this process, once. An expression that isn't understood stays as it is."""
    global _installed
    if _installed:
        return
    _installed = True
    import trafilatura  # all of its modules
    from lxml import etree, html
    from trafilatura import utils, xpaths

    table = etree.ElementDefaultClassLookup(
        element=html.HtmlElement, comment=html.HtmlComment, pi=html.HtmlProcessingInstruction, entity=html.HtmlEntity
    )
    utils.HTML_PARSER.set_element_class_lookup(table)
    for held in vars(xpaths).values():
        if isinstance(held, list) and all(isinstance(one, etree.XPath) for one in held):
            held[:] = [from_memory(one) for one in held]
    for module in _modules(trafilatura):
        if isinstance(found := getattr(module, "BASIC_CLEAN_XPATH", None), etree.XPath):
            module.BASIC_CLEAN_XPATH = from_memory(found)  # type: ignore[attr-defined]
    if trafilatura.__version__ == VERSION:
        _shorten()


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{package.__name__}.") and module is not None:
            yield module


def _shorten() -> None:
    names = ("core", "main_extractor", "utils", "baseline")
    modules: list[Any] = [importlib.import_module(f"trafilatura.{name}") for name in names]
    core, main, utils, baseline = modules
    prepare, printable = core._prepare_tree, utils.remove_control_characters
    sections, by_link_density = main.prune_unwanted_sections, main.delete_by_link_density
    settled = _Settled()

    def prepare_tree(tree: Any, options: Any, url: str | None) -> tuple[Any, Any]:
        """The second tree is for the comparison of `full` and for comments."""
        if options.comments or not options.fast:
            return prepare(tree, options, url)  # type: ignore[no-any-return]
        return core.convert_tags(core.tree_cleaning(core.copy(tree), options), options, url), None

    def prune_unwanted_sections(*args: Any, **more: Any) -> Any:
        settled.calls = set()
        try:
            return sections(*args, **more)
        finally:
            settled.calls = None

    def delete_by_link_density(subtree: Any, tagname: str, **more: Any) -> Any:
        """Each is called twice, for what the other ones' deletions change: where none deleted anything, once is enough."""
        calls, call = settled.calls, (tagname, *more.items())
        if calls and call in calls:
            return subtree
        linked = _linked(tagname)(subtree)
        by_link_density(_Elements(linked), tagname, **more)
        if calls is not None:
            if any(one.getparent() is None for one in linked):
                calls.clear()
            else:
                calls.add(call)
        return subtree

    def remove_control_characters(string: str) -> str:
        """Characters that are neither printable nor space go: mostly there are none, but line ends."""
        return string if "".join(string.split()).isprintable() else printable(string)  # type: ignore[no-any-return]

    core._prepare_tree = prepare_tree
    main.prune_unwanted_sections = prune_unwanted_sections
    main.delete_by_link_density = delete_by_link_density
    utils.remove_control_characters = baseline.remove_control_characters = remove_control_characters


class _Settled(threading.local):
    """Within one pruning of a tree: the calls that deleted nothing since the last one that did."""

    calls: set[Any] | None = None


class _Elements:
    """Stands for a tree in a walk over elements of one tag: those without a link in them are never deleted."""

    def __init__(self, elements: list[Any]) -> None:
        self.elements = elements

    def iter(self, _: str) -> list[Any]:
        return self.elements


@cache
def _linked(tag: str) -> Any:
    from lxml import etree

    return etree.XPath(f"descendant-or-self::{tag}[.//ref]")
