"""Pages and engines for tests of extraction: every engine and mode, and pages that would betray a shared state."""

from __future__ import annotations

import importlib.resources

import pytest

from gristmill.curate.engines import BUILTIN
from gristmill.curate.schema import Extract

PARAGRAPH = "The museum opens its doors at nine and closes them at five, every day but Monday. "
SHARED = PARAGRAPH * 3


def page(body: str, head: str = "") -> str:
    return f"<!DOCTYPE html><html><head><title>T</title>{head}</head><body>{body}</body></html>"


def article(*paragraphs: str) -> str:
    inner = "".join(f"<p>{p}</p>" for p in paragraphs)
    nav = '<nav class="menu"><ul><li><a href="/">Home</a></li><li><a href="/news">News</a></li></ul></nav>'
    return page(f"{nav}<main><article>{inner}</article></main><footer>Copyright, all rights reserved</footer>")


TABLE = f"<p>{SHARED}</p><table><tr><td>a cell of words</td><td>another cell</td></tr></table><p>{SHARED}</p>"
COMMENTED = f"<article><p>{SHARED} Fourth.</p></article><div id='comments'><p>A reader says: {PARAGRAPH}</p></div>"
PAGES = [
    article(SHARED, PARAGRAPH * 2 + "First."),
    article(SHARED, PARAGRAPH * 2 + "Second."),
    article(SHARED, SHARED, SHARED),
    article(SHARED),
    article(SHARED, "Third. " + PARAGRAPH),
    page(f"<main><article>{TABLE}</article></main>"),
    article("Short."),
    page("<p>" + "No article at all, " * 40 + "</p><div class='comment'>a comment</div>"),
    page(COMMENTED),
    page("<ul>" + "".join(f"<li>Point {i}: {PARAGRAPH}</li>" for i in range(9)) + "</ul>"),
]
"""Pages that share long segments: with a process-wide duplicate cache later ones would lose them."""

ENGINES = [
    pytest.param(Extract(engine=name, mode=mode), id=f"{name}-{mode}")  # type: ignore[arg-type]
    for name, engine in BUILTIN.items()
    for mode in (("fast", "full") if engine.modes else ("fast",))
    if engine.weights is None
    or importlib.resources.files("gristmill.curate.engines").joinpath(engine.weights).is_file()
]
RULED = [param for param in ENGINES if BUILTIN[param.values[0].engine].weights is None]  # type: ignore[union-attr]
"""Engines of rules. One with learned weights knows whole web pages; what it makes of the few lines above is open."""
