"""Label expressions such as ``label == 0 and not is_spam == 1``: parsed and translated to Polars, never executed.

Grammar: column names (``col("native-country")`` for names that are not identifiers), numbers, quoted strings,
``== != < <= > >=``, ``in [..]``, ``not in [..]``, ``and``, ``or``, ``not`` and parentheses. A column compared with a
number is read as a number; compared with a string, as the text of an id. If a cell that decides the result is empty,
so is the result.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.data.columns import MISSING, Array
from dlen.data.sources.cells import LINE, id_text, numbers

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Expression:
    """A parsed label expression.

    Args:
        text: source text of the expression.

    Attributes:
        columns: names of the columns it reads.
        numeric: columns read as numbers; the others are read as the text of an id.
        is_column: whether the text is only the name of a column.

    Raises:
        ValueError: the text does not follow the grammar of this module.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.columns: list[str] = []
        self.numeric: list[str] = []
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"{text!r} is not an expression such as `label == 0`") from None
        name = self._name(tree)
        self.is_column = name is not None
        if name is not None:  # a single column holds the label, 0 or 1
            self.columns, self.numeric = [name], [name]
            self.expr = pl.col(name).cast(pl.Float64)
        else:
            try:
                self.expr = self._boolean(tree).cast(pl.Float64)
            except RecursionError:  # Python 3.13 parses deeper nesting than it can walk
                raise ValueError(f"{text[:40]!r}... is nested too deeply") from None

    def _name(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return node.id
        match node:
            case ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str(name))], keywords=[]):
                return name
        return None

    def _boolean(self, node: ast.AST) -> pl.Expr:
        if isinstance(node, ast.BoolOp):
            parts = [self._boolean(value) for value in node.values]
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            while len(parts) > 1:  # join in pairs: a chain of thousands would be nested as deeply
                pairs = zip(parts[::2], parts[1::2], strict=False)
                parts = [*(join(a, b) for a, b in pairs), *(parts[-1:] if len(parts) % 2 else [])]
            return parts[0]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._boolean(node.operand)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._comparison(node.left, node.ops[0], node.comparators[0])
        raise self._error(node)

    def _comparison(self, left: ast.AST, op: ast.cmpop, right: ast.AST) -> pl.Expr:
        name = self._name(left)
        if name is None:
            raise self._error(left)
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple):
                raise self._error(right)
            values = [self._constant(item) for item in right.elts]
            is_listed = self._column(name, values).is_in(values)
            return ~is_listed if isinstance(op, ast.NotIn) else is_listed
        if type(op) not in _COMPARISONS:
            raise self._error(op)
        value = self._constant(right)
        result: pl.Expr = _COMPARISONS[type(op)](self._column(name, [value]), pl.lit(value))
        return result

    def _column(self, name: str, values: list[float | str]) -> pl.Expr:
        self.columns.append(name)
        if all(isinstance(v, str) for v in values):
            # Another part of the expression may read the column as a number.
            return pl.col(name).cast(pl.String).str.replace(r"^([+-]?\d+)\.0+$", "$1")
        if any(isinstance(v, str) for v in values):
            raise ValueError(f"{self.text!r}: {name} is compared with both numbers and text")
        self.numeric.append(name)
        return pl.col(name).cast(pl.Float64)

    def _constant(self, node: ast.AST) -> float | str:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._constant(node.operand)
            if isinstance(value, float):
                return -value
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool | int | float):
                if abs(node.value) > 2**53:
                    raise ValueError(
                        f"{self.text!r}: {node.value} is too large for an exact comparison of numbers; write it as "
                        f"text, '{node.value}'"
                    )
                return float(node.value)
            if isinstance(node.value, str):
                return id_text(pl.Series([node.value]), Path())[0] or ""
        raise self._error(node)

    def _error(self, node: ast.AST) -> ValueError:
        part = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
        return ValueError(f"{self.text!r}: {part!r} is not allowed; write e.g. `label == 0` or `kind in ['a', 'b']`")


def read_label(frame: pl.DataFrame, path: Path, whose: str, parsed: Expression, spec: Path) -> Array:
    """(n,) 0 or 1 from an expression, MISSING if it is empty; BadRowError for rows with any other value."""
    # A separate frame, because another label may compare the same column with text.
    cells = frame.with_columns(
        (numbers(frame, c, path) if c in parsed.numeric else id_text(frame[c], path)).alias(c)
        for c in dict.fromkeys(parsed.columns)
    )
    values = cells.select(label=parsed.expr)["label"]
    bad = values.is_not_null() & ~values.is_in([0.0, 1.0])
    if bad.any():
        bad_cells = cells.filter(bad)
        shown = ", ".join(f"{c} = {bad_cells[c][0]!r}" for c in dict.fromkeys(parsed.columns))
        problem = (
            f"{whose}: the label is neither 0 nor 1 ({shown}); "
            f"write an expression such as `{parsed.columns[0]} > 0` in {spec}"
        )
        raise BadRowError(path, bad_cells[LINE].to_list(), problem)
    label: Array = values.fill_null(MISSING).cast(pl.UInt8).to_numpy()
    return label
