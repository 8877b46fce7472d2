"""A grid of data settings: planes in which two axes vary while all others stay at their first label."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from dlen.errors import UserError

Cell = tuple[tuple[str, str], ...]  # one label per axis, as (axis, label)


@dataclass(frozen=True, slots=True)
class Grid:
    """Axes and the planes in which they vary.

    Attributes:
        axes: settings of each label, by axis and label.
        planes: pairs of axes.
    """

    axes: dict[str, dict[str, list[str]]]
    planes: list[tuple[str, str]]

    def cell(self, **labels: str) -> Cell:
        """The cell with these labels, and with the first label on every other axis."""
        return tuple((axis, labels.get(axis, next(iter(values)))) for axis, values in self.axes.items())

    def settings(self, cell: Cell) -> list[str]:
        """The overrides of one cell."""
        return [setting for axis, label in cell for setting in self.axes[axis][label]]


def parse_grid(config: DictConfig) -> Grid | None:
    """Read the experiment's grid; None for an ordinary comparison.

    Raises:
        UserError: a plane names an unknown axis, or an axis is empty.
    """
    experiment = config.experiment
    if experiment.get("grid") is None:
        return None
    axes = OmegaConf.to_container(experiment.grid, resolve=True)
    assert isinstance(axes, dict)
    planes = []
    for plane in experiment.get("planes") or []:
        unknown = [a for a in plane if not axes.get(a)]
        if unknown or len(plane) != 2:
            raise UserError(
                f"config experiment.planes: {list(plane)} is not a pair of axes of experiment.grid that have labels"
            )
        planes.append((str(plane[0]), str(plane[1])))
    if not planes:
        raise UserError("config experiment.planes: must name at least one pair of axes")
    return Grid({str(a): {str(k): list(v) for k, v in labels.items()} for a, labels in axes.items()}, planes)


def cells_of(grid: Grid) -> list[Cell]:
    """Every cell of every plane, once."""
    cells = [
        grid.cell(**{first: a, second: b})
        for first, second in grid.planes
        for a in grid.axes[first]
        for b in grid.axes[second]
    ]
    return list(dict.fromkeys(cells))
