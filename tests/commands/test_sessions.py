"""compare.py experiment=table2: trained models rank feed sessions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir

from dlen.comparing.session_policies import parse_sessions
from dlen.comparing.settings import ExperimentSettings
from dlen.data.sources.feed import Feed
from dlen.errors import UserError
from dlen.reports.report import report
from dlen.training.stores import open_store
from dlen.valid import check_group
from tests.conftest import ROOT, Compose, run_here

SMALL = ["data.rows=6000", "data.users=60", "data.items=50", "loader.batch_size=256", "trainer.max_epochs=2", "seeds=2"]
SMALL += ["models=[MMoE,DLEN]", "model.embedding.dim=4", "model.head.tower=[8]", "workers=1"]
SESSIONS = ["experiment.sessions.users=40", "experiment.sessions.sessions=20", "experiment.sessions.detest=[0.0,0.2]"]


@pytest.mark.slow
def test_table2(tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"
    best.write_text("run: x\nfusion: {form: product, weights: {click: 2.0}, up: 0.7, calibrate: true}\n")
    tuned = f"experiment.sessions.tuned={{DLEN: {best}}}"
    ran = run_here("compare.py", ["experiment=table2", *SMALL, *SESSIONS, tuned, "~experiment.online"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "800 sessions of 40 users, 2 seeds of each model" in ran.stdout
    folder = tmp_path / "runs" / "compare" / "table2-feed"
    content = json.loads((folder / "sessions.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == ["random", "MMoE", "DLEN", "DLEN with P(UP)", "DLEN, tuned", "oracle"]
    assert rows["MMoE"]["changes"] == {}
    oracle, base = rows["oracle"], rows["MMoE"]
    for measure in ("click rate", "stay time", "page views"):
        change = oracle["changes"][measure]
        assert change["mean"] == pytest.approx(oracle["levels"][measure] / base["levels"][measure] - 1, abs=0.02)
        assert change["low"] < change["mean"] < change["high"]
    assert oracle["levels"]["stay time"] > rows["random"]["levels"]["stay time"]
    assert oracle["changes"]["detested"]["mean"] < 0
    assert [s["detest"] for s in content["sensitivity"]] == [0.0, 0.2]
    for name in ("sessions.md", "sessions.csv", "table.md"):
        assert (folder / name).stat().st_size > 500
    table = pl.read_csv(folder / "sessions.csv")
    assert set(table["ranking"]) == set(rows)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        report(compose("report", [f"runs={folder}", f"out={tmp_path / 'report.html'}"]))
    assert "Sessions: Feed sessions, as Table 2 (table2-feed)" in (tmp_path / "report.html").read_text()


def test_pairs_and_truth_are_those_of_the_prepared_rows(composed: Compose) -> None:
    """Rows of the store, rebuilt from user, item and hour, have the same ids and true probabilities."""
    config = composed("data=feed", "data.rows=4000", "data.users=30", "data.items=25")
    store, feed = open_store(config), Feed(rows=4000, users=30, items=25)
    split = store.split("test")
    batch = split.batch(torch.arange(len(split)))
    offsets = store.schema.offsets
    names = list(offsets)
    hour = 9
    chosen = (batch.ids[:, names.index("hour")] - offsets["hour"] - 1 == hour).nonzero()[:, 0]
    assert len(chosen) > 5
    truth = feed.truth(np.arange(30), hour)
    found = truth.probabilities()
    for row in chosen.tolist():
        user, item = (int(batch.ids[row, names.index(n)]) - offsets[n] - 1 for n in ("user", "item"))
        assert feed.pairs(user, hour, offsets)[item].tolist() == batch.ids[row].tolist()
        known = dict(zip(store.schema.truth, batch.truth[row].tolist(), strict=True))
        assert truth.up[user, item] == pytest.approx(known["up"], rel=1e-5)
        for task, name in enumerate(store.schema.task_names):
            assert found[user, item, task] == pytest.approx(known[name], rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("users=1", "config experiment.sessions.users: 1 is not a whole number from 2"),
        ("hour=24", "config experiment.sessions.hour: 24"),
        ("fusion=null", "config experiment.sessions.fusion: None"),
        ("up=much", "config experiment.sessions.up: 'much'"),
        ("behaviour.leave=2", "config experiment.sessions.behaviour: leave: 2 is not between 0 and 1"),
        ("fusion.form=mean", "config experiment.sessions.fusion: form must be one of product, sum, got 'mean'"),
        ("tuned={MMoE: no.yaml}", "config experiment.sessions.tuned.MMoE: no.yaml: no such file"),
        ("tuned={MMoE: pyproject.toml}", "is not a best.yaml of sweep=fusion"),
        ("detest=[2.0]", "config experiment.sessions: detest: 2.0 is not between 0 and 1"),
    ],
)
def test_wrong_settings(setting: str, expected: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("compare", ["experiment=table2", f"experiment.sessions.{setting}"])

    def parse() -> None:
        check_group(config.experiment, ExperimentSettings, "experiment")
        parse_sessions(config.experiment.sessions)

    with pytest.raises(UserError, match=re.escape(expected)):
        parse()
