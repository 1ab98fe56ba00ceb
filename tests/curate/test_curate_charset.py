"""Charsets: what labels mean, which of them to believe, and that nothing raises."""

from __future__ import annotations

import random

import pytest
from data_helper import shared_data

from gristmill.curate.charset import CODECS, NAMES, decode_html

RUSSIAN = "Съешь ещё этих мягких французских булок да выпей же чаю. " * 5
JAPANESE = "いろはにほへとちりぬるを、我が世誰ぞ常ならむ。カタカナもある。" * 5
CHINESE = "天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。寒来暑往,秋收冬藏。" * 5
KOREAN = "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. " * 5
FRENCH = "Voilà l’œuvre d’un élève à l’école, où ça coûte 5 €. " * 5


def page(text: str, codec: str, meta: str = "") -> bytes:
    tag = f'<meta charset="{meta}">' if meta else ""
    return f"<html><head>{tag}</head><body><p>{text}</p></body></html>".encode(codec)


@pytest.mark.parametrize(
    ("text", "codec", "label", "name"),
    [
        (FRENCH, "cp1252", "ISO-8859-1", "windows-1252"),
        (FRENCH, "cp1252", "latin1", "windows-1252"),
        (RUSSIAN, "cp1251", "windows-1251", "windows-1251"),
        (RUSSIAN, "koi8-r", "KOI8-R", "koi8-r"),
        (JAPANESE, "cp932", "Shift_JIS", "shift_jis"),
        (JAPANESE, "euc-jp", "x-euc-jp", "euc-jp"),
        (JAPANESE, "iso2022-jp", "iso-2022-jp", "iso-2022-jp"),
        (CHINESE, "gb18030", "gb2312", "gb18030"),
        (CHINESE, "gbk", "GBK", "gb18030"),
        (KOREAN, "cp949", "ks_c_5601-1987", "euc-kr"),
        ("ภาษาไทย" * 20, "cp874", "tis-620", "windows-874"),
    ],
)
def test_labels(text: str, codec: str, label: str, name: str) -> None:
    plain = page(text, codec)
    assert decode_html(plain, f'text/html; charset="{label}"') == (plain.decode(codec), name)
    tagged = page(text, codec, label)
    assert decode_html(tagged, "text/html") == (tagged.decode(codec), name)


@pytest.mark.parametrize("wide", ["utf-16-le", "utf-16-be"])
def test_utf16_with_and_without_bom(wide: str) -> None:
    raw = page(FRENCH, wide)
    name = wide.replace("6-", "6")
    assert decode_html(raw) == (raw.decode(wide), name)
    assert decode_html("\ufeff".encode(wide) + raw, "text/html; charset=utf-8") == (raw.decode(wide), name)


def test_boms_win_and_are_not_text() -> None:
    assert decode_html(b"\xef\xbb\xbfabc", "text/html; charset=gbk") == ("abc", "utf-8")


def test_valid_utf8_beats_its_label() -> None:
    for label in ("iso-8859-1", "windows-1251", "gb2312", "shift_jis"):
        raw = page(RUSSIAN, "utf-8", label)
        assert decode_html(raw, f"text/html; charset={label}") == (raw.decode(), "utf-8")


def test_a_few_chance_sequences_do_not_beat_a_multibyte_label() -> None:
    raw = "陆印".encode("gbk")
    assert raw.decode("utf-8") == "½ӡ"
    assert decode_html(raw, "text/html; charset=gbk") == ("陆印", "gb18030")


def test_a_label_under_which_the_bytes_fail_yields() -> None:
    raw = page(CHINESE, "gb18030", "gb2312")
    assert decode_html(raw, "text/html; charset=utf-8") == (raw.decode("gb18030"), "gb18030")
    raw = page(FRENCH, "cp1252")
    assert decode_html(raw, "text/html; charset=utf-8") == (raw.decode("cp1252"), "windows-1252")


def test_latin1_from_the_server_yields_to_the_page() -> None:
    raw = page(RUSSIAN, "cp1251", "windows-1251")
    assert decode_html(raw, "text/html; charset=ISO-8859-1") == (raw.decode("cp1251"), "windows-1251")


def test_mostly_utf8_stays_utf8() -> None:
    raw = page(RUSSIAN, "utf-8", "utf-8") + b"<p>caf\xe9</p>"
    text, name = decode_html(raw)
    assert name == "utf-8"
    assert text.count("\ufffd") == 1
    cut = page(JAPANESE, "utf-8")[:300]
    assert decode_html(cut)[1] == "utf-8"


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (RUSSIAN, "cp1251", "windows-1251"),
        (JAPANESE, "cp932", "shift_jis"),
        (JAPANESE, "euc-jp", "euc-jp"),
        (KOREAN, "cp949", "euc-kr"),
        (CHINESE, "gb18030", "gb18030"),
        ("It’s — in fact — “quoted” for £5", "cp1252", "windows-1252"),
        (FRENCH, "cp1252", "windows-1252"),
    ],
)
def test_statistics_without_a_label(text: str, codec: str, name: str) -> None:
    raw = page(text * 3, codec)
    assert decode_html(raw) == (raw.decode(codec), name)


def test_meta_forms() -> None:
    body = RUSSIAN.encode("cp1251")
    for head in (
        b"<META HTTP-EQUIV='Content-Type' CONTENT='text/html; charset=windows-1251'>",
        b"<meta   name=x ><meta charset = windows-1251/>",
        b"<!-- <meta charset=koi8-r> --><meta charset='windows-1251'>",
        b'<?xml version="1.0" encoding="windows-1251"?><html>',
        b"<script>" + b"x" * 3500 + b"</script><meta charset=windows-1251>",
    ):
        assert decode_html(head + body)[1] == "windows-1251"
    raw = b"<meta charset=utf-16>" + RUSSIAN.encode()
    assert decode_html(raw) == (raw.decode(), "utf-8")


def test_ascii_and_empty() -> None:
    assert decode_html(b"plain") == ("plain", "utf-8")
    assert decode_html(b"plain", "text/html; charset=iso-8859-1") == ("plain", "utf-8")
    assert decode_html(b"") == ("", "utf-8")


def test_never_raises_and_repeats_itself() -> None:
    rng = random.Random(3)
    labels = ["", "nonsense", "utf-8", "utf-16", "gb2312", "iso-2022-jp", "big5", "euc-kr", "x-user-defined"]
    for _ in range(400):
        raw = rng.randbytes(rng.randint(0, 400)) + rng.choice([b"", b"\x1b$B!!", "ü".encode() * 9])
        label = f"text/html; charset={rng.choice(labels)}"
        text, name = decode_html(raw, label)
        assert (text, name) == decode_html(raw, label)
        assert name in NAMES.values()
        text.encode("utf-8")  # no lone surrogates


def test_every_codec_exists() -> None:
    import codecs

    for codec in set(CODECS.values()):
        codecs.lookup(codec)
    assert len(set(NAMES.values())) == len(NAMES)


def test_real_pages_decode_without_replacement() -> None:
    """Of 654 real pages at most 1 in 100 holds a replacement character that its bytes did not."""
    from gristmill.curate.warc import Limits, Page, Record, open_warc, page_of, read_records

    pages = broken = 0
    names = set()
    for n in (0, 1):
        path = shared_data(f"warc/pages/pages-0000{n}.warc.gz")
        with open_warc(str(path)) as stream:
            for r in read_records(stream, path.name):
                found = page_of(r, Limits()) if isinstance(r, Record) else None
                if isinstance(found, Page):
                    text, name = decode_html(found.html, found.content_type)
                    names.add(name)
                    pages += 1
                    broken += "\ufffd" in text and b"\xef\xbf\xbd" not in found.html
    assert pages == 654
    assert broken <= 6
    assert names <= {"utf-8", "windows-1252", "euc-kr", "windows-1251", "iso-8859-2", "iso-8859-15"}
