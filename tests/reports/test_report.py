"""report.py: what it finds, the content of the page, and messages for input that it cannot use."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from dlen.commands.report import ReportSettings
from dlen.errors import UserError
from dlen.reports.dots import auc_dots
from dlen.reports.page import Section, Table, write_page
from dlen.reports.report import report
from dlen.reports.run_labels import one_of_each_seed
from dlen.reports.runs import find, read_runs
from dlen.valid import check_group
from tests.conftest import run_command

Compose = Callable[..., DictConfig]


class Page(HTMLParser):
    """What a browser would show of a page without running scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.specs: dict[str, Any] = {}
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.sources: list[str] = []
        self._open: list[str] = []
        self._spec: str | None = None
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.sources += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")]
        self._open.append(tag)
        if tag == "script":
            self._spec = attributes.get("id")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        if self._open[-1] == "script" and self._spec:
            self.specs[self._spec] = json.loads(data)
        if "h2" in self._open:
            self.headings[-1] += data
        if self.rows and ("td" in self._open or "th" in self._open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    from hydra import compose, initialize_config_dir

    from tests.conftest import ROOT

    out = tmp_path_factory.mktemp("page") / "report.html"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        report(compose("report", [f"runs={made / 'runs'}", f"out={out}"]))
    return Page(out)


@pytest.mark.slow
def test_the_page_has_every_section_and_no_other_file(page: Page) -> None:
    assert page.sources == []
    wanted = ["Runs", "Runs on feed", "Runs on aliccp_demo", "Two models (table1-feed)", "A small study (small-feed)"]
    assert page.headings[:1] == ["Runs"]
    assert set(page.headings) == {*wanted, "Config differences", "One run"}


def test_the_table_shows_the_figures_of_metrics_json(page: Page, made: Path) -> None:
    header, *rows = page.rows[:7]
    assert len(rows) == 6
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        folder = next(f for f in (made / "runs").rglob(cells["run"]) if (f / "metrics.json").exists())
        metrics = json.loads((folder / "metrics.json").read_text())
        assert cells["seed"] == str(metrics["seed"])
        assert cells["mean AUC"] == f"{metrics['test/auc/mean']:.4f}"
        assert cells["samples/s"] == f"{metrics['fit/samples_per_second']:,.0f}"
        for key in [k for k in metrics if k.startswith("test/auc/")]:
            column = "AUC " + key.removeprefix("test/auc/")
            if column in cells:
                assert cells[column] == ("" if metrics[key] is None else f"{metrics[key]:.4f}")


def test_runs_of_a_comparison_have_its_names_and_others_the_settings_that_differ(made: Path) -> None:
    labels = {r.folder.name: r.label for r in read_runs(find(str(made / "runs")))}
    assert labels["feed-0"] == labels["feed-1"] == "MMoE"
    assert labels["feed-2"] == labels["feed-3"] == "DLEN <b>"
    assert labels["alpha"] == "dlen alpha=0.5"
    assert labels["one"] == "mran"
    assert "0000" not in labels


def test_names_are_no_markup(made: Path, tmp_path: Path, compose_report: Compose) -> None:
    report(compose_report(f"runs={made / 'runs'}", f"out={tmp_path / 'r.html'}"))
    text = (tmp_path / "r.html").read_text()
    assert "DLEN &lt;b&gt;" in text
    assert "DLEN <b>" not in re.sub(r'<script type="application/json".*?</script>', "", text)
    assert "DLEN <b>" not in text  # also escaped in the data of plots


def plots(page: Page, section: str) -> dict[str, Any]:
    """Figures of a section, by number."""
    number = [h for h in page.headings if h not in ("Runs", "One run")].index(section)
    return {k: v for k, v in page.specs.items() if k.startswith(f"figure-{number}-")}


def test_auc_dots_are_means_with_intervals_and_the_oracle(page: Page, made: Path) -> None:
    figure = list(plots(page, "Runs on feed").values())[1]  # the gains come first
    dots = {trace["name"]: trace for trace in figure["data"] if trace["mode"] == "markers"}
    metrics = [json.loads((made / f"runs/compare/cache/feed-{i}" / "metrics.json").read_text()) for i in (0, 1)]
    values = [m["test/auc/click"] for m in metrics]
    assert dots["MMoE"]["y"][dots["MMoE"]["x"].index("click")] == pytest.approx(np.mean(values))
    half = 12.7062 * abs(values[0] - values[1]) / 2  # t with one degree of freedom; sd / sqrt(2) of a pair
    assert dots["MMoE"]["error_y"]["array"][0] == pytest.approx(half, rel=1e-4)
    assert dots["dlen alpha=0.5"]["error_y"]["visible"] is False
    lines = {round((s["x0"] + s["x1"]) / 2): s["y0"] for s in figure["layout"]["shapes"]}
    assert lines[0] == metrics[0]["test/oracle/click"]


def test_gains_are_paired_by_seed(page: Page, made: Path) -> None:
    figure = next(iter(plots(page, "Runs on feed").values()))
    (dlen,) = [t for t in figure["data"] if t["name"] == "DLEN &lt;b&gt;"]
    read = [json.loads((made / f"runs/compare/cache/feed-{i}" / "metrics.json").read_text()) for i in range(4)]
    differences = [read[2 + s]["test/auc/like"] - read[s]["test/auc/like"] for s in (0, 1)]
    assert dlen["y"][dlen["x"].index("like")] == pytest.approx(np.mean(differences))
    assert "MMoE" not in [t["name"] for t in figure["data"]]


def test_a_run_alone_shows_its_hidden_state_gates_conflict_and_attention(page: Page, made: Path) -> None:
    by_name = {r.folder.name: r for r in read_runs(find(str(made / "runs")))}
    of = {name: page.specs[f"run-{record.key}"] for name, record in by_name.items()}
    titles = {name: [plot["title"] for plot in spec["plots"]] for name, spec in of.items()}
    common = ["Training", "Gradient conflict", "ROC", "Reliability"]
    assert set(titles["feed-0"]) == {*common, "Gates, level 1"}
    hidden = {"P(UP) by what happened", "What a negative means", "What P(UP) leaves unexplained"}
    assert set(titles["feed-2"]) == {*common, "Gates, level 1", *hidden}
    assert "Attention, task to fields" in titles["one"]
    diagnostics = json.loads((made / "runs/compare/cache/feed-2/diagnostics_test.json").read_text())
    figures = {plot["title"]: plot["figure"] for plot in of["feed-2"]["plots"]}
    gates = figures["Gates, level 1"]["data"][0]["z"]
    assert np.allclose(np.sum(gates, axis=1), 1, atol=1e-3)
    assert gates == [g["weights"] for g in diagnostics["gates"]]
    rows = sum(map(sum, diagnostics["hidden"]["counts"].values()))
    named = [int(re.sub(r"\D", "", trace["name"])) for trace in figures["P(UP) by what happened"]["data"]]
    assert sum(named) == rows
    (pairs,) = figures["What P(UP) leaves unexplained"]["data"]
    assert sorted(pairs["x"]) == sorted(pair["lift"][1] for pair in diagnostics["hidden"]["pairs"])
    stacked = np.sum([t["y"] for t in figures["What a negative means"]["data"][:3]], axis=0)
    assert np.allclose(stacked, 1, atol=1e-3)
    assert "model.head.alpha: 1.0" in of["feed-2"]["config"]


def test_a_comparison_shows_its_own_intervals(page: Page) -> None:
    (figure,) = [
        f
        for f in plots(page, "Two models (table1-feed)").values()
        if "difference" in f["layout"]["yaxis"]["title"]["text"]
    ]
    (dlen,) = figure["data"]
    assert dlen["y"][0] == pytest.approx(0.025)
    assert dlen["error_y"]["array"][0] == pytest.approx(dlen["error_y"]["arrayminus"][0])
    rows = [row for row in page.rows if row and row[0] == "oracle"]
    assert ["oracle", "0.8000", "0.8000"] in rows


def test_config_differences_mark_what_most_do_not_have(page: Page) -> None:
    start = next(i for i, row in enumerate(page.rows) if row and row[0].startswith("setting"))
    table = {row[0]: row[1:] for row in page.rows[start + 1 :]}
    assert table["model.head.alpha"].count("0.5") == 1
    assert "seed" not in table
    assert "run_dir" not in table


def test_an_unfinished_run_shows_its_curves_and_a_broken_one_is_left_out(
    made: Path, tmp_path: Path, compose_report: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("whole", "unfinished", "broken"):
        shutil.copytree(made / "runs/feed/dlen/alpha", tmp_path / "runs" / name)
    for name in ("metrics.json", "diagnostics_test.json"):
        (tmp_path / "runs" / "unfinished" / name).unlink()
    (tmp_path / "runs" / "broken" / "metrics.json").write_text("{")
    report(compose_report(f"runs={tmp_path / 'runs' / '*'}", f"out={tmp_path / 'r.html'}"))
    told = capsys.readouterr()
    assert "2 runs" in told.out
    assert f"warning: {tmp_path}/runs/broken: is left out" in told.err
    page = Page(tmp_path / "r.html")
    states = {row[0]: row[4] for row in page.rows[1:3]}
    assert states == {"whole": "tested", "unfinished": "unfinished"}
    validation = {row[0]: row[5] for row in page.rows[1:3]}
    assert validation["whole"] == validation["unfinished"] != ""
    curves = [f for f in plots(page, "Runs on feed").values() if f["data"][0].get("meta")]
    assert {t["meta"]["run"] for t in curves[0]["data"]} == {"r0", "r1"}


def read_feed(made: Path, folder: Path, **changes: dict[str, Any]) -> list[Any]:
    """Copies of a real run with changed configs, as read by :func:`read_runs`."""
    for name, change in changes.items():
        shutil.copytree(made / "runs/feed/dlen/alpha", folder / name, ignore=shutil.ignore_patterns("checkpoints"))
        config = OmegaConf.load(folder / name / "config.yaml")
        for key, value in change.items():
            OmegaConf.update(config, key, value)
        OmegaConf.save(config, folder / name / "config.yaml")
    return read_runs(find(str(folder)))


def test_a_seed_that_was_run_twice_is_one_observation(made: Path, tmp_path: Path) -> None:
    records = read_feed(made, tmp_path, a={"seed": 0}, b={"seed": 0}, c={"seed": 1})
    assert {r.label for r in records} == {"dlen"}
    assert [r.seed for r in one_of_each_seed(records)] == [0, 1]
    plot = auc_dots(records[:2])
    assert plot is not None
    assert plot.figure["data"][0]["error_y"]["visible"] is False  # one seed has no interval


def test_labels_name_what_most_runs_do_not_have(made: Path, tmp_path: Path) -> None:
    ple = {"model.backbone._target_": "dlen.models.backbones.PLEBackbone", "model.backbone.levels": 2}
    changes: dict[str, dict[str, Any]] = {
        "usual": {"model.head.alpha": 1.0},
        "again": {"model.head.alpha": 1.0, "seed": 4},
        "other": {"model.head.alpha": 1.0, "loader.batch_size": 77},
        "alpha": {"model.head.alpha": 0.2},
        "ple": {"model.head.alpha": 1.0, **ple, "optimizer._target_": "dlen.training.optimizers.adagrad"},
    }
    labels = {r.folder.name: r.label for r in read_feed(made, tmp_path, **changes)}
    assert labels["usual"] == labels["again"] == "dlen"
    assert labels["other"] == "dlen loader.batch_size=77"
    assert labels["alpha"] == "dlen alpha=0.2"
    assert labels["ple"] == "dlen backbone=PLE optimizer=adagrad"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"val/auc/mean": "x"'),
        ("diagnostics_test.json", '{"roc": {"click": null}}'),
        ("diagnostics_test.json", '{"hidden": {"tasks": ["click"]}}'),
        ("diagnostics_test.json", '{"reliability": {"click": {"predicted": [null], "observed": [1], "rows": [1]}}}'),
        ("config.yaml", "seed: abc"),
        ("schema.json", "[]"),
        ("logs/metrics.csv", "step,val/auc/mean\n\x00"),
    ],
)
def test_a_damaged_run_does_not_take_the_others_with_it(
    name: str, content: str, made: Path, tmp_path: Path, compose_report: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("whole", "broken [1]"):
        shutil.copytree(made / "runs/compare/cache/feed-2", tmp_path / "runs" / run)
    (tmp_path / "runs" / "broken [1]" / name).write_text(content)
    report(compose_report(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'r.html'}"))
    told = capsys.readouterr()
    assert "Report: " in told.out
    rows = [row[0] for row in Page(tmp_path / "r.html").rows[1:3]]
    assert "whole" in rows
    assert ("broken [1]: is left out" in told.err) == ("broken [1]" not in rows)
    if name != "logs/metrics.csv":
        assert "1 run)" in told.out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "content"), [("table.json", "[]"), ("surface.json", "[]"), ("study.json", "{}")])
@pytest.mark.parametrize("figure", [None, {"layout": {"height": '1"><script>'}, "data": []}, {"data": [float("nan")]}])
def test_a_damaged_comparison_or_study_is_left_out(
    name: str,
    content: str,
    figure: Any,
    made: Path,
    tmp_path: Path,
    compose_report: Compose,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(made / "runs/feed/dlen/alpha", tmp_path / "runs" / "one")
    (tmp_path / "runs" / "other").mkdir()
    if name == "study.json" and figure is not None:
        plot = {"title": "t", "figure": figure, "note": "", "wide": False}
        content = json.dumps({"sections": [{"title": "s", "plots": [plot], "tables": [], "note": ""}]})
    (tmp_path / "runs" / "other" / name).write_text(content)
    report(compose_report(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'r.html'}"))
    assert "other: is left out" in capsys.readouterr().err
    assert '1"><script>' not in (tmp_path / "r.html").read_text()


def test_patterns_files_and_strange_names_are_found(made: Path, tmp_path: Path) -> None:
    source = made / "runs/feed/dlen/alpha"
    for name in ("a [x]", "trials", "b"):
        shutil.copytree(source, tmp_path / name / "run", ignore=shutil.ignore_patterns("checkpoints", "*.png"))
    assert len(find(str(tmp_path)).runs) == 3  # a data set may be called trials
    assert len(find(str(tmp_path / "a [x]")).runs) == 1
    assert len(find([str(tmp_path / "b"), str(tmp_path / "tr*")]).runs) == 2
    assert len(find(str(tmp_path / "b" / "run" / "metrics.json")).runs) == 1
    (record,) = read_runs(find(str(tmp_path / "a [x]")))
    assert record.curves["val/auc/mean"] == read_runs(find(str(source)))[0].curves["val/auc/mean"]
    assert len(find(str(made / "runs" / "**")).runs) == 6  # without the study's trials
    assert len(find(str(made / "runs/sweeps/small-feed/trials/*")).runs) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["runs=nothing/*"], "config runs: 'nothing/*' matches no run, comparison, study or benchmark"),
        (["out=report.pdf"], "config out: 'report.pdf' is not an HTML file, ending in .html"),
        (["wandb=me"], "config wandb: 'me' is not ENTITY/PROJECT"),
        (["out=/dev/null/r.html"], "config out: folder /dev/null cannot be written"),
    ],
)
def test_wrong_settings(
    settings: list[str], expected: str, made: Path, compose_report: Compose, tmp_path: Path
) -> None:
    defaults = [f"runs={made / 'runs'}", f"out={tmp_path / 'r.html'}"]

    def checked() -> None:
        config = compose_report(*defaults, *settings)
        check_group(config, ReportSettings)
        report(config)

    with pytest.raises(UserError, match=re.escape(expected)):
        checked()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command(made: Path, tmp_path: Path) -> None:
    ran = run_command("report.py", [f"runs={made / 'runs'}", "wandb=me/dlen"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "Report: report.html (6 runs, 1 comparison, 1 study)" in ran.stdout
    assert "workspace.json; set WANDB_API_KEY" in ran.stdout
    wrong = run_command("report.py", ["runs=nowhere"], tmp_path)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


def test_a_table_sorts_by_whole_numbers_and_leaves_nan_empty(tmp_path: Path) -> None:
    table = Table("T", ["name", "value"], [["a", 0.123456], ["b", float("nan")], ["c", None]], ["", "{:.2f}"])
    write_page(tmp_path / "p.html", "t", "s", [Section("One", tables=[table])])
    text = (tmp_path / "p.html").read_text()
    assert 'data-value="0.123456">0.12<' in text
    assert text.count('data-value=""></td>') == 2
