"""The page of reproductions: its figures are those of the experiments, and its commands build their models."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from dlen.comparing.settings import read_experiment
from dlen.comparing.tables import markdown_table
from dlen.config_keys import check_keys
from dlen.models.model import Model
from dlen.overrides import compose_train, overrides_for_train
from dlen.schema import Schema, Task
from dlen.targets import Targets
from dlen.training.building import build_balancer
from dlen.training.configs import build
from tests.conftest import ROOT, Compose
from tests.helpers import make_schema

PAGE = (ROOT / "docs" / "reproductions.md").read_text()
COMMANDS = re.findall(r"^    python compare.py (.+)$", PAGE, re.MULTILINE)
EXPERIMENTS = ["table3", *sorted(path.stem for path in (ROOT / "conf/experiment").glob("reproduce_*.yaml"))]
ALICCP = {"ctr": "click", "cvr": {"label": "conversion", "observed_where": "ctr", "joint": "ctcvr"}}
KEYS = ("experiment", "seeds", "models", "workers", "out")


def schema_of(config: Any) -> Schema:
    """A schema with the tasks of a run's data, whose files are not here."""
    tasks: Mapping[str, Any] = ALICCP
    if config.data_name != "aliccp":
        spec = config.data.get("spec") or f"src/dlen/data/sources/public/{config.data_name}.yaml"
        tasks = yaml.safe_load((ROOT / spec).read_text())["tasks"]
    made = []
    for name, task in tasks.items():
        funnel = {k: task[k] for k in ("observed_where", "joint") if isinstance(task, dict) and k in task}
        made.append(Task(name, 0.1, **funnel))
    return replace(make_schema(tuple(made)), position="item")


def figures(config: Any) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = OmegaConf.to_container(config.experiment.paper.auc)  # type: ignore[assignment]
    return found


def test_every_reproduction_has_its_command() -> None:
    assert sorted(re.findall(r"^    python compare.py experiment=(\w+)", PAGE, re.MULTILINE)) == sorted(EXPERIMENTS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes_builds_its_models_and_has_the_figures_of_the_page(command: str, composed: Compose) -> None:
    config = composed(*shlex.split(command), command="compare")
    check_keys(config, ROOT / "conf", "compare")
    experiment, _, models, seeds = read_experiment(config)
    published = figures(config)
    columns = list(next(iter(published.values())))
    rows = [[model, *(f"{auc[column]:.4f}" for column in columns)] for model, auc in published.items()]
    assert markdown_table(["model", *columns], rows) in PAGE
    assert published.keys() <= models.keys()
    assert len(seeds) > 1
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        common = overrides_for_train(KEYS, experiment.get("settings") or [])
        runs = {name: compose_train([*common, *settings]) for name, settings in models.items()}
    for name, run in runs.items():
        schema = schema_of(run)
        assert set(columns) <= set(Targets(schema).names), name
        with torch.device("meta"):
            assert isinstance(build(run.model, "model", schema), Model)
        assert build(run.optimizer, "optimizer") is not None
        assert set(getattr(build_balancer(run), "weights", {})) <= set(schema.task_names)
