"""The config of a resumed run: its own, with what the command line changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlen.training.resume import continued
from tests.conftest import Compose


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("id_dropout.fields={item: 2.0}", {"item": 2.0}),
        ("+metrics.own={mine: {_target_: torchmetrics.MeanMetric}}", {"mine": {"_target_": "torchmetrics.MeanMetric"}}),
        ("trainer.max_epochs=7", 7),
        ("+trainer.max_time={hours: 1}", {"hours": 1}),
        ("optimizer=adagrad", "dlen.training.optimizers.adagrad"),
    ],
)
def test_an_override_of_any_kind_takes_the_place_of_the_run_s(
    override: str, value: Any, composed: Compose, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    before = composed("model=mmoe", "seed=5", "id_dropout.fields={user: 9.0}")
    (run / "config.yaml").write_text(OmegaConf.to_yaml(before, resolve=True))
    resumed = continued(composed(f"run_dir={run}", "ckpt=last", override), [f"run_dir={run}", "ckpt=last", override])
    found = OmegaConf.to_container(resumed, resolve=True)
    assert isinstance(found, dict)
    for part in override.lstrip("+").partition("=")[0].split("."):
        found = found[part]
    assert (found["_target_"] if override.startswith("optimizer") else found) == value
    assert resumed.seed == 5
