"""Colours of all plots, and those of the configurations in one plot."""

from __future__ import annotations

from collections.abc import Sequence

# Colour-blind safe on white and on black (Tol, bright and muted).
BLUE, RED, GREEN, YELLOW, CYAN, PURPLE = "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"
COLOURS = (BLUE, RED, GREEN, YELLOW, CYAN, PURPLE, "#882255", "#44aa99", "#999933", "#bb8866")
NEUTRAL = "#8a8f98"  # readable on white and on black


def colours_of(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
