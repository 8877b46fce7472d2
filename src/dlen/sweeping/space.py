"""The search space of a study: parameters as Hydra overrides, and the conditions between them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from dlen.checks import is_number
from dlen.errors import UserError
from dlen.overrides import written
from dlen.valid import did_you_mean

_KEYS = ("low", "high", "step", "log", "choices", "when", "each_task")
Value = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One searched parameter.

    Attributes:
        name: name in the study: the config key, or ``KEY.TASK`` for one of several values of a key.
        key: key of a ``train.py`` override, such as ``model.alpha`` or ``model/backbone``.
        task: task of this value, for a key with one value per task; None for a whole key.
        distribution: Optuna distribution.
        when: the parameter exists only if each of these parameters has one of these values.
    """

    name: str
    key: str
    task: str | None
    distribution: BaseDistribution
    when: dict[str, list[Value]]

    def extremes(self) -> list[Value]:
        """Every choice, or both ends of a range."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return list(distribution.choices)
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        return [distribution.low, distribution.high]

    def contains(self, value: Any) -> bool:
        """Whether the parameter can have this value."""
        try:
            return bool(self.distribution._contains(self.distribution.to_internal_repr(value)))
        except (TypeError, ValueError):
            return False

    def grid(self) -> list[Value]:
        """Every choice, or every step of a range.

        Raises:
            UserError: the range has no step.
        """
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return list(distribution.choices)
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        if distribution.step is None or distribution.log:
            raise UserError(f"config sweep.space: sampler=grid needs choices or a step for {self.name}")
        steps = int((distribution.high - distribution.low) / distribution.step + 1e-9)
        return [min(distribution.low + i * distribution.step, distribution.high) for i in range(steps + 1)]


@dataclass(frozen=True, slots=True)
class Space:
    """All parameters of a study. A parameter comes after those it depends on."""

    parameters: tuple[Parameter, ...]

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """Ask the study's sampler for a value of each parameter that exists in this trial."""
        params: dict[str, Value] = {}
        for parameter in self.parameters:
            if _exists(parameter, params):
                params[parameter.name] = _suggest(trial, parameter)
        return params

    def overrides(self, params: Mapping[str, Value]) -> list[str]:
        """The ``train.py`` overrides for these values."""
        texts: dict[str, str] = {}
        by_key: dict[str, dict[str, Value]] = {}
        for parameter in self.parameters:
            if parameter.name not in params:
                continue
            value = params[parameter.name]
            if parameter.task is None:
                texts[parameter.key] = written(value)
            else:
                by_key.setdefault(parameter.key, {})[parameter.task] = value
        texts |= {key: written(by_task) for key, by_task in by_key.items()}
        return [f"{key}={value}" for key, value in texts.items()]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each parameter, by name."""
        return {parameter.name: parameter.distribution for parameter in self.parameters}

    def probes(self) -> Iterator[dict[str, Value]]:
        """Points that together cover every choice and both ends of every range; at least one point."""
        yield self._complete({})
        for parameter in self.parameters:
            for value in parameter.extremes():
                point = self._complete(self._causes(parameter) | {parameter.name: value})
                if parameter.name in point:
                    yield point

    def grid(self) -> list[dict[str, Value]]:
        """Every distinct point, in a fixed order.

        Raises:
            UserError: a range has no step.
        """
        axes = [[(p.name, value) for value in p.grid()] for p in self.parameters]
        points: dict[str, dict[str, Value]] = {}
        for combination in itertools.product(*axes):
            point = self._complete(dict(combination))
            points.setdefault(json.dumps(point), point)
        return list(points.values())

    def describe(self) -> dict[str, Any]:
        """Plain values that identify the space."""
        return {
            p.name: {**json.loads(optuna.distributions.distribution_to_json(p.distribution)), "when": p.when}
            for p in self.parameters
        }

    def _complete(self, wanted: Mapping[str, Value]) -> dict[str, Value]:
        """A point with these values where they can exist, and the first extreme of every other parameter."""
        point: dict[str, Value] = {}
        for parameter in self.parameters:
            if _exists(parameter, point):
                point[parameter.name] = wanted.get(parameter.name, parameter.extremes()[0])
        return point

    def _causes(self, parameter: Parameter) -> dict[str, Value]:
        """Values that make a parameter exist."""
        causes: dict[str, Value] = {}
        for name, values in parameter.when.items():
            causes[name] = values[0]
            (cause,) = (p for p in self.parameters if p.name == name)
            causes = self._causes(cause) | causes
        return causes


def parse_space(space: Mapping[str, Any], tasks: Sequence[str], name: str = "sweep.space") -> Space:
    """Parse the search space of a sweep's config.

    Each entry maps an override of ``train.py`` to a range ``{low, high}`` of integers or floats, with ``step`` or
    ``log: true``, or to ``{choices: [...]}``. ``when: {KEY: [VALUES]}`` restricts it to these values, and
    ``each_task: true`` makes it one parameter per task.

    Args:
        space: ``sweep.space`` as plain values.
        tasks: names of the data's tasks.
        name: key of the space, for messages.

    Raises:
        UserError: an entry is wrong; the message names it.
    """
    if not space:
        raise UserError(f"config {name}: is empty; add a parameter to search")
    parameters: list[Parameter] = []
    for key, entry in space.items():
        where = f"config {name}: {key}"
        entry = _checked(where, entry)
        distribution = _distribution(where, entry)
        when = _conditions(where, entry.get("when") or {}, {p.name: p for p in parameters})
        if entry.get("each_task"):
            parameters += [Parameter(f"{key}.{task}", key, task, distribution, when) for task in tasks]
        else:
            parameters.append(Parameter(key, key, None, distribution, when))
    return Space(tuple(parameters))


def _checked(where: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} must be {{low: A, high: B}} or {{choices: [...]}}, got {entry!r}")
    for name in entry:
        if name not in _KEYS:
            hint = did_you_mean(name, _KEYS) or f" (known: {', '.join(_KEYS)})"
            raise UserError(f"{where} has an unknown key {name!r}{hint}")
    return dict(entry)


def _distribution(where: str, entry: Mapping[str, Any]) -> BaseDistribution:
    if ("choices" in entry) == ("low" in entry or "high" in entry):
        raise UserError(f"{where} needs either choices or low and high")
    if "choices" in entry:
        choices = entry["choices"]
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{where} needs a list of choices, got {choices!r}")
        return CategoricalDistribution([_scalar(choice) for choice in choices])
    low: Any = entry.get("low")
    high: Any = entry.get("high")
    step, log = entry.get("step"), bool(entry.get("log"))
    numbers = [low, high] + ([] if step is None else [step])
    if not all(map(is_number, numbers)):
        raise UserError(f"{where} needs numbers for low, high and step")
    try:
        if all(isinstance(n, int) for n in numbers):
            return IntDistribution(low, high, log=log, step=1 if step is None else step)
        return FloatDistribution(low, high, log=log, step=step)
    except ValueError as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None


def _conditions(where: str, when: Any, known: Mapping[str, Parameter]) -> dict[str, list[Value]]:
    if not isinstance(when, Mapping):
        raise UserError(f"{where} needs a `when` that maps keys to lists of values, got {when!r}")
    conditions = {}
    for name, values in when.items():
        if name not in known:
            raise UserError(f"{where} depends on {name}, which must come before it")
        distribution = known[name].distribution
        allowed = distribution.choices if isinstance(distribution, CategoricalDistribution) else None
        wanted = [_scalar(v) for v in (values if isinstance(values, list) else [values])]
        if allowed is None or not wanted or any(v not in allowed for v in wanted):
            raise UserError(f"{where} depends on {name} being one of {wanted}, which are not among its choices")
        conditions[str(name)] = wanted
    return conditions


def _exists(parameter: Parameter, params: Mapping[str, Value]) -> bool:
    return all(name in params and params[name] in values for name, values in parameter.when.items())


def _suggest(trial: optuna.Trial, parameter: Parameter) -> Value:
    distribution = parameter.distribution
    if isinstance(distribution, CategoricalDistribution):
        choice: Value = trial.suggest_categorical(parameter.name, distribution.choices)
        return choice
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            parameter.name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(
        parameter.name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
    )


def _scalar(choice: Any) -> Value:
    """Write lists and mappings as text in Hydra's grammar, because Optuna stores only scalars."""
    return written(choice) if isinstance(choice, list | dict) else choice
