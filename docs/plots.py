"""Pictures of a run for the documentation, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlen.metrics.hidden import PATTERNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from dlen.training.gates import GateFigures
    from dlen.training.latent import HiddenFigures

_COLOURS = ("#4477aa", "#66ccee", "#ee6677")  # distinguishable to colour-blind readers (Tol, bright)
DPI = 120
_KINDS = ("another interaction", "silent liking", "detest")


def plot_hidden_state(hidden: HiddenFigures) -> Figure:
    """Left the distribution of P(UP) by label pattern, right the three kinds of negatives of each task.

    On simulated data the true split stands beside the model's, hatched.

    Args:
        hidden: figures of a pass.
    """
    from matplotlib.figure import Figure  # here, because importing it takes longer than a small validation

    figure = Figure(figsize=(11, 4), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = hidden.counts.cpu().numpy()
    edges = np.linspace(0, 1, counts.shape[1] + 1)
    for pattern, colour, row in zip(PATTERNS, _COLOURS, counts, strict=True):
        if row.sum() > 0:
            left.stairs(row / row.sum() * len(row), edges, label=f"{pattern} ({row.sum():,.0f} rows)", color=colour)
    left.set(xlabel="P(UP)", ylabel="density", title="Hidden state by what happened")
    left.legend()
    places = np.arange(len(hidden.tasks))
    shown = [("model", hidden.kinds)] + ([("truth", hidden.true_kinds)] if hidden.true_kinds is not None else [])
    width = 0.8 / len(shown)
    for number, (source, kinds) in enumerate(shown):
        shares = kinds.cpu().numpy()
        bottom = np.zeros(len(places))
        for kind, colour, share in zip(_KINDS, _COLOURS, shares.T, strict=True):
            right.bar(
                places + (number - (len(shown) - 1) / 2) * width,
                share,
                width * 0.92,
                bottom=bottom,
                color=colour,
                hatch="//" if source == "truth" else None,
                edgecolor="white",
                label=kind if number == 0 else None,
            )
            bottom += np.nan_to_num(share)
    right.set(xticks=places, xticklabels=hidden.tasks, ylabel="share of negatives")
    right.set_title("What a negative means" + ("; hatched: the truth" if len(shown) > 1 else ""))
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _matrix(
    panel: Axes,
    values: NDArray[np.float64],
    lines: Sequence[str],
    columns: Sequence[str],
    line_text: Mapping[str, Any] | None = None,
    column_text: Mapping[str, Any] | None = None,
    *,
    cmap: str = "Blues",
    vmin: float = 0,
    vmax: float,
) -> AxesImage:
    """Colours for (lines, columns) values, named at the left and below; ``*_text`` is matplotlib's for the names."""
    image = panel.imshow(values, cmap=cmap, vmin=vmin, vmax=vmax, aspect="auto")
    panel.set(xticks=range(len(columns)), yticks=range(len(lines)))
    panel.set_xticklabels(columns, **(column_text or {}))
    panel.set_yticklabels(lines, **(line_text or {}))
    return image


def plot_gates(gates: Sequence[GateFigures]) -> Figure:
    """Mean weight of each expert for each task, a panel for each set of experts.

    Args:
        gates: of one pass.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[int, tuple[str, ...]], list[GateFigures]] = {}
    for gate in gates:
        panels.setdefault((gate.level, tuple(gate.experts)), []).append(gate)
    size = (2.5 + 0.62 * max(len(names) for _, names in panels), 0.7 * len(gates) + 1.1 * len(panels))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    heights = [len(rows) for rows in panels.values()]
    for panel, ((level, names), rows) in zip(
        figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0], panels.items(), strict=True
    ):
        values = np.stack([gate.weights.numpy() for gate in rows])
        owners = [gate.owner for gate in rows]
        _matrix(panel, values, owners, names, {"size": 8}, {"rotation": 30, "ha": "right", "size": 7}, vmax=1)
        panel.set_title(f"level {level}: mean weight", size=9)
        for line, column in np.ndindex(*values.shape):
            value = values[line, column]
            panel.text(
                column, line, f"{value:.2f}", ha="center", va="center", size=7, color="w" if value > 0.6 else "k"
            )
    return figure
