"""How many pages of each kind a sample of a given size holds."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PAGES = 2000
LEVELS: tuple[tuple[str, float, float, float], ...] = (
    ("0.97", 0.97, 0.955, 0.995),
    ("0.85", 0.85, 0.82, 0.88),
    ("0.70", 0.70, 0.67, 0.73),
    ("0.50", 0.50, 0.46, 0.54),
    ("0.33", 0.33, 0.20, 0.38),
)
"""Near copies: name, aim, least and greatest 5-gram Jaccard. The first level must go, the last must stay."""

_DEFAULTS: dict[str, tuple[int, int]] = {
    # kind: (pages of the default sample, at least)
    "exact_base": (40, 1),
    "exact_copy": (60, 2),
    "near_base": (50, 5),
    "broken": (40, 4),
    "encoded": (42, 7),
    "email": (30, 2),
    "url_blocked": (24, 2),
    "promo": (30, 1),
    "boilerplate": (30, 1),
    "spam": (30, 1),
    "repeated": (20, 1),
    "lorem": (16, 1),
    "braces": (20, 1),
    "short": (20, 1),
    "language": (70, 7),
    "charset": (28, 7),
    "redirect": (24, 2),
    "not_found": (14, 1),
    "server_error": (8, 1),
    "not_html": (24, 4),
    "empty": (8, 1),
    "revisit": (6, 1),
    "binary_as_html": (8, 1),
    "truncated": (1, 1),
}
_MIN_PROSE = 8


@dataclass(frozen=True, slots=True)
class Quotas:
    """Pages by kind; near copies come on top, one per base."""

    of: dict[str, int]
    prose: int
    labels: int
    """Articles held out of the crawl, the good labelled texts."""

    def __getitem__(self, kind: str) -> int:
        return self.of[kind]


def quotas(pages: int | None) -> Quotas:
    """Quotas for about `pages` pages in all (None: 2,000). Every kind is there, so 70 pages are the least."""
    total = DEFAULT_PAGES if pages is None else pages
    of = {kind: max(least, round(n * total / DEFAULT_PAGES)) for kind, (n, least) in _DEFAULTS.items()}
    of["truncated"] = 1
    of["exact_copy"] = min(of["exact_copy"], 2 * of["exact_base"])
    of["language"] = min(of["language"], 70)  # ten pages of each of seven languages, out of 14 distinct ones
    of["charset"] = min(of["charset"], 28)  # four of each of seven
    planted = sum(of.values()) + of["near_base"]
    return Quotas(of, max(_MIN_PROSE, total - planted), max(12, round(150 * total / DEFAULT_PAGES)))
