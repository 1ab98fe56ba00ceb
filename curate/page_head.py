"""What an HTML page says of itself: title, date of publication, language and canonical address, whichever engine extracts.

One pass over the tags of the head with bounded regular expressions, without a parser: 0.1 ms a page. Every search goes
forward only, so a hostile page costs time linear in `MAX_HEAD`.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field
from html import unescape

from gristmill.curate.normalise import normalise

MAX_HEAD = 512 << 10
"""Characters in which the head must end (inline scripts and styles make it long)."""
MAX_TAG = 4096
MAX_TITLE = 512
MAX_URL = 2048
MAX_LANG = 35
"""BCP 47's recommended room for a language tag (RFC 5646, section 4.4.1)."""
FIRST_YEAR, LAST_YEAR = 1990, 2099
"""Dates of publication outside are placeholders (0001, 1970) or nonsense. No clock: a page's facts are its own."""

_TAG = re.compile(r"<(!--|script|style|noscript|title|meta|link|html|body|/head|/html)(?![a-z0-9:_-])", re.IGNORECASE)
_ENDS = {
    "!--": re.compile("--!?>"),
    "script": re.compile("</script", re.IGNORECASE),
    "style": re.compile("</style", re.IGNORECASE),
    "noscript": re.compile("</noscript", re.IGNORECASE),
    "title": re.compile("</title", re.IGNORECASE),
}
_REST = re.compile(r"((?:[^<>\"']++|\"[^\"]*+\"|'[^']*+'|[\"'])*+)>")
_ATTRIBUTE = re.compile(r"""([a-zA-Z:_-]{1,40})\s*+=\s*+(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
_LANG = re.compile(r"[a-z]{2,8}(?:[-_][a-z0-9]{1,8})*")
_PUBLISHED = (
    "article:published_time",
    "datepublished",
    "og:published_time",
    "article.published",
    "parsely-pub-date",
    "sailthru.date",
    "citation_publication_date",
    "citation_date",
    "dcterms.created",
    "dcterms.issued",
    "dc.date.issued",
    "dc.date.created",
    "publication_date",
    "publish-date",
    "publish_date",
    "pubdate",
    "date.issued",
    "dcterms.date",
    "dc.date",
    "date",
)
"""Names of meta elements that hold a date of publication, the most specific first."""
_RANK = {name: i for i, name in enumerate(_PUBLISHED)}
_SAYS = {
    "html": re.compile("lang"),
    "link": re.compile("canonical"),
    "meta": re.compile("og:title|date|publi|created|issued"),
}
"""What a tag of any use has in it (in `meta` one of these is in every name that counts): most tags end here."""
_JSON_DATE = re.compile(r'"datePublished"\s{0,16}:\s{0,16}"([^"]{8,64})"')
_ISO = re.compile(r"\s*(\d{4})([-/.]?)(\d{1,2})\2(\d{1,2})(?!\d)", re.ASCII)
_ENGLISH = re.compile(
    r"(?:[A-Z][a-z]{2,8},?\s+)?"
    r"(?:(\d{1,2})\s+([A-Z][a-z]{2})[a-z]*\.?,?|([A-Z][a-z]{2})[a-z]*\.?\s+(\d{1,2}),?)\s+(\d{4})",
    re.ASCII,
)
_MONTHS = {
    name: i
    for i, name in enumerate(["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], 1)
}


@dataclass
class Facts:
    """Each is None where the page does not say it, or says it in a form that is not to be trusted."""

    title: str | None = None
    published: str | None = None
    """ISO date (YYYY-MM-DD)."""
    html_lang: str | None = None
    """Lower case, as written."""
    canonical_url: str | None = None
    """As written: absolute, or beginning with `//` or `/`; `absolute` completes it."""

    def as_dict(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class _Found:
    facts: Facts = field(default_factory=Facts)
    og_title: str | None = None
    rank: int = len(_PUBLISHED)


def page_facts(html: str) -> Facts:
    """The facts of a decoded page. Never raises; a pure function of the page. Only the first of each counts.

    The date is a meta element's, else schema.org's `datePublished` in JSON-LD, anywhere in the page.
    """
    found = _Found()
    facts = found.facts
    at, end = 0, min(len(html), MAX_HEAD)
    while (tag := _TAG.search(html, at, end)) is not None:
        name, at = tag[1].lower(), tag.end()
        if name in ("body", "/head", "/html"):
            break
        if name in _ENDS:
            start = at
            if (close := _ENDS[name].search(html, at, end)) is None:
                break
            at = close.end()
            if name == "title" and facts.title is None:
                facts.title = _title(html[start : close.start()].partition(">")[2])
            continue
        if (rest := _REST.match(html, at, min(at + MAX_TAG, end))) is None:
            continue
        at = rest.end()
        if _SAYS[name].search(rest[1].lower()) is None:
            continue
        attributes: dict[str, str] = {}
        for key, *values in _ATTRIBUTE.findall(rest[1]):
            attributes.setdefault(key.lower(), "".join(values))
        if name == "html":
            _html(facts, attributes)
        elif name == "meta":
            _meta(found, attributes)
        elif facts.canonical_url is None and "canonical" in attributes.get("rel", "").lower().split():
            facts.canonical_url = _address(attributes.get("href", ""))
    facts.title = facts.title or found.og_title
    if facts.published is None and (at := html.find('"datePublished"')) >= 0 and (told := _JSON_DATE.search(html, at)):
        facts.published = iso_date(told[1])
    return facts


def absolute(canonical: str, url: str) -> str | None:
    """A canonical address completed from the page's own, or None when that makes no http(s) address."""
    from urllib.parse import urljoin

    try:
        whole = urljoin(url, canonical)
    except ValueError:  # brackets that hold no IPv6 address
        return None
    return whole if whole.lower().startswith(("http://", "https://")) and len(whole) <= MAX_URL else None


def iso_date(text: str) -> str | None:
    """The day at the start of an ISO 8601 date, or of an English one (`12 March 2024`, `Tue, Mar 12, 2024`), in ISO form."""
    if iso := _ISO.match(text):
        year, month, day = int(iso[1]), int(iso[3]), int(iso[4])
    elif english := _ENGLISH.match(text.strip()):
        year, month = int(english[5]), _MONTHS.get(english[2] or english[3], 0)
        day = int(english[1] or english[4])
    else:
        return None
    if not FIRST_YEAR <= year <= LAST_YEAR:
        return None
    try:
        return datetime.date(year, month, day).isoformat()
    except ValueError:
        return None


def _html(facts: Facts, attributes: dict[str, str]) -> None:
    lang = (attributes.get("lang") or attributes.get("xml:lang") or "").strip().lower()
    if facts.html_lang is None and len(lang) <= MAX_LANG and _LANG.fullmatch(lang):
        facts.html_lang = lang


def _meta(found: _Found, attributes: dict[str, str]) -> None:
    content = attributes.get("content", "")
    name = (attributes.get("property") or attributes.get("name") or attributes.get("itemprop") or "").lower()
    if name == "og:title" and found.og_title is None:
        found.og_title = _title(content)
    rank = _RANK.get(name, len(_PUBLISHED))
    if rank < found.rank and (day := iso_date(content[:64])):
        found.facts.published, found.rank = day, rank


def _title(text: str) -> str | None:
    """One line, entities resolved, at most `MAX_TITLE` characters."""
    text, _ = normalise(unescape(text[: 8 * MAX_TITLE]))
    return " ".join(text.split())[:MAX_TITLE].rstrip() or None


def _address(href: str) -> str | None:
    if len(href) > MAX_URL:
        return None
    address, _ = normalise(unescape(href).strip())
    known = address.lower().startswith(("http://", "https://", "/"))
    return address if known and len(address) <= MAX_URL and not any(c.isspace() for c in address) else None
