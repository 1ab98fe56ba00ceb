"""Fits the blocks engine's weights on one half of a gold folder and scores them on the other: `fit_blocks.py GOLD`.

GOLD holds fulltext.jsonl.gz (and html.jsonl.gz), the WARCs lie in ../warc/pages beside it. Domains are halved by a hash
of the registered domain. Pages without gold of the fitting half's domains are labelled by trafilatura and weigh less.
"""

from __future__ import annotations

import argparse
import difflib
import gzip
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
from boosting import Settings, Trees, fit

from gristmill.curate.charset import decode_html
from gristmill.curate.engines import trafilatura
from gristmill.curate.engines.blocks import RECALL_WEIGHTS
from gristmill.curate.engines.blocks_dom import Page, read_page
from gristmill.curate.engines.blocks_features import WIDTH, measure
from gristmill.curate.engines.blocks_model import UNIT, Forest, best_cut, code_of
from gristmill.curate.engines.blocks_scan import TOKENS

TEACHER_WEIGHT, READABILITY_WEIGHT = 0.3, 0.5
PER_COLLECTION = {"debian-docs": 40, "webstruct": 60}
"""Pages without gold taken of a collection (others: 400): manuals and contact pages would outnumber the rest."""
WEIGHT_TOKENS = 80
"""A block weighs as its tokens, up to so many."""
_WIDE = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]"
_TOKEN = re.compile(rf"{_WIDE}|(?:(?!{_WIDE})\w)+")
_ADDRESS = re.compile(
    r"""<link[^>]*rel=["']?canonical["']?[^>]*href=["']([^"']+)|<meta[^>]*og:url["'][^>]*content=["']([^"']+)"""
)


def tokens(text: str) -> list[str]:
    """Words lower-cased; kana, Han and Hangul a character each."""
    return _TOKEN.findall(text.lower())


def f1(found: Counter[str], gold: Counter[str]) -> tuple[float, float, float]:
    """F1, precision and recall of two bags of tokens."""
    common = sum((found & gold).values())
    if not common:
        return 0.0, 0.0, 0.0
    precision, recall = common / sum(found.values()), common / sum(gold.values())
    return 2 * precision * recall / (precision + recall), precision, recall


@cache
def _suffixes() -> Any:
    import tldextract

    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list that the package brings


@cache
def domain(url: str) -> str:
    """The registered domain of a URL."""
    return _suffixes()(url).top_domain_under_public_suffix or url


def half(url: str) -> int:
    """0: the fitting half, 1: the unseen half."""
    return hashlib.blake2b(b"gold:" + domain(url).encode(), digest_size=8).digest()[0] & 1


@dataclass
class Sample:
    """One page, cut, measured and labelled."""

    url: str
    collection: str
    weight: float
    page: Page
    rows: np.ndarray
    bags: list[list[str]]
    gold: Counter[str]
    matched: np.ndarray
    """Tokens of each block that stand in the gold text, in order."""
    sizes: np.ndarray


def sample(url: str, collection: str, weight: float, html: str, text: str) -> Sample | None:
    """A page labelled by its gold text, or None where it has no block."""
    page = read_page(html)
    count = page.blocks.shape[1]
    if not count:
        return None
    bags = [tokens(page.block(i)) for i in range(count)]
    wanted = tokens(text)
    owner = [i for i, bag in enumerate(bags) for _ in bag]
    matched = np.zeros(count, dtype=np.int64)
    matcher = difflib.SequenceMatcher(None, [word for bag in bags for word in bag], wanted, autojunk=False)
    for at, _, size in matcher.get_matching_blocks():
        np.add.at(matched, owner[at : at + size], 1)
    sizes = np.array([len(bag) for bag in bags])
    return Sample(url, collection, weight, page, measure(page), bags, Counter(wanted), matched, sizes)


def read_pages(folder: Path) -> dict[str, str]:
    """Decoded pages by record id."""
    from fastwarc.warc import ArchiveIterator

    pages: dict[str, str] = {}
    for path in sorted(folder.glob("*.warc.gz")):
        for record in ArchiveIterator(str(path), fsspec_args=False):
            if record.headers.get("WARC-Type") == "response":
                kind = record.http_headers.get("Content-Type") or ""
                pages[record.headers["WARC-Record-ID"]] = decode_html(record.reader.read(), kind)[0]
    return pages


def _lines(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def extra(gold: Path, pages: dict[str, str], seed: int) -> Iterator[Sample]:
    """Pages without gold of the fitting half's domains: readability's own answers, else trafilatura's."""
    known = {row["record_id"] for row in _lines(gold / "fulltext.jsonl.gz")}
    readable = {row["record_id"]: row["html"] for row in _lines(gold / "html.jsonl.gz")}
    rows = _lines(gold.parent / "warc" / "pages-manifest.jsonl.gz")
    random.Random(seed).shuffle(rows)
    taken: Counter[str] = Counter()
    for row in rows:
        collection, html, url = row["collection"], pages[row["record_id"]], row["url"]
        if row["record_id"] in known or taken[collection] >= PER_COLLECTION.get(collection, 400):
            continue
        if "example" in url.split("/")[2] and collection != "debian-docs":
            found = _ADDRESS.search(html)  # its half is not known without an address
            url = (found.group(1) or found.group(2)) if found else ""
        if not url.startswith("http") or half(url):
            continue
        weight = READABILITY_WEIGHT
        if row["record_id"] in readable:
            text = unescape(re.sub(r"<[^>]+>", " ", readable[row["record_id"]]))
        else:
            weight = TEACHER_WEIGHT
            text = trafilatura.extract(html, tables=True, comments=False, favor="balanced", mode="fast") or ""
        made = sample(url, collection, weight, html, text) if len(text) >= 200 else None
        if made is not None and len(made.sizes) <= 3000:
            taken[collection] += 1
            yield made


def fitted(samples: list[Sample], settings: Settings) -> Forest:
    """A forest fitted on samples, each page weighing the same for its size of gold."""
    labels = np.concatenate([np.minimum(1, s.matched / np.maximum(s.sizes, 1)) for s in samples])
    weights = np.concatenate(
        [s.weight * (np.minimum(s.sizes, WEIGHT_TOKENS) + 1) / max(s.gold.total(), 60) for s in samples]
    )
    trees: Trees = fit(np.concatenate([s.rows for s in samples], axis=1), labels, weights / weights.mean(), settings)
    leaves = np.rint(trees.leaves * UNIT).astype(np.int64)
    return Forest(round(trees.start * UNIT), trees.features, trees.cuts.astype(np.int8), leaves)


def scores(forest: Forest, samples: list[Sample], recall_weight: float = 1.0) -> np.ndarray:
    """(samples, 3): F1, precision, recall of what the forest keeps."""
    found = []
    for s in samples:
        codes = code_of(forest.score(s.rows))
        keep = codes >= max(1, best_cut(codes, s.page.blocks[TOKENS], recall_weight))
        found.append(f1(Counter(word for bag, kept in zip(s.bags, keep, strict=True) if kept for word in bag), s.gold))
    return np.array(found)


def show(name: str, samples: list[Sample], found: np.ndarray) -> None:
    """One line of means over all pages, then per collection."""
    groups = {"all": list(range(len(samples)))}
    for i, s in enumerate(samples):
        groups.setdefault(s.collection, []).append(i)
    parts = [f"{key} {found[at].mean(axis=0).round(4).tolist()} n={len(at)}" for key, at in groups.items()]
    print(name, "F1, P, R:", "; ".join(parts), flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--out", type=Path, help="where to write the weights")
    parser.add_argument("--folds", type=int, default=5, help="cross-validation inside the fitting half; 0: none")
    parser.add_argument("--held-out", action="store_true", help="score the unseen half too: look rarely")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    options = parser.parse_args(arguments)
    pages = read_pages(options.gold.parent / "warc" / "pages")
    made = [
        sample(row["url"], row["collection"], 1.0, pages[row["record_id"]], row["text"])
        for row in _lines(options.gold / "fulltext.jsonl.gz")
        if options.held_out or not half(row["url"])
    ]
    gold = [s for s in made if s is not None]
    fitting, unseen = [s for s in gold if not half(s.url)], [s for s in gold if half(s.url)]
    others = list(extra(options.gold, pages, options.seed))
    print(f"{len(fitting)} gold pages to fit on, {len(others)} others, {len(unseen)} unseen", flush=True)
    settings = Settings(rounds=options.rounds, seed=options.seed)
    forest = fitted(fitting + others, settings)
    if options.out:
        weights = {"width": WIDTH, "start": forest.start, "features": forest.features.tolist()}
        weights |= {"cuts": forest.cuts.tolist(), "leaves": forest.leaves.tolist()}
        options.out.write_text(json.dumps(weights, separators=(",", ":")) + "\n", encoding="utf-8")
    show("fitting half, as fitted", fitting, scores(forest, fitting))
    if options.held_out:
        for favor, recall_weight in RECALL_WEIGHTS.items():
            show(f"unseen half, {favor}", unseen, scores(forest, unseen, recall_weight))
    fold = {
        s.url: hashlib.blake2b(b"fold:" + domain(s.url).encode()).digest()[0] % max(options.folds, 1)
        for s in gold + others
    }
    parts: list[tuple[list[Sample], np.ndarray]] = []
    for k in range(options.folds):
        away = [s for s in fitting if fold[s.url] == k]
        parts.append((away, scores(fitted([s for s in fitting + others if fold[s.url] != k], settings), away)))
        print(f"fold {k}: {parts[-1][1].mean(axis=0).round(4).tolist()}", flush=True)
    if parts:
        show(
            "fitting half, cross-validated",
            [s for away, _ in parts for s in away],
            np.concatenate([p for _, p in parts]),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
