"""Labels of language models: lid.176's, GlotLID's `eng_Latn`, BCP 47's `zh-Hant`; and the one name that rules use.

A document keeps its model's own label. Tokenizers and rule tables are keyed by lid.176's labels, so everything that
asks "is this English?" asks `rules_language(label)`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from functools import lru_cache

_LID_176 = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da "
    "de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id "
    "ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml "
    "mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru "
    "rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls "
    "vo wa war wuu xal xmf yi yo yue zh"
)
LID_LABELS = frozenset(_LID_176.split())
"""The 176 labels of fastText's lid.176, as the model file lists them."""

_CODES = {
    "Latn": "afr=af als=sq aln=sq sqi=sq arg=an ast aze=az azj=az bar bcl bos=bs bre=br cat=ca cbk ceb ces=cs cos=co "
    "cor=kw cym=cy dan=da deu=de diq dsb eml egl=eml eng=en epo=eo est=et ekk=et eus=eu fil=tl fin=fi fra=fr frr "
    "fry=fy gla=gd gle=ga glg=gl glv=gv grn=gn gug=gn gsw=als hat=ht hbs=sh hif hrv=hr hsb hun=hu ido=io ile=ie ilo "
    "ina=ia ind=id isl=is ita=it jav=jv jbo kmr=ku kur=ku lat=la lav=lv lvs=lv lim=li lit=lt lmo ltz=lb min mlg=mg "
    "plt=mg mlt=mt msa=ms zsm=ms mwl nah nap nds nld=nl nno=nn nob=no nor=no nb=no oci=oc pam pfl pms pol=pl por=pt "
    "que=qu quy=qu quz=qu roh=rm ron=ro scn sco slk=sk slv=sl som=so spa=es srd=sc srp=sr sun=su swa=sw swh=sw swe=sv "
    "tgl=tl tuk=tk tur=tr uzb=uz uzn=uz vec vep vie=vi vls vol=vo war wln=wa yor=yo",
    "Cyrl": "ava=av bak=ba bel=be bua=bxr bxr bul=bg che=ce chv=cv kaz=kk kir=ky kom=kv kpv=kv krc lez mhr mkd=mk "
    "mon=mn khk=mn mrj myv oss=os rue rus=ru sah srp=sr tat=tt tgk=tg tyv ukr=uk xal",
    "Arab": "ara=ar arb=ar acm=ar acq=ar aeb=ar ajp=ar apc=ar arq=ar ars=ar ary=ar arz azb ckb fas=fa pes=fa prs=fa "
    "lrc mzn pbt=ps pus=ps pnb snd=sd uig=ug urd=ur",
    "Armn": "hye=hy",
    "Beng": "asm=as ben=bn bpy",
    "Deva": "bho=bh bih=bh dty gom hin=hi mai mar=mr nep=ne npi=ne new san=sa",
    "Ethi": "amh=am",
    "Geor": "kat=ka xmf",
    "Grek": "ell=el",
    "Gujr": "guj=gu",
    "Guru": "pan=pa",
    "Hang Kore": "kor=ko",
    "Hani Hans Hant": "cmn=zh zho=zh lzh=zh wuu yue",
    "Hebr": "heb=he yid=yi ydd=yi",
    "Jpan Hira Kana": "jpn=ja",
    "Khmr": "khm=km",
    "Knda": "kan=kn",
    "Laoo": "lao=lo",
    "Mlym": "mal=ml",
    "Mymr": "mya=my",
    "Orya": "ori=or ory=or",
    "Sinh": "sin=si",
    "Taml": "tam=ta",
    "Telu": "tel=te",
    "Thaa": "div=dv",
    "Thai": "tha=th",
    "Tibt": "bod=bo dzo=dz",
}
"""Script(s) -> ISO 639-3 codes written in it, each with lid.176's label for that language where it is another.

A macrolanguage and its individual languages (ara, arb; zho, cmn) share a label; nb is lid.176's `no`."""

_UNSPACED = {
    "Hani": "zh", "Hans": "zh", "Hant": "zh", "Jpan": "ja", "Hira": "ja", "Kana": "ja", "Thai": "th", "Khmr": "km",
    "Laoo": "lo", "Mymr": "my", "Tibt": "bo",
}  # fmt: skip
"""Scripts without spaces between words: a language that is not in the table has no words without a segmenter either."""

_LABEL = re.compile(r"([A-Za-z]{2,3})[_-]([A-Za-z]{4})")
_NAMES = {
    "english": "en", "german": "de", "deutsch": "de", "french": "fr", "spanish": "es", "italian": "it", "dutch": "nl",
    "portuguese": "pt", "polish": "pl", "russian": "ru", "chinese": "zh", "japanese": "ja", "korean": "ko",
    "arabic": "ar", "hindi": "hi", "turkish": "tr", "czech": "cs", "swedish": "sv", "danish": "da", "norwegian": "no",
    "finnish": "fi", "greek": "el", "ukrainian": "uk", "hungarian": "hu", "romanian": "ro", "hebrew": "he",
    "nb": "no", "iw": "he", "in": "id", "jp": "ja", "cn": "zh", "cz": "cs", "dk": "da", "gr": "el", "kr": "ko",
}  # fmt: skip
"""Common names and wrong codes, for hints."""


def _table() -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """((code or lid label, script) -> lid label, code -> lid label)."""
    by_script: dict[tuple[str, str], str] = {}
    alone: dict[str, str] = {}
    for scripts, entries in _CODES.items():
        for entry in entries.split():
            code, _, label = entry.partition("=")
            alone.setdefault(code, label or code)
            for script in scripts.split():
                by_script[code, script] = label or code
                # `als_Latn` is ISO 639-3's Tosk Albanian, whatever lid.176 calls `als`: a code goes before a label
                if label and f" {label}=" not in f" {entries}":
                    by_script.setdefault((label, script), label)
    return by_script, alone


_BY_SCRIPT, _ALONE = _table()


@lru_cache(maxsize=4096)
def rules_language(label: str | None) -> str:
    """lid.176's label for the language of any label, which is what tokenizers and rule tables are keyed by.

    `en`, `eng`, `eng_Latn` and `en-Latn` are `en`; `cmn_Hani` and `zh-Hant` are `zh`. A language in another script than
    its own (`jpn_Latn`, romanised Japanese) is none of the table's languages, and neither is a label that is not known:
    these come back as they are. An unknown language in a script without spaces is that script's largest language, since
    what matters here is that its words need a segmenter. None is "".
    """
    if not label or label in LID_LABELS:
        return label or ""
    found = _LABEL.fullmatch(label)
    if found is None:
        return _ALONE.get(label.lower(), label)
    code, script = found[1].lower(), found[2].title()
    return _BY_SCRIPT.get((code, script)) or _UNSPACED.get(script) or label


def label_hint(label: str, labels: Collection[str]) -> str:
    """What a user who wrote `label` may have meant of a model's `labels`, as a sentence; "" when nothing is near."""
    lowered = label.lower()
    start = re.split(r"[-_]", lowered)[0]
    language = _NAMES.get(lowered) or rules_language(label)
    near = [x for x in sorted(labels) if x.lower() in (lowered, language)]
    near = near or [x for x in sorted(labels) if rules_language(x) == language]
    near = near or [x for x in sorted(labels) if x.lower() == start or rules_language(x) == rules_language(start)]
    if not near and re.fullmatch(r"[a-z]{2,3}([-_][a-z]{4})?", lowered):
        near = difflib.get_close_matches(lowered, sorted(labels), 3, 0.6)
    return f"did you mean `{'` or `'.join(near[:3])}`?" if near else ""
