"""Cross-stitch networks: one MLP per task, whose layers' outputs are mixed between the tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlen.models.backbones.base import EXPERT, Backbone, check_sizes
from dlen.models.features import Features, FeatureSpec
from dlen.nn.mlp import MLP

_OWN = 0.9  # initial weight of a task's own output; the other tasks share the rest


class CrossStitchBackbone(Backbone):
    """One MLP per task, and a cross-stitch unit after every layer (Misra et al. 2016, equation 1).

        x_t = sum over tasks s of alpha_ts h_s

    A unit has one learned weight for each pair of tasks. The weights of each output start at .9 for the task itself and
    .1 / (T - 1) for every other task, the best start in the paper, extended to T tasks. Differs from the paper: the
    networks start at random instead of from networks trained for a single task, and units learn at the same rate as all
    other parameters.

    Args:
        expert: layer sizes of each MLP.
        dropout: dropout probability after each layer.
    """

    def __init__(
        self, spec: FeatureSpec, num_tasks: int, *, expert: Sequence[int] = EXPERT, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes(expert)
        widths = [spec.task_width, *expert[:-1]]
        self.layers = nn.ModuleList(
            nn.ModuleList(MLP(width, [size], dropout) for _ in range(num_tasks))
            for width, size in zip(widths, expert, strict=True)
        )
        self.units = nn.ParameterList(_initial_unit(num_tasks) for _ in expert)
        self.out_dim = expert[-1]

    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""
        x = features.by_task(len(self.units[0]))
        for networks, unit in zip(self.layers, self.units, strict=True):
            outputs = torch.stack([network(own) for network, own in zip(networks, x, strict=True)])  # type: ignore[call-overload]
            x = torch.einsum("ts,sbh->tbh", unit, outputs)
        return x

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of all networks, which the last unit mixes."""
        return list(self.layers.parameters())


def _initial_unit(num_tasks: int) -> Tensor:
    """(T, T) initial weights, from the tasks of the columns to those of the rows."""
    own = torch.eye(num_tasks)
    return own if num_tasks == 1 else _OWN * own + (1 - _OWN) / (num_tasks - 1) * (1 - own)
