"""Model selection: which metrics can be monitored, and which validation is kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest

from dlen.errors import UserError
from dlen.schema import Task
from dlen.training.measures import Figures
from dlen.training.module import RankingModule
from dlen.training.selection import Selection, monitor_mode
from tests.helpers import make_schema

FUNNEL = make_schema((Task("ctr", 0.3), Task("cvr", 0.1, observed_where="ctr", joint="ctcvr")))


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val/auc/weighted", "max"),
        ("val/auc/mean", "max"),
        ("val/auc/ctcvr", "max"),
        ("val/gain/mean", "max"),
        ("val/logloss/labels", "min"),
        ("val/logloss/cvr", "min"),
        ("val/ne/ctr", "min"),
        ("val/ece/ctr", "min"),
    ],
)
def test_which_way_a_figure_gets_better(monitor: str, mode: str) -> None:
    assert monitor_mode(monitor, FUNNEL) == mode


@pytest.mark.parametrize(
    "monitor",
    [
        "auc/mean",
        "test/auc/mean",
        "val/auc",
        "val/auc/click",
        "val/calibration/ctr",
        "val/ne/mean",
        None,
        3,
        "val/auc/",
    ],
)
def test_what_cannot_be_monitored_is_one_line(monitor: Any) -> None:
    with pytest.raises(UserError, match=r"^config monitor: .*val/auc/weighted") as caught:
        monitor_mode(monitor, FUNNEL)
    assert "\n" not in str(caught.value)


def validated(selection: Selection, values: dict[str, float], undefined: dict[str, str] | None = None) -> None:
    module = RankingModule.__new__(RankingModule)
    object.__setattr__(module, "figures", {"val": Figures(values, undefined or {})})
    selection.on_validation_end(cast(L.Trainer, SimpleNamespace(sanity_checking=False, current_epoch=0)), module)


def test_the_first_of_the_best_is_kept_with_all_of_its_figures() -> None:
    selection = Selection("val/logloss/labels", "min")
    for loss, auc in [(0.5, 0.7), (0.4, 0.6), (0.4, 0.9), (0.6, 0.95)]:
        validated(selection, {"logloss/labels": loss, "auc/mean": auc})
    assert selection.best == {"val/logloss/labels": 0.4, "val/auc/mean": 0.6}
    again = Selection("val/logloss/labels", "min")
    again.load_state_dict(selection.state_dict())
    validated(again, {"logloss/labels": 0.45, "auc/mean": 0.99})
    assert again.best["val/auc/mean"] == 0.6


def test_an_undefined_figure_is_told_with_its_reason() -> None:
    selection = Selection("val/auc/cvr", "max")
    with pytest.raises(UserError, match=r"val/auc/cvr is undefined \(no positives among 7 observed rows\)"):
        validated(selection, {"auc/ctr": 0.5}, {"auc/cvr": "no positives among 7 observed rows"})
