"""docs/kernels.md holds the committed figures and today's predictions."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.trainer.kernels import aot_limits, sheet

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text()
    assert text == sheet.filled(text), "run `python -m gristmill.trainer.kernels.sheet docs/kernels.md`"


def test_figures_of_the_newest_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"registers": 40, "shared": 2048, "stack": 8, "hmma": 4, "load_wide": 3, "store_wide": 2, "instructions": 99}
    tables = {"triton 3.9.1": {"old": row}, "triton 3.10.0": {"new": row}}
    monkeypatch.setattr(aot_limits, "load", lambda target: tables if target == "sm80" else {})
    text = sheet.compiled()
    assert "| new | 40 r, 2 K, 4 hmma, 5 wide, 99 i, **8 stack** | – | – | – |" in text
    assert "| old" not in text
    assert "sm80: triton 3.10.0; sm90: none" in text


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(AssertionError, match="one section compiled"):
        sheet.filled("<!-- begin predicted -->\n<!-- end predicted -->")
