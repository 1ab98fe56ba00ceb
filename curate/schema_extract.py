"""The `curate.extract` block: which engine takes the main text out of HTML, and its bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gristmill.core.settings import Settings
from gristmill.curate.engines import BUILTIN, engine_name
from gristmill.curate.engines.datatrove_blocks import engine_setting


class Extract(Settings):
    """HTML to main text."""

    engine: Annotated[str, BeforeValidator(engine_setting), AfterValidator(engine_name)] = "trafilatura"
    """`trafilatura`, `resiliparse` (four times as fast, four points of F1 less), `blocks` (ours), or the name of an
    installed entry point in the group `gristmill.extractors`; or an extractor of datatrove's, with its arguments:
    `{datatrove: {block: extractors.Trafilatura, args: {favour_precision: true}}}`."""
    mode: Literal["fast", "full"] = "fast"
    """Of trafilatura: `full` also tries its readability and jusText copies; half as much time again for higher recall."""
    favor: Literal["balanced", "precision", "recall"] = "balanced"
    tables: bool = True
    comments: bool = False
    metadata: bool = True
    """Keep the page's title, date of publication, `<html lang>` and canonical URL as columns (0.1 ms a page)."""
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
    recycle_pages: int = Field(10_000, ge=1, strict=True)
    """An extraction process is replaced after this many pages, of however many files: libraries leak (trafilatura in
    mode fast does not: 136 MiB after 2,000 pages, 134 after 12,000). A start costs 0.5 s of CPU."""

    @model_validator(mode="after")
    def _mode_is_of_the_engine(self) -> Extract:
        if self.mode != "fast" and not (self.engine in BUILTIN and BUILTIN[self.engine].modes):
            having = ", ".join(name for name, engine in BUILTIN.items() if engine.modes)
            raise ValueError(
                f"the engine `{self.engine}` has no mode `{self.mode}` hint: leave mode out; it is of {having}"
            )
        return self
