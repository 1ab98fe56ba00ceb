"""Segmenters by name: which one measures which language, and that their words are where they say."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from gristmill.core.errors import UsageError
from gristmill.tokenize import segmenters
from gristmill.tokenize.segmenters import PACKAGES, RUNS, choose, placed, primary

TEXTS = {
    "zh": ("世界人权宣言 is text，很好", {"世界", "人权", "世界人权宣言", "is", "text"}),
    "ja": ("すべての人間は、生れながらにして free である。", {"すべて", "人間", "free"}),
    "th": ("มนุษย์ทั้งหลายเกิดมามีอิสระ ok", {"มนุษย์", "เกิด", "ok"}),
    "ko": ("모든 인간은 태어날 때부터 했어요.", {"모든", "인간"}),
    "lo": ("ມະນຸດທຸກຄົນ ok", {"ມະນຸດ", "ok"}),
}


@pytest.mark.parametrize("language", sorted(TEXTS))
def test_installed_segmenters_split_where_they_say(language: str) -> None:
    distribution = next(d for d, codes in PACKAGES.values() if language in codes)
    try:
        known = version(distribution)
    except PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed (pip install 'gristmill[segmenters]')")
    text, some = TEXTS[language]
    segmenter = choose()(f"{language}-Xxxx")
    assert known in segmenter.label
    starts, ends, skipped = segmenter.split(text)
    words = [text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    assert some & set(words)
    assert skipped == 0
    assert len(words) > 3 or language == "lo"
    assert all(b <= c for b, c in zip(ends[:-1].tolist(), starts[1:].tolist(), strict=True))
    assert all(any(c.isalnum() for c in w) for w in words)
    assert segmenter.split("")[0].tolist() == []


def test_choices() -> None:
    assert choose(["runs"])("zh") is RUNS
    assert choose()("en") is RUNS
    assert choose(["ko=runs"])("ko-KR") is RUNS
    assert primary("zh_CN") == primary("ZH-Hant") == "zh"


@pytest.mark.parametrize("given", ["os", "zh=os", "jieba", "zh=jieba.analyse"])
def test_only_the_known_packages(given: str) -> None:
    with pytest.raises(UsageError, match=r"no segmenter named|is for one language"):
        choose([given])


@pytest.fixture
def _nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenters, "_installed", lambda distribution: False)


@pytest.mark.usefixtures("_nothing")
def test_without_packages_runs_and_a_clear_word() -> None:
    assert choose()("zh") is RUNS
    with pytest.raises(UsageError, match="jieba is not installed"):
        choose(["zh=jieba"])("zh")


def test_placed_leaves_out_what_is_not_there() -> None:
    assert placed("ab cd ab", ["ab", "xx", "ab"]) == [(0, 2), (6, 8)]
