"""Checks of a CSV file that Polars leaves out: duplicate columns, undecodable bytes, row widths, and stray quotes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

from dlen.data.bad_rows import BadRowError
from dlen.data.sources.csv_text import CsvText
from dlen.errors import UserError


def check_header(text: CsvText) -> None:
    """Reject duplicate column names: one column would be read as the other."""
    names = list(text.spec.columns)
    if text.spec.header:
        names = [name.strip() for name in next((row for _, row in text.rows()), [])]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{text.path}: two columns are called {name!r}; rename or drop one")


def undecodable_rows(text: CsvText) -> Iterator[BadRowError]:
    """Rows that are not UTF-8. Raises UserError if the header is not."""
    if text.decodable:
        return
    is_header = text.spec.header
    for number, row in text.rows("surrogateescape"):
        escaped = next((c for cell in row for c in cell if "\udc80" <= c <= "\udcff"), None)
        if escaped is not None:
            problem = (
                f"byte 0x{ord(escaped) - 0xDC00:02x} is not valid UTF-8; set encoding in {text.spec.path}, such as "
                "gb18030, latin-1 or cp1252"
            )
            if is_header:
                raise UserError(f"{text.path}, row {number}: {problem}")
            yield BadRowError(text.path, [number], problem)
        is_header = False


def wrong_widths(text: CsvText) -> Iterator[BadRowError]:
    """Rows with too many or too few columns."""
    width = len(text.spec.columns)
    for number, row in text.rows():
        width = width or len(row)
        if len(row) != width:
            yield BadRowError(text.path, [number], f"{len(row)} columns instead of {width}")


def check_widths(text: CsvText) -> None:
    """Raise an error for the first row with too many or too few columns, if any."""
    for error in wrong_widths(text):
        raise error


def check_quotes(text: CsvText) -> None:
    """Reject a multi-line row whose lines would each be a row: the quote closes in the cell of another row."""
    if text.spec.quote is not None:  # set explicitly, so intended
        return
    lines: list[str] = []  # lines of a row

    def kept(file: TextIO) -> Iterator[str]:
        for line in file:
            lines.append(line.rstrip("\r\n"))
            yield lines[-1].replace("\r", " ")

    with text.open_text() as file, suppress(csv.Error):
        rows, width, before = csv.reader(kept(file), **text.dialect()), len(text.spec.columns), 0
        for row in rows:
            width = width or len(row)
            if len(lines) > 1 and width > 1 and all(line.count(text.separator) == width - 1 for line in lines):
                raise UserError(
                    f"{text.path}, row {before + 1}: a quote opens here and closes in row {rows.line_num}: "
                    f"{len(lines)} rows become one; set quote: '' in {text.spec.path} if quotes are text, or "
                    "quote: '\"' if cells contain line breaks"
                )
            lines.clear()
            before = rows.line_num


def quote_hint(text: CsvText) -> str:
    """Hint at the first row with a quote inside a cell, neither at its start nor at its end."""
    if not text.quote:
        return ""
    inside = re.compile(f"[^{re.escape(text.separator)}{text.quote}]{text.quote}[^{re.escape(text.separator)}]")
    with text.open_text() as file:
        number = next((n for n, line in enumerate(file, 1) if inside.search(line.rstrip("\r\n"))), None)
    where = "" if number is None else f" (row {number} has one within a cell)"
    return f"; set quote: '' in {text.spec.path} if quotes are part of the text{where}"
