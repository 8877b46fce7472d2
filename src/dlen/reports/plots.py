"""Pictures as PNG files, drawn by matplotlib without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlen.metrics.hidden import PATTERNS

if TYPE_CHECKING:
    from dlen.training.latent import HiddenFigures

_COLOURS = ("#4477aa", "#66ccee", "#ee6677")  # distinguishable to colour-blind readers (Tol, bright)
_KINDS = ("another interaction", "silent liking", "detest")


def plot_hidden_state(hidden: HiddenFigures, path: Path) -> None:
    """Left the distribution of P(UP) by label pattern, right the three kinds of negatives of each task.

    On simulated data the true split stands beside the model's, hatched.

    Args:
        hidden: figures of a pass.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # here, because importing it takes longer than a small validation

    figure = Figure(figsize=(11, 4), layout="constrained")
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
    figure.savefig(path, dpi=120)
