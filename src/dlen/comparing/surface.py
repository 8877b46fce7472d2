"""A comparison over a grid: the gain as heat maps and a table, and how many positives it takes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dlen.comparing.grid import Cell, Grid
from dlen.comparing.statistics import Difference
from dlen.comparing.tables import Comparison, Row, count_seeds, markdown_table
from dlen.files import write_csv, write_json, write_text


@dataclass(frozen=True, slots=True)
class Surface:
    """One comparison per cell of a grid. The gain is that of the last model over the base.

    Attributes:
        title: title of the experiment.
        grid: axes and planes.
        cells: cells, in order.
        comparisons: comparison of each cell.
    """

    title: str
    grid: Grid
    cells: list[Cell]
    comparisons: list[Comparison]

    def _row(self, cell: Cell) -> tuple[Comparison, Row]:
        comparison = self.comparisons[self.cells.index(cell)]
        return comparison, comparison.rows[-1]

    def gain(self, cell: Cell) -> Difference:
        """Paired difference of the mean AUC; nan if a model has none."""
        nothing = Difference(math.nan, len(self.comparisons[0].seeds), *[math.nan] * 4)
        return self._row(cell)[1].differences.get("mean", nothing)

    def correlation(self, cell: Cell) -> float:
        """Mean over seeds of the correlation between P(UP) and the truth; nan if there is none."""
        return float(np.mean(self._row(cell)[1].extras.get("corr/up_truth", [np.nan])))

    def positives(self, cell: Cell) -> tuple[int, int]:
        """Number of training positives of the rarest task, and of all tasks together."""
        counts = self._row(cell)[0].identity["training_positives"].values()
        return min(counts), sum(counts)

    def rule(self) -> str:
        """State from how many positives on the gain interval is always above zero, and up to how many it never is."""
        pairs = sorted((self.positives(c)[1], self.gain(c)) for c in self.cells) if self.cells else []
        losses = [n for n, gain in pairs if not gain.low > 0]
        gains = [n for n, gain in pairs if gain.low > 0]
        worse = sum(gain.high < 0 for _, gain in pairs)
        clear = "clear of zero" if len(self.comparisons[0].seeds) > 1 else "above zero, over test rows alone,"
        if not gains:
            return f"The gain is {clear} in none of the {len(pairs)} cells ({worse} are losses as much)."
        if not losses:
            return f"The gain is {clear} in all {len(pairs)} cells, from {min(gains):,} training positives on."
        always = min((n for n in gains if n > max(losses)), default=None)
        where = f"always from {always:,}" if always is not None else "not always, however many there are"
        return (
            f"The gain is {clear} in {len(gains)} of {len(pairs)} cells ({worse} are losses as much). By training "
            f"positives of all tasks together: {where}; the fewest with such a gain are {min(gains):,}, the most "
            f"without one {max(losses):,}."
        )

    def markdown(self) -> str:
        """The table and the rule of thumb."""
        first = self.comparisons[0]
        header = [*self.grid.axes, "positives, rarest task", "all tasks", "gain in mean AUC [95 %]", "gap cut by"]
        header += ["tasks won", "correlation of P(UP)"]
        rows = []
        for cell in sorted(self.cells, key=lambda c: self.positives(c)[1]):
            comparison, row = self._row(cell)
            gain, (rarest, every) = self.gain(cell), self.positives(cell)
            base = float(np.mean(comparison.base_row.auc["mean"]))
            cut = f"{gain.mean / (comparison.ceiling - base):+.1%}" if comparison.ceiling is not None else ""
            cells = [f"{rarest:,}", f"{every:,}", f"{gain.starred} {gain.interval}", cut]
            tasks = comparison.targets[: comparison.tasks]
            cells += [f"{row.wins(tasks)[0]} of {len(tasks)}", f"{self.correlation(cell):.2f}"]
            rows.append([*(label for _, label in cell), *cells])
        against = f"{first.rows[-1].model} against {first.base}"
        text = f"{against}, {count_seeds(first.seeds)} in each cell; * clear of zero, never by one."
        return "\n\n".join([f"## {self.title}", text, markdown_table(header, rows), self.rule()]) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``surface.md``, ``.csv`` and ``.json``; ``report.py`` reads the JSON file."""
        write_text(folder / "surface.md", self.markdown())
        content = [{"cell": dict(c), **asdict(x)} for c, x in zip(self.cells, self.comparisons, strict=True)]
        write_json(folder / "surface.json", content)
        lines = []
        for cell in self.cells:
            gain = self.gain(cell)
            figures = [*self.positives(cell), gain.mean, gain.low, gain.high, self.correlation(cell)]
            lines.append([*(label for _, label in cell), *figures])
        names = ["rarest_positives", "all_positives", "gain", "low", "high", "correlation"]
        write_csv(folder / "surface.csv", [*self.grid.axes, *names], lines)
