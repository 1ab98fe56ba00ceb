"""Articles: cleaned reference texts of 100 to 1,300 words that read as prose, each unlike every other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gristmill.core.hashing import hash64
from gristmill.pipelines.sample.blocks import Block, parse
from gristmill.pipelines.sample.sources import Raw, docstrings, topics

MIN_WORDS = 100
PART_WORDS = 950
"""A longer text is cut into parts of about this many words, at headings where it has them."""
_MAX_CODE_BLOCKS, _MAX_CODE_LINES = 2, 8
_BANNED = re.compile(
    r"[{}]|javascript|lorem ipsum|terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies|"
    r"@\w+\.\w|\bTODO\b|\bXXX\b|\\[a-z]+",
    re.IGNORECASE,
)
"""C4 drops pages with a brace and lines with these phrases; addresses and TeX are planted or left out on purpose."""
_TOKEN = re.compile(r"\w[\w.']*(?<![.'])|[^\w\s]")
_LETTER = re.compile(r"[^\W\d_]")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
_STOP = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_QUOTED_LITERAL = re.compile(r"[‘']?\"([^\"\n]{1,40})\"[’']?")
"""How help topics show a literal: in quotes that the reference itself renders as a code font."""
_FUNCTION_WORDS = frozenset(
    [
        "the",
        "be",
        "to",
        "of",
        "and",
        "a",
        "in",
        "that",
        "is",
        "for",
        "it",
        "as",
        "with",
        "on",
        "by",
        "this",
        "not",
        "are",
        "or",
        "from",
        "at",
        "an",
        "if",
        "can",
        "will",
        "which",
        "when",
        "has",
        "have",
        "was",
        "used",
        "you",
        "all",
        "one",
        "each",
        "no",
        "but",
        "any",
        "other",
        "only",
        "more",
        "its",
        "may",
        "also",
        "must",
        "than",
        "then",
        "so",
        "do",
        "does",
        "should",
        "these",
        "there",
        "their",
        "both",
        "into",
        "such",
        "same",
        "between",
    ]
)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Article:
    """A page's worth of main text: a key such as `numpy.linalg.svd`, a title and its blocks."""

    package: str
    key: str
    title: str
    blocks: tuple[Block, ...]

    def text(self) -> str:
        """The running text, one block line per line, without the title and code."""
        return "\n".join(line for b in self.blocks for line in b.texts())


def words(text: str) -> list[str]:
    """Lower-cased `\\w+` words, the tokens of the sample's Jaccard figures."""
    return _WORD.findall(text.lower())


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    """Distinct word n-grams of `words(text)`."""
    w = words(text)
    return {tuple(w[i : i + n]) for i in range(len(w) - n + 1)}


def jaccard(a: str, b: str) -> float:
    """Exact Jaccard similarity of the word 5-grams of two texts."""
    x, y = shingles(a), shingles(b)
    return len(x & y) / len(x | y) if x or y else 1.0


def articles(*, seed: int, count: int) -> list[Article]:
    """`count` articles in an order drawn by hash of (seed, key); fewer when the machine's sources hold no more.

    Reading stops once there are 1.15 times as many candidates as asked for, so that small samples are quick. No
    package gives more than a quarter of them while others still have text.
    """
    found: list[Article] = []
    distinct = _Distinct()
    for candidate in _candidates():
        if article := distinct.refine(candidate):
            found.append(article)
            if len(found) >= 1.15 * count + 20:
                break
    found.sort(key=lambda a: hash64(a.key, seed))
    chosen: list[Article] = []
    rest: list[Article] = []
    held: Counter[str] = Counter()
    for article in found:
        if held[article.package] < max(8, count // 4):
            held[article.package] += 1
            chosen.append(article)
        else:
            rest.append(article)
    return [*chosen, *rest][:count]


def _candidates() -> Iterator[Article]:
    for raw in topics():
        text = _QUOTED_LITERAL.sub(r"\1", raw.text)
        yield from _parts(raw.package, f"python.{raw.name}", raw.name, list(_clean(parse(text))))
    short: list[tuple[str, list[Block]]] = []
    module = ""
    for raw in docstrings():
        n = len(raw.text.split())
        if n < 30:
            continue
        if _module_of(raw) != module:
            yield from _digest(module, short)
            module, short = _module_of(raw), []
        blocks = list(_clean(parse(raw.text)))
        if sum(_words_in(b) for b in blocks) >= MIN_WORDS:
            yield from _parts(raw.package, raw.name, raw.name, blocks)
        else:
            short.append((raw.name, blocks))
    yield from _digest(module, short)


def _module_of(raw: Raw) -> str:
    """The first two parts of a dotted name: the unit whose shorter docstrings share pages."""
    return ".".join(raw.name.split(".")[:2])


def _digest(module: str, short: list[tuple[str, list[Block]]]) -> Iterator[Article]:
    """One text from a module's shorter docstrings, each under its name."""
    blocks: list[Block] = []
    for name, inner in short:
        body = [b for b in inner if b.kind in ("p", "ul", "dl")]
        if sum(_words_in(b) for b in body) >= 20:
            blocks.append(Block("h", (name.removeprefix(module).lstrip(".") or name,)))
            blocks.extend(body)
    yield from _parts(module.split(".")[0], f"{module}.digest", f"Notes on {module}", blocks)


def _words_in(block: Block) -> int:
    return sum(len(x.split()) for x in block.texts())


def _clean(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks without banned phrases, symbol soup, over-long code and lines that the text already has."""
    code = 0
    seen: set[str] = set()
    for block in blocks:
        if block.kind == "pre":
            code += 1
            if (
                code <= _MAX_CODE_BLOCKS
                and len(block.lines) <= _MAX_CODE_LINES
                and not _BANNED.search("\n".join(block.lines))
            ):
                yield block
            continue
        lines = []
        for line in block.lines:
            if line not in seen and not _BANNED.search(line) and (block.kind == "h" or _alphabetic(line) >= 0.74):
                seen.add(line)
                lines.append(line)
        if lines:
            yield Block(block.kind, tuple(lines))


def alphabetic(article: Article) -> float:
    """Share of tokens that hold a letter in the text as extraction gives it: a dash before each list item, code kept."""
    lines = [f"- {x}" if b.kind in ("ul", "dl") else x for b in article.blocks for x in b.lines]
    return _alphabetic("\n".join(lines))


def function_words(article: Article) -> float:
    """Share of words that are common English function words: low in lists of names and figures."""
    w = words(article.text())
    return sum(x in _FUNCTION_WORDS for x in w) / max(len(w), 1)


def _alphabetic(text: str) -> float:
    """Share of tokens (words, with their dots, and single marks: a little finer than spaCy cuts) that hold a letter."""
    tokens = _TOKEN.findall(text)
    return sum(_LETTER.search(t) is not None for t in tokens) / max(len(tokens), 1)


def _parts(package: str, key: str, name: str, blocks: list[Block]) -> Iterator[Article]:
    parts: list[list[Block]] = [[]]
    held = 0
    for block in blocks:
        if held >= PART_WORDS or (held >= PART_WORDS * 0.6 and block.kind == "h"):
            parts.append([])
            held = 0
        parts[-1].append(block)
        held += _words_in(block)
    for i, part in enumerate(parts):
        yield Article(package, key if i == 0 else f"{key}.{i + 1}", name, tuple(part))


def _title(name: str, blocks: list[Block]) -> tuple[str, list[Block]]:
    """A title from a leading heading of several words or a short summary sentence; else the name."""
    first = blocks[0] if blocks else Block("p", ("",))
    n = len(first.lines[0].split())
    if first.kind == "h" and 2 <= n <= 12:
        return first.lines[0], blocks[1:]
    if first.kind == "p" and 3 <= n <= 12 and first.lines[0].endswith("."):
        return first.lines[0].rstrip("."), blocks
    return name, blocks


class _Distinct:
    """Takes out lines that earlier articles hold, then keeps the article if what is left reads as prose."""

    def __init__(self) -> None:
        self.lines: set[int] = set()

    def refine(self, article: Article) -> Article | None:
        title, blocks = _title(article.title, list(article.blocks))
        kept: list[Block] = []
        fresh: set[int] = set()
        here = {title}
        for block in blocks:
            if block.kind == "pre":
                if not here.intersection(block.lines):
                    kept.append(block)
                    here.update(block.lines)
                continue
            lines = []
            for line in block.lines:
                mark = hash64(line)
                if line in here or (len(line) > 40 and mark in self.lines):
                    continue
                here.add(line)
                if len(line) > 40:
                    fresh.add(mark)
                lines.append(line)
            if lines:
                kept.append(Block(block.kind, tuple(lines)))
        for kinds in (("h", "p", "ul", "dl", "table", "pre"), ("h", "p", "ul", "dl"), ("h", "p")):
            blocks = [b for b in kept if b.kind in kinds]
            out = Article(article.package, article.key, title, tuple(_without_bare_headings(blocks)))
            if reads_as_prose(out):
                self.lines |= fresh
                return out
        return None


def _without_bare_headings(blocks: list[Block]) -> Iterator[Block]:
    for i, block in enumerate(blocks):
        if block.kind != "h" or (i + 1 < len(blocks) and blocks[i + 1].kind != "h"):
            yield block


def reads_as_prose(article: Article) -> bool:
    """Cheap stand-ins for Gopher's, C4's and FineWeb's rules, stricter than they are (extraction adds and loses lines)."""
    lines = [line for b in article.blocks for line in b.texts()]
    text = "\n".join(lines)
    w = words(text)
    if not MIN_WORDS <= len(w) <= 1_300 or len(_SENTENCE_END.findall(text)) < 7:
        return False
    code_lines = [line for b in article.blocks if b.kind == "pre" for line in b.lines]
    n_lines = len(lines) + len(code_lines)
    if sum(len(x) <= 32 for x in [*lines, *code_lines]) > 0.45 * n_lines or n_lines > 0.16 * len(w):
        return False
    if sum(x.endswith((".", "!", "?", ":")) for x in lines) < 0.35 * n_lines:
        return False
    if alphabetic(article) < 0.81 or not 3.4 <= sum(map(len, w)) / len(w) <= 7.5:
        return False
    return len(_STOP.intersection(w)) >= 4 and not _repetitive(text, w)


def _repetitive(text: str, w: list[str]) -> bool:
    """Gopher's repetition, measured at n = 2 and 4 (most frequent) and 5 and 8 (repeated), at four fifths of its limits."""
    n_chars = max(len(text), 1)
    for n, limit in ((2, 0.16), (4, 0.13)):
        grams = Counter(" ".join(w[i : i + n]) for i in range(len(w) - n + 1))
        top, times = max(grams.items(), key=lambda kv: (kv[1] * len(kv[0]), kv[0]), default=("", 0))
        if times > 1 and times * len(top) > limit * n_chars:
            return True
    for n, limit in ((5, 0.12), (8, 0.09)):
        seen: set[str] = set()
        repeated = i = 0
        while i < len(w) - n + 1:
            gram = "".join(w[i : i + n])
            if gram in seen:
                repeated += len(gram)
                i += n
            else:
                seen.add(gram)
                i += 1
        if repeated > limit * n_chars:
            return True
    return False
