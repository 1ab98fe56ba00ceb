"""Near copies: words of a text replaced one by one until its 5-gram similarity to the original is at a wanted level."""

from __future__ import annotations

import re

from gristmill.pipelines.sample.articles import Article, alphabetic, function_words, jaccard, words
from gristmill.pipelines.sample.blocks import Block
from gristmill.pipelines.sample.draw import Draw

MIN_WORDS = 300
"""So that one replaced word leaves a similarity of at least 0.96: with n 5-grams and m words replaced far from each other,
5 m of the n are lost on each side and J = (n - 5m) / (n + 5m)."""
_WORD = re.compile(r"\w+")
_REPLACEMENTS = (
    "garden", "morning", "silver", "quietly", "harbour", "window", "letter", "seldom", "bridge", "northern", "patient",
    "lantern", "meadow", "gently", "border", "winter", "orchard", "steady", "copper", "evening", "harvest", "narrow",
    "cellar", "thunder", "candle", "shallow", "village", "ribbon", "distant", "kettle", "feather", "quarry",
)  # fmt: skip


def can_be_copied(article: Article) -> bool:
    """Long, clearly English and plain, so that no rule drops it and extraction gives it back word for word."""
    kinds = [b.kind for b in article.blocks for _ in b.lines]
    return (
        len(words(article.text())) >= MIN_WORDS
        and all(k in ("h", "p", "ul", "dl") for k in kinds)
        and sum(k in ("ul", "dl") for k in kinds) <= 0.5 * len(kinds)
        and alphabetic(article) >= 0.84
        and function_words(article) >= 0.36
    )


def near_copy(base: Article, aim: float, least: float, greatest: float, draw: Draw) -> tuple[Article, float]:
    """A copy whose exact similarity to `base` is within [least, greatest], near `aim`, and that similarity.

    The first guess for the number of replaced words solves the formula above; repeated 5-grams and line ends shift
    the result a little, so the number is corrected until the exact value fits.
    """
    text = base.text()
    n = len(words(text)) - 4
    replaced = max(1, round(n * (1 - aim) / (5 * (1 + aim))))
    best: tuple[float, Article, float] | None = None
    for _ in range(40):
        copy = _replace(base, replaced, draw)
        similarity = jaccard(text, copy.text())
        if best is None or abs(similarity - aim) < best[0]:
            best = (abs(similarity - aim), copy, similarity)
        if abs(similarity - aim) < 0.01:
            break
        replaced = max(1, replaced + (1 if similarity > aim else -1))
    assert best is not None
    assert least <= best[2] <= greatest, f"{base.key}: no copy at {aim}, nearest {best[2]:.3f}"
    return best[1], best[2]


def _replace(base: Article, m: int, draw: Draw) -> Article:
    """`m` words replaced at even steps, each moved by a drawn part of a step."""
    total = len(words(base.text()))
    step = total / m
    wanted = {min(int((i + 0.25 + draw.below(500) / 1000) * step), total - 1) for i in range(m)}
    at = 0
    blocks = []
    for block in base.blocks:
        if block.kind == "pre":
            blocks.append(block)
            continue
        lines = []
        for line in block.lines:
            out = []
            last = 0
            for match in _WORD.finditer(line):
                if at in wanted:
                    out.append(line[last : match.start()])
                    out.append(draw.pick([w for w in _REPLACEMENTS if w != match[0].lower()]))
                    last = match.end()
                at += 1
            lines.append("".join([*out, line[last:]]))
        blocks.append(Block(block.kind, tuple(lines)))
    return Article(base.package, f"{base.key}~", base.title, tuple(blocks))
