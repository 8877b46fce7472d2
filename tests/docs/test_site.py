"""The documentation's site builds without warnings, loads nothing from elsewhere, and lists every config key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dlen.overrides import leaves
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from config_reference import Key, choices, page, read_choice


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr  # with --quiet, --strict would not count warnings
    assert "WARNING" not in ran.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert pages | {Path("config"), Path("python")} <= built
    for path in (p for p in site.rglob("*.html") if p.stem != "404"):  # a server shows it at any depth
        text = path.read_text()
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', text)
        assert not [source for source in loaded if source.startswith(("http", "//"))]
        for source in loaded:
            assert (path.parent / source.split("?")[0].split("#")[0]).exists(), f"{path.name}: {source}"
    assert (site / "python.html").read_text().count("frame_source") == 2  # the page includes the script verbatim


@pytest.mark.parametrize("command", ["train", "prepare", "evaluate", "predict", "export", "compare", "sweep", "report"])
def test_every_key_of_every_command_is_listed_with_what_it_is(command: str) -> None:
    listed = {key.name: key for files in choices(ROOT / "conf").values() for choice in files for key in choice.keys}
    more = {"compare": ["experiment=field"], "sweep": ["sweep=alpha"], "train": ["logger=wandb", "model/backbone=ple"]}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(command, more.get(command, []))
    assert isinstance(config, DictConfig)
    for name, _ in leaves(OmegaConf.to_container(config, resolve=False)):  # type: ignore[arg-type]
        parts = name.split(".")
        if parts[-1] in ("_target_", "_partial_"):
            continue
        found = [listed[".".join(parts[:n])] for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in listed]
        assert found, name
        assert found[0].about, name


def test_keys_are_read_with_their_comments_and_docstrings(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        "# @package _global_\n# What it\n# is.\nmodel:\n  _target_: dlen.models.dlen.LatentHead\n  alpha: 0.1  # mine\n"
        "  bound: prior\nexperiment:\n  models:  # names\n    A b: [x]\nlist: [1, 2]\n"
    )
    choice = read_choice(tmp_path / "one.yaml", "group")
    assert (choice.name, choice.about, choice.target) == ("group=one", "What it is.", "dlen.models.dlen.LatentHead")
    assert choice.keys[:1] == [Key("model.alpha", "0.1", "mine")]
    assert choice.keys[1].about.startswith("what alpha multiplies")
    assert choice.keys[2:] == [Key("experiment.models", "...", "names"), Key("list", "[1, 2]", "")]


def test_the_page_is_a_table_for_each_choice() -> None:
    text = page(ROOT / "conf")
    assert "### `model=dlen`" in text
    assert "| `model.head.initial_leak` | `0.05` | P(t \\| not UP) over P(t \\| UP) at the first step |" in text
