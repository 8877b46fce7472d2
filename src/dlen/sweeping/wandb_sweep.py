"""launcher=wandb: write a study as the configuration of a W&B sweep, whose agents then train the trials."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dlen.errors import UserError
from dlen.files import write_text
from dlen.overrides import conf_of_this_command
from dlen.sweeping.space import Parameter, Space
from dlen.sweeping.spec import Spec

_METHODS = {"tpe": "bayes", "gp": "bayes", "random": "random", "grid": "grid"}  # of the sampler


def write_wandb_sweep(spec: Spec, space: Space, folder: Path) -> Path:
    """Write ``FOLDER/wandb.yaml``, which ``wandb sweep`` reads.

    Raises:
        UserError: W&B has no counterpart of a setting.
    """
    content = yaml.safe_dump(sweep_config(spec, space), sort_keys=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wandb.yaml"
    write_text(path, content)
    return path


def sweep_config(spec: Spec, space: Space) -> dict[str, Any]:
    """The configuration of a W&B sweep with the same search space; see :func:`write_wandb_sweep`."""
    sampler = spec.sampler[0]
    if sampler not in _METHODS:
        raise UserError(
            f"config sweep.sampler: W&B sweeps have no sampler {sampler}; choose one of {', '.join(_METHODS)}"
        )
    if len(spec.objectives) > 1 or spec.seeds > 1 or spec.fusion is not None:
        raise UserError(
            "config sweep.launcher: a W&B sweep trains one run per trial for one objective; set sweep.launcher=local"
        )
    parameters = {}
    for parameter in space.parameters:
        if parameter.task is not None or parameter.when:
            what = "each_task" if parameter.task is not None else "when"
            raise UserError(
                f"config sweep.space: {parameter.key}: W&B sweeps do not support {what}; remove it, or set "
                "sweep.launcher=local"
            )
        parameters[parameter.key] = _values(parameter)
    ((metric, direction),) = spec.objectives.items()
    train = ["${env}", sys.executable, "-m", "dlen.commands.train", f"--config-path={conf_of_this_command()}"]
    return {
        "name": spec.name,
        "method": _METHODS[sampler],
        "metric": {"name": metric, "goal": direction},
        "run_cap": spec.trials,
        "parameters": parameters,
        "command": [*train, *spec.common, "logger=wandb", "${args_no_hyphens}"],
    }


def _values(parameter: Parameter) -> dict[str, Any]:
    """A range or choices in W&B's terms."""
    distribution = parameter.distribution
    if isinstance(distribution, CategoricalDistribution):
        return {"values": parameter.grid()}
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    limits: dict[str, Any] = {"min": distribution.low, "max": distribution.high}
    integer = isinstance(distribution, IntDistribution)
    if distribution.log:
        kind = "q_log_uniform_values" if integer else "log_uniform_values"
        return {"distribution": kind, **limits, **({"q": 1} if integer else {})}
    if integer and distribution.step == 1:
        return {"distribution": "int_uniform", **limits}
    if distribution.step is None:
        return {"distribution": "uniform", **limits}
    return {"values": parameter.grid()}
