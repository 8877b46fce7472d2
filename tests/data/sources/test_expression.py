"""Label expressions evaluate as in Python, and only comparisons are allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dlen.data.sources.expression import Expression

ROWS: list[dict[str, Any]] = [
    {"a": a, "b": b, "kind": kind}
    for a, b, kind in [(0, 1.5, "x"), (1, -2.0, "y"), (2, 0.0, ""), (3, 2.0, "X"), (-1, 1e9, "x y"), (2, 2.5, "ü")]
]
FRAME = pl.DataFrame({key: [str(row[key]) for row in ROWS] for key in ROWS[0]})

SAME_AS_PYTHON = [
    "a == 2",
    "a != 2",
    "a < 2",
    "a <= 2",
    "a > 2",
    "a >= 2",
    "a > -1",
    "a == -1",
    "b == 1.5",
    "b < 1e3",
    "kind == 'x'",
    'kind != "x"',
    "kind < 'x'",
    "kind >= 'x'",
    "kind == ''",
    "kind == 'ü'",
    "a in [1, 2]",
    "a in (1, 2)",
    "a in [1]",
    "a not in [1, 2]",
    "b in [1.5, -2]",
    "kind in ['x', 'X']",
    "kind not in ['x']",
    "a == 2 and b > 1",
    "a == 2 or b > 1",
    "not a == 2",
    "not kind in ['x', 'y']",
    "a == 0 or a == 1 and b > 100",
    "(a == 0 or a == 1) and b > 1",
    "not a == 2 and b > 0",
    "not (a == 2 and b > 0)",
    "a > 0 and a < 3 and b > 0 or kind == 'x'",
    "a == 2 and kind == ''",
    "not not a == 2",
    "a == True",
]


@pytest.mark.parametrize("text", SAME_AS_PYTHON)
def test_value_is_that_of_python(text: str) -> None:
    expected = [float(eval(text, {"__builtins__": {}}, dict(row))) for row in ROWS]
    assert FRAME.select(v=Expression(text).expr)["v"].to_list() == expected
    assert len(set(expected)) == 2  # both outcomes occur


@pytest.mark.parametrize(("text", "expected"), [("a in []", False), ("kind not in []", True)])
def test_empty_lists(text: str, expected: bool) -> None:
    assert FRAME.select(v=Expression(text).expr)["v"].to_list() == [float(expected)] * len(ROWS)


def test_a_column_alone_is_the_label() -> None:
    parsed = Expression("a")
    assert FRAME.select(v=parsed.expr)["v"].to_list() == [float(row["a"]) for row in ROWS]
    assert (parsed.columns, parsed.numeric) == (["a"], ["a"])


def test_names_that_are_no_identifiers() -> None:
    frame = pl.DataFrame({"native-country": ["x", "y"], "my label": ["1", "0"]})
    text = "col('native-country') == 'x' and col(\"my label\") == 1"
    assert frame.select(v=Expression(text).expr)["v"].to_list() == [1.0, 0.0]
    assert frame.select(v=Expression("col('my label')").expr)["v"].to_list() == [1.0, 0.0]


def test_columns_and_numeric_columns_are_told() -> None:
    parsed = Expression("a == 1 and not kind in ['x'] or col('b c') > 2")
    assert set(parsed.columns) == {"a", "kind", "b c"}
    assert set(parsed.numeric) == {"a", "b c"}


REJECTED = [
    "",
    " ",
    "a ==",
    "a = 1",
    "a; b",
    "f(a)",
    "f(a) == 1",
    "abs(a) == 1",
    "col()",
    "col('a', 'b') == 1",
    "col(a) == 1",
    "col(name='a') == 1",
    "open('{file}', 'w') == 1",
    "open('{file}', 'w').write('x') == 1",
    "__import__('os').system('touch {file}') == 0",
    "__import__('pathlib').Path('{file}').touch() == 0",
    "eval('1') == 1",
    "import os",
    "a.b == 1",
    "a.__class__ == 1",
    "().__class__ == 1",
    "a[0] == 1",
    "a + 1 == 2",
    "a == 1 + 1",
    "a * b == 2",
    "-a == 1",
    "a & 1 == 1",
    "lambda: 1",
    "(lambda: open('{file}', 'w'))() == 1",
    "[x for x in a] == 1",
    "a in [x for x in b]",
    "a in [open('{file}', 'w')]",
    "{{a}} == 1",
    "a if b else c",
    "(a := 1) == 1",
    "f'{{a}}' == 'x'",
    "a == f'{{open(1)}}'",
    "0 < a < 3",
    "1 == a",
    "a == b",
    "a is None",
    "a == None",
    "a in b",
    "a in 'abc'",
    "a == [1]",
    "a and b",
    "not a",
    "a in [1, 'x']",
    "a == b''",
    "a == 1j",
    "a == ...",
    "*a",
    "await a",
    "yield",
    "a @ b",
    "\0",
    "(" * 500 + "a" + ")" * 500,
    "not " * 5000 + "a == 1",
]


@pytest.mark.parametrize("text", REJECTED, ids=lambda t: t[:40])
def test_anything_else_is_rejected_and_nothing_runs(tmp_path: Path, text: str) -> None:
    file = tmp_path / "touched"
    filled = text.replace("{file}", str(file)).replace("{{", "{").replace("}}", "}")
    with pytest.raises(ValueError, match=r"."):
        Expression(filled)
    assert not file.exists()


def test_a_dunder_name_is_only_a_column() -> None:
    parsed = Expression("__builtins__ == 1")
    assert parsed.columns == ["__builtins__"]
    assert pl.DataFrame({"__builtins__": [1, 2]}).select(v=parsed.expr)["v"].to_list() == [1.0, 0.0]
