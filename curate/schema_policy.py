"""Blocks of `curate:` about what may be used at all: URL rules."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gristmill.core.settings import Settings


class Urls(Settings):
    """URL rules with datatrove's lists (its package data, read at run time)."""

    lists: Literal["datatrove", "off"] = "datatrove"
    soft_words: int = Field(2, ge=1, strict=True)
    """Drop a URL with at least this many distinct-position soft words (datatrove's `soft_word_threshold`)."""
