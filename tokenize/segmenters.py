"""Word segmenters by name for scripts that runs cannot tell apart, from optional packages of the extra `segmenters`.

Only the packages of PACKAGES are ever imported, and only when a language asks for them. Which one measured a language,
and its version, stands in every report: figures of different segmenters are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from gristmill.core.errors import UsageError
from gristmill.tokenize.segment import SEGMENTER, runs

Spans = tuple[np.ndarray, np.ndarray, int]
"""(words,) starts, (words,) ends, in characters and text order; characters left out because runs cannot tell them."""

PACKAGES = {
    "jieba": ("jieba", ("zh", "zho", "cmn", "lzh", "yue", "wuu", "gan", "hak")),
    "fugashi": ("fugashi", ("ja", "jpn")),
    "pythainlp": ("pythainlp", ("th", "tha")),
    "kiwi": ("kiwipiepy", ("ko", "kor")),
    "laonlp": ("laonlp", ("lo", "lao")),
}
"""Name -> (distribution, the language codes it is used for). Khmer, Burmese and Tibetan have none: khmer-nltk's model
is a pickle, PyICU has no wheel. They stay n/a, with characters per token and premium beside."""


@dataclass(frozen=True)
class Segmenter:
    """`label` names the segmenter and its version; `split` gives the words of a text. `unspaced`: whether it tells the
    words of scripts without spaces."""

    label: str
    split: Callable[[str], Spans]
    unspaced: bool


RUNS = Segmenter(SEGMENTER, runs, False)


def primary(language: str) -> str:
    """The language code without script or region: zh-Hant, zh_CN -> zh."""
    return language.replace("_", "-").split("-")[0].lower()


def choose(requests: Sequence[str] = ()) -> Callable[[str], Segmenter]:
    """Which segmenter measures a language, from `auto` (the default), `runs`, or LANGUAGE=NAME, as a command line has
    them. `auto` takes the package of PACKAGES where it is installed. Raises UsageError on an unknown name, or a
    package asked for that is not installed."""
    fixed: dict[str, str] = {}
    base = "auto"
    for request in requests:
        language, equals, name = request.partition("=")
        if not equals:
            base = language
        else:
            fixed[primary(language)] = name
    for name in [base, *fixed.values()]:
        if name not in ("auto", "runs", *PACKAGES):
            raise UsageError(f"no segmenter named {name!r}", hint=f"auto, runs, {', '.join(PACKAGES)}")
    if base in PACKAGES:
        raise UsageError(f"{base} is for one language", hint=f"write {PACKAGES[base][1][0]}={base}")

    def find(language: str) -> Segmenter:
        code = primary(language)
        name = fixed.get(code, base)
        if name == "auto":
            return next((_open(n) for n, (d, codes) in PACKAGES.items() if code in codes and _installed(d)), RUNS)
        if name == "runs":
            return RUNS
        if not _installed(PACKAGES[name][0]):
            raise UsageError(f"{PACKAGES[name][0]} is not installed", hint="pip install 'gristmill[segmenters]'")
        return _open(name)

    return cache(find)


def table(segmenters: Mapping[str, Segmenter]) -> dict[str, str]:
    """language -> label, sorted, for a report."""
    return {language: segmenters[language].label for language in sorted(segmenters)}


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


@cache
def _open(name: str) -> Segmenter:
    package = PACKAGES[name][0]
    built: Callable[[], Callable[[str], Iterable[tuple[int, int]]]] = {
        "jieba": _jieba,
        "fugashi": _fugashi,
        "pythainlp": _pythainlp,
        "kiwi": _kiwi,
        "laonlp": _laonlp,
    }[name]
    try:
        spans = built()
    except Exception as error:  # a package without its dictionary, in as many ways as there are packages
        raise UsageError(f"{package} does not load: {error}", hint="pip install 'gristmill[segmenters]'") from error
    dictionary = f"+unidic-lite-{version('unidic-lite')}" if name == "fugashi" and _installed("unidic-lite") else ""

    def split(text: str) -> Spans:
        words = [(a, b) for a, b in spans(text) if any(c.isalnum() for c in text[a:b])]
        found = np.asarray(words, np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1], 0

    return Segmenter(f"{name}-{version(package)}{dictionary}", split, True)


def placed(text: str, words: Iterable[str]) -> list[tuple[int, int]]:
    """Where words given in text order stand; one that is not found (a segmenter that normalises) is left out."""
    spans, at = [], 0
    for word in words:
        start = text.find(word, at) if word else -1
        if start >= 0:
            at = start + len(word)
            spans.append((start, at))
    return spans


def _jieba() -> Callable[[str], Iterable[tuple[int, int]]]:
    import logging
    import tempfile

    import jieba

    jieba.setLogLevel(logging.WARNING)
    cutter: Any = jieba.Tokenizer()
    # Its cache is a marshalled file under a fixed name in /tmp, which anyone may have written: a folder of our own.
    with tempfile.TemporaryDirectory() as folder:
        cutter.tmp_dir = folder
        cutter.initialize()
    return lambda text: [(a, b) for _, a, b in cutter.tokenize(text)]


def _fugashi() -> Callable[[str], Iterable[tuple[int, int]]]:
    import fugashi

    tagger: Any = fugashi.Tagger()
    return lambda text: placed(text, (word.surface for word in tagger(text)))


def _pythainlp() -> Callable[[str], Iterable[tuple[int, int]]]:
    from pythainlp.tokenize import word_tokenize

    return lambda text: placed(text, word_tokenize(text, engine="newmm-safe", keep_whitespace=True))


def _kiwi() -> Callable[[str], Iterable[tuple[int, int]]]:
    import kiwipiepy

    analyser: Any = kiwipiepy.Kiwi(num_workers=1)

    def spans(text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for token in analyser.tokenize(text):
            start, end = token.start, token.start + token.len
            if found and start < found[-1][1]:  # contracted morphemes share a syllable: one word of the two
                found[-1] = (found[-1][0], max(end, found[-1][1]))
            elif end > start:
                found.append((start, end))
        return found

    return spans


def _laonlp() -> Callable[[str], Iterable[tuple[int, int]]]:
    from laonlp.tokenize import word_tokenize

    return lambda text: placed(text, word_tokenize(text))
