"""Which of spaCy's rule-based pipelines cuts the words of which language; which languages have none."""

from __future__ import annotations

from gristmill.curate.labels import rules_language

_NO_SEGMENTER = "bo dz ja km ko lo my th vi wuu yue zh"
_SPACY: dict[str, str] = {
    "en": "en frr fy sco",
    "xx": "ar av az cbk ce cv eml eo gn ht ia ie io jbo kn kv lez mhr mrj nah os qu sah sh so tg tt tyv ug uz vo "
    "as be br bpy bxr ckb cy diq dty dv gd gl gom gv hif ka kk krc ku kw lrc mai mn mt myv mzn new or pa pnb ps sd "
    "xal xmf yi",
    "de": "als bar de",
    "es": "an ast co es mwl oc sc",
    "fa": "azb fa",
    "tl": "bcl ceb tl war",
    "sr": "bs sr",
    "fi": "fi vep",
    "fr": "fr rm wa",
    "ms": "ilo jv mg min ms pam su",
    "it": "it nap scn",
    "lb": "lb pfl",
    "nl": "li nds nl vls",
    "lij": "lmo pms vec",
    "nb": "nn no",
    "ru": "ru rue",
    "tr": "tk tr",
    "hi": "bh hi",
    "ar": "arz",
    "tt": "ba",
    "tn": "sw",
}
_OWN = (
    "af am bg bn ca cs da dsb el et eu ga gu he hr hsb hu hy id is ky la lt lv mk ml mr ne pl pt ro sa si sk sl sq "
    "sv ta te uk ur yo"
)

NO_SEGMENTER = frozenset(_NO_SEGMENTER.split())
"""fastText labels of languages whose words need a statistical or dictionary segmenter (datatrove: jieba, fugashi,
kiwi, pythainlp, pyvi, ...): rules over words are not applied there."""

TOKENIZERS: dict[str, str] = {
    **{label: code for code, labels in _SPACY.items() for label in labels.split()},
    **{label: label for label in _OWN.split()},
}
"""fastText label -> spaCy blank pipeline. As datatrove 0.10.1's assignment wherever that names spaCy, but `als` (lid.176
means Alemannic, not Tosk Albanian) and `sa` (Sanskrit's own rules). Labels for which datatrove loads a model get spaCy's
own rules if there are any, else the multi-language ones."""


def tokenizer_of(language: str | None) -> str | None:
    """The spaCy blank pipeline for a model's label; None where words need a segmenter; unknown labels get "xx"."""
    known = rules_language(language)
    if known in NO_SEGMENTER:
        return None
    return TOKENIZERS.get(known, "xx")
