"""The `curate.extract` block: which engine takes the main text out of HTML, and its bounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gristmill.core.settings import Settings


class Extract(Settings):
    """HTML to main text."""

    engine: Literal["trafilatura"] = "trafilatura"
    """trafilatura 2.3 `fast`, without its process-wide duplicate cache and wall-clock limit."""
    favor: Literal["balanced", "precision", "recall"] = "balanced"
    tables: bool = True
    comments: bool = False
    max_html_bytes: int = Field(20_000_000, ge=1, strict=True)
    """Larger decoded payloads are dropped as `extract.too_large` (bytes)."""
    max_nodes: int = Field(400_000, ge=1, strict=True)
    """Pages with more `<` characters than this are dropped as `extract.too_many_nodes`."""
    min_chars: int = Field(1, ge=0, strict=True)
    """Shorter texts are dropped as `extract.no_text` (characters)."""
    cpu_seconds: int = Field(60, ge=1, strict=True)
    """A page that burns more CPU than this in two fresh processes is quarantined as hung: a backstop, far above the tail (p99 0.3 s)."""
    memory_mb: int = Field(3000, ge=512, strict=True)
    """Address space of one extraction process (MiB)."""
    recycle_pages: int = Field(2000, ge=1, strict=True)
    """An extraction process is replaced after this many pages (trafilatura leaks)."""
