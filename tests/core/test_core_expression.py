"""Filter expressions: what they select, what they refuse, and that hostile text is only ever an error."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.core.expression import MAX_CHARS, ExpressionError, compile_expression

TABLE = pa.table(
    {
        "language": pa.array(["en", "de", None, "fr", "en"], pa.string()),
        "quality": pa.array([0.1, 0.5, 0.9, None, 0.7], pa.float32()),
        "bytes": pa.array([100, 200, 300, 400, None], pa.int32()),
        "url": pa.array(["http://a/x", "http://b/wiki", "http://c/wiki/y", None, "ü"], pa.string()),
        "kept": pa.array([True, False, None, True, False]),
        "blob": pa.array([b"x"] * 5, pa.binary()),
    }
)


def select(text: str) -> list[int]:
    mask = compile_expression(text, TABLE.schema).mask(TABLE)
    assert mask.null_count == 0
    return [i for i, keep in enumerate(mask.to_pylist()) if keep]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("language == 'en'", [0, 4]),
        ("language != 'en'", [1, 3]),
        ("not language == 'en'", [1, 2, 3]),
        ("language in ['de', 'fr']", [1, 3]),
        ("language not in ('de', 'fr')", [0, 4]),
        ("language is None", [2]),
        ("language is not None", [0, 1, 3, 4]),
        ("quality >= 0.5", [1, 2, 4]),
        ("quality > 0.1", [1, 2, 4]),  # a float32 column is compared in float32
        ("quality == 0.1", [0]),
        ("quality in [0.1, 0.7]", [0, 4]),
        ("0.1 < quality <= 0.7", [1, 4]),
        ("0.5 >= quality", [0, 1]),
        ("bytes < 250.5", [0, 1]),
        ("bytes in [100, 300, -5]", [0, 2]),
        ("bytes > -1", [0, 1, 2, 3]),
        ("language == 'en' and quality >= 0.5 and not (bytes < 200)", [4]),
        ("language == 'de' or (bytes == 300)", [1, 2]),
        ("'wiki' in url", [1, 2]),
        ("'wiki' not in url", [0, 4]),
        ("kept", [0, 3]),
        ("kept == false", [1, 4]),
        ("url >= language", [0, 1, 4]),
        (" \n language\t== 'en' ", [0, 4]),
    ],
)
def test_selects(text: str, rows: list[int]) -> None:
    assert select(text) == rows


@pytest.mark.parametrize(
    ("text", "column", "word"),
    [
        ("__import__('os')", 1, "call"),
        ("language == 'en' and open('x')", 22, "call"),
        ("language.upper() == 'EN'", 1, "needs a column; this is a call"),
        ("language.__class__ == 'EN'", 1, "needs a column; this is an attribute"),
        ("quality == ().__class__", 12, "attribute"),
        ("language[0] == 'e'", 1, "this is a subscript"),
        ("lang == 'en'", 1, "unknown column `lang`"),
        ("language == 'en' and qualty > 1", 22, "unknown column `qualty`"),
        ("'ü' in url and qualty > 1", 16, "unknown column `qualty`"),
        ("  lang == 'en'", 3, "unknown column"),
        ("language = 'en'", None, "bad syntax"),
        ("language == ", None, "bad syntax"),
        ("language", 1, "not a condition"),
        ("True", 1, "not a condition"),
        ("1 == 1", 1, "needs a column"),
        ("language == 1", 13, "string column"),
        ("bytes == 'x'", 10, "number column"),
        ("bytes == True", 10, "number column"),
        ("bytes + 1 == 2", 1, "needs a column"),
        ("bytes == 2 ** 99999999", 10, "arithmetic"),
        ("bytes == " + "9" * 1900, 10, "64 bits"),
        ("bytes == 1e999", 10, "finite"),
        ("bytes == 1j", 10, "not a constant"),
        ("language in 'en'", 13, "list"),
        ("language in [language]", 14, "not a constant"),
        ("language == None", 13, "not a constant"),
        ("bytes is 3", 10, "None"),
        ("blob == 'x'", 1, "cannot be compared"),
        ("language == -'en'", 14, "minus"),
        ("(lambda: 1)()", 1, "call"),
        ("[x for x in language]", 1, "not a condition"),
        ("f'{language}' == language", None, "f-string"),
        ("(language := 'x')", None, "assignment"),
        ("language == 'en' if kept else kept", None, "conditional"),
        ("import os", None, "bad syntax"),
        ("", 1, "empty"),
        ("   ", 1, "empty"),
        ("kept\0", None, "bad syntax"),
        ("(" * 900 + "kept" + ")" * 900, None, "bad syntax"),
        ("not " * 400 + "kept", None, "nested deeper"),
        ("-" * 1900 + "1 == bytes", None, ""),
        ("kept and " * 400 + "kept", MAX_CHARS + 1, "longer"),
    ],
)
def test_refuses(text: str, column: int | None, word: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, TABLE.schema)
    assert word in caught.value.message
    assert caught.value.column >= 1
    if column is not None:
        assert caught.value.column == column


def test_columns_and_pickle() -> None:
    assert compile_expression("bytes > 1 and language == 'en' or bytes < 0", TABLE.schema).columns == (
        "bytes",
        "language",
    )
    with pytest.raises(ExpressionError) as caught:
        compile_expression("lang == 'en'", TABLE.schema)
    again = pickle.loads(pickle.dumps(caught.value))  # crosses worker processes
    assert (again.message, again.column, again.hint) == (
        caught.value.message,
        caught.value.column,
        caught.value.hint,
    )


def test_empty_and_chunked_tables() -> None:
    expression = compile_expression("'wiki' in url or quality >= 0.5", TABLE.schema)
    assert len(expression.mask(TABLE.slice(0, 0))) == 0
    chunked = pa.concat_tables([TABLE.slice(0, 2), TABLE.slice(2)])
    assert expression.mask(chunked).to_pylist() == expression.mask(TABLE).to_pylist()


PIECES = [
    "language",
    "quality",
    "bytes",
    "kept",
    "nope",
    "'en'",
    "0.5",
    "-1",
    "9" * 30,
    "==",
    "<",
    "in",
    "not",
    "and",
    "or",
    "(",
    ")",
    "[",
    "]",
]
PIECES += [
    ",",
    "is",
    "None",
    ".",
    "__class__",
    "lambda:",
    "**",
    "if",
    "else",
    ":=",
    "f'{1}'",
    "#",
    "\\",
    '"""',
    "\n",
    "ü",
    "*",
    "await",
    "yield",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join) | st.text(max_size=60))
def test_any_text_is_a_mask_or_an_error(text: str) -> None:
    try:
        mask = compile_expression(text, TABLE.schema).mask(TABLE)
    except ExpressionError as error:
        place = error.column
    else:
        place = 1
        assert (len(mask), mask.null_count, mask.type) == (TABLE.num_rows, 0, pa.bool_())
    assert place >= 1
