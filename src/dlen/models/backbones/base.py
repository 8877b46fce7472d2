"""Backbone: the interface of all backbones, and helpers that several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlen.checks import whole
from dlen.models.features import Features
from dlen.nn.gate import Gate
from dlen.nn.mlp import check_layers

EXPERT = (256, 128, 64)  # layer sizes of every expert in the paper
MOST = 1024  # upper limit on experts and levels


@dataclass(frozen=True, slots=True)
class Mixture:
    """A gate and the named experts it mixes, for inspection.

    Attributes:
        level: level of the backbone, counted from 1.
        gate: gate module.
        owners: task of each of the G mixtures; None if the mixture serves all tasks.
        names: names of the E experts.
        experts: modules of the E experts.
    """

    level: int
    gate: Gate
    owners: list[int | None]
    names: list[str]
    experts: list[nn.Module]


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention weights, normalised over the last dimension. F counts all fields, numeric fields included.

    Attributes:
        fields: (B, A, F, F) weights from fields to fields, for each of A attention heads.
        tasks: (B, A, T, F) weights from tasks to fields, for each of A attention heads.
        transfer: (B, T, T) weights from tasks to tasks.
    """

    fields: Tensor
    tasks: Tensor
    transfer: Tensor


class Backbone(nn.Module, ABC):
    """Maps the features of B rows to (T, B, H) task representations.

    Construct with ``Backbone(spec, num_tasks, **settings)``: the layout of the input features and the number T of
    tasks.

    Attributes:
        out_dim: size H of each representation.
    """

    out_dim: int

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that the outputs of all tasks depend on, excluding gates."""

    def mixtures(self) -> list[Mixture]:
        """The gates and their experts; empty if the backbone mixes nothing."""
        return []


class AttentionBackbone(Backbone):
    """A backbone whose attention can be inspected."""

    @abstractmethod
    def attention(self, features: Features) -> Attention:
        """The attention weights of B rows."""


def check_sizes(expert: Sequence[int], **numbers: int) -> None:
    """Raise ValueError for invalid layer sizes or counts."""
    if not expert:
        raise ValueError("expert must name at least one layer size")
    check_layers(expert)
    for name, number in numbers.items():
        whole(name, number, 1, MOST)  # each one is a module: building a mistyped number could take hours


def expert_names(kind: str, number: int) -> list[str]:
    """``kind0``, ``kind1``, ..."""
    return [f"{kind}{i}" for i in range(number)]


def mix(gates: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """Compute the weighted sums of the expert outputs.

    Args:
        gates: (B, G, E) weights of G mixtures.
        experts: outputs of the E experts, (B, H) each.

    Returns:
        (G, B, H) mixtures.
    """
    return torch.bmm(gates, torch.stack(list(experts), 1)).transpose(0, 1)
