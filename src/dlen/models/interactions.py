"""Interactions: layers between the embedding and the backbone, whose result both backbone and head receive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from dlen.checks import whole
from dlen.models.features import Features, FeatureSpec
from dlen.models.prior import prior_fields
from dlen.nn.embedding import columns
from dlen.nn.scale import Scale

_MOST = 1024  # upper limit on layers, and on the size of a bottleneck
_PRIOR_SIDES = (("user",), ("context",))  # of EPNet's prior fields


class Interaction(nn.Module, ABC):
    """Maps the features of B rows to features of B rows, of the same or of a larger width.

    Construct with ``Interaction(spec, **settings)``: the layout of the input features. First-order terms pass through.

    Attributes:
        out_spec: layout of the result.
    """

    def __init__(self, out_spec: FeatureSpec) -> None:
        super().__init__()
        self.out_spec = out_spec

    @abstractmethod
    def forward(self, features: Features) -> Features:
        """Compute the features in the layout ``out_spec``."""

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that the outputs of all tasks depend on: all of them, for most interactions."""
        return list(self.parameters())


MakeInteraction = Callable[[FeatureSpec], Interaction]


class SENetInteraction(Interaction):
    """One gate per field, computed from all fields: the SENet of FiBiNET (Huang et al. 2019, equations 2 to 4).

        v_f = a_f e_f,    a = 2 sigmoid(W2 relu(W1 z)),    z_f = mean of e_f

    Differs from the paper: the second activation is 2 sigmoid in place of ReLU, and W2 starts at 0, so that every gate
    starts at 1 and none starts dead; both layers have biases; numeric fields have gates too, and squeeze to their
    value.

    Args:
        spec: layout of the input features.
        reduction: number of fields per hidden unit of the excitation; 3 in the paper.

    Raises:
        ValueError: ``reduction`` is not a positive whole number.
    """

    def __init__(self, spec: FeatureSpec, *, reduction: int = 3) -> None:
        super().__init__(spec)
        fields = len(spec.fields) + len(spec.numbers)
        self.excitation = Scale(fields, [max(fields // whole("interaction.reduction", reduction, 1), 1)], fields)

    def forward(self, features: Features) -> Features:
        """Multiply each field by its gate."""
        vectors, numbers = features.fields, features.numbers
        gates = self.excitation(torch.cat([vectors.mean(2), numbers], 1))
        of_vectors, of_numbers = gates.split([vectors.shape[1], numbers.shape[1]], 1)
        return features.changed([(vectors * of_vectors[..., None]).flatten(1), numbers * of_numbers], self.out_spec)


class EPNetInteraction(Interaction):
    """One gate per input from prior fields: the EPNet of PEPNet (Chang et al. 2023, equations 2 to 4).

        o = d * x,    d = 2 sigmoid(W2 relu(W1 [prior, stop_gradient(x)] + b1) + b2)

    The gates scale what a row's domain, or its user, has little use for. Differs from the paper: the prior fields are
    part of x as well, and W2 and b2 start at 0, so that every gate starts at 1.

    Args:
        spec: layout of the input features.
        fields: names of the prior fields; None for those of side ``user``, or of side ``context`` if there are none.
        hidden: hidden layer sizes of the gates.

    Raises:
        ValueError: a prior field is not an embedded field, or there is none.
    """

    def __init__(
        self, spec: FeatureSpec, *, fields: Sequence[str] | None = None, hidden: Sequence[int] = (64,)
    ) -> None:
        super().__init__(spec)
        self.prior = prior_fields(spec, fields, _PRIOR_SIDES, "interaction.fields")
        self.gates = Scale(len(self.prior) * spec.dim + spec.width, hidden, spec.width)

    def forward(self, features: Features) -> Features:
        """Multiply each input by its gate."""
        x, prior = features.flat, columns(features.fields, self.prior).flatten(1)
        return features.changed([x * self.gates(torch.cat([prior, x.detach()], 1))], self.out_spec)


class CrossInteraction(Interaction):
    """The cross network of DCN-v2 with matrices of low rank (Wang et al. 2021, equations 1 and 2), before the backbone.

        x_{l+1} = x_0 * (U_l V_l^T x_l + b_l) + x_l

    U and b start at 0, so the result starts as x_0. The numbers are those of DeepCTR-Torch's ``CrossNet`` with the
    matrices U_l V_l^T. The paper's mixture of such layers, with gates and nonlinearities, is left out.

    Args:
        spec: layout of the input features.
        layers: number of layers L; the result holds products of up to L + 1 inputs.
        rank: columns of U and V.

    Raises:
        ValueError: a setting is not a positive whole number.
    """

    def __init__(self, spec: FeatureSpec, *, layers: int = 2, rank: int = 32) -> None:
        super().__init__(spec)
        whole("interaction.layers", layers, 1, _MOST), whole("interaction.rank", rank, 1, _MOST)
        self.down = nn.ModuleList(nn.Linear(spec.width, rank, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(rank, spec.width) for _ in range(layers))
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Features) -> Features:
        """Apply the layers to all inputs."""
        x = first = features.flat
        for down, up in zip(self.down, self.up, strict=True):
            x = first * up(down(x)) + x
        return features.changed([x], self.out_spec)


class FMInteraction(Interaction):
    """One more field, ``fm``: the products of all pairs of the N fields' vectors (NFM, He and Chua 2017, equation 4).

        v_fm = sum over f < g of v_f * v_g / N = ((sum of v_f)^2 - sum of v_f^2) / (2 N)

    Each numeric field has a learned vector, scaled by its value (Rendle 2010). Differs from the paper: the sum is
    divided by N, without which it exceeds all other inputs of a table with many fields, and learns worse.

    Args:
        spec: layout of the input features.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(replace(spec, fields=(*spec.fields, "fm"), sides=(*spec.sides, "cross")))
        self.number_vectors = nn.Parameter(torch.empty(len(spec.numbers), spec.dim).normal_(std=0.05))

    def forward(self, features: Features) -> Features:
        """Append the vector of all pairs to the fields."""
        vectors, numbers = features.fields, features.numbers
        total = vectors.sum(1) + numbers @ self.number_vectors
        squares = vectors.square().sum(1) + numbers.square() @ self.number_vectors.square()
        pairs = (total.square() - squares) / (2 * (vectors.shape[1] + numbers.shape[1]))
        return features.changed([vectors.flatten(1), pairs, numbers], self.out_spec)


class PerTask(Interaction):
    """A separate interaction for each part of private vectors, so that tasks share nothing but the shared part.

    Each part has its own numbers in the result, as its interaction may change them.

    Args:
        spec: layout of features with P parts.
        make: factory of a part's interaction.
    """

    def __init__(self, spec: FeatureSpec, make: MakeInteraction) -> None:
        own = replace(spec, dim=spec.dim // spec.parts, parts=1, first_order=0, shared_part=False)
        parts = [make(own) for _ in range(spec.parts)]
        out = parts[0].out_spec
        numbers = tuple(f"{name} of part {part}" for part in range(spec.parts) for name in out.numbers)
        super().__init__(replace(spec, fields=out.fields, sides=out.sides, numbers=numbers, own_numbers=True))
        self.own, self.tasks = own, nn.ModuleList(parts)

    def forward(self, features: Features) -> Features:
        """Apply each part's interaction to it."""
        inputs = features.by_part()
        outputs: list[Features] = [part(Features(x, self.own)) for part, x in zip(self.tasks, inputs, strict=True)]
        vectors = torch.stack([out.fields for out in outputs], 2).flatten(1)  # (B, F, P, E') is the layout of parts
        return features.changed([vectors, *(out.numbers for out in outputs)], self.out_spec)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those of the shared part; empty without one, as each task has its own."""
        return list(self.tasks[-1].parameters()) if self.out_spec.shared_part else []


def make_interaction(make: MakeInteraction, spec: FeatureSpec) -> Interaction:
    """Build an interaction, or one per part for private vectors."""
    return make(spec) if spec.parts == 1 else PerTask(spec, make)
