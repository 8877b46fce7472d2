"""The summary table of a run."""

from __future__ import annotations

from typing import Any

import pytest

from dlen.training.terminal import print_figures


def figures(model: str, seed: int, click: float) -> dict[str, Any]:
    metrics = {"model": model, "data": "feed", "seed": seed}
    return metrics | {f"test/{m}/{t}": click for m in ("auc", "gauc", "auc_joint") for t in ("click", "mean")}


def test_the_base_runs_figures_stand_beside(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = figures("dlen", 0, 0.75) | {"test/gain/click": 0.05, "test/gain/mean": 0.05}
    print_figures(metrics, "test", ["click"], figures("mmoe", 3, 0.7))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "dlen on feed, test split, seed 0; base: mmoe, seed 3"
    assert [cell.strip() for cell in lines[2].split("┃")[1:-1]] == ["target", "AUC", "base AUC", "gain"]
    rows = {c[0]: c[1:] for line in lines if "│" in line for c in [[x.strip() for x in line.split("│")[1:-1]]]}
    assert rows == {"click": ["0.7500", "0.7000", "+0.0500"], "mean": ["0.7500", "0.7000", "+0.0500"]}
    assert all(len(line) <= 80 for line in lines)


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"model": "m[/b]", "data": "feed[v2]", "seed": 0, "test/auc/[bold]a": 0.5, "test/auc/mean": None}
    print_figures({**metrics, "undefined/test/auc/mean": "why [red]"}, "test", ["[bold]a"])
    printed = capsys.readouterr().out
    for text in ("m[/b] on feed[v2], test split", "[bold]a", "undefined (why [red])"):
        assert text in printed


def test_without_a_base_run_there_is_no_such_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_figures(figures("dlen", 0, 0.75), "test", ["click"])
    header = capsys.readouterr().out.splitlines()[2]
    assert [cell.strip() for cell in header.split("┃")[1:-1]] == ["target", "AUC", "AUC (4)", "GAUC"]
