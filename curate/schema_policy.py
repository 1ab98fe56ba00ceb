"""Blocks of `curate:` about what may be used at all: URL rules, statements against use, personal data, benchmarks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from gristmill.core.settings import Settings
from gristmill.curate.schema_types import Fraction

ListName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""A name that may stand in a reason and in a folder's name."""
FilePath = Annotated[str, StringConstraints(min_length=1)]
"""A local file: absolute, or relative to the recipe, or else to the working directory. Gzip is told by its bytes."""


class UrlList(Settings):
    """A list of your own; pages on it are dropped as `url.list.NAME`. Files hold one entry a line, `#` begins a remark."""

    name: ListName
    domains: FilePath | None = None
    """Domains: each matches itself and all names below it."""
    urls: FilePath | None = None
    """Addresses without scheme: each matches itself and what lies below its path; `www.` and the host's case don't count."""
    words: FilePath | None = None
    """Words: one in the URL, split at non-alphanumerics, whatever its case, is enough."""

    @model_validator(mode="after")
    def _names_a_file(self) -> UrlList:
        if self.domains is None and self.urls is None and self.words is None:
            raise ValueError("a list without a file hint: give `domains`, `urls` or `words`")
        return self


class Ut1(Settings):
    """A folder in the layout of the UT1 blacklists (University of Toulouse): CATEGORY/domains and CATEGORY/urls, or .gz.

    Pages are dropped as `url.list.CATEGORY`. The expressions of some categories are not read.
    """

    folder: FilePath
    categories: list[ListName] = Field(min_length=1)


class Urls(Settings):
    """URL rules with datatrove's lists (its package data, read at run time), then lists of your own, in this order."""

    lists: Literal["datatrove", "off"] = "datatrove"
    soft_words: int = Field(2, ge=1, strict=True)
    """Drop a URL with at least this many distinct-position soft words (datatrove's `soft_word_threshold`)."""
    own: list[UrlList] = []
    ut1: Ut1 | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> Urls:
        names = [one.name for one in self.own] + (self.ut1.categories if self.ut1 else [])
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two lists are called {twice[0]} hint: names and UT1 categories share one reason each")
        return self


Agent = Annotated[str, StringConstraints(pattern=r"^(\*|[A-Za-z][A-Za-z_-]{0,63})$")]
Token = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class Optout(Settings):
    """Which statements against use count. Their signals are measured whatever stands here, so a change reads no page again."""

    robots: FilePath | None = None
    """Table of robots.txt files, Parquet or JSONL(.gz): columns `host` (`example.org` or `example.org:8080`) and `text`."""
    agents: list[Agent] = ["CCBot", "GPTBot", "*"]
    """Crawlers as whom a page must be allowed, by product token; `*` is one that no robots.txt names.

    One that a robots.txt doesn't name falls under its `*` group (RFC 9309). A page is dropped as `optout.robots` when any
    is refused. Header and meta values for one agent count for these agents too."""
    x_robots_tag: list[Token] = ["noai"]
    """Values of the header X-Robots-Tag that drop a page as `optout.x_robots_tag`; add `noindex` or `noimageai` at will."""
    meta: list[Token] = ["noai"]
    """Values of `<meta name="robots">` that drop a page as `optout.meta`."""
    tdm: bool = True
    """Drop pages with `tdm-reservation: 1`, as a header or meta element, as `optout.tdm`."""


class Pii(Settings):
    """Addresses in kept texts that are replaced by stand-ins; what counts as one is datatrove's, as FineWeb was made."""

    emails: bool = True
    ips: bool = True
    """Globally routable IPv4 addresses."""
    seed: int = Field(0, ge=0, strict=True)
    """Which stand-in an address gets in a document is a hash of this, the document's id and the address."""


class Decontaminate(Settings):
    """Benchmark items in documents: word n-grams of kept texts against those of benchmark files."""

    benchmarks: list[FilePath] = Field(min_length=1)
    """JSONL files (plain, gzip or Zstandard), paths or globs. A file's name up to its first dot names the benchmark."""
    ngram: int = Field(13, ge=4, le=50, strict=True)
    """Words of an n-gram (GPT-3's 13)."""
    min_words: int = Field(8, ge=2, le=50, strict=True)
    """Questions of fewer words are left out and counted; those between this and `ngram` must occur whole."""
    min_overlap: Fraction = 0.5
    """Share of the distinct n-grams of a question, or of an answer, that a document must hold to match it."""
    fields: list[str] = Field(["question", "answer"], min_length=1)
    """Fields of a line that are looked for, each by itself: text or a list of texts. The first is the question."""
    id_field: str = "id"
    """The field that names an item."""
    action: Literal["drop", "report"] = "drop"
    """`drop` drops a document as `decontaminate.BENCHMARK` of its strongest match; `report` only tells of it."""
