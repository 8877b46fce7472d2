"""Hundreds of invalid settings: any value of a train.py key gives one line or a config that builds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlen.cli import _one_line
from dlen.errors import UserError
from dlen.overrides import leaves
from dlen.training.building import build_trainer
from dlen.training.callbacks import Meter
from dlen.training.checks import check
from dlen.training.configs import build
from dlen.training.stores import open_store
from tests.conftest import Compose
from tests.data.sources.test_fuzz import FUZZ

VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 7, 1.5, -0.1, 1e400, float("nan"), 10**30, "", "auto", "x", "0"]
VALUES += ["../../etc/passwd", "${seed}", "${nowhere}", "???", [], [0], [1, "a"], {}, {"a": 1}, {"click": 0.2}, "\x00"]
# Not tested here: paths, and sizes for which a machine really has too little memory.
LEFT_OUT = ("data_dir", "runs_dir", "run_dir", "logger.", "base_run", "rerun", "ckpt", "_target_", "data.rows", "seed")
SETTINGS = ["model=dlen", "model=mmoe", "model=ple", "model=mran", "model=mmoe balancing=dwa", "optimizer=adagrad"]
SETTINGS += ["model=lightgbm", "model=logistic"]


@pytest.mark.slow
@pytest.mark.parametrize("choice", SETTINGS)
def test_every_value_is_told_or_taken(choice: str, composed: Compose, tmp_path: Path) -> None:
    """Builds the data, the model, the balancing, the optimiser and the trainer; nothing is trained."""
    config = composed("data=feed", "data.rows=2000", "data.users=30", "data.items=20", *choice.split())
    store = open_store(config)
    named = [k for k, _ in leaves(OmegaConf.to_container(config, resolve=True))]  # type: ignore[arg-type]
    groups = sorted({key.rpartition(".")[0] for key in named if "." in key})
    keys = [k for k in (*named, *groups) if not f"{k}.".startswith(LEFT_OUT)]
    keys = [k for k in keys if not k.endswith(("_target_", "_partial_"))]
    rng, told = random.Random(FUZZ), 0
    for _ in range(40 * FUZZ):
        changed = config.copy()
        assert isinstance(changed, DictConfig)
        chosen = {key: rng.choice(VALUES) for key in rng.sample(keys, rng.choice([1, 1, 2]))}
        try:
            for key, value in chosen.items():
                OmegaConf.update(changed, key, value, merge=False)
            build(changed.data, "data")
            check(changed, store)
            build_trainer(changed, tmp_path, [], [], Meter())
        except UserError as error:
            said = str(error)
        except (HydraException, OmegaConfBaseException) as error:
            said = _one_line(error)
        else:
            continue
        told += 1
        assert said, chosen
        assert "\n" not in said, (chosen, said)
    assert 8 * FUZZ < told < 40 * FUZZ
