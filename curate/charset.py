"""HTML bytes to text: which charset a page is in, by BOM, UTF-8 validity, HTTP header, meta tag and, last, statistics.

A browser believes the header over the bytes; a corpus should not. Bytes that are strictly valid UTF-8 with several
multi-byte sequences are UTF-8 whatever they are labelled (a chance match in a legacy text needs every accented letter
to form such a sequence), and a label under which the bytes do not decode yields to one under which they do.
"""

from __future__ import annotations

import re

PRESCAN = 4096
"""Bytes searched for a meta charset (WHATWG says 1024; pages with long inline scripts first put it later)."""
DETECT = 256 << 10
"""Bytes given to the statistical detector."""
SURE_UTF8 = 3
"""Multi-byte sequences that make valid UTF-8 certain against a multi-byte legacy label."""
MAX_BAD_UTF8 = 0.05
"""Share of broken sequences up to which a page labelled UTF-8 stays UTF-8 (cut or mixed-in bytes)."""

META = re.compile(rb"""<meta\b[^>]{0,1024}?\bcharset\s{0,64}=\s{0,64}["']?\s{0,64}([^\s"'/>;]{1,40})""", re.IGNORECASE)
XML_DECLARATION = re.compile(
    rb"""\A\s*<\?xml\b[^>]{0,512}?\bencoding\s{0,64}=\s{0,64}["']([^\s"'>]{1,40})["']""", re.IGNORECASE
)
HTTP_CHARSET = re.compile(r"""charset\s{0,64}=\s{0,64}["']?\s{0,64}([^\s"';,]{1,40})""", re.IGNORECASE)
COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)

_LABELS = {
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8 unicode11utf8 unicode20utf8 x-unicode20utf8 utf",
    "cp1252": "windows-1252 cp1252 x-cp1252 iso-8859-1 iso8859-1 iso88591 iso_8859-1 latin1 latin-1 l1 ascii us-ascii"
    " ansi_x3.4-1968 cp819 ibm819 iso-ir-100 x-user-defined iso_8859-1:1987 csisolatin1",
    "cp1250": "windows-1250 cp1250 x-cp1250",
    "cp1251": "windows-1251 cp1251 x-cp1251 cp-1251 win-1251",
    "cp1253": "windows-1253 cp1253 x-cp1253",
    "cp1254": "windows-1254 cp1254 x-cp1254 iso-8859-9 iso8859-9 iso88599 iso_8859-9 latin5 l5 csisolatin5",
    "cp1255": "windows-1255 cp1255 x-cp1255",
    "cp1256": "windows-1256 cp1256 x-cp1256",
    "cp1257": "windows-1257 cp1257 x-cp1257",
    "cp1258": "windows-1258 cp1258 x-cp1258",
    "cp874": "windows-874 cp874 tis-620 tis620 iso-8859-11 iso8859-11 dos-874",
    "cp866": "ibm866 cp866 866 csibm866",
    "iso8859-2": "iso-8859-2 iso8859-2 iso88592 iso_8859-2 latin2 l2 csisolatin2",
    "iso8859-3": "iso-8859-3 iso8859-3 iso_8859-3 latin3 l3",
    "iso8859-4": "iso-8859-4 iso8859-4 iso_8859-4 latin4 l4",
    "iso8859-5": "iso-8859-5 iso8859-5 iso_8859-5 cyrillic csisolatincyrillic",
    "iso8859-6": "iso-8859-6 iso8859-6 iso_8859-6 arabic iso-8859-6-i iso-8859-6-e ecma-114 asmo-708",
    "iso8859-7": "iso-8859-7 iso8859-7 iso_8859-7 greek greek8 ecma-118 elot_928",
    "iso8859-8": "iso-8859-8 iso8859-8 iso_8859-8 hebrew iso-8859-8-i iso-8859-8-e logical visual",
    "iso8859-10": "iso-8859-10 iso8859-10 latin6 l6",
    "iso8859-13": "iso-8859-13 iso8859-13",
    "iso8859-14": "iso-8859-14 iso8859-14",
    "iso8859-15": "iso-8859-15 iso8859-15 iso_8859-15 latin-9 latin9 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "koi8-r koi8 koi8_r koi cskoi8r",
    "koi8-u": "koi8-u koi8-ru",
    "mac-roman": "macintosh mac x-mac-roman macroman csmacintosh",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "gb18030 gbk gb2312 gb_2312 gb_2312-80 x-gbk chinese csgb2312 csiso58gb231280 iso-ir-58 cp936 gb2312-80",
    "big5hkscs": "big5 big5-hkscs cn-big5 x-x-big5 csbig5 big-5",
    "euc-jp": "euc-jp x-euc-jp eucjp euc_jp cseucpkdfmtjapanese",
    "cp932": "shift_jis shift-jis sjis x-sjis windows-31j ms_kanji ms932 csshiftjis cp932 shiftjis",
    "iso2022-jp": "iso-2022-jp csiso2022jp",
    "cp949": "euc-kr ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 korean windows-949 cp949 cseuckr iso-ir-149 euckr uhc",
    "utf-16-le": "utf-16le utf-16 ucs-2 iso-10646-ucs-2 csunicode unicode unicodefeff utf16",
    "utf-16-be": "utf-16be unicodefffe",
}
CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}
"""Labels of the WHATWG Encoding Standard, and common misspellings, to Python codecs. As there, the ISO and national
names stand for their Windows supersets."""
NAMES = {codec: labels.split()[0] for codec, labels in _LABELS.items()}
MULTIBYTE = frozenset({"gb18030", "big5hkscs", "euc-jp", "cp932", "cp949"})
LATIN = frozenset({"cp1250", "iso8859-2", "cp1254", "cp1257", "cp1258", "iso8859-15", "iso8859-16", "mac-roman"})
MIN_LATIN = 64
"""High bytes from which a guess of another Latin charset than Windows-1252 is believed."""
RUNS = re.compile(rb"[\x80-\x9f\xa1-\xff]{2,}")
ASCII = bytes(range(0x80)) + b"\xa0"
"""And the no-break space, which stands in rows of its own."""
NOT_LEADS = bytes(range(0xC2)) + bytes(range(0xF5, 0x100))
"""Bytes that begin no multi-byte sequence of UTF-8."""
BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


def decode_html(body: bytes, content_type: str = "") -> tuple[str, str]:
    """A page's text and its charset's WHATWG name. Never raises; bytes that do not decode become U+FFFD.

    A pure function of its arguments. ASCII is reported as `utf-8`.
    """
    text, codec = _decode(body, content_type)
    return text, NAMES[codec]


def _decode(body: bytes, content_type: str) -> tuple[str, str]:
    for bom, codec in BOMS:
        if body.startswith(bom):
            return body[len(bom) :].decode(codec, "replace"), codec
    labels = declared(body, content_type)
    if wide := _wide(body):
        return body.decode(wide, "replace"), wide
    # One byte is sought at memchr's pace, two take 70 us a page.
    if b"\x1b" in body and b"\x1b$" in body and "utf-8" not in labels and _decodes(body, "iso2022-jp"):
        return body.decode("iso2022-jp"), "iso2022-jp"
    text = _strict_utf8(body)
    if text is not None:
        continuations = len(body) - len(text)
        legacy = next((c for c in labels if c in MULTIBYTE), None)
        sure = continuations == 0 or continuations >= 3 * SURE_UTF8
        if sure or legacy is None or "utf-8" in labels or not _decodes(body, legacy):
            return text, "utf-8"
    narrow = [c for c in labels if c != "utf-8" and not c.startswith("utf-16")]
    for codec in narrow:
        if _decodes(body, codec):
            return body.decode(codec), codec
    if "utf-8" in labels:
        lenient = body.decode("utf-8", "replace")
        if lenient.count("\ufffd") <= MAX_BAD_UTF8 * len(body.translate(None, NOT_LEADS)):
            return lenient, "utf-8"
    guess = _detect(body)
    if guess and _decodes(body, guess):
        return body.decode(guess), guess
    codec = narrow[0] if narrow else "utf-8" if "utf-8" in labels else guess or "cp1252"
    return body.decode(codec, "replace"), codec


def declared(body: bytes, content_type: str) -> list[str]:
    """Codecs that the HTTP header, an XML declaration and a meta tag name, in that order, without repeats.

    Latin-1 goes last: servers send it by default (Apache's AddDefaultCharset), so whatever else is named means more.
    """
    names = HTTP_CHARSET.findall(content_type[:1024])[:1]
    head = COMMENT.sub(b"", body[:PRESCAN])
    for pattern in (XML_DECLARATION, META):
        if found := pattern.search(head):
            name = found[1].decode("ascii", "replace")
            names.append("utf-8" if name.lower().startswith("utf-16") else name)  # WHATWG: it was read as ASCII
    codecs = [CODECS.get(name.strip().lower()) for name in names]
    return sorted(dict.fromkeys(c for c in codecs if c), key=lambda c: c == "cp1252")


def _strict_utf8(body: bytes) -> str | None:
    """The text when the bytes are valid UTF-8, but for a last character that was cut; else None."""
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as e:
        if e.reason != "unexpected end of data":
            return None
        return body[: e.start].decode("utf-8")


def _decodes(body: bytes, codec: str) -> bool:
    try:
        body.decode(codec)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def _wide(body: bytes) -> str | None:
    """UTF-16 without a BOM: NULs in nearly every second byte of the first 1 KiB."""
    head = body[:1024]
    half = len(head) // 2
    if half and head.count(0) * 10 >= len(head) * 3:
        odd, even = head[1::2].count(0), head[::2].count(0)
        if odd * 10 >= half * 6 and even * 10 <= half:
            return "utf-16-le"
        if even * 10 >= half * 6 and odd * 10 <= half:
            return "utf-16-be"
    return None


def _detect(body: bytes) -> str | None:
    """faust-cchardet's guess as one of our codecs, held to the script that the bytes can be.

    Letters of Cyrillic, Greek, Hebrew, Arabic or Asian texts stand in runs; where most high bytes stand alone the text is
    Latin, and with few of them it is taken as Windows-1252 (the detector calls lone quotes and dashes VISCII or IBM865).
    """
    import cchardet

    sample = body[:DETECT]
    high = len(sample.translate(None, ASCII))
    in_runs = sum(map(len, RUNS.findall(sample)))
    name = str(cchardet.detect(sample).get("encoding")).lower()
    codec = CODECS.get("euc-kr" if name == "uhc" else name)
    if in_runs * 2 < high:
        return codec if codec in LATIN and high >= MIN_LATIN else "cp1252"
    return None if codec in (None, "utf-8", "utf-16-le", "utf-16-be") else codec
