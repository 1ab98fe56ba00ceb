"""Which tokenizer the peer uses for a language; its decisions on languages and URLs beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parity.ask import Difference

from gristmill.curate.identify import Identifier
from gristmill.curate.language import find_model
from gristmill.curate.schema import Language, Urls
from gristmill.curate.tokenizers import tokenizer_of
from gristmill.curate.urls import UrlRules

URL_REASONS = {
    "domain": "url.domain",
    "subdomain": "url.subdomain",
    "url": "url.url",
    "hard_blacklisted": "url.hard_word",
    "soft_blacklisted": "url.soft_words",
    "blacklisted_subword": "url.subword",
}
"""datatrove's reasons of URLFilter -> ours."""


OTHER_WORDS: dict[str, str] = {
    "StanzaTokenizer": "as be bn br bxr cy diq gd gl gom gu gv hi hif kk krc ku kw mn mr mt myv ne pa sd ur xal",
    "IndicNLPTokenizer": "bpy ckb dty lrc mai ml mzn new or pnb ps si ta te",
    "ThaiTokenizer": "ms",
    "SpaCyTokenizer": "als sa",
    "": "bh tl",
}
"""Where our words are not datatrove's: its class -> fastText labels. Stanza's are trained models that it downloads; Indic
NLP cuts at punctuation; ms, als and sa are mixed up with other languages by the order of its table; bh and tl have none.
There both sides get spaCy's rules as we use them, so that the filters are compared on equal words."""
NO_WORDS = "bo ja km ko lo my th vi wuu yue zh"
"""Languages whose words need a dictionary or a model: our rules over words are not applied there (a counted note), so
that under their own tokenizers there is nothing to compare. Under English defaults they are compared like all others."""


def assigned(label: str) -> tuple[str, str]:
    """datatrove's tokenizer of a fastText label: its class and that class's argument; both empty where it has none."""
    from datatrove.utils.word_tokenizers import load_tokenizer_assignments

    factory = load_tokenizer_assignments().get(label)
    return factory.args if factory is not None else ("", "")


def own_tokenizer(label: str) -> str | None:
    """What the peer is to cut the words of a language with; None where we have no words (NO_WORDS)."""
    ours = tokenizer_of(label)
    if ours is None:
        return None
    return label if same_words(label) else f"spacy:{ours}"


def same_words(label: str) -> bool:
    """Whether datatrove cuts the words of a language as we do."""
    name, code = assigned(label)
    return name == "WhitespaceTokenizer" or (name == "SpaCyTokenizer" and code == tokenizer_of(label))


def identified(ids: Sequence[str], texts: Sequence[str], answers: Sequence[dict[str, Any]]) -> list[Difference]:
    """Differences of label, score or FineWeb's decision (English above 0.65), both reading the whole text."""
    ours = Identifier(find_model(), chars=None).identify(texts)
    limit = Language().min_score
    found = []
    for name, (label, score), answer in zip(ids, ours, answers, strict=True):
        theirs = (answer["label"], min(answer["score"], 1.0), answer["kept"])
        if (mine := (label, score, label == "en" and score > limit)) != theirs:
            found.append(Difference("language", name, "language", mine, theirs))
    return found


def address_differences(ids: Sequence[str], urls: Sequence[str], answers: Sequence[dict[str, Any]]) -> list[Difference]:
    """Differences of the URL verdict and its reason, under our names."""
    rules = UrlRules(Urls())
    found = []
    for name, url, answer in zip(ids, urls, answers, strict=True):
        reason = answer.get("reason", answer.get("error"))
        theirs = None if reason is None else URL_REASONS.get(reason, reason)
        if (ours := rules.check(url)) != theirs:
            found.append(Difference("url", name, "url", ours, theirs))
    return found
