"""Texts on which encoders are known or likely to part ways: what a backend must agree on before it may encode."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

_BASE = [
    "",
    "\x00",
    "\ufeffBOM first",
    "".join(map(chr, range(256))),
    "👩‍👩‍👧‍👦 and 🏳️‍🌈 and ❤️‍🔥 and 👍🏽👍🏿",
    "a\r\nb\r\r\n\n  \t c \r\n \n\t\t\n x",
    "e\u0301a\u0323\u0302 cafe\u0301 \u1112\u1161\u11ab Å\u212b ﬁ",
    "\u0301\u0301 \u0301a !\u0301! \u093f \u0e31\u0e31 1\u0301 \u200d\u200d",
    "हिन्दी शब्द தமிழ் வார்த்தை ภาษาไทยไม่มีวรรค မြန်မာ ខ្មែរ བོད་ཡིག",
    "日本語テキスト、全角　空白１２３ 한국어 텍스트 中文句子。",
    "مرحبا بالعالم ١٢٣٤٥ שלום עולם ۱۲۳ १२३ ๑๒๓",
    "I'LL I'll i'S 'ſ 'ſa don'T we'Ve 'K 'k \u2019s it''s 'sS 'lLama",
    "iPhone XMLHttpRequest ǅ ǲABc ʰa ªº ßẞ İı ŉ ΑΣς",
    "1 12 123 1234 12345678 1.234,56 ½3 3½ m² m²3 Ⅷ4 ①② 1٢ ٢1 1²2 007 0x1F 1e9 192.168.0.1 ２1",
    "\u00a0a \u00a0\u00a0a\u2003\u2003b \u3000 \u2028x\u2029y\u0085z\u000b\u000c \u1680 \u180e \u200b \u2060",
    "\ue000\uf8ff\U000f0000\U0010ffff \ufdd0\ufffe\uffff \ufffd",
    "==== ---- ////\r\n //\n/* */ $$\\frac{a}{b}$$ </p></div>\n\n\n<br/>",
]

_RUNS = [
    "a",
    "Z",
    " ",
    "\n",
    "\r\n",
    "\t",
    " \t",
    "!",
    "=",
    "1",
    "世",
    "ि",
    "\u0301",
    "😀",
    "\u3000",
    "\u00a0",
    "ab ",
    "x1",
    "'",
]

_NEWER = [
    # first code points of blocks and letters, digits, marks and emoji added by Unicode 13, 14, 15, 15.1, 16 and 17
    0x08BE, 0x0B55, 0x0D04, 0x1ABF, 0x31BB, 0x9FF0, 0xA7C7, 0x10E80, 0x11950, 0x1FBF0, 0x18B00, 0x30000,
    0x061D, 0x0870, 0x0898, 0x0C5D, 0x170D, 0x1ACE, 0x1DFA, 0x20C0, 0x2E53, 0xA7C0, 0x10570, 0x12F90, 0x16A70, 0x1DF00, 0x1E290, 0x1FAE0,
    0x0CF3, 0x0ECE, 0x11240, 0x11F00, 0x11F50, 0x1D2C0, 0x1E030, 0x1E4D0, 0x1E4F0, 0x1FA75, 0x1FADA, 0x31350,
    0x2FFC, 0x31EF, 0x2EBF0,
    0x0897, 0x1B4E, 0x1C89, 0x1C8A, 0xA7CB, 0xA7DA, 0x105C0, 0x10D40, 0x10D4A, 0x11380, 0x116D0, 0x11BC0, 0x11BF0, 0x13460, 0x16100, 0x16130, 0x16D40, 0x16D70,
    0x1CC00, 0x1CCF0, 0x1E5D0, 0x1E5F1, 0x1FAE9, 0x1FBCB,
    0x088F, 0x0C5C, 0x20C1, 0xA7CE, 0x10940, 0x11B60, 0x11DB0, 0x16EA0, 0x1E6C0, 0x323B0, 0x1FAC8,
    # never assigned
    0x0378, 0x05FF, 0x2FE0, 0xD7FF, 0x1FFFF, 0xE0080, 0xEFFFF,
]  # fmt: skip

_MIXED = [
    *"aAzß1²٣ ७ \t\n\r!.'_\"/-",
    "\u0301",
    "ि",
    "世",
    "\u3000",
    "\u00a0",
    "'s",
    "'LL",
    "\U0001f600",
    "\u200d",
    "ǅ",
    "\x00",
    "\x85",
    "ſ",
]


def adversarial(specials: Sequence[str] = (), tokens: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Some 1,500 texts, 0.3 MB: control and format characters, runs, white space in all orders, mixtures drawn by `seed`.

    `specials` are put into text literally; `tokens` (a vocabulary's, as text) are strung together in orders that no
    corpus has, which is where encoders that merge by rank could differ from those that merge by rule.
    """
    rng = random.Random(f"adversarial/{seed}")
    found = list(_BASE)
    found += [run * n for run in _RUNS for n in (2, 3, 7, 64, 65, 129, 3_000)]
    found += [f"x{run * 70}1" for run in _RUNS]
    found += ["1" * n + "a" for n in range(1, 12)] + [f" {'7' * n} " for n in range(1, 12)]
    found += ["".join(s) for n in (1, 2, 3, 4) for s in itertools.product(" \t\nx", repeat=n)]
    found += ["".join(s) for s in itertools.product(" \r\n\u3000!'", repeat=3)]
    for code in _NEWER:
        c = chr(code)
        found += [c, f"a{c}a {c} !{c}! 1{c}1 {c}{c}", f"abc{c}def"]
    found += [f"a{s}b {s}{s}\n{s}" for s in specials]
    found += ["".join(rng.choices(_MIXED, k=rng.randint(2, 40))) for _ in range(400)]
    found += [
        "".join(chr(rng.choice([0x80, 0x800, 0x3000, 0x10000]) + rng.randrange(0x700)) for _ in range(30))
        for _ in range(60)
    ]
    if tokens:
        found += ["".join(rng.choices(tokens, k=60)) for _ in range(60)]
        found += ["".join(t.strip() for t in rng.choices(tokens, k=12)) for _ in range(60)]  # long words of odd pieces
    return found
