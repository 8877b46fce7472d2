"""Settings of the feed simulator and what follows from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from dlen.errors import UserError
from dlen.valid import INSIDE_0_1, OneOf, Range, check_source

_WORLD = 2  # increase if the same settings would draw another world
_RATES = {"click": 0.21, "like": 0.12, "share": 0.06, "follow": 0.05, "comment": 0.08}
HATE, POSITION, WATCHING = "hate", "position", "watching"


@dataclass
class FeedSettings:
    """The arguments of :class:`~dlen.data.sources.feed.Feed`, which describes them, with their valid values.

    Raises:
        UserError: an argument is invalid, or a rate cannot be reached with the others.
    """

    name: str = "feed"
    rows: Annotated[int, Range(1)] = 300_000
    users: Annotated[int, Range(1)] = 4_000
    items: Annotated[int, Range(1)] = 2_000
    rates: dict[str, float] = field(default_factory=lambda: dict(_RATES))
    hate: Annotated[float, Range(0)] = 0.0
    preference: Annotated[float, Range(0, 1, above=True)] = 0.35
    leak: float | dict[str, float] = 0.1
    leak_spread: Annotated[float, Range(0)] = 0.0
    follows: dict[str, str] = field(default_factory=dict)
    play_time: Annotated[float, Range(0)] = 0.0
    watching: list[str] = field(default_factory=list)
    watched: Annotated[float, Range(0, 1, above=True)] = 0.4
    tie: float = 2.0
    strength: float = 2.0
    habit: Annotated[float, Range(0)] = 1.5
    own_match: Annotated[float, Range(0)] = 0.0
    exposure: Annotated[str, OneOf("popular", "uniform", "matched")] = "popular"
    positions: Annotated[int, Range(0)] = 0
    position_bias: Annotated[float, Range(0)] = 1.0
    validation: Annotated[float, INSIDE_0_1] = 0.1
    test: Annotated[float, INSIDE_0_1] = 0.1
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        check_source(self)
        if self.validation + self.test >= 1:
            raise UserError("config data.validation, data.test: their sum is 1 or more, which leaves no training rows")
        self._check_names()
        self._check_leaks_and_rates()

    def _check_names(self) -> None:
        if not self.rates:
            raise UserError("config data.rates: is empty; give the rate of at least one task")
        if HATE in self.rates:
            raise UserError("config data.rates.hate: hate is not an ordinary task; set data.hate to its rate instead")
        reserved = {"prefers", "up", WATCHING, POSITION} & set(self.rates)
        if reserved:
            raise UserError(f"config data.rates.{reserved.pop()}: this name is reserved; choose another task name")
        own = [task for task in self.tasks if task not in self.follows]
        if isinstance(self.leak, Mapping) and set(self.leak) != set(own):
            raise UserError(f"config data.leak: its keys are {', '.join(self.leak)}, expected {', '.join(own)}")
        for task in self.watching:
            if task not in self.rates or len(set(self.watching)) == len(self.tasks):
                raise UserError(f"config data.watching: {task!r} must be one of data.rates, and one has to be left")
        for task, parent in self.follows.items():
            if (task in self.watching) != (parent in self.watching):
                raise UserError(f"config data.follows.{task}: both tasks must be in data.watching, or neither")
            if task not in self.rates or parent not in own or parent == HATE:
                raise UserError(
                    f"config data.follows.{task}: {parent!r} must be another task of data.rates, which follows none"
                )
            if self.rates[task] >= self.rates[parent]:
                raise UserError(f"config data.rates.{task}: must be below the rate of {parent}, which it follows")

    def _check_leaks_and_rates(self) -> None:
        for (task, rate), leak, dislike in zip(self.tasks.items(), self.leaks(), self.dislikes(), strict=True):
            key = f"leak.{self.follows.get(task, task)}" if isinstance(self.leak, Mapping) else "leak"
            wrong = INSIDE_0_1.fault(float(leak), "a finite number")
            if wrong:
                raise UserError(f"config data.{key}: {wrong}")
            reach = self.watched if task in self.watching else self.preference
            reach = 1 - reach if dislike else reach
            highest = reach + leak * (1 - reach)
            if not 0 < rate < highest:
                name = HATE if dislike else f"rates.{task}"
                raise UserError(
                    f"config data.{name}: {rate} cannot be reached with a state of {reach:.4g} and leak {leak}; "
                    f"choose a rate above 0 and below {highest:.4g}"
                )

    @property
    def tasks(self) -> dict[str, float]:
        """Rate of every task, with an explicit dislike last."""
        return self.rates | ({HATE: self.hate} if self.hate else {})

    def leaks(self) -> NDArray[np.float64]:
        """(T,) leak of each task; that of the task it follows."""
        by_task = self.leak if isinstance(self.leak, Mapping) else dict.fromkeys(self.tasks, self.leak)
        return np.array([by_task[self.follows.get(task, task)] for task in self.tasks], np.float64)

    def parents(self) -> dict[int, int]:
        """Index of each task that follows another one, with that of the other one."""
        names = list(self.tasks)
        return {names.index(task): names.index(parent) for task, parent in self.follows.items()}

    def watches(self) -> NDArray[np.bool_]:
        """(T,) whether each task hangs on watching, and not on preference."""
        return np.array([task in self.watching for task in self.tasks])

    def dislikes(self) -> NDArray[np.bool_]:
        """(T,) whether each task is a dislike."""
        return np.array([task == HATE for task in self.tasks])

    def settings(self) -> dict[str, Any]:
        """All arguments that affect the data, and the version of the simulator."""
        unused = {"name"} if self.positions else {"name", "positions", "position_bias"}
        unused |= {name for name in ("follows", "play_time", "watching") if not getattr(self, name)}
        unused |= set() if self.watching else {"watched", "tie"}
        return {**{k: v for k, v in asdict(self).items() if k not in unused}, "world": _WORLD}
