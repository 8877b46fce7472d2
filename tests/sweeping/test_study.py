"""The study: who may start a trial, what is retried, identity, and secrets."""

from __future__ import annotations

import io
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from rich.console import Console
from sqlalchemy.exc import OperationalError

from dlen.errors import UserError
from dlen.reports.study import _importances
from dlen.sweeping import live
from dlen.sweeping import study as study_module
from dlen.sweeping.study import (
    check_options,
    claim,
    connect,
    differences,
    fail,
    make_pruner,
    make_sampler,
    open_study,
    queue_points,
    repair,
    shown,
)
from dlen.sweeping.trial_records import best_trial, own_trials, pareto_front, retried, used

ONE = {"val/auc/mean": "maximize"}
IDENTITY: dict[str, Any] = {"space": {"model.head.alpha": {"high": 0.5}}, "seeds": 1}


def new(tmp_path: Path, storage: str = "journal.log", **objectives: str) -> optuna.Study:
    return open_study(connect(str(tmp_path / storage)), "s", objectives or ONE, IDENTITY)


def test_as_many_trials_as_wanted_begin_whoever_asks(tmp_path: Path) -> None:
    new(tmp_path)
    found: list[int] = []

    def work(number: int) -> None:
        study = optuna.load_study(study_name="s", storage=connect(str(tmp_path / "journal.log")))
        while (trial := claim(study, 17, tmp_path, f"w{number}")) is not None:
            found.append(trial.number)
            trial.suggest_float("x", 0, 1)
            study.tell(trial, trial.params["x"])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(17))


@pytest.mark.parametrize("storage", ["journal.log", "sqlite:///{}/study.db"])
def test_two_machines_queue_a_point_once(storage: str, tmp_path: Path) -> None:
    """Coordinators that share only the storage, of which one queues while the other has looked already."""
    points = [{"x": 0.1}, {"x": 0.2}, {"x": 0.3}]
    study = open_study(connect(storage.format(tmp_path) if "{" in storage else str(tmp_path / storage)), "s", ONE, {})
    study.enqueue_trial(points[0])
    begun = study.ask()  # by a worker, before the others are queued
    for point in points:
        study.enqueue_trial(point)
    queue_points(study, points)
    waiting = [t for t in own_trials(study) if t.state == TrialState.WAITING]
    assert [t.system_attrs["fixed_params"] for t in waiting] == points[1:]
    assert begun.number in {t.number for t in own_trials(study)}


def test_a_database_that_another_process_creates_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(["table studies already exists", None, "unable to open database file"])

    def raced(*arguments: Any, **options: Any) -> RDBStorage:
        reason = next(said)
        if reason is not None:
            raise OperationalError("CREATE TABLE", None, Exception(reason))
        return RDBStorage(*arguments, **options)

    monkeypatch.setattr("dlen.sweeping.study.RDBStorage", raced)
    monkeypatch.setattr("time.sleep", lambda _: None)
    connect(f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(UserError, match="unable to open"):
        connect(f"sqlite:///{tmp_path}/study.db")


def test_a_trial_too_many_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines without a shared folder both see room for one more."""
    study = new(tmp_path)
    first = claim(study, 1, tmp_path, "a")
    assert first is not None
    answers = iter([[], used(own_trials(study))])
    monkeypatch.setattr(study_module, "used", lambda trials: next(answers))
    assert claim(study, 1, tmp_path / "other", "b") is None
    monkeypatch.undo()
    assert [t.number for t in own_trials(study)] == [0]
    assert used(own_trials(study)) == [0]


def test_a_queued_point_that_is_taken_back_is_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = new(tmp_path)
    queue_points(study, [{"x": 0.25}])
    answers = iter([[], [-1]])
    monkeypatch.setattr(study_module, "used", lambda trials: next(answers))
    assert claim(study, 1, tmp_path, "b") is None
    monkeypatch.undo()
    (waiting,) = own_trials(study)
    assert waiting.state == TrialState.WAITING
    trial = claim(study, 1, tmp_path, "a")
    assert trial is not None
    assert trial.suggest_float("x", 0, 1) == 0.25
    assert used(own_trials(study)) == [trial.number]


def test_a_trial_that_died_is_tried_again_up_to_a_limit(tmp_path: Path) -> None:
    study = new(tmp_path)
    numbers = []
    for attempt in range(3):
        trial = claim(study, 1, tmp_path, "w")
        assert trial is not None
        assert trial.suggest_float("x", 0, 1) == pytest.approx(study.trials[0].params["x"])
        numbers.append(trial.number)
        again = fail(study, study.trials[trial.number], "its worker died", 2)
        assert again == (attempt < 2)
    assert claim(study, 1, tmp_path, "w") is None
    assert [retried(t) for t in study.trials] == [True, True, False]
    assert used(study.trials) == [2]
    assert [t.user_attrs.get("retry_of") for t in study.trials] == [None, 0, 1]


def test_an_interruption_does_not_count_as_a_try(tmp_path: Path) -> None:
    study = new(tmp_path)
    for _ in range(4):
        trial = claim(study, 1, tmp_path, "w")
        assert trial is not None
        trial.suggest_float("x", 0, 1)
        assert fail(study, study.trials[trial.number], "interrupted", None)
    assert study.trials[-1].user_attrs["retries"] == 0


def test_a_trial_that_ended_is_not_failed(tmp_path: Path) -> None:
    study = new(tmp_path)
    trial = claim(study, 1, tmp_path, "w")
    assert trial is not None
    before = study.trials[0]
    study.tell(trial, 1.0)
    assert not fail(study, before, "no heartbeat", 2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE]


def test_a_retry_whose_coordinator_died_is_queued_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = new(tmp_path)
    trial = claim(study, 1, tmp_path, "w")
    assert trial is not None
    x = trial.suggest_float("x", 0, 1)
    monkeypatch.setattr(study_module, "_queue_again", lambda *a: None)
    fail(study, study.trials[0], "its worker died", 2)
    monkeypatch.undo()
    repair(study, own_trials(study))
    assert len(study.trials) == 1  # whoever failed it may be about to queue it
    monkeypatch.setattr(study_module, "_REPAIR_AFTER", timedelta(0))
    repair(study, own_trials(study))
    repair(study, own_trials(study))
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert study.ask().suggest_float("x", 0, 1) == x


def test_points_are_queued_once(tmp_path: Path) -> None:
    study = new(tmp_path)
    points = [{"x": 0.25}, {"x": 0.5}]
    queue_points(study, points)
    study.ask()
    queue_points(study, points)
    assert len(study.trials) == 2


def test_a_changed_study_is_refused_with_what_changed(tmp_path: Path) -> None:
    new(tmp_path)
    changed = {"space": {"model.head.alpha": {"high": 0.3}, "model.head.match": {"low": 0}}, "seeds": 1}
    with pytest.raises(UserError, match="started with other settings") as caught:
        open_study(connect(str(tmp_path / "journal.log")), "s", ONE, changed)
    lines = str(caught.value).splitlines()[1:]
    assert lines == ["  ! space model.head.alpha high: was 0.5, is 0.3", "  + space model.head.match low: 0"]
    new(tmp_path)  # the same study is resumed


def test_differences_of_nothing() -> None:
    assert differences(IDENTITY, IDENTITY) == []
    assert differences({"a": {"b": 1}}, {"a": {}}) == ["+ a: {}", "- a b: 1"]


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    assert "secret" not in shown("postgresql+psycopg://me:secret@host/db")
    assert shown("runs/journal.log") == "runs/journal.log"
    with pytest.raises(UserError, match=r"sweep\.storage") as caught:
        connect("postgresql+psycopg://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(UserError, match=r"no driver for mysql\+nonsense is installed|cannot be used"):
        connect("mysql+nonsense://host/db")


def test_sqlite(tmp_path: Path) -> None:
    study = open_study(connect(f"sqlite:///{tmp_path / 'study.db'}"), "s", ONE, IDENTITY)
    trial = claim(study, 1, tmp_path, "w")
    assert trial is not None
    study.tell(trial, 0.5)
    assert claim(study, 1, tmp_path, "w") is None


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "nsgaii", "qmc", "random", "grid"])
def test_every_sampler_samples(name: str, tmp_path: Path) -> None:
    study = new(tmp_path)
    study.sampler = make_sampler(name, {}, 0, "w", 0)
    for _ in range(12):
        trial = study.ask()
        study.tell(trial, -((trial.suggest_float("x", 0, 1) - 0.3) ** 2) - abs(trial.suggest_float("y", 0, 1)))
    assert len({t.params["x"] for t in study.trials}) == 12


def test_workers_and_later_starts_draw_different_numbers() -> None:
    def draw(worker: str, trials: int) -> float:
        study = optuna.create_study(sampler=make_sampler("random", {}, 7, worker, trials))
        return study.ask().suggest_float("x", 0, 1)

    assert draw("a-0", 0) == draw("a-0", 0)
    assert len({draw("a-0", 0), draw("a-1", 0), draw("b-0", 0), draw("a-0", 5)}) == 4


@pytest.mark.parametrize("name", ["median", "hyperband", "wilcoxon", "none"])
def test_every_pruner(name: str) -> None:
    study = optuna.create_study(pruner=make_pruner(name, {}, 10, 100))
    trial = study.ask()
    trial.report(1.0, 10)
    assert trial.should_prune() in (False, True)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: check_options("tpee", "none", ONE), "did you mean tpe"),
        (lambda: check_options("tpe", "medain", ONE), "did you mean median"),
        (lambda: check_options("tpe", "none", {}), "is empty"),
        (lambda: check_options("tpe", "median", {"val/auc/*": "maximize"}), "pruner=none"),
        (lambda: check_options("cmaes", "none", {"a": "maximize", "b": "minimize"}), "one objective"),
        (lambda: make_sampler("tpe", {"n_startup": 3}, 0, "w", 0), "sampler_options: .*n_startup"),
        (lambda: make_pruner("median", {"x": 3}, 1, 1), "pruner_options: .*x"),
    ],
)
def test_wrong_options(call: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        call()


def test_the_front_of_several_objectives(tmp_path: Path) -> None:
    study = new(tmp_path, a="maximize", b="minimize")
    points = [(1.0, 1.0), (2.0, 2.0), (0.5, 2.0), (2.0, 2.0), (3.0, 4.0)]
    for a, b in points:
        trial = study.ask()
        trial.set_user_attr("auc", {"mean": [b / 10]})
        study.tell(trial, [a, b])
    objectives = {"a": "maximize", "b": "minimize"}
    wanted = {t.number for t in study.best_trials}  # Optuna's own, which keeps ties
    assert {t.number for t in pareto_front(study.trials, objectives)} == wanted - {3}
    top = best_trial(study.trials, objectives)
    assert top is not None
    assert top.number == 4


def test_importances_of_several_objectives_are_those_of_each(tmp_path: Path) -> None:
    """Of a metric to maximise, what matters for its highest values, as in a study of that metric alone."""
    alone, both = optuna.create_study(direction="maximize"), optuna.create_study(directions=["maximize", "minimize"])
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    rng = np.random.default_rng(0)
    for x, y in rng.random((60, 2)).tolist():
        value = 1.0 if x > 0.8 else -float(y < 0.3)  # x decides which trials are best, y which are worst
        for study, values in ((alone, [value]), (both, [value, -value])):
            study.add_trial(create_trial(params={"x": x, "y": y}, distributions=space, values=values))
    wanted = get_param_importances(alone, evaluator=PedAnovaImportanceEvaluator())
    figure = _importances(both, {"a": "maximize", "b": "minimize"})
    assert figure is not None
    assert wanted["x"] > wanted["y"]
    for bars in figure.data:
        assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(wanted)


def test_the_best_of_one_objective_is_the_earliest_of_equals(tmp_path: Path) -> None:
    study = new(tmp_path)
    for value in (0.5, 0.7, 0.7):
        study.tell(study.ask(), value)
    top = best_trial(study.trials, ONE)
    assert top is not None
    assert top.number == 1
    assert best_trial([], ONE) is None


def test_a_table_shows_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a terminal, where Rich would parse them as markup and fail on a path in a reason."""
    study = new(tmp_path)
    for reason in ("[/data/x] is missing", None):
        trial = study.ask()
        trial.suggest_categorical("a.b", ["[8,16]"])
        if reason:
            trial.set_user_attr("reason", reason)
            study.tell(trial, state=TrialState.FAIL)
    output = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda **_: Console(file=output, force_terminal=True, width=200))
    with live.StudyTable("s", 3, ONE, []) as table:
        table.show(study.trials)
    assert "[/data/x] is missing" in output.getvalue()
    assert "a.b=[8,16]" in output.getvalue()
