"""Progress of long operations: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_PLAIN_SECONDS = 10.0


class _Rate(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{_amount(task.speed or 0, self.unit)}/s")


def format_count(value: float) -> str:
    """Format a number with three digits, such as 950, 12.3k or 4.56M; below 1 with two, such as 0.018."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * limit:  # 999,900 is 1M, not 1000k
            return f"{value / limit:.3g}{letter}"
    return f"{value:.2g}" if 0 < abs(value) < 1 else f"{value:.0f}"


def _amount(value: float, unit: str) -> str:
    return format_count(value) + (unit if unit == "B" else f" {unit}")


class Stage:
    """One stage of a long operation, as a context manager. Call :meth:`advance` to report progress.

    Args:
        label: description of the stage.
        total: number of units in the stage, such as bytes or rows.
        unit: name of the unit.
    """

    def __init__(self, label: str, total: float, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._done = 0.0
        self._started = self._printed = time.monotonic()
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), _Rate(unit), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Stage:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self._print("done")

    def advance(self, amount: float) -> None:
        """Report that ``amount`` more units are done."""
        self._done += amount
        if self._bar:
            self._bar.advance(self._task, amount)
        elif time.monotonic() - self._printed >= _PLAIN_SECONDS:
            self._print(f"{100 * self._done / max(self.total, 1):.0f} %")

    def _print(self, state: str) -> None:
        self._printed = time.monotonic()
        seconds = max(self._printed - self._started, 1e-9)
        rate = self._done / seconds
        known = state != "done" and rate > 0
        left = f", {max(self.total - self._done, 0) / rate:.0f} s left" if known else ""
        line = f"{self.label}: {state}, {_amount(self._done, self.unit)} in {seconds:.1f} s"
        print(f"{line} ({_amount(rate, self.unit)}/s{left})", file=sys.stderr, flush=True)
