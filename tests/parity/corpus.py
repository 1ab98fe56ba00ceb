"""The embedded corpus: documents in eleven languages, from a seed, each with corners that some rule looks at."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

SEED = 20_240_601

_WORDS = {
    "en": "the mill of grain and river to turn with stone that have be wheel water flour miller bridge valley ledger "
    "harvest it's don't e.g. market old wagon before rain under church they carried sacks Mr. evening U.S. first",
    "de": "die Mühle am Fluss und der Müller mit dem Korn wurde langsam gemahlen während Brücke Straße größer z.B. "
    "über nicht aber Wasser Räder Getreide Bäcker Markt alte Wagen vor Regen unter Kirche trugen Säcke Abend Dr.",
    "fr": "le moulin de la rivière et l'eau qui tourne avec une pierre que nous avons été farine meunier pont vallée "
    "aujourd'hui c'est-à-dire récolte marché vieux chariot avant pluie sous église ils portaient sacs soir M.",
    "es": "el molino del río y agua que gira con piedra hemos sido harina molinero puente valle cosecha mercado viejo "
    "carro antes lluvia bajo iglesia llevaban sacos tarde Sr. niño año corazón también después ¿cuándo? ¡claro!",
    "ru": "мельница на реке и вода крутит колесо с камнем мы были мука мельник мост долина урожай рынок старый телега "
    "перед дождём под церковью они несли мешки вечером т.е. т.п. первый ёлка объём",
    "el": "ο μύλος στο ποτάμι και το νερό γυρίζει με πέτρα ήμασταν αλεύρι μυλωνάς γέφυρα κοιλάδα σοδειά αγορά παλιό "
    "κάρο πριν βροχή κάτω εκκλησία κουβαλούσαν σακιά βράδυ πρώτος π.χ. δηλαδή",
    "ar": "الطاحونة على النهر والماء يدير العجلة مع الحجر كنا الدقيق الطحان الجسر الوادي الحصاد السوق القديم العربة قبل "
    "المطر تحت الكنيسة حملوا الأكياس مساء الأول ١٢٣ كِتَابٌ",
    "he": "הטחנה על הנהר והמים מסובבים את הגלגל עם האבן היינו קמח טוחן גשר עמק קציר שוק ישן עגלה לפני גשם תחת כנסייה "
    "נשאו שקים ערב ראשון ד״ר צה״ל",
    "tr": "değirmen nehir üzerinde ve su taş ile tekerleği çevirir un değirmenci köprü vadi hasat pazar eski araba önce "
    "yağmur altında İstanbul'da kilise çuvalları taşıdılar akşam birinci ığdır vb. örn.",
    "hi": "चक्की नदी पर और पानी पत्थर से पहिया घुमाता है हम थे आटा चक्कीवाला पुल घाटी फसल बाज़ार पुराना गाड़ी पहले बारिश नीचे "
    "मंदिर वे बोरे शाम पहला १२३",
    "zh": "磨坊 在 河边 水 推动 轮子 石头 我们 面粉 磨坊主 桥 山谷 收成 市场 老旧 马车 下雨 之前 教堂 他们 搬运 麻袋 傍晚 第一",
}
WORDS = {language: words.split() for language, words in _WORDS.items()}
_STOPS = {"zh": "。！？", "hi": "।?!", "ar": ".؟!", "he": ".?!", "el": ".;!"}
_SPACES = [
    "\u00a0",
    "\u2009",
    "\u3000",
    "\u2028",
    "\u2029",
    "\x85",
    "\t",
    "  ",
    "\u200b",
    "\ufeff",
    "\x0b",
    "\x1c",
    "\r\n",
]
_EMOJI = ["🌾", "👩‍🌾", "🇳🇱", "❤️", "🙂", ":-)", "^_^", "ʘ‿ʘ", "¯\\_(ツ)_/¯"]
_POLICY = [
    "terms of use",
    "Privacy Policy",
    "cookie policy",
    "This site uses cookies",
    "use of cookies",
    "we use cookies",
]
_CITATIONS = ["[1]", "[23]", "[]", "[edit]", "[citation needed]", "[Edit]", "[a]", "java[1]script", "lorem [2]ipsum"]


@dataclass(frozen=True)
class Text:
    """One document: `language` is what it was written in, as fastText calls it."""

    id: str
    language: str
    text: str


def sentence(rng: random.Random, language: str, low: int = 6, high: int = 18) -> str:
    words = [rng.choice(WORDS[language]) for _ in range(rng.randint(low, high))]
    if rng.random() < 0.3:
        words.insert(
            rng.randrange(len(words)), rng.choice([str(rng.randrange(3000)), "3.5", "(1)", "10%", "A4", '"so"'])
        )
    body = ("" if language == "zh" else " ").join(words)
    if rng.random() < 0.3:
        body = body.replace(" ", ", ", 1)
    return body[:1].upper() + body[1:] + rng.choice(_STOPS.get(language, ".?!"))


def paragraph(rng: random.Random, language: str) -> str:
    return " ".join(sentence(rng, language) for _ in range(rng.randint(1, 5)))


Corner = Callable[[random.Random, str, list[str]], list[str]]


def _at(rng: random.Random, lines: list[str], line: str) -> list[str]:
    place = rng.randint(0, len(lines))
    return [*lines[:place], line, *lines[place:]]


def bullets(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    mark = rng.choice(["- ", "• ", "* ", "● ", " - ", "-", "– "])
    return [mark + line if rng.random() < 0.95 else line for line in lines]


def ellipses(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [
        line[:-1] + rng.choice(["...", "…", "... ", "…\u00a0", "...."]) if rng.random() < 0.5 else line
        for line in lines
    ]


def hashes(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    share = rng.choice([0.05, 0.1, 0.2])
    return [" ".join("#" + w if rng.random() < share else w for w in line.split(" ")) for line in lines]


def symbols(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    sign = rng.choice(["...", "…", "#", "42", "(", "—", "$ 5", "+++"])
    return [" ".join(x for w in line.split(" ") for x in ((w, sign) if rng.random() < 0.3 else (w,))) for line in lines]


def repeat_lines(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    for _ in range(rng.randint(1, 5)):
        lines = _at(rng, lines, rng.choice(lines) if rng.random() < 0.7 else rng.choice(["ok.", "Share", "Read more"]))
    return lines


def repeat_paragraphs(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    out = [*lines, *rng.choices(lines, k=rng.randint(1, len(lines)))]
    rng.shuffle(out)
    return "\n\n".join(out).split("\n")


def repeat_ngrams(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    gram = " ".join(rng.choice(WORDS[language]) for _ in range(rng.randint(1, 11)))
    return [
        *lines,
        " ".join(f"{gram} {sentence(rng, language, 1, rng.randint(1, 6))}" for _ in range(rng.randint(2, 25))),
    ]


def curly(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return _at(
        rng,
        lines,
        rng.choice(["{ x", "function() {", "the set {a, b} was here.", "javascript {x} y z.", "} of the end"]),
    )


def lorem(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return _at(
        rng,
        lines,
        rng.choice(["Lorem ipsum", "Then Lorem IPSUM dolor.", "lorem  ipsum dolor sit", "javascript lorem ipsum a"]),
    )


def javascript(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return _at(rng, lines, rng.choice(["Please enable JavaScript in it.", "javascript", "java script is not it."]))


def policy(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return _at(
        rng, lines, f"{rng.choice(_POLICY)} {rng.choice(['', 'for this page.', '{x} of them.', '[1] here now.'])}"
    )


def citations(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [f"{line}{rng.choice(_CITATIONS)}" if rng.random() < 0.4 else line for line in lines]


def short_lines(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    width = rng.choice([1, 2, 3, 5])
    words = " ".join(lines).split(" ")
    return [" ".join(words[i : i + width]) for i in range(0, len(words), width)]


def around_thirty(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [line[: rng.choice([29, 30, 31])] + rng.choice(["", "."]) for line in lines]


def unicode_spaces(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [" ".join(w + rng.choice(_SPACES) if rng.random() < 0.1 else w for w in line.split(" ")) for line in lines]


def emoji(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [line + " " + rng.choice(_EMOJI) if rng.random() < 0.5 else rng.choice(_EMOJI) + line for line in lines]


def long_words(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    length = rng.choice([63, 64, 65, 300, 999, 1000, 1001])
    return _at(rng, lines, f"the word {'xyz' * (length // 3)}{'w' * (length % 3)} stands here.")


def compounds(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return ["".join(line.split(" ")) if rng.random() < 0.7 else line for line in lines]


def letters(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [" ".join(w[0] for w in line.split()) for line in lines]


def numbers(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [" ".join(str(rng.randrange(10**6)) if rng.random() < 0.4 else w for w in line.split(" ")) for line in lines]


def unpunctuated(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [line.rstrip(".?!。！？।;؟") + rng.choice(["", "", '"', " ", ",", "。", "؟"]) for line in lines]


def blank_lines(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    gap = rng.choice(["", " ", "\t", "\u00a0", "\n\n\n"])
    return [x for line in lines for x in (line, *([gap] * rng.randint(0, 5)))]


def other_language(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    other = rng.choice(sorted(WORDS))
    return [paragraph(rng, other) if rng.random() < 0.5 else line for line in lines]


def special_cases(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    bits = [
        ":( (",
        "can 't",
        "I 'm",
        "a.m. p.m.",
        "v.s. e.g.",
        "o'clock",
        "http://a.example/b?c=d#e",
        "x@y.example",
        "1,000.5",
    ]
    return [f"{rng.choice(bits)} {line} {rng.choice(bits)}" for line in lines]


def upper(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [line.upper() for line in lines]


def controls(rng: random.Random, language: str, lines: list[str]) -> list[str]:
    return [line.replace(" ", rng.choice([" \x00", " \x07 ", " \u202e", " \u00ad", " \ud7ff"]), 1) for line in lines]


CORNERS: tuple[Corner, ...] = (
    *(bullets, ellipses, hashes, symbols, repeat_lines, repeat_paragraphs, repeat_ngrams, curly, lorem, javascript),
    *(policy, citations, short_lines, around_thirty, unicode_spaces, emoji, long_words, compounds, letters, numbers),
    *(unpunctuated, blank_lines, other_language, special_cases, upper, controls),
)
_FIXED = {
    "empty": "",
    "space": " ",
    "line feeds": "\n\n\n",
    "odd blanks": "\u2028\x85\u3000\n\t",
    "dot": ".",
    "one letter": "a",
    "hash": "#",
    "zero-width": "\u200b",
    "rtl mark": "\u200f\u200f \u200f",
    "emoji": "🌾" * 60,
    "100,001 words": "the mill of grain and a river that turns. " * 11_112,
    "brackets": "( " * 80 + ")" * 300,
}


def document(rng: random.Random, language: str, number: int) -> Text:
    lines = [paragraph(rng, language) for _ in range(rng.randint(1, 12))]
    for corner in rng.sample(CORNERS, rng.choice([0, 1, 1, 1, 2, 2, 3, 4])):
        lines = corner(rng, language, lines) or [""]
    return Text(f"{language}-{number}", language, rng.choice(["\n", "\n", "\n\n", "\r\n"]).join(lines))


def documents(per_language: int = 150, english: int = 900) -> list[Text]:
    """The corpus, the same on every machine: 900 English documents, 150 of each other language, 12 fixed ones."""
    out = [Text(name, "en", text) for name, text in _FIXED.items()]
    for language in WORDS:
        rng = random.Random(f"{SEED} {language}")
        out += [document(rng, language, i) for i in range(english if language == "en" else per_language)]
    return out
