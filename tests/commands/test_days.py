"""A new day every day: prepare.py append=true, train.py on days, and progressive.py over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from scipy import stats

from tests.commands.test_own_parts import TINY, ok, refusal

DAYS = [f"2026-11-{day}" for day in range(20, 27)]
OLD = 3
SPEC: dict[str, Any] = {
    "files": "logs",
    "fields": {
        "user": {"side": "user"},
        "item": {"side": "item"},
        "rate": {"rate": {"of": "click", "by": "item"}},
        "seen": {"history": {"of": "item", "by": "user", "labels": ["click"], "length": 4}},
    },
    "tasks": {"click": "click", "like": "like"},
    "split": {"by": "time", "column": "day", "validation_from": DAYS[1], "test_from": DAYS[2]},
    "rates": {"time": "day"},
    "user": "user",
}
LOG = ("data=table", "data.spec=log.yaml", *TINY, "loader.batch_size=64", "trainer.accelerator=cpu")


def write(folder: Path, days: range, turned: int | None = None) -> None:
    """The files of some days; the labels of one day may be turned around."""
    for day in days:
        draw, rows = np.random.default_rng(day), 300
        item = draw.integers(0, 10 + 3 * day, rows)
        click = (draw.random(rows) < 0.2 + 0.6 * (item % 3 == 0)).astype(int)
        columns = {"user": draw.integers(0, 40, rows), "item": item, "like": draw.integers(0, 2, rows)}
        place = folder / "logs" / f"day={DAYS[day]}"
        place.mkdir(parents=True)
        pl.DataFrame({**columns, "click": 1 - click if day == turned else click}).write_parquet(place / "part.parquet")
    (folder / "log.yaml").write_text(yaml.safe_dump(SPEC))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the old days, to which two days were appended, and then two more."""
    folder = tmp_path_factory.mktemp("days")
    write(folder, range(OLD))
    ok("train.py", folder, *LOG, "trainer.max_epochs=2", "run_dir=run")
    for days in (range(OLD, OLD + 2), range(OLD + 2, len(DAYS))):
        write(folder, days)
        out = ok("prepare.py", folder, "data=table", "data.spec=log.yaml", "append=true")
        assert f"days {300 * (days.stop - OLD)}" in out.replace(",", "")
    return folder


def metrics(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return content


def test_what_append_refuses(place: Path) -> None:
    data = ("data=table", "data.spec=log.yaml", "append=true")
    assert "nothing is new" in refusal("prepare.py", place, *data)
    assert "config append: only tables" in refusal("prepare.py", place, "data=feed", "append=true")
    assert "config dry_run" in refusal("prepare.py", place, *data, "dry_run=true")
    assert "config append" in refusal("prepare.py", place, "append=often")


@pytest.mark.slow
def test_a_run_on_days_is_tested_on_the_next_and_evaluated_on_the_same_rows(place: Path) -> None:
    days = ("days.from=2026-11-23", "days.to=2026-11-24")
    ok("train.py", place, *LOG, "init_from=run", *days, "trainer.max_epochs=1", "run_dir=two")
    tested = metrics(place / "two")
    assert tested["test/rows"] == 300
    ok("evaluate.py", place, "run=two")
    again = json.loads((place / "two/metrics_test.json").read_text())
    assert {k: again[k] for k in tested if k.startswith("test/auc")} == {
        k: v for k, v in tested.items() if k.startswith("test/auc")
    }
    pl.DataFrame({"user": [1, 999], "item": [2, 30], "day": ["2026-11-27"] * 2}).write_parquet(place / "new.parquet")
    ok("predict.py", place, "run=two", "input=new.parquet", "output=scores.parquet")
    ok("export.py", place, "run=two")  # which checks what a server makes of the ids, rates and histories
    ok("train.py", place, *LOG, "days.from=2026-11-26", "trainer.max_epochs=1", "run_dir=last")
    assert metrics(place / "last")["test/rows"] == 30  # nothing follows, so its own validation rows


def test_wrong_days_are_told(place: Path) -> None:
    assert "config days.from: " in refusal("train.py", place, *LOG, "days.from=2027-01-01")
    assert "has no day 2026-11-20" in refusal("train.py", place, *LOG, "days.test=2026-11-20")
    assert "config days.validation" in refusal("train.py", place, *LOG, "days.validation=2")
    assert "config days.to" in refusal("train.py", place, *LOG, "days.to=[1]")
    assert "config days.from: " in refusal("progressive.py", place, *LOG, "days.from=2027-01-01")


@pytest.mark.slow
def test_progressive_validation(place: Path) -> None:
    """Each day's figures are those of an ordinary run; days are not trained twice, and two models are paired by day."""
    common = (*LOG, "init_from=run", "days.from=2026-11-23")
    ok("progressive.py", place, *common, "days.to=2026-11-25", "run_dir=p")
    first = json.loads((place / "p/progressive.json").read_text())["days"]
    assert [figures["day"] for figures in first] == DAYS[3:6]
    trained = [p.stat().st_mtime_ns for p in sorted((place / "p").glob("*/checkpoints/best.ckpt"))]
    out = ok("progressive.py", place, *common, "run_dir=p")
    content = json.loads((place / "p/progressive.json").read_text())
    assert content["days"][:3] == first
    assert [p.stat().st_mtime_ns for p in sorted((place / "p").glob("*/checkpoints/best.ckpt"))][:2] == trained[:2]
    assert {p.name for p in (place / "p").iterdir() if p.is_dir()} == {"start", *DAYS[3:6]}
    assert "| 2026-11-26 |" in out
    step = ("trainer.max_epochs=1", "days.validation=0", "days.from=2026-11-23", "days.to=2026-11-23")
    ok("train.py", place, *LOG, *step, "init_from=p/start", "run_dir=step")
    assert metrics(place / "step")["test/auc/click"] == content["days"][1]["auc"]["click"]
    other = (*common, "optimizer.lr=0", "optimizer.embedding_lr=0", "base_run=p", "run_dir=still")
    ok("progressive.py", place, *other)
    still = json.loads((place / "still/progressive.json").read_text())
    pairs = zip(still["days"], content["days"], strict=True)
    differences = [ours["auc"]["click"] - theirs["auc"]["click"] for ours, theirs in pairs]
    low, high = stats.t.interval(0.95, 3, np.mean(differences), stats.sem(differences))
    found = still["differences"]["click"]
    np.testing.assert_allclose([found["mean"], found["low"], found["high"]], [np.mean(differences), low, high])
    assert "optimizer.lr" in refusal("progressive.py", place, *common, "optimizer.lr=0.5", "run_dir=p")
    assert "was measured on 2026-11-23" in refusal(
        "progressive.py", place, *common, "days.from=2026-11-24", "run_dir=p"
    )
    assert "starts from run" in refusal("progressive.py", place, *common, "init_from=step", "run_dir=p")
    ok("report.py", place, "runs=[p,still]", "out=report.html")
    assert "Progressive validation" in (place / "report.html").read_text()


@pytest.mark.slow
def test_no_label_of_a_later_day_changes_a_figure(tmp_path: Path) -> None:
    """Turn the labels of a day around: figures of the days before it stay, its own do not."""
    figures = []
    for turned in (None, 5):
        folder = tmp_path / str(turned)
        write(folder, range(OLD))
        ok("prepare.py", folder, "data=table", "data.spec=log.yaml")
        for days in (range(OLD, OLD + 2), range(OLD + 2, len(DAYS))):  # the second goes on with the runs of the first
            write(folder, days, turned)
            ok("prepare.py", folder, "data=table", "data.spec=log.yaml", "append=true")
            ok("progressive.py", folder, *LOG, "trainer.max_epochs=1", "run_dir=p")
        figures.append(json.loads((folder / "p/progressive.json").read_text())["days"])
    changed = [ours["auc"] != theirs["auc"] for ours, theirs in zip(*figures, strict=True)]
    assert changed == [False, False, True, True]
