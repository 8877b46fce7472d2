"""PPNet: one MLP per task, whose hidden units are scaled by gates from prior fields."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlen.models.backbones.base import EXPERT, Backbone, check_sizes
from dlen.models.features import Features, FeatureSpec
from dlen.models.prior import prior_fields
from dlen.nn.embedding import columns
from dlen.nn.mlp import MLP
from dlen.nn.scale import Scale

_PRIOR_SIDES = (("user", "item"), ("context",))  # of PPNet's prior fields


class ScaledMLP(nn.Module):
    """An MLP whose layers' outputs are multiplied by gates, computed from another input.

    Args:
        in_dim: input size D.
        prior_dim: size of the gates' input.
        sizes: output features of each layer.
        hidden: hidden layer sizes of each layer's gates.
        dropout: dropout probability after each layer.
    """

    def __init__(
        self, in_dim: int, prior_dim: int, sizes: Sequence[int], hidden: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        widths = [in_dim, *sizes[:-1]]
        self.layers = nn.ModuleList(MLP(width, [size], dropout) for width, size in zip(widths, sizes, strict=True))
        self.gates = nn.ModuleList(Scale(prior_dim, hidden, size) for size in sizes)

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        """(B, D) and (B, prior_dim) -> (B, H)."""
        for layer, gates in zip(self.layers, self.gates, strict=True):
            x = gates(prior) * layer(x)
        return x


class PPNetBackbone(Backbone):
    """One MLP per task, personalised by gates: the PPNet of PEPNet (Chang et al. 2023).

        H_{l+1} = relu(W_l (d_l * H_l) + b_l),    d_l = 2 sigmoid(V_l relu(U_l [prior, stop_gradient(x)] + a_l) + c_l)

    Each task and layer has gates d of its own, so the tasks share no parameters here. Differs from the paper: the prior
    fields are part of x as well, and are seen after the interaction, so that gates behind EPNet also train its gates of
    the prior fields; the number of hidden layers of the gates is free; V and c start at 0, so that every gate starts at
    1.

    Args:
        spec: layout of the input features.
        fields: names of the prior fields; None for those of sides ``user`` and ``item``, or of side ``context`` if
            there are none.
        hidden: hidden layer sizes of the gates.
        expert: layer sizes of each MLP.
        dropout: dropout probability after each layer.

    Raises:
        ValueError: a prior field is not an embedded field, or there is none.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_tasks: int,
        *,
        fields: Sequence[str] | None = None,
        hidden: Sequence[int] = (64,),
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(expert)
        self.prior = prior_fields(spec, fields, _PRIOR_SIDES, "backbone.fields")
        prior_dim = len(self.prior) * spec.dim + spec.width
        self.networks = nn.ModuleList(
            ScaledMLP(spec.width, prior_dim, expert, hidden, dropout) for _ in range(num_tasks)
        )
        self.out_dim = expert[-1]

    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""
        x, prior = features.flat, columns(features.fields, self.prior).flatten(1)
        prior = torch.cat([prior, x.detach()], 1)
        return torch.stack([network(x, prior) for network in self.networks])

    def shared_parameters(self) -> list[nn.Parameter]:
        """Empty: the tasks share no parameters here."""
        return []
