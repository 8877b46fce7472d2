"""Backbone: the interface of all backbones, and what several of them use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlen.models.features import Features
from dlen.nn.gate import Gate

EXPERT = (256, 128, 64)  # every expert of the paper
_MOST = 1024  # experts or levels


@dataclass(frozen=True, slots=True)
class Mixture:
    """A gate and the named experts it mixes, for inspection.

    Attributes:
        level: of the backbone, from 1.
        gate: its module.
        owners: the task of each of its G mixtures, or None where it is for all tasks.
        names: of its E experts.
        experts: their modules.
    """

    level: int
    gate: Gate
    owners: list[int | None]
    names: list[str]
    experts: list[nn.Module]


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention weights; each sums to 1 along the last dimension. F counts all fields, numbers included.

    Attributes:
        fields: (B, A, F, F) from each field to the fields, by head.
        tasks: (B, A, T, F) from each task to the fields, by head.
        transfer: (B, T, T) from each task to the tasks.
    """

    fields: Tensor
    tasks: Tensor
    transfer: Tensor


class Backbone(nn.Module, ABC):
    """Features of B rows -> (T, B, H) task representations.

    A backbone is built by ``Backbone(spec, num_tasks, **settings)``.

    Attributes:
        out_dim: H.
    """

    out_dim: int

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """(T, B, H) representations."""

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that every task's output depends on, without the gates."""

    def mixtures(self) -> list[Mixture]:
        """Its gates; none where nothing is mixed."""
        return []

    def attention(self, features: Features) -> Attention | None:
        """What attends to what; None for backbones without attention."""
        return None


def check_sizes(expert: Sequence[int], **numbers: int) -> None:
    """Raise ValueError for sizes that make no backbone."""
    if not expert:
        raise ValueError("expert must name at least one layer size")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
        if number > _MOST:  # each is a module of its own: a typo here would take hours to build
            raise ValueError(f"{name} must be at most {_MOST}, got {number}")


def expert_names(kind: str, number: int) -> list[str]:
    """``kind0``, ``kind1``, ..."""
    return [f"{kind}{i}" for i in range(number)]


def mix(gates: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """Weighted sums of experts.

    Args:
        gates: (B, G, E) weights of G mixtures.
        experts: E tensors (B, H).

    Returns:
        (G, B, H).
    """
    return torch.einsum("bge,ebh->gbh", gates, torch.stack(list(experts)))
