"""Parses a cell of any type: as the canonical text of an id, a finite number, or a time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.errors import UserError
from dlen.hashing import U64

LINE = "__line__"  # row number within its file
ROW = "__row__"  # row number over all files of a table
HASH_BYTES = 8  # size of the digest of a hashed text
LARGEST = float(np.finfo(np.float32).max)  # of 32 bits, the precision of numbers in a model
_LATEST = 7_258_118_400_000_000  # the year 2200, in microseconds since 1970
_SECONDS = (631_152_000, 7_258_118_400)  # years 1990 and 2200; read as milliseconds, they would be days of 1970
# The largest value up to which a float represents every whole number.
_EXACT: dict[Any, int] = {pl.Float64: 2**53, pl.Float32: 2**24}
_TRUTH = {"true": 1.0, "false": 0.0}
_ISO = (
    r"^(?<date>\d{4}[-/]\d{2}[-/]\d{2})(?:[ T](?<time>\d{2}:\d{2})(?::(?<second>\d{2}(?:[.,]\d+)?))?)?"
    r"\s*(?:Z|UTC|(?<sign>[+-])(?<hours>\d{2}):?(?<minutes>\d{2})?)?$"
)
_MARKS = ("\\N", "null", "na", "n/a", "nan", "none", "nil", "-")  # common spellings of missing values


def id_text(cells: pl.Series, path: Path) -> pl.Series:
    """The canonical text of each id, null if absent: 12, 12.0, "12", "12.0" and " 12" are the same id.

    pandas converts a column of whole numbers with an empty cell to floats, and writes True where Polars writes true. An
    id in files of both kinds must not become two ids.

    Args:
        cells: cells of any type except lists.
        path: path of the file, for messages.

    Raises:
        UserError: cells are lists, or floats too large to distinguish neighbouring ids.
    """
    kind = cells.dtype
    if isinstance(kind, pl.Struct):
        raise UserError(f"{path}: column {cells.name}: has type {kind}, which cannot be read as ids")
    if kind.is_nested():
        raise UserError(f"{path}: column {cells.name}: has type {kind}, expected single ids; use kind: ids for lists")
    if kind.is_integer():
        return cells.cast(pl.String)
    if kind.is_float():
        cells = _whole(cells.fill_nan(None), path)
    try:
        text = cells.cast(pl.String).str.strip_chars()
    except pl.exceptions.PolarsError:
        raise UserError(f"{path}: column {cells.name}: has type {kind}, which cannot be read as ids") from None
    if isinstance(kind, pl.Decimal):
        text = text.str.replace(r"(\.\d*?)0+$", "$1").str.strip_chars_end(".")
    if text.str.contains(".0", literal=True).any():
        text = text.str.replace(r"^[+-]?0+\.0+$", "0").str.replace(r"^([+-]?\d+)\.0+$", "$1")
    if text.str.contains(r"^(?i:true|false)$").any():
        lower = text.str.to_lowercase()
        text = text.zip_with(~lower.is_in(["true", "false"]), lower)
    return text.set(text == "", None)


def hashes(texts: pl.Series) -> U64:
    """A 64-bit BLAKE2b hash of each text, the same on every machine. Python work is per distinct text, not per row."""
    distinct = texts.unique()
    digests = [hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest() for text in distinct]
    values = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
    return values[texts.cast(pl.Enum(distinct)).to_physical().to_numpy()]


def _whole(cells: pl.Series, path: Path) -> pl.Series:
    """Floats as text, with whole numbers written as integers."""
    whole = cells.is_finite() & (cells == cells.floor())
    merged = whole & (cells.abs() > _EXACT.get(type(cells.dtype), 2**11))
    if merged.any():
        value = cells.filter(merged)[0]
        raise UserError(
            f"{path}: column {cells.name}: ids as large as {value!r} are not exact in type {cells.dtype}; write the "
            "column as whole numbers or as text"
        )
    texts = cells.cast(pl.String)
    return texts.zip_with(~whole.fill_null(False), cells.set(~whole, None).cast(pl.Int64).cast(pl.String))


def numbers(frame: pl.DataFrame, column: str, path: Path) -> pl.Series:
    """A column as finite floats, null for an empty cell; BadRowError for any other cell. True is 1."""
    cells = frame[column]
    if cells.dtype.is_nested() or cells.dtype.is_temporal():
        hint = "; use kind: time" if cells.dtype in (pl.Date, pl.Datetime) else ""
        raise UserError(f"{path}: column {column}: has type {cells.dtype}, expected numbers{hint}")
    try:
        if cells.dtype == pl.String:
            cells = cells.str.strip_chars()
            cells = cells.set(cells == "", None)
        values = cells.cast(pl.Float64, strict=False)
        if cells.dtype == pl.String and (words := cells.is_not_null() & values.is_null()).any():
            values = values.zip_with(~words, cells.str.to_lowercase().replace_strict(_TRUTH, default=None))
    except pl.exceptions.PolarsError:
        raise UserError(f"{path}: column {column}: has type {cells.dtype}, expected numbers") from None
    unread = cells.is_not_null() & values.is_null()
    if unread.any():
        first = str(cells.filter(unread)[0])
        hint = f"; to read it as empty, set null_values: [{first!r}]" if first.lower() in map(str.lower, _MARKS) else ""
        refuse(frame, unread, column, path, f"not a number{hint}")
    refuse(frame, values.is_not_null() & ~values.is_finite(), column, path, "not a finite number")
    refuse(frame, values.abs() > LARGEST, column, path, f"not in the range of a 32-bit float (up to {LARGEST:.3g})")
    return values


def moments(frame: pl.DataFrame, column: str, path: Path, unit: str = "s", format: str = "") -> pl.Series:
    """A column as microseconds since 1970, null for an empty cell; BadRowError for a cell that is not a time.

    Time stamps with a time zone are converted to UTC; others are used unchanged.

    Args:
        frame: rows to read.
        column: column of dates, time stamps, numbers since 1970, or text of these.
        path: path of the file, for messages.
        unit: unit of numbers: s or ms.
        format: format of text. Default: ISO 8601, such as 2023-11-14 or 2023-11-14T10:00:00+08:00.
    """
    cells = frame[column]
    if cells.dtype in (pl.Date, pl.Datetime):
        return cells.cast(pl.Datetime("us")).cast(pl.Int64)
    if cells.dtype.is_temporal() or cells.dtype.is_nested():
        raise UserError(f"{path}: column {column}: has type {cells.dtype}, expected times")
    if format:
        written = text_of(cells)
        parsed = _parse(written, format)
        refuse(frame, parsed.is_null() & written.is_not_null(), column, path, f"not a time in the format {format}")
        return parsed
    dated = _dated(cells)
    if dated is not None:
        parsed = _iso(text_of(cells))
        bad = dated & parsed.is_null()
        refuse(frame, bad, column, path, "neither a number nor a time such as 2023-11-14 10:00:00; set format")
        frame = frame.with_columns(cells.set(dated, None))
    stamps = numbers(frame, column, path)
    if unit == "ms":
        refuse(
            frame, stamps.is_between(*_SECONDS), column, path, "a time in 1970 if it is in ms; for seconds, set unit: s"
        )
    stamps = stamps * (1_000_000 if unit == "s" else 1000)
    why = f"not a time from 1970 to 2200 if it is in {unit} since 1970; check unit"
    refuse(frame, ~stamps.is_between(0, _LATEST), column, path, why)
    numeric = stamps.cast(pl.Int64)
    return numeric if dated is None else numeric.zip_with(~dated, parsed)


class Rising:
    """Reads a column that orders rows in time, and rejects a mix of times and numbers, which are not comparable.

    Args:
        column: name of the column.
        why: message template with ``{now}`` and ``{then}`` (times and numbers, or the reverse) and ``{other}``, the
            file read before.

    Attributes:
        dated: whether the column holds times; None before the first cell is read.
    """

    def __init__(self, column: str, why: str) -> None:
        self.column, self.why = column, why
        self.dated: bool | None = None
        self._other = Path()

    def agrees(self, other: Rising) -> bool:
        """Whether another reader found the same form."""
        return None in (self.dated, other.dated) or self.dated == other.dated

    def merge(self, other: Rising) -> None:
        """Take the form that another reader found first."""
        if self.dated is None:
            self.dated, self._other = other.dated, other._other

    def read(self, frame: pl.DataFrame, path: Path) -> tuple[pl.Series, bool]:
        """Read floats, either numbers or times in microseconds, null for an empty cell; and whether they are times.

        Raises:
            UserError: the form differs from that of earlier cells.
            BadRowError: a cell is neither a number nor a time.
        """
        cells = frame[self.column]
        dated = cells.dtype in (pl.Date, pl.Datetime) or _dated(cells) is not None
        values = moments(frame, self.column, path).cast(pl.Float64) if dated else numbers(frame, self.column, path)
        if len(values) > values.null_count():
            if self.dated is None:
                self.dated, self._other = dated, path
            if self.dated != dated:
                now, then = ("times", "numbers") if dated else ("numbers", "times")
                raise UserError(
                    f"{path}: column {self.column}: " + self.why.format(now=now, then=then, other=self._other)
                )
        return values, dated


def text_of(cells: pl.Series) -> pl.Series:
    """Cells as text without surrounding blanks, null if empty."""
    text = cells.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def list_of_cells(frame: pl.DataFrame, column: str, separator: str, path: Path) -> pl.Series:
    """A column as lists: a Parquet list, ``[1, 2, 3]`` as in Python and JSON, or values between separators.

    The list of an empty cell is null. A list of one empty text has one value, which is absent, however it is written.

    Raises:
        BadRowError: quoted values cannot be split because one contains a comma.
    """
    cells = frame[column]
    if isinstance(cells.dtype, pl.Array):
        return cells.arr.to_list()
    if isinstance(cells.dtype, pl.List):
        return cells
    text = id_text(cells, path)
    inner = text.str.slice(1, text.str.len_chars() - 2).str.strip_chars()
    written = text.str.starts_with("[") & text.str.ends_with("]") & ~inner.str.contains(r"[\[\]]")
    if not written.any():
        return text.str.split(separator)
    # numpy writes blanks instead of commas
    blanks = inner.str.contains(r"^[^,'\"]*$")
    inner = inner.zip_with(~blanks, inner.str.replace_all(r"\s+", ","))
    values = inner.str.split(",")
    torn = values.list.eval(_torn(pl.element().str.strip_chars())).list.any() & written
    torn |= inner.str.contains(r"['\"]\s+['\"]") & written
    refuse(frame, torn.fill_null(False), column, path, "a list with a comma in a value; write it as a Parquet list")
    value = pl.element().str.strip_chars()
    absent = value.is_in(["None", "null", "nan", "NaN"])
    plain = values.list.eval(pl.when(~absent).then(value.str.strip_chars("'\"")))
    plain = plain.zip_with((inner != "").fill_null(True), _repeated([], plain))
    return plain.zip_with(written.fill_null(False), text.str.split(separator))


def listed_ids(frame: pl.DataFrame, column: str, separator: str, path: Path) -> pl.DataFrame:
    """The ids in a column of lists that are present: the ``row`` of each, and its text as ``value``."""
    lists = list_of_cells(frame, column, separator, path)
    long = pl.DataFrame({"row": pl.int_range(len(lists), eager=True), "value": lists}).explode("value")
    return long.with_columns(id_text(long["value"].alias(column), path).alias("value")).drop_nulls("value")


def lists_or_empty(frame: pl.DataFrame, column: str, separator: str, path: Path) -> pl.Series:
    """A column as lists like :func:`list_of_cells`; an empty cell is an empty list."""
    lists = list_of_cells(frame, column, separator, path)
    return lists.zip_with(lists.is_not_null(), _repeated([], lists))


def with_absent(lists: pl.Series, where: pl.Series) -> pl.Series:
    """(n,) lists, which have a single absent value where the mask (n,) is true."""
    return lists.zip_with(~where, _repeated([None], lists))


def _repeated(values: list[None], like: pl.Series) -> pl.Series:
    """One list in each of the rows of a column of lists."""
    return pl.Series([values], dtype=like.dtype).new_from_index(0, len(like))


def _torn(value: pl.Expr) -> pl.Expr:
    """Whether a value begins or ends with a quote that is not matched at the other end."""
    begins, ends = (cut.is_in(["'", '"']) for cut in (value.str.slice(0, 1), value.str.slice(-1)))
    same = (value.str.slice(0, 1) == value.str.slice(-1)) & (value.str.len_chars() > 1)
    return (begins | ends) & ~same


def refuse(frame: pl.DataFrame, bad: pl.Series, column: str, path: Path, why: str) -> None:
    """Raise BadRowError for the rows where ``bad`` is true, if any."""
    if bad.any():
        rows = frame.filter(bad)
        raise BadRowError(path, rows[LINE].to_list(), f"column {column}: {rows[column][0]!r} is {why}")


def _dated(cells: pl.Series) -> pl.Series | None:
    """Mask of text that is neither empty nor a number; None if there is no such text."""
    if cells.dtype != pl.String:
        return None
    text = text_of(cells)
    dated = text.is_not_null() & text.cast(pl.Float64, strict=False).is_null()
    return dated if dated.any() else None


def _iso(written: pl.Series) -> pl.Series:
    """ISO 8601 text as microseconds since 1970; null for other text."""
    part = written.str.extract_groups(_ISO).struct.unnest()
    date = part["date"].str.replace_all("/", "-", literal=True)
    whole = date + " " + part["time"].fill_null("00:00") + ":" + part["second"].fill_null("00").str.replace(",", ".")
    offset = part.select(
        ((60 * pl.col("hours").cast(pl.Int64) + pl.col("minutes").cast(pl.Int64).fill_null(0)) * 60_000_000)
        .mul(pl.when(pl.col("sign") == "-").then(-1).otherwise(1))
        .fill_null(0)
    ).to_series()
    return _parse(whole, "%Y-%m-%d %H:%M:%S%.f") - offset


def _parse(written: pl.Series, format: str) -> pl.Series:
    parsed = written.str.to_datetime(format, strict=False, time_unit="us")
    return parsed.cast(pl.Datetime("us")).cast(pl.Int64)
