"""The released wheel, built from the source distribution, works from any folder without the repository."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import dlen
from tests.conftest import ROOT, run_program

SMALL = [
    "data.rows=4000",
    "data.users=50",
    "data.items=30",
    "model=mmoe",
    "model.backbone.expert=[8]",
    "model.head.tower=[8]",
]


def run(command: list[str], folder: Path, **environment: str) -> str:
    ran = run_program(command, folder, environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_works_from_any_folder(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("is built from a clone")
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines():
        if (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path / "sdist")], clone)
    (sdist,) = (tmp_path / "sdist").iterdir()
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "wheel", *alone, "-w", str(tmp_path / "wheel"), str(sdist)], tmp_path)
    (wheel,) = (tmp_path / "wheel").iterdir()
    assert wheel.name == f"dlen-{dlen.__version__}-py3-none-any.whl"
    place = tmp_path / "site"
    run([*pip, "install", "--no-deps", "--no-index", "--target", str(place), str(wheel)], tmp_path)
    packaged = {p.relative_to(place / "dlen" / "conf") for p in (place / "dlen" / "conf").rglob("*.yaml")}
    shipped = {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}
    assert shipped <= packaged
    assert Path("sweep/alpha.yaml") in packaged
    # First in the path, before the clone that these tests run from.
    said = run([str(place / "bin" / "dlen-train"), *SMALL, "run_dir=run"], elsewhere, PYTHONPATH=str(place))
    assert "test split" in said
    assert json.loads((elsewhere / "run" / "metrics.json").read_text())["model"] == "mmoe"
    asked = ["experiment=table1", "models=[MMoE]", "seeds=1", "workers=1", *(s for s in SMALL if s.startswith("data."))]
    said = run([str(place / "bin" / "dlen-compare"), *asked], elsewhere, PYTHONPATH=str(place))
    assert "MMoE" in said
    (log,) = (elsewhere / "runs" / "compare" / "cache").glob("*/train.log")
    assert str(ROOT) not in log.read_text()
    _with_own_parts(place, elsewhere)


def _with_own_parts(place: Path, folder: Path) -> None:
    """Train and search a model of one's own, with a data set, an experiment and a sweep of one's own."""
    configs = {
        "model/mine.yaml": {"defaults": ["mmoe", "_self_"], "_target_": "my_models.Mine"},
        "data/mine.yaml": {"defaults": ["feed", "_self_"], "data": {"rows": 4000, "users": 50, "items": 30}},
        "experiment/mine.yaml": {"defaults": [{"override /data": "mine"}, {"override /model": "mine"}], "seed": 3},
        "sweep/mine.yaml": {
            "defaults": ["base", "_self_"],
            "settings": ["model=mine", "data=mine"],
            "space": {"model.dropout": {"choices": [0.1]}},
        },
    }
    for name, content in configs.items():
        (folder / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        package = "# @package _global_\n" if name.startswith(("data", "experiment")) else ""
        (folder / "conf" / name).write_text(package + yaml.safe_dump(content, sort_keys=False))
    (folder / "my_models.py").write_text("from dlen.models import Ranker\n\nclass Mine(Ranker):\n    pass\n")
    path = f"{place}:{folder}"
    own = ["--config-dir", "conf"]
    run([str(place / "bin/dlen-train"), *own, "experiment=mine", "run_dir=mine"], folder, PYTHONPATH=path)
    config = yaml.safe_load((folder / "mine/config.yaml").read_text())
    assert (config["model"]["_target_"], config["seed"]) == ("my_models.Mine", 3)
    searched = ["sweep=mine", "data=mine", "sweep.trials=1", "sweep.confirm=0", "sweep.workers=1", "sweep.name=mine"]
    run([str(place / "bin/dlen-sweep"), *own, *searched], folder, PYTHONPATH=path)
    assert "0.1" in (folder / "runs/sweeps/mine/best.yaml").read_text()
    run([str(place / "bin/dlen-evaluate"), "run=mine", "trust=[my_models]"], folder, PYTHONPATH=path)


def test_one_version_everywhere() -> None:
    assert version("dlen") == dlen.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dlen.__version__
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert newest.startswith(f"## {dlen.__version__} ")
