"""Filter expressions over columns, `language == 'en' and quality >= 0.5`, compiled to an Arrow mask without eval.

Grammar, a subset of Python's: column names (also with dots, `raw.words`), strings, numbers, True and False (also `true`, `false`); `== != < <= > >=`,
chained too; `in` and `not in` with a list of constants; `'part' in url` for a substring; `is None` and `is not None`;
`and`, `or`, `not`, parentheses, unary minus. Anything else is an error that names its column in the expression.
A comparison with a null is false (so `not (quality < 0.5)` holds where quality is null).
"""

from __future__ import annotations

import ast
import difflib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.errors import UsageError

MAX_CHARS = 2_000  # a filter is one line written by hand; the bound also keeps integers far under int64's parse limits
MAX_DEPTH = 32  # nesting of operators

Mask = Callable[[pa.Table], Any]
Kind = Literal["string", "number", "bool", "any"]

_COMPARE: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Eq: ("equal", "equal"),
    ast.NotEq: ("not_equal", "not_equal"),
    ast.Lt: ("less", "greater"),
    ast.LtE: ("less_equal", "greater_equal"),
    ast.Gt: ("greater", "less"),
    ast.GtE: ("greater_equal", "less_equal"),
}
"""Operator -> the compute function, and the one with its sides swapped."""


class ExpressionError(UsageError):
    """A filter expression that is no filter. `column` counts characters from 1."""

    def __init__(self, message: str, column: int, *, hint: str | None = None) -> None:
        super().__init__(f"{message} (column {column} of the expression)", hint=hint)
        self.column = column

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.message, self.column, self.hint))


def _rebuild(message: str, column: int, hint: str | None) -> ExpressionError:
    error = ExpressionError("", column, hint=hint)
    error.message = message
    error.args = (message,)
    return error


@dataclass(frozen=True)
class Expression:
    """A checked filter. `columns` are the names it reads, sorted."""

    text: str
    columns: tuple[str, ...]
    _mask: Mask = field(repr=False, compare=False)
    simple: tuple[str, str, float] | None = None
    """(column, operator, number) where the whole filter is one comparison of a number column with a number."""

    def mask(self, table: pa.Table) -> pa.Array:
        """(rows,) bool array without nulls: which rows the filter keeps. The table needs `columns`."""
        found = self._mask(table)
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def compile_expression(text: str, schema: pa.Schema, *, closed: bool = True) -> Expression:
    """Check a filter against a schema's columns and types. Raises ExpressionError with the place of the fault.

    `closed=False` lets a filter name columns that the schema lacks, of any type: a check of the rest, and of use for that
    alone, since the mask needs the types.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"the expression is longer than {MAX_CHARS} characters", MAX_CHARS + 1)
    flat = "".join(" " if c in "\r\n\t\f\v" else c for c in text)
    lead = len(flat) - len(flat.lstrip(" "))
    body = flat.strip(" ")
    if not body:
        raise ExpressionError("the expression is empty", 1, hint="leave `filter:` out to take every document")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on odd literals; they are faults below or plain values
            tree = ast.parse(body, mode="eval")
    except SyntaxError as error:
        raise ExpressionError(f"bad syntax: {error.msg}", lead + (error.offset or 1)) from None
    except (ValueError, MemoryError, RecursionError) as error:
        raise ExpressionError(f"bad syntax: {error or 'too deeply nested'}", lead + 1) from None
    compiler = _Compiler(schema, body, lead, closed)
    mask = compiler.mask(tree.body, 1)
    return Expression(text, tuple(sorted(compiler.used)), mask, compiler.simple(tree.body))


class _Compiler:
    """Turns syntax nodes into functions from a table to a mask; a node it does not know is an error."""

    def __init__(self, schema: pa.Schema, body: str, lead: int, closed: bool = True) -> None:
        self.schema = schema
        self.bytes = body.encode()
        self.lead, self.closed = lead, closed
        self.dotted = not closed or any("." in name for name in schema.names)
        self.used: set[str] = set()

    def fail(self, node: ast.AST, message: str, hint: str | None = None) -> ExpressionError:
        offset = getattr(node, "col_offset", 0)  # in UTF-8 bytes
        return ExpressionError(message, self.lead + len(self.bytes[:offset].decode("utf-8", "ignore")) + 1, hint=hint)

    def mask(self, node: ast.expr, depth: int) -> Mask:
        if depth > MAX_DEPTH:
            raise self.fail(node, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, ast.BoolOp):
            combine = pc.and_ if isinstance(node.op, ast.And) else pc.or_
            return _fold(combine, [self.mask(value, depth + 1) for value in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.mask(node.operand, depth + 1)
            return lambda table: pc.invert(inner(table))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            return _fold(
                pc.and_, [self.compare(a, op, b) for a, op, b in zip(sides, node.ops, sides[1:], strict=False)]
            )
        if self.is_column(node):
            name, kind = self.column(node)
            if kind not in ("bool", "any"):
                raise self.fail(node, f"`{name}` is a {kind} column, not a condition", f"compare it: {name} == …")
            return lambda table: pc.fill_null(table[name], False)
        raise self.fail(
            node,
            f"{_what(node)} is not a condition",
            "a filter has column names, constants, == != < <= > >=, in, and, or, not",
        )

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Mask:
        if isinstance(op, (ast.Is, ast.IsNot)):
            name, _ = self.column(left)
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self.fail(right, "`is` only goes with None", "use == for values")
            test = pc.is_null if isinstance(op, ast.Is) else pc.is_valid
            return lambda table: test(table[name])
        if isinstance(op, (ast.In, ast.NotIn)):
            return self.member(left, right, isinstance(op, ast.NotIn))
        function, swapped = _COMPARE[type(op)]
        if not self.is_column(left):
            if not self.is_column(right):
                raise self.fail(left, f"a comparison needs a column; this is {_what(left)}", self.names())
            left, right, function = right, left, swapped
        name, kind = self.column(left)
        if self.is_column(right):
            other, other_kind = self.column(right)
            if other_kind != kind and "any" not in (kind, other_kind):
                raise self.fail(right, f"`{name}` is a {kind} column and `{other}` a {other_kind} column")
            return lambda table: _known(function, table[name], table[other])
        scalar = self.scalar(right, name, kind)
        return lambda table: _known(function, table[name], scalar)

    def member(self, left: ast.expr, right: ast.expr, negate: bool) -> Mask:
        if self.is_column(right):  # 'part' in url
            name, kind = self.column(right)
            part = self.constant(left)
            if kind not in ("string", "any") or not isinstance(part, str):
                raise self.fail(right, "`in` a column looks for a piece of text in a string column")
            found: Mask = lambda table: pc.match_substring(table[name], part)  # noqa: E731
        else:
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                raise self.fail(right, "`in` needs a list of constants", "language in ['de', 'fr']")
            name, kind = self.column(left)
            values = [self.scalar(item, name, kind).as_py() for item in right.elts]
            if kind == "any":
                return _never
            wide = {"string": pa.string(), "bool": pa.bool_(), "number": pa.float64()}[kind]
            if kind == "number" and all(isinstance(v, int) for v in values):
                wide = pa.int64()
            value_set = pa.array(values, wide)
            if pa.types.is_float32(_plain(self.schema.field(name).type)):
                wide, value_set = pa.float32(), value_set.cast(pa.float32())
            found = lambda table: pc.is_in(table[name].cast(wide), value_set=value_set)  # noqa: E731
        if negate:
            return lambda table: pc.and_(pc.is_valid(table[name]), pc.invert(pc.fill_null(found(table), False)))
        return lambda table: pc.and_(pc.is_valid(table[name]), pc.fill_null(found(table), False))

    def column(self, node: ast.expr) -> tuple[str, Kind]:
        if not self.is_column(node):
            raise self.fail(node, f"{_what(node)} stands where a column must", self.names())
        name = self.name(node)
        if name not in self.schema.names:
            if not self.closed:
                self.used.add(name)
                return name, "any"
            raise self.fail(node, f"unknown column `{name}`", self.names(name))
        kind = _kind(self.schema.field(name).type)
        if kind is None:
            raise self.fail(node, f"`{name}` holds {self.schema.field(name).type}, which cannot be compared")
        self.used.add(name)
        return name, kind

    def scalar(self, node: ast.expr, name: str, kind: Kind) -> pa.Scalar:
        """The Arrow constant to compare column `name` with: of float32 for a float32 column, so 0.1 equals 0.1."""
        value = self.constant(node)
        if kind == "any":
            return pa.scalar(value)
        if _kind_of_value(value) != kind:
            raise self.fail(node, f"`{name}` is a {kind} column, {value!r} is not a {kind}")
        column = _plain(self.schema.field(name).type)
        if kind == "number":
            return pa.scalar(
                value,
                column if pa.types.is_floating(column) else pa.int64() if isinstance(value, int) else pa.float64(),
            )
        return pa.scalar(value)

    def constant(self, node: ast.expr) -> str | int | float | bool:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            node, sign = node.operand, -1
            if isinstance(node.value, (str, bool)):
                raise self.fail(node, "a minus needs a number")
        if isinstance(node, ast.Name) and node.id in ("true", "false"):
            return node.id == "true"
        if isinstance(node, ast.Constant):
            value = node.value
            if isinstance(value, (bool, str)):
                return value
            if isinstance(value, int):
                if abs(value) >= 1 << 63:
                    raise self.fail(node, "the number does not fit 64 bits")
                return sign * value
            if isinstance(value, float):
                if not math.isfinite(value):
                    raise self.fail(node, "the number is not finite")
                return sign * value
        hint = "compare with `is None`" if isinstance(node, ast.Constant) and node.value is None else None
        raise self.fail(node, f"{_what(node)} is not a constant", hint or "constants are 'text', 1, 0.5, True, False")

    def name(self, node: ast.expr) -> str:
        """`language`, or `raw.words` where columns have dots, as written; "" for anything else. Nothing is looked up."""
        parts: list[str] = []
        while self.dotted and isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""

    def is_column(self, node: ast.expr) -> bool:
        return self.name(node) not in ("", "true", "false")

    def simple(self, node: ast.expr) -> tuple[str, str, float] | None:
        """See `Expression.simple`; the tree has been checked."""
        if not isinstance(node, ast.Compare) or len(node.ops) != 1 or type(node.ops[0]) not in _SIGNS:
            return None
        left, right = node.left, node.comparators[0]
        sign = _SIGNS[type(node.ops[0])]
        if not self.is_column(left):
            left, right, sign = right, left, _MIRRORED.get(sign, sign)
        name = self.name(left)
        if self.is_column(right) or name not in self.schema.names or _kind(self.schema.field(name).type) != "number":
            return None
        return name, sign, float(self.constant(right))

    def names(self, like: str = "") -> str:
        known = [n for n in self.schema.names if _kind(self.schema.field(n).type)]
        close = difflib.get_close_matches(like, known, 1, 0.7) if like else []
        return f"did you mean `{close[0]}`?" if close else f"columns: {', '.join(known)}"


_SIGNS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _fold(combine: Callable[[Any, Any], Any], masks: list[Mask]) -> Mask:
    def run(table: pa.Table) -> Any:
        out = masks[0](table)
        for mask in masks[1:]:
            out = combine(out, mask(table))
        return out

    return run


def _never(table: pa.Table) -> Any:
    raise AssertionError("a filter compiled without its columns' types")


def _known(function: str, left: Any, right: Any) -> Any:
    return pc.fill_null(pc.call_function(function, [left, right]), False)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _kind(kind: pa.DataType) -> Kind | None:
    kind = _plain(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return None


def _kind_of_value(value: object) -> Kind:
    if isinstance(value, bool):
        return "bool"
    return "string" if isinstance(value, str) else "number"


def _what(node: ast.AST) -> str:
    """What a piece of syntax is called, for messages."""
    names = {
        ast.Call: "a call",
        ast.Attribute: "an attribute (`a.b`)",
        ast.Subscript: "a subscript (`a[b]`)",
        ast.Lambda: "a lambda",
        ast.BinOp: "arithmetic",
        ast.Constant: "a constant",
        ast.Name: "a name",
        ast.List: "a list",
        ast.JoinedStr: "an f-string",
        ast.NamedExpr: "an assignment",
        ast.IfExp: "a conditional",
    }
    return names.get(type(node), f"`{type(node).__name__}`")
