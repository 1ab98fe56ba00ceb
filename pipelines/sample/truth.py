"""The truth file: what the sample holds, page by page, and what a curation run must find in it."""

from __future__ import annotations

import dataclasses
import platform
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from gristmill.core.errors import FormatError, InputError
from gristmill.core.hashing import sha256_file

VERSION = 1
"""Raised whenever the generator's bytes change; an older sample is then incomplete."""
TRUTH_NAME = "truth.json"
LABELS_NAME = "quality-labels.jsonl"

Expect = Literal["keep", "drop", "one_of_group", "either", "skip", "quarantine"]
"""keep: passes FineWeb's rules (at least 85 % of these do). drop: some rule or list drops it. one_of_group: exactly one
page of the group stays. either: both outcomes are right (similarity between the thresholds, advertising). skip: no HTML
page, the reason is exact. quarantine: the damaged tail."""


@dataclass(frozen=True, slots=True)
class PlantedPage:
    """One URL and its record. `offset` and `length` are compressed bytes of the response's (or revisit's) gzip member."""

    url: str
    file: str
    offset: int
    length: int
    kind: str
    expect: Expect
    reason: str | None
    """Why it is dropped, in the ledger's words where they are certain (`http.status_3xx`), else the rule's family."""
    status: int
    template: str | None
    language: str | None
    charset: str | None
    declared: str | None
    """Where the charset is declared: `header`, `meta` or both."""
    encoding: str | None
    """Content-Encoding and/or Transfer-Encoding of the stored body."""
    group: str | None
    jaccard: float | None
    """Exact similarity of the words' 5-grams (`\\\\w+`, lower case) to the group's base, on the main text; 1 for exact copies."""
    emails: int
    words: int
    chars: int
    """Words and characters of the main text without title and code."""


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A file of the sample with its size in bytes and sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Truth:
    """All of `truth.json`."""

    parameters: dict[str, Any]
    """seed, pages (null = default), files, version, python."""
    sources: dict[str, str]
    """Installed versions of the packages whose docstrings are in the text."""
    files: tuple[SampleFile, ...]
    records: dict[str, dict[str, int]]
    """File → WARC-Type → readable records; a damaged tail counts in none."""
    pages: tuple[PlantedPage, ...]
    expected: dict[str, Any] = field(default_factory=dict)
    """Sums: see `expected_of`."""

    def kinds(self) -> dict[str, int]:
        """Pages by kind."""
        return dict(sorted(Counter(p.kind for p in self.pages).items()))

    def of_kind(self, *kinds: str) -> list[PlantedPage]:
        return [p for p in self.pages if p.kind in kinds]

    def groups(self) -> dict[str, list[PlantedPage]]:
        """Copy groups: each group's base first."""
        out: dict[str, list[PlantedPage]] = {}
        for page in self.pages:
            if page.group is not None:
                out.setdefault(page.group, []).append(page)
        for members in out.values():
            members.sort(key=lambda p: (p.jaccard is not None, p.url))
        return dict(sorted(out.items()))

    def summary(self) -> str:
        """A few lines for the terminal."""
        e = self.expected
        size = sum(f.bytes for f in self.files)
        warcs = [f for f in self.files if f.name.endswith(".gz")]
        near = ", ".join(f"{v['copies']} at {k}" for k, v in e["near"].items())
        languages = ", ".join(f"{k} {v}" for k, v in e["languages"].items() if k != "en")
        return "\n".join(
            [
                f"{len(self.pages):,} pages in {len(warcs)} WARC files, {size / 1e6:.1f} MB; {e['rows']:,} records",
                f"  to keep: {e['keep']:,} pages of English reference prose, {e['planted_chars'] / 1e6:.1f} M characters; {languages}",
                f"  copies: {e['exact']['copies']} exact; near: {near}",
                f"  to drop: {e['skip']} without a page, {e['drop']} by rules and lists; 1 damaged record",
                f"  labelled texts for the quality model: {e['labels']['hq']} hq, {e['labels']['lq']} lq",
            ]
        )

    def to_json(self) -> bytes:
        return orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_INDENT_2) + b"\n"


def parameters_of(seed: int, pages: int | None, files: int) -> dict[str, Any]:
    """What decides the bytes, beside the sources' versions."""
    return {"seed": seed, "pages": pages, "files": files, "version": VERSION, "python": platform.python_version()}


def expected_of(
    pages: tuple[PlantedPage, ...], records: dict[str, dict[str, int]], labels: dict[str, int]
) -> dict[str, Any]:
    """Sums over the pages.

    rows: WARC records of any type, the damaged one included. ledger: drops of the first stage by reason, exact.
    url_blocked: pages on listed domains. near: by level, the groups, copies and range of their similarities.
    min_surviving_chars: a floor for the characters of curated English text: 70 % of what is planted to stay, where
    85 % of the pages and more than 95 % of a page's characters are known to survive.
    """
    expects = Counter(p.expect for p in pages)
    by_type: Counter[str] = Counter()
    for types in records.values():
        by_type.update(types)
    ledger = Counter(p.reason for p in pages if p.expect == "skip" and p.reason is not None)
    ledger.update({f"record.{t}": n for t, n in by_type.items() if t not in ("response", "revisit")})
    near: dict[str, dict[str, Any]] = {}
    for page in pages:
        if page.kind == "near_copy" and page.group is not None and page.jaccard is not None:
            level = near.setdefault(page.group.split("-")[1], {"copies": 0, "min": 1.0, "max": 0.0})
            level["copies"] += 1
            level["min"], level["max"] = min(level["min"], page.jaccard), max(level["max"], page.jaccard)
    stays = [p for p in pages if p.language == "en" and (p.expect == "keep" or p.kind in ("exact_base", "near_base"))]
    planted = sum(p.chars for p in stays)
    return {
        "rows": sum(by_type.values()) + expects["quarantine"],
        "quarantined": expects["quarantine"],
        "records": dict(sorted(by_type.items())),
        "ledger": dict(sorted(ledger.items())),
        "html": sum(p.expect not in ("skip", "quarantine") for p in pages),
        "url_blocked": sum(p.kind == "url_blocked" for p in pages),
        "keep": len(stays),
        "drop": expects["drop"],
        "skip": expects["skip"],
        "exact": {
            "groups": sum(p.kind == "exact_base" for p in pages),
            "copies": sum(p.kind == "exact_copy" for p in pages),
        },
        "near": dict(sorted(near.items(), reverse=True)),
        "languages": dict(
            sorted(
                Counter(
                    p.language for p in pages if p.language and p.expect in ("keep", "either", "one_of_group")
                ).items()
            )
        ),
        "emails": sum(p.emails for p in pages),
        "planted_chars": planted,
        "min_surviving_chars": planted * 7 // 10,
        "labels": labels,
    }


def read_truth(path: Path | str) -> Truth:
    """The truth file at `path` (or in the sample folder `path`). Raises InputError or FormatError."""
    path = Path(path)
    file = path / TRUTH_NAME if path.is_dir() else path
    try:
        raw = orjson.loads(file.read_bytes())
        return Truth(
            parameters=raw["parameters"],
            sources=raw["sources"],
            files=tuple(SampleFile(**f) for f in raw["files"]),
            records=raw["records"],
            pages=tuple(PlantedPage(**p) for p in raw["pages"]),
            expected=raw["expected"],
        )
    except OSError as error:
        raise InputError(
            f"cannot read {file}: {error.strerror}", hint="write it with `gristmill sample OUT`"
        ) from error
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise FormatError(f"{file} is no truth file: {error}", hint="write the sample again") from error


def is_complete(out: Path | str, seed: int = 0, pages: int | None = None, files: int = 4) -> bool:
    """Whether `out` holds this very sample, by its truth file: parameters, Python version, sizes and digests of all files."""
    out = Path(out)
    try:
        truth = read_truth(out)
        if truth.parameters != parameters_of(seed, pages, files):
            return False
        return all(
            (out / f.name).stat().st_size == f.bytes and sha256_file(out / f.name) == f.sha256 for f in truth.files
        )
    except (OSError, InputError, FormatError):
        return False
