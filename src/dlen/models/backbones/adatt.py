"""AdaTT: experts of each task in levels, fused by a linear term of a task's own experts and a gated mix of all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from dlen.checks import whole
from dlen.models.backbones.base import EXPERT, MOST, Backbone, Mixture, check_sizes, expert_names, mix
from dlen.models.features import Features, FeatureSpec
from dlen.nn.gate import Gate
from dlen.nn.mlp import MLP


class NativeMix(nn.Module):
    """A learned linear combination of a unit's own experts; a single expert has the weight 1.

    Args:
        experts: number of experts N.
    """

    def __init__(self, experts: int) -> None:
        super().__init__()
        limit = experts**-0.5
        self.weights = nn.Parameter(torch.empty(experts).uniform_(-limit, limit)) if experts > 1 else None

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """N outputs of (B, H) -> (B, H)."""
        if self.weights is None:
            return outputs[0]
        return torch.einsum("e,ebh->bh", self.weights, torch.stack(list(outputs)))


class AdaTTLevel(nn.Module):
    """A unit of experts for each task, and one of shared experts, each with a fusion of all experts.

    Unit t computes v_t E_t(x_t) + softmax(W_t x_t) E(x), with E_t its own experts, E those of all units, and x_t its
    own input (equations 7 to 10). The shared unit of the last level has experts, but no fusion.

    Args:
        in_dim: input size D.
        task_experts: number of experts per task.
        shared_experts: number of shared experts; 0 for no shared unit.
        expert: layer sizes of each expert.
        dropout: dropout probability after each layer.
        last: whether this is the last level.
    """

    def __init__(
        self,
        in_dim: int,
        num_tasks: int,
        task_experts: int,
        shared_experts: int,
        expert: Sequence[int],
        dropout: float,
        *,
        last: bool,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        units = [task_experts] * num_tasks + [shared_experts] * (shared_experts > 0)
        fused = units[:num_tasks] if last else units
        self.experts = nn.ModuleList(
            nn.ModuleList(MLP(in_dim, expert, dropout) for _ in range(number)) for number in units
        )
        self.gates = nn.ModuleList(Gate(in_dim, 1, sum(units)) for _ in fused)
        self.native = nn.ModuleList(NativeMix(number) for number in fused)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of the units, tasks first, -> outputs of their fusions, (B, D) -> (B, H) each."""
        outputs = [[expert(x) for expert in group] for x, group in zip(inputs, self.experts, strict=True)]  # type: ignore[attr-defined]
        gates = torch.cat([gate(x) for x, gate in zip(inputs, self.gates, strict=False)], 1)
        mixed = mix(gates, [*chain(*outputs)])
        return [of_all + native(own) for of_all, native, own in zip(mixed, self.native, outputs, strict=False)]

    def mixtures(self, level: int) -> list[Mixture]:
        """The gates of all units, and the experts of all units."""
        groups = [list(group.children()) for group in self.experts]
        names = [expert_names(f"task{task}_expert", len(group)) for task, group in enumerate(groups[: self.num_tasks])]
        names += [expert_names("shared", len(group)) for group in groups[self.num_tasks :]]
        owners = [*range(self.num_tasks), None]
        return [
            Mixture(level, gate, [owner], [*chain(*names)], [*chain(*groups)])  # type: ignore[arg-type]
            for gate, owner in zip(self.gates, owners, strict=False)
        ]


class AdaTTBackbone(Backbone):
    """Adaptive task-to-task fusion: levels of experts whose outputs every task fuses (Li et al. 2023).

    A task's fusion of a level is a linear combination of its own experts, as a residual, plus a softmax gate's mix of
    the experts of all units. Without shared experts, the default, this is AdaTT-sp; with them, the general AdaTT.
    Differs from the authors' code: gates have no bias, and a unit with a single expert gives it the weight 1 even if
    another unit has more.

    Args:
        levels: number of levels, at least 1.
        task_experts: experts per task and level.
        shared_experts: shared experts per level; 0 for none.
        expert: layer sizes of each expert, in every level.
        dropout: dropout probability after each layer.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_tasks: int,
        *,
        levels: int = 2,
        task_experts: int = 2,
        shared_experts: int = 0,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(expert, levels=levels, task_experts=task_experts)
        whole("shared_experts", shared_experts, 0, MOST)
        self.units = num_tasks + (shared_experts > 0)
        widths = [spec.width] + [expert[-1]] * (levels - 1)
        self.levels = nn.ModuleList(
            AdaTTLevel(width, num_tasks, task_experts, shared_experts, expert, dropout, last=number == levels - 1)
            for number, width in enumerate(widths)
        )
        self.out_dim = expert[-1]

    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""
        x = [features.flat] * self.units
        for level in self.levels:
            x = level(x)
        return torch.stack(x)

    def shared_parameters(self) -> list[nn.Parameter]:
        """All experts, as every gate mixes all of them."""
        return [p for level in self.levels for p in level.experts.parameters()]  # type: ignore[union-attr]

    def mixtures(self) -> list[Mixture]:
        """The gates of every level."""
        return [m for number, level in enumerate(self.levels, 1) for m in level.mixtures(number)]  # type: ignore[operator]
