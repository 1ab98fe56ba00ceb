"""Reference prose as blocks: reST-like docstrings and help topics are cleaned into headings, paragraphs, lists and code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["h", "p", "ul", "dl", "table", "pre"]


@dataclass(frozen=True, slots=True)
class Block:
    """One block of main text. `lines` are its headings, paragraphs, list items, `term<TAB>text` rows or code lines."""

    kind: Kind
    lines: tuple[str, ...]

    def texts(self) -> Iterator[str]:
        """The block's running text, one string per rendered line (code is no running text)."""
        if self.kind != "pre":
            for line in self.lines:
                yield line.replace("\t", " ")


_UNDERLINE = re.compile(r"^([=\-~^\"'#`*+.])\1{2,}\s*$")
_BULLET = re.compile(r"^([*+\-•]|\d{1,2}[.)]|\(?[a-z][.)])\s+\S")
_GRID = re.compile(r"^\s*\+[-=+]{3,}\+?\s*$")
_SIMPLE_TABLE = re.compile(r"^\s*={2,}(\s+={2,})+\s*$")
_FIELD = re.compile(r"^:[a-zA-Z][\w ]*:")
_SECTION = re.compile(
    r"^(args|arguments|parameters|params|returns?|raises|yields|attributes|examples?|notes?|warns|warnings?|usage|tips?"
    r"|keyword args|keyword arguments|other parameters|see also|references|methods|fields)\s*:{1,2}\s*$",
    re.IGNORECASE,
)
_NAMED = {
    "parameters", "params", "args", "arguments", "keyword args", "keyword arguments", "returns", "return", "yields",
    "raises", "attributes", "other parameters", "methods", "fields", "warns",
}  # fmt: skip
_DROPPED = {"see also", "references"}
_INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?::[\w.+-]+)+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`"), r"\1"),  # :func:`~mod.name`
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`~?([^`<]+?)(?:\s*<[^`>]*>)?`_{0,2}"), r"\1"),
    (re.compile(r"\[([^\]\n]+)\]\([^)\s]+\)"), r"\1"),  # markdown link
    (re.compile(r"\*\*([^*\n]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s](?:[^*\n]*[^*\s])?)\*(?![\w*])"), r"\1"),
    (re.compile(r"\s*\[[#*]?\w{1,20}\]_"), ""),  # footnote reference
    (re.compile(r"\b([A-Za-z][\w.]*)_(?=[\s.,;:)]|$)"), r"\1"),  # named link
    (re.compile(r"\\ "), ""),
    (re.compile(r"\s+"), " "),
)


def clean_inline(text: str) -> str:
    """One line of plain text: roles, literals, emphasis and footnote marks removed, white space single."""
    for pattern, to in _INLINE:
        text = pattern.sub(to, text)
    text = text.strip()
    return text[:-1] if text.endswith("::") else text


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


class _Parser:
    """Consumes the lines of one text; nested indented runs are parsed by a fresh parser."""

    def __init__(self, lines: list[str], section: str = "", depth: int = 0) -> None:
        self.lines, self.section, self.depth = lines, section, depth
        self.at = 0
        self.out: list[Block] = []

    def run(self) -> list[Block]:
        stuck_at = -1
        while self.at < len(self.lines):
            line = self.lines[self.at]
            text = line.strip()
            if not text or self.at == stuck_at:  # a line that no branch takes, such as a lone "..."
                self.at += 1
                continue
            stuck_at = self.at
            if self._is_heading():
                self.section = text.rstrip(":").lower()
                self._add("h", clean_inline(text))
                self.at += 2
            elif _SECTION.match(text):
                self._section(text, line)
            elif text.startswith("..") and (len(text) == 2 or text[2] == " "):
                self._directive(text, _indent(line))
            elif text.startswith(">>>") or text.startswith("```"):
                self._code()
            elif _GRID.match(line):
                self._grid()
            elif _SIMPLE_TABLE.match(line):
                self._skip_simple_table()
            elif _UNDERLINE.match(text) or _FIELD.match(text) or text.startswith("|"):
                self._take_indented(_indent(line))
            elif _indent(line) > 0:
                self._quote()
            elif _BULLET.match(text):
                self._bullets()
            elif self.section in _NAMED:
                self._named()
            else:
                self._paragraph()
        return self.out

    def _add(self, kind: Kind, *lines: str) -> None:
        lines = tuple(x for x in lines if x.strip())
        if lines and self.section not in _DROPPED:
            self.out.append(Block(kind, lines))

    def _is_heading(self) -> bool:
        if self.at + 1 >= len(self.lines):
            return False
        text, under = self.lines[self.at].strip(), self.lines[self.at + 1].strip()
        return bool(_UNDERLINE.match(under)) and len(text) <= 90 and len(under) >= min(len(text), 4) - 1

    def _take_indented(self, base: int) -> list[str]:
        """This line's followers that are blank or deeper than `base`; the position moves behind them."""
        self.at += 1
        taken = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.strip() and _indent(line) <= base:
                break
            taken.append(line)
            self.at += 1
        return _dedent(taken)

    def _nested(self, lines: list[str], section: str = "") -> None:
        if lines and self.depth < 6 and self.section not in _DROPPED:
            self.out.extend(_Parser(lines, section, self.depth + 1).run())

    def _section(self, text: str, line: str) -> None:
        name = text.rstrip(": ").lower()
        if name not in _DROPPED:
            self._add("h", text.rstrip(": "))
        inner = self._take_indented(_indent(line))
        if name not in _DROPPED:
            self._nested(inner, name)

    def _directive(self, text: str, indent: int) -> None:
        name = text[2:].strip().split("::")[0]
        first = text.split("::", 1)[1].strip() if "::" in text else ""
        body = self._take_indented(indent)
        if name in ("note", "warning", "tip", "important", "seealso", "rubric"):
            self._nested([first, "", *body] if first else body)
        elif name in ("code-block", "code", "sourcecode", "doctest"):
            self._add("pre", *[x for x in body if not x.startswith(":")])

    def _code(self) -> None:
        taken = []
        fence = self.lines[self.at].strip().startswith("```")
        if fence:
            self.at += 1
        while self.at < len(self.lines):
            text = self.lines[self.at].strip()
            if (fence and text.startswith("```")) or (not fence and not text):
                self.at += 1
                break
            taken.append(self.lines[self.at])
            self.at += 1
        self._add("pre", *_dedent(taken))

    def _grid(self) -> None:
        rows: list[list[str]] = []
        fresh = True
        while self.at < len(self.lines) and self.lines[self.at].strip().startswith(("+", "|")):
            line = self.lines[self.at].strip()
            self.at += 1
            if line.startswith("+"):
                fresh = True
                continue
            cells = [c.strip() for c in line.strip("|").split("|")]
            if fresh or not rows or len(cells) != len(rows[-1]):
                rows.append(cells)
            else:
                rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)]
            fresh = False
        self._add("table", *["\t".join(clean_inline(c) for c in r) for r in rows])

    def _skip_simple_table(self) -> None:
        self.at += 1
        while self.at < len(self.lines) and self.lines[self.at].strip():
            self.at += 1

    def _quote(self) -> None:
        """An indented run: code after a colon, else a definition's body."""
        self.at -= 1
        before = self.out[-1] if self.out else None
        body = self._take_indented(0)
        if not _prose_like(body) and not _BULLET.match(body[0]):
            self._add("pre", *body)
            return
        if before is not None and before.kind == "p" and not before.lines[-1].endswith((".", ":", "!", "?", ";")):
            self.out[-1] = Block("h", before.lines)  # a signature over its description
        self._nested(body)

    def _bullets(self) -> None:
        items: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not line.strip():
                self.at += 1
                continue
            if _indent(line) > 0 or not _BULLET.match(line.strip()):
                break
            first = re.sub(r"^\S+\s+", "", line.strip())
            rest = [x.strip() for x in self._take_indented(0)]
            item = clean_inline(" ".join([first, *rest]))
            items.append("" if ">>>" in item else item)
            # a continuation flush with the bullet's text was indented, so anything else ends the list
        self._add("ul", *items)

    def _named(self) -> None:
        items: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            text = line.strip()
            if not text:
                self.at += 1
                continue
            if _indent(line) > 0 or self._is_heading() or text.startswith("..") or text.startswith(">>>"):
                break
            if _SECTION.match(text):
                break
            rest = " ".join(x.strip() for x in self._take_indented(0)).split(">>>")[0]
            if not rest:
                head, _, tail = text.partition(": ")
                if not tail or len(head) > 60:
                    items.append(clean_inline(text))
                    continue
                text, rest = head, tail
            elif ": " in text and " : " not in text:
                head, _, tail = text.partition(": ")
                text, rest = head, f"{tail} {rest}"
            items.append(f"{clean_inline(text)}\t{clean_inline(rest)}")
        if all("\t" not in x for x in items):
            self._add("p", " ".join(items))
        else:
            self._add("dl", *items)

    def _paragraph(self) -> None:
        taken: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            text = line.strip()
            if not text or text.startswith(">>>") or (taken and (_indent(line) > 0 or _BULLET.match(text))):
                break
            if taken and self._is_heading():
                break
            taken.append(text)
            self.at += 1
        self._add("p", clean_inline(" ".join(taken)))


def _dedent(lines: list[str]) -> list[str]:
    margin = min((_indent(x) for x in lines if x.strip()), default=0)
    out = [x[margin:].rstrip() for x in lines]
    while out and not out[0]:
        out.pop(0)
    while out and not out[-1]:
        out.pop()
    return out


def _prose_like(lines: list[str]) -> bool:
    """At least half of the first paragraph's lines are words: five or more, 70 % of them alphabetic, no code marks."""
    first = lines[: lines.index("")] if "" in lines else lines
    good = 0
    for line in first:
        words = line.split()
        alphabetic = sum(w.strip(".,;:()\"'").replace("-", "").isalpha() for w in words)
        good += len(words) >= 5 and alphabetic >= 0.7 * len(words)
    return good * 2 >= len(first) and not first[0].endswith(":")


def parse(text: str) -> list[Block]:
    """Blocks of a docstring whose margin is already removed (`inspect.cleandoc`) or of a help topic."""
    return _Parser([x.rstrip() for x in text.expandtabs(4).splitlines()]).run()
