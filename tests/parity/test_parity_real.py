"""Real pages and texts through both, with --all: not one decision may differ that `exceptions.json` does not explain."""

from __future__ import annotations

from pathlib import Path

import pytest
from parity.ask import ask, compare, meanwhile, verdicts
from parity.corpus import Text
from parity.exceptions import explained
from parity.languages import address_differences, identified, own_tokenizer
from parity.real import pages, texts

from gristmill.curate.identify import Identifier
from gristmill.curate.language import find_model

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def archive(data: Path) -> list[tuple[str, str, str]]:
    return list(pages(data))


@pytest.fixture(scope="module")
def corpus(data: Path, archive: list[tuple[str, str, str]]) -> list[Text]:
    """Every page with a text and every text, each with the language that the model sees in all of it."""
    found = [Text(name, "", text) for name, _, text in archive if text] + list(texts(data))
    labels = Identifier(find_model(), chars=None).identify([text.text for text in found])
    return [Text(text.id, label, text.text) for text, (label, _) in zip(found, labels, strict=True)]


def test_there_is_enough(archive: list[tuple[str, str, str]], corpus: list[Text]) -> None:
    assert len(archive) >= 2_500
    assert len(corpus) >= 12_000
    assert len({text.id for text in corpus}) == len(corpus)


def test_english_defaults(corpus: list[Text], peer: Path) -> None:
    bodies = [text.text for text in corpus]
    questions = [{"do": "filters", "text": text} for text in bodies]
    answers, ours = meanwhile(lambda: ask(peer, questions), lambda: verdicts(bodies, ["en"] * len(bodies)))
    found = compare("english", [text.id for text in corpus], bodies, ours, answers)
    print(f"english defaults: {len(bodies)} documents, {len(found)} differences, kept {ours.first.count(None)}")
    assert explained("real", ["english"], found) == []


def test_own_tokenizers(corpus: list[Text], peer: Path) -> None:
    some = [(text, own_tokenizer(text.language)) for text in corpus if text.language != "en"]
    some = [(text, tokenizer) for text, tokenizer in some if tokenizer is not None]
    bodies = [text.text for text, _ in some]
    labels = [text.language for text, _ in some]
    questions = [{"do": "filters", "text": text.text, "tokenizer": tokenizer} for text, tokenizer in some]
    answers, ours = meanwhile(lambda: ask(peer, questions), lambda: verdicts(bodies, labels))
    found = compare("own", [text.id for text, _ in some], bodies, ours, answers)
    print(f"own tokenizers: {len(bodies)} documents of {len(set(labels))} languages, {len(found)} differences")
    assert len(set(labels)) >= 25
    assert explained("real", ["own"], found) == []


def test_languages(corpus: list[Text], peer: Path) -> None:
    bodies = [text.text for text in corpus]
    answers = ask(peer, [{"do": "language", "text": text} for text in bodies])
    found = identified([text.id for text in corpus], bodies, answers)
    print(
        f"languages: {len(bodies)} documents of {len({a['label'] for a in answers})} labels, {len(found)} differences"
    )
    assert explained("real", ["language"], found) == []


def test_urls(archive: list[tuple[str, str, str]], peer: Path) -> None:
    some = [(name, url) for name, url, _ in archive if url]  # datatrove asserts that there is one
    answers = ask(peer, [{"do": "url", "url": url} for _, url in some])
    found = address_differences([name for name, _ in some], [url for _, url in some], answers)
    print(f"URLs: {len(some)}, {len(found)} differences, dropped {sum(a['reason'] is not None for a in answers)}")
    assert explained("real", ["url"], found) == []
