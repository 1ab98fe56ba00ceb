"""Turns one page's bytes into its main text: decode, bound, extract with the recipe's engine, normalise.

The text is a function of (bytes, content type, settings) alone: the page's URL has no part in it, nor the pages before.
The tests permute pages, processes and hash seeds for every engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gristmill.curate.engines import RefusedPage, load_engine
from gristmill.curate.normalise import normalise

if TYPE_CHECKING:
    from gristmill.curate.gate import LanguageGate
    from gristmill.curate.schema_extract import Extract


@dataclass(frozen=True)
class PageText:
    """What became of one page: a text, or the reason why there is none with the value measured and its limit."""

    text: str = ""
    charset: str = ""
    reason: str | None = None
    value: float | None = None
    threshold: float | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """Columns of core.document that the page's head fills (curate.page_head), without those it leaves open."""


def page_text(body: bytes, content_type: str, settings: Extract, gate: LanguageGate | None = None) -> PageText:
    """The main text of an HTML payload (content decoded: no gzip, no chunks), or the reason to drop the page.

    Reasons: `extract.too_large` (bytes), `extract.too_many_nodes` (`<` characters), with a gate `language.gate` (the
    probability of the wanted languages; noted as `language.gate.LABEL` by the likeliest one), `extract.error` (the engine raised),
    those that an engine refuses a page with (`extract.too_deep`), `extract.no_text` (characters). Raises MemoryError only.
    """
    from gristmill.curate.charset import decode_html
    from gristmill.curate.page_head import page_facts

    if len(body) > settings.max_html_bytes:
        return _drop("extract.too_large", len(body), settings.max_html_bytes)
    charset = ""
    try:
        html, charset = decode_html(body, content_type)
        if len(html) > settings.max_nodes and (nodes := html.count("<")) > settings.max_nodes:
            return _drop("extract.too_many_nodes", nodes, settings.max_nodes, charset)
        if gate is not None and (refused := gate.refuses(html)) is not None:
            label, wanted = refused
            notes = {f"language.gate.{label}": 1}
            return PageText("", charset, "language.gate", wanted, gate.settings.max_wanted, notes)
        found = extract_text(html, settings)
    except MemoryError:
        raise
    except RefusedPage as refused:
        return PageText(charset=charset, reason=refused.reason, value=refused.value, threshold=refused.threshold)
    except Exception:  # any fault inside a codec, a parser or an engine is this page's own
        return PageText(charset=charset, reason="extract.error")
    text, notes = normalise(found or "")
    if len(text) < max(1, settings.min_chars):
        return _drop("extract.no_text", len(text), max(1, settings.min_chars), charset)
    return PageText(text, charset, notes=notes, facts=page_facts(html).as_dict() if settings.metadata else {})


def extract_text(html: str, settings: Extract) -> str | None:
    """The engine's main text of a decoded page, or None when it finds none. Raises what the engine raises."""
    extract = load_engine(settings.engine, settings.mode)
    return extract(html, tables=settings.tables, comments=settings.comments, favor=settings.favor)


def _drop(reason: str, value: int, threshold: int, charset: str = "") -> PageText:
    return PageText(charset=charset, reason=reason, value=float(value), threshold=float(threshold))
