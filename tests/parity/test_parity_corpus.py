"""The embedded corpus through both: filters alone and chained, text after C4, languages; not one may differ."""

from __future__ import annotations

import random
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from parity.ask import FILTERS, ask, compare, meanwhile, verdicts
from parity.corpus import WORDS, Text, documents
from parity.exceptions import explained
from parity.languages import (
    NO_WORDS,
    OTHER_WORDS,
    URL_REASONS,
    address_differences,
    assigned,
    identified,
    own_tokenizer,
    same_words,
)

from gristmill.curate.rules import RULES
from gristmill.curate.schema_language import LID_LABELS
from gristmill.curate.tokenizers import tokenizer_of
from gristmill.curate.urls import asset


@pytest.fixture(scope="module")
def corpus() -> list[Text]:
    return documents()


def test_the_corpus_is_the_same_everywhere(corpus: list[Text]) -> None:
    assert len(corpus) >= 2_000
    assert {text.language for text in corpus} == set(WORDS)
    assert len({text.id for text in corpus}) == len(corpus)
    assert corpus == documents()


def test_english_defaults(corpus: list[Text], peer: Path) -> None:
    """Every text, whatever its language, as the published English filters treat it."""
    texts = [text.text for text in corpus]
    ids = [text.id for text in corpus]
    questions = [{"do": "filters", "text": text} for text in texts]
    answers, ours = meanwhile(lambda: ask(peer, questions), lambda: verdicts(texts, ["en"] * len(texts)))
    assert explained("embedded", ["english"], compare("english", ids, texts, ours, answers)) == []
    seen = Counter(ours.first)
    for alone in ours.alone.values():
        seen.update(alone)
    never = {rule.name for rule in RULES if rule.set.endswith("@datatrove")} - set(seen)
    assert never == set(), f"the corpus does not reach {never}"
    assert seen[None] >= 500
    assert set(FILTERS) == set(answers[0]["alone"])


def test_own_tokenizers(corpus: list[Text], peer: Path) -> None:
    """Other languages with their own words on both sides; C4 and stop words have no tables there."""
    some = [(text, own_tokenizer(text.language)) for text in corpus if text.language != "en"]
    some = [(text, tokenizer) for text, tokenizer in some if tokenizer is not None]
    assert len({text.language for text, _ in some}) >= 9
    texts = [text.text for text, _ in some]
    questions = [{"do": "filters", "text": text.text, "tokenizer": tokenizer} for text, tokenizer in some]
    ours = verdicts(texts, [text.language for text, _ in some])
    found = compare("own", [text.id for text, _ in some], texts, ours, ask(peer, questions))
    assert explained("embedded", ["own"], found) == []


def test_where_words_differ_is_listed() -> None:
    """Every label of lid.176 has datatrove's words, or stands in a committed list that says why not."""
    listed = {label: name for name, labels in OTHER_WORDS.items() for label in labels.split()}
    for label in sorted(LID_LABELS):
        if tokenizer_of(label) is None:
            assert label in NO_WORDS.split()
        else:
            assert same_words(label) == (label not in listed), label
    assert {label: assigned(label)[0] for label in listed} == listed
    assert set(NO_WORDS.split()) <= LID_LABELS


def test_languages(corpus: list[Text], peer: Path) -> None:
    texts = [text.text for text in corpus]
    answers = ask(peer, [{"do": "language", "text": text} for text in texts])
    assert explained("embedded", ["language"], identified([text.id for text in corpus], texts, answers)) == []


def addresses() -> list[str]:
    """URLs around the domains and words of datatrove's lists: whole, inside others, in capitals, in pairs; and odd ones."""

    def words(name: str) -> list[str]:
        return [w for w in Path(asset(name)).read_text("utf-8").split("\n") if w and not w.startswith("#")]

    with tarfile.open(asset("url_filterblacklistsv0_3_0.tar.gz"), "r|gz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and member.name.endswith("domains"):
                listed = [line.decode().strip() for i, line in enumerate(file) if i % 30_011 == 0]
    rng = random.Random(11)
    hard, soft, sub = (words(f"{name}.txt") for name in ("banned_words", "soft_banned_words", "banned_subwords"))
    urls = ["http://127.0.0.1/", "http://[::1]/x", "urn:uuid:1", "http:///a", "http://xn--e1afmkfd.xn--p1ai/", "é", " "]
    for domain in listed:
        urls += [f"http://{domain}/", f"https://www.{domain}:8443/a?b=c", f"http://x{domain}/", domain.upper()]
    for word in rng.sample(hard, 100):
        urls += [f"http://a.example/{word}", f"http://a.example/x{word}x", f"http://{word}.example/{word.upper()}"]
    for word in rng.sample(sub, min(100, len(sub))):
        urls += [
            f"https://a.example/{'-'.join(word)}",
            f"https://www.{word}s.example/",
            f"http://a.example/{word[:-1]}",
        ]
    for _ in range(150):
        a, b = rng.sample(soft, 2)
        urls += [f"http://a.example/{a}/{b}", f"http://a.example/{a}?{a}", f"http://{a}.example/{a}{b}"]
    return urls


def test_urls(peer: Path) -> None:
    urls = addresses()
    answers = ask(peer, [{"do": "url", "url": url} for url in urls])
    assert explained("embedded", ["url"], address_differences(urls, urls, answers)) == []
    assert {answer["reason"] for answer in answers} >= set(URL_REASONS) - {"url"}
