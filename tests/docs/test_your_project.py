"""docs/your_project.md as written: its files and commands, in order, with settings appended to make them small."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.conftest import ROOT, run_here, run_program

PAGE = (ROOT / "docs" / "your_project.md").read_text()
JOINED = PAGE.replace("\\\n", " ")
FEWER = {"train": ["trainer.limit_train_batches=4"], "sweep": ["trainer.limit_train_batches=4"]}
FEWER["sweep"] += ["sweep.trials=1", "sweep.confirm=0", "sweep.workers=1"]
FEWER["compare"] = ["trainer.limit_train_batches=4", "seeds=1", "workers=1"]
PLUGIN = "hydra_plugins/my_project.py"


def files() -> dict[str, str]:
    """Content by path; a comment in the first two lines of a block names its file."""
    found = {}
    for block in re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL):
        name = re.search(r"^# ([\w/]+\.(?:py|yaml))$", block, re.MULTILINE)
        assert name
        found[name[1]] = block
    return found


def commands() -> list[str]:
    """Commands of the project, without its set-up."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", JOINED, re.DOTALL) for line in block.splitlines()]
    return [line for line in lines if line.startswith(("dlen-", "python ")) and "-m venv" not in line]


def test_the_tree_shows_the_files() -> None:
    (tree,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    shown = re.findall(r"^ *([\w/]+\.(?:py|yaml))\b", tree, re.MULTILINE)
    scripts = {"make_log.py", "use_run.py", "with_lightning.py", PLUGIN}
    for name in shown:
        assert name in files() or f"conf/{name}" in files()
    assert len(shown) == len(files()) - len(scripts)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's project, without its plugin."""
    for name, content in files().items():
        if name != PLUGIN:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_parts", None)
    yield tmp_path
    sys.modules.pop("my_parts", None)


def run(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run one command in ``folder`` and return what it printed."""
    program, *arguments = shlex.split(line)
    if program == "python":
        small = ["2500" if a == "20000" else "1500" if a == "5000" else a for a in arguments]
        monkeypatch.setattr(sys, "argv", small)
        runpy.run_path(str(folder / small[0]), run_name="__main__")
        return ""
    name = program.removeprefix("dlen-")
    fewer = [*FEWER.get(name, []), *(["trainer.max_epochs=3"] if "debug=overfit" in arguments else [])]
    ran = run_here(f"{name}.py", [*arguments, *fewer], folder)
    assert ran.returncode == 0, f"{line}\n{ran.stderr}"
    assert "Traceback" not in ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.slow
def test_files_and_commands_in_order(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *lines, with_plugin = commands()
    said = {line: run(line, project, monkeypatch) for line in lines}
    text = "\n".join(said.values())
    for wanted in (r"counted: \d+ steps", r"4 jobs", r"model=mine, 2 seeds", r"init_from: user_id: \d+ of \d+ ids"):
        assert re.search(wanted, text), wanted
    for column in ("ap", "surprise"):
        assert re.search(rf"┃ +{column} ┃", text), column
    assert pl.read_csv("scores.csv").columns[:3] == ["user_id", "video_id", "p_click"]
    assert "test/auc/click" in Path("metrics.txt").read_text()
    assert json.loads(Path("runs/compare/mine-log/table.json").read_text())["base"] == "plain"
    assert len(list(Path("debug/log/mine").iterdir())) == 4
    assert list(Path("debug/log/mine").glob("*/fit-profile.txt"))
    adamw = [yaml.safe_load(p.read_text())["optimizer"]["dense"] for p in Path("runs/log/mine").glob("*/config.yaml")]
    assert any(dense and dense["_target_"] == "torch.optim.AdamW" for dense in adamw)
    assert run_here("evaluate.py", ["run=weighted_run"], project).stderr.count("trust=[my_parts]") == 1
    Path(PLUGIN).parent.mkdir()
    Path(PLUGIN).write_text(files()[PLUGIN])
    small = [*shlex.split(with_plugin)[1:], *FEWER["train"]]
    ran = run_program([sys.executable, str(ROOT / "train.py"), *small], project, {"PYTHONPATH": "."})
    assert ran.returncode == 0, ran.stderr


def test_the_refusal_that_the_page_shows(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```console\n\$ dlen-train (.*)\n(.*)\n```", PAGE)
    assert run_here("train.py", shlex.split(shown[0]), tmp_path).stderr.strip() == shown[1]
