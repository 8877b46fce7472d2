"""The parts of DLEN's head beyond the paper: labels that depend on each other, and columns known only afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dlen.models.label_classes import Floats, Link
from dlen.models.predictions import Evidence, Views
from dlen.nn.logspace import at_least_float32
from dlen.schema import Schema


class ViewOdds(nn.Module):
    """The dependences of labels on each other given the state: a learned odds ratio per link and state.

    Args:
        links: E links, see :func:`~dlen.models.label_classes.find_links`.
        log_ratios: (2, E) initial logarithms of the odds ratios; None for 1, independence.
    """

    parent_tasks: Tensor
    child_tasks: Tensor

    def __init__(self, links: Sequence[Link], log_ratios: Floats | None) -> None:
        super().__init__()
        self.register_buffer("parent_tasks", torch.tensor([link.parent for link in links]), persistent=False)
        self.register_buffer("child_tasks", torch.tensor([link.child for link in links]), persistent=False)
        initial = torch.zeros(2, len(links)) if log_ratios is None else torch.from_numpy(log_ratios.copy()).float()
        self.log_ratios = nn.Parameter(initial)

    def forward(self) -> Views:
        """The links with their odds ratios."""
        return Views(self.parent_tasks, self.child_tasks, at_least_float32(self.log_ratios))


class PrivilegedViews(nn.Module):
    """Densities of the columns that are known only afterwards, :attr:`Schema.views`.

    The odds of two bins depend on the state by a factor of its own for each view and label, and on the inputs by
    another that both states share. So what inputs tell of a play time, such as the length of the video, is no evidence
    for UP.

    Args:
        schema: schema with views.
        width: size of the hidden state network's representation.
    """

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.tasks = [schema.task_index(view.of) if view.of else None for view in schema.views]
        self.logits = nn.ParameterList(
            nn.Parameter(torch.zeros(2, 1 if task is None else 2, view.bins))
            for view, task in zip(schema.views, self.tasks, strict=True)
        )
        self.shifts = nn.ModuleList(nn.Linear(width, view.bins) for view in schema.views)

    def forward(self, representation: Tensor) -> tuple[Evidence, ...]:
        """(B, H) representation of the hidden state network -> the density of each view."""
        parts = zip(self.logits, self.shifts, self.tasks, strict=True)
        return tuple(
            Evidence(at_least_float32(logits), at_least_float32(shift(representation)), task)
            for logits, shift, task in parts
        )


def given_views(views: str | Mapping[str, Sequence[str]], tasks: Sequence[str]) -> list[Sequence[str]] | None:
    """The tasks of each view; None for those that the data show."""
    if isinstance(views, str):
        if views not in ("auto", "none"):
            raise ValueError(f"views must be auto, none or a mapping of view to tasks, got {views!r}")
        return None if views == "auto" else []
    given = list(views.values())
    if any(isinstance(view, str) or not isinstance(view, Sequence) for view in given):
        raise ValueError(f"views must list the tasks of each view, got {dict(views)!r}")
    for task in tasks:
        if sum(list(view).count(task) for view in given) > 1:
            raise ValueError(f"views: {task} occurs twice; a task belongs to one view")
    return given
