"""What a command has imported when it answers: plain values are checked before the libraries that take seconds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, run_program

TORCH = {"torch", "lightning", "torchmetrics", "scipy"}
OTHERS = {"polars", "numpy", "optuna", "sqlalchemy", "plotly"}
SELDOM = {"wandb", "sklearn", "lightgbm", "onnx", "onnxruntime", "torchjd", "tensorboard", "mlflow"}
HEAVY = TORCH | OTHERS | SELDOM
PROGRAM = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *sorted({HEAVY!r} & set(sys.modules)))
"""
WRONG = {  # by case: the key or folder that the error names, and the arguments
    "train": ("patience", ["patience=-3"]),
    "resume": ("ckpt", ["ckpt=last", "run_dir=nowhere"]),
    "base": ("base_run", ["base_run=nowhere"]),
    "rerun": ("nowhere", ["rerun=nowhere"]),
    "evaluate": ("nowhere", ["run=nowhere"]),
    "off-policy": ("nowhere", ["run=nowhere", f"off_policy.log={__file__}"]),
    "predict": ("nowhere", ["run=nowhere", f"input={__file__}", "output=scores.csv"]),
    "export": ("nowhere", ["run=nowhere"]),
    "compare": ("seeds", ["experiment=table1", "seeds=-1"]),
    "progressive": ("patience", ["patience=-3"]),
    "benchmark": ("benchmark.trials", ["benchmark.trials=-1"]),
    "check": ("nowhere.json", ["check=nowhere.json"]),
    "sweep": ("sweep.trials", ["sweep=alpha", "sweep.trials=-1"]),
    "report": ("runs", ["runs=nowhere"]),
}
SCRIPTS = {
    "resume": "train",
    "base": "train",
    "rerun": "train",
    "off-policy": "evaluate",
    "check": "benchmark",
}  # the others have the name of their case
NEEDED = {"report": {"numpy", "plotly", "polars"}}


def imported(folder: Path, script: str, *arguments: str, error: str = "") -> set[str]:
    """Which of ``HEAVY`` a command has imported when it succeeds, or names ``error``; in a process of its own."""
    ran = run_program([sys.executable, "-c", PROGRAM, str(ROOT / f"{script}.py"), *arguments], folder)
    assert ran.returncode == (2 if error else 0), ran.stderr
    assert re.search(rf"^error: .*\b{error}\b" if error else "", ran.stderr, re.MULTILINE), ran.stderr
    return set(ran.stdout.splitlines()[-1].removeprefix("imported:").split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_none_of_them(arguments: list[str], tmp_path: Path) -> None:
    assert imported(tmp_path, "train", *arguments) == set()


def test_a_wrong_key_is_answered_without_them(tmp_path: Path) -> None:
    assert imported(tmp_path, "train", "data.rws=3", error="data.rws") == set()


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_value_is_answered_without_torch(case: str, tmp_path: Path) -> None:
    error, arguments = WRONG[case]
    found = imported(tmp_path, SCRIPTS.get(case, case), *arguments, error=error)
    assert found == NEEDED.get(case, set())


@pytest.mark.parametrize("script", ["train", "prepare"])
def test_a_wrong_value_of_the_data_is_answered_without_lightning(script: str, tmp_path: Path) -> None:
    assert imported(tmp_path, script, "data.rows=-3", error="data.rows") == {"numpy", "polars", "torch"}


@pytest.mark.parametrize("module", ["table_passes", "aliccp_passes"])
def test_processes_that_prepare_pieces_import_no_torch(module: str, tmp_path: Path) -> None:
    program = f"import sys, dlen.data.sources.{module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    ran = run_program([sys.executable, "-c", program], tmp_path)
    assert set(ran.stdout.split()) == {"numpy", "polars"}, ran.stderr


@pytest.mark.slow
def test_a_training_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    found = imported(tmp_path, "train", "data.rows=500", "trainer.max_steps=1", *TINY)
    assert found == TORCH | {"numpy", "polars"}  # torchmetrics imports scipy.signal
