"""The parts of DLEN's head beyond the paper: labels that depend on each other, and columns known only afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dlen.models.label_classes import Floats, Link
from dlen.models.predictions import Evidence, Views
from dlen.nn.logspace import at_least_float32
from dlen.schema import Schema

# Distance of the last bins from the middle. It multiplies first-order terms, which have to be learned before P(UP)
# takes what a user or an item has in general for a state: with 2 they are too slow, with 20 they are not.
_REACH = 20.0
_SPEED = 10.0  # factor of the learning rate of a density's logits, which have to move by several units


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

    The log-odds of two bins of a view have a part for each state and label, and a part that both states share: the sum
    of the table's first-order terms of all ids, times the distance of the bins. So what a user or an item has in
    general, such as patience or length, is no evidence for UP; what is left is what both have in common.

    Args:
        schema: schema with views.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.tasks = [tuple(schema.task_index(name) for name in view.of) for view in schema.views]
        self.logits = nn.ParameterList(nn.Parameter(torch.zeros(2, 2 ** len(v.of), v.bins)) for v in schema.views)

    def forward(self, first_order: Tensor | None) -> tuple[Evidence, ...]:
        """(B, T + V) first-order terms, if the table has them -> the density of each view."""
        found = []
        for place, (logits, tasks) in enumerate(zip(self.logits, self.tasks, strict=True)):
            shift = logits.new_zeros(1, 1)
            if first_order is not None:
                distance = torch.linspace(-_REACH, _REACH, logits.shape[2], dtype=logits.dtype, device=logits.device)
                shift = at_least_float32(first_order[:, place - len(self.tasks), None]) * distance
            found.append(Evidence(at_least_float32(logits) * _SPEED, shift, tasks))
        return tuple(found)


def given_views(views: str | Mapping[str, Sequence[str]], tasks: Sequence[str]) -> list[Sequence[str]] | None:
    """The tasks of each view; None for those that the data show."""
    if isinstance(views, str):
        if views not in ("auto", "none"):
            raise ValueError(f"views must be auto, none or a mapping of view to tasks, got {views!r}")
        return None if views == "auto" else []
    if not isinstance(views, Mapping):
        raise ValueError(f"views must be auto, none or a mapping of view to tasks, got {views!r}")
    given = list(views.values())
    if any(isinstance(view, str) or not isinstance(view, Sequence) for view in given):
        raise ValueError(f"views must list the tasks of each view, got {dict(views)!r}")
    for task in tasks:
        if sum(list(view).count(task) for view in given) > 1:
            raise ValueError(f"views: {task} occurs twice; a task belongs to one view")
    return given
