"""Untrusted run folders, studies and best.yaml: nothing in them is executed, nothing outside them is written."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, IntDistribution

from dlen.cli import _with_best
from dlen.errors import UserError
from dlen.files import check_links, check_plain_name, read_figures, read_json, read_yaml, write_json
from dlen.sweeping.space import parse_space
from dlen.sweeping.sweep import _best
from dlen.training.checkpoints import CheckpointFiles, read_checkpoint
from dlen.training.configs import read_config
from dlen.trust import check_config
from tests.conftest import ROOT, run_here

SETTINGS = [
    "model=dlen",
    "model.embedding.dim=4",
    "model.head.tower=[8]",
    "model.head.hidden=[8]",
    "model.backbone.expert=[8]",
]
SETTINGS += ["loader.batch_size=256", "data.rows=3000", "data.users=60", "data.items=40", "trainer.max_epochs=1"]
SETTINGS += ["paper.feed.num_experts=2", "trainer.accelerator=cpu"]
COMMANDS = {
    "evaluate": ["evaluate.py", "run=run"],
    "off-policy": ["evaluate.py", "run=run", "off_policy.log=new.csv"],
    "predict": ["predict.py", "run=run", "input=new.csv", "output=scores.parquet"],
    "export": ["export.py", "run=run"],
    "rerun": ["train.py", "rerun=run"],
    "resume": ["train.py", "run_dir=run", "ckpt=last"],
    "fusion": ["sweep.py", "sweep=fusion", "sweep.run=run"],
}
REPORT = ["report.py", "runs=run", "out=report.html"]
EVIL = "from pathlib import Path\nfrom os import system\nPath('sentinel').touch()\n"
OWN = "import dlen.files, torch\nfrom os import system\nfrom dlen.training.configs import build\n"
OWN += "from dlen.models import DLEN\n\n\nclass Mine(DLEN):\n    pass\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and a file of new rows."""
    path = tmp_path_factory.mktemp("hostile")
    ran = run_here("train.py", [*SETTINGS, "run_dir=run", f"data_dir={path / 'data'}"], path)
    assert ran.returncode == 0, ran.stderr
    return path


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the run and a module that records when it is imported."""
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "new.csv").write_text("item\n1\n")
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def put(file: Path, key: str, value: Any) -> None:
    """Set one value in a YAML file."""
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig)
    OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.save(config, file)


def refused(arguments: list[str], folder: Path) -> str:
    """The one-line error of a refused command."""
    ran = run_here(arguments[0], arguments[1:], folder)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    return line


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_run_names(command: str, place: Path) -> None:
    put(place / "run" / "config.yaml", "model.dropout", {"_target_": "evil.system", "command": "touch sentinel"})
    before = files(place)
    line = refused(COMMANDS[command], place)
    assert "run/config.yaml: config model.dropout._target_: evil.system is not a class of dlen" in line
    assert files(place) == before


def test_a_report_makes_nothing_of_what_a_run_names(place: Path) -> None:
    put(place / "run" / "config.yaml", "model._target_", "evil.Model")
    assert run_here(REPORT[0], REPORT[1:], place).returncode == 0
    assert not (place / "sentinel").exists()


SLOTS = (
    *("data", "model", "model.interaction", "model.backbone"),
    *("balancing", "optimizer", "logger.csv", "logger.more", "trainer", "paper.x"),
)
TARGETS = (
    "evil.Thing",
    "os.system",
    "builtins.open",
    "torch.load",
    "dlen.training.building.torch.set_float32_matmul_precision",
    "dlen.training.configs.hydra.utils.instantiate",
    "dlen.training.stores.open_store",
    "dlen.files.write_text",
    "dlen.data.sources.table.Path",
    "dlen.training.building.ModelCheckpoint",
    "lightning.pytorch.loggers.CSVLogger",
    "dlen.nowhere.Thing",
    "dlen..models",
    "dlen",
    "",
    ["os.system"],
    5,
)


@pytest.mark.parametrize("slot", SLOTS)
def test_every_slot_takes_its_own_classes_alone(slot: str, place: Path) -> None:
    path = place / "run" / "config.yaml"
    kept = path.read_text()
    for target in TARGETS:
        path.write_text(kept)
        put(path, slot, {"_target_": target})
        with pytest.raises(UserError, match=r"_target_"):
            read_config(path, [])
    path.write_text(kept)
    read_config(path, [])
    assert not (place / "sentinel").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data._target_", "dlen.models.DLEN"),
        ("model._target_", "dlen.data.sources.feed.Feed"),
        ("model.backbone._target_", "dlen.models.DLEN"),
        ("balancing._target_", "dlen.models.DLEN"),
        ("model.head.tower", [{"_target_": "dlen.models.DLEN"}]),
        ("model._partial_", True),
        ("model.backbone._partial_", False),
        ("model.interaction", {"_target_": "dlen.models.backbones.MMoEBackbone", "_partial_": True}),
        ("model._args_", [1]),
        ("model._recursive_", False),
        ("data._convert_", "none"),
        ("data_dir", "${oc.env:HOME}"),
        ("logger.csv.name", "../../outside"),
        ("logger.csv.version", "/outside"),
        ("data", None),
        ("loader", 5),
        ("seed", "0"),
        ("loader.batch_size", True),
        ("data_dir", 5),
        ("base_run", []),
    ],
)
def test_what_no_run_has_written_is_refused(key: str, value: Any, made: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((made / "run" / "config.yaml").read_text())
    node, (*outer, last) = content, key.split(".")
    for part in outer:
        node = node[part]
    node[last] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=f"^{path}: .*{key.split('.')[0]}"):
        read_config(path, [])


def choices(group: str) -> list[str]:
    return sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml"))


NEEDED = {"table": ["data.spec=spec.yaml"]} | {
    name: ["data.raw_dir=raw"] for name in ("kuairand", "census", "aliexpress", "tenrec", "tenrec_article", "wechat")
}
GROUPS = ("model", "model/interaction", "model/backbone", "model/head", "balancing", "optimizer", "logger", "data")


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_ours_is_trusted(group: str, composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    for choice in choices(group):
        config = composed(f"{group}={choice}", *(NEEDED.get(choice, []) if group == "data" else []))
        path = tmp_path / f"{choice}.yaml"
        path.write_text(OmegaConf.to_yaml(config, resolve=True))
        assert read_config(path, []).data.name


@pytest.mark.slow
def test_a_class_of_ones_own_is_trusted_by_its_package(
    place: Path, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    (place / "my_models.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    own = [*SETTINGS, "model._target_=my_models.Mine", "run_dir=own", f"data_dir={made / 'data'}"]
    ran = run_here("train.py", own, place)
    assert ran.returncode == 0, ran.stderr
    wanted = (
        "config model._target_: my_models.Mine is not a class of dlen; if you trust this folder, set trust=[my_models]"
    )
    assert wanted in refused(["evaluate.py", "run=own"], place)
    assert wanted in refused(["train.py", "run_dir=own", "ckpt=last"], place)
    assert "config trust: 'my_models' is not a list of packages" in refused(
        ["evaluate.py", "run=own", "trust=my_models"], place
    )
    for arguments in (["evaluate.py", "run=own"], ["train.py", "rerun=own"], ["train.py", "run_dir=own", "ckpt=last"]):
        ran = run_here(arguments[0], [*arguments[1:], "trust=[my_models]"], place)
        assert ran.returncode == 0, ran.stderr
    path = place / "own" / "config.yaml"
    assert "trust:\n- my_models" in path.read_text()
    with pytest.raises(UserError, match="not a class of dlen"):  # a config cannot vouch for itself
        read_config(path, [])
    for name in ("system", "torch.load", "Nothing", "build", "dlen.files.write_text", "dlen.models.PLE.mixtures"):
        put(path, "model._target_", f"my_models.{name}")
        with pytest.raises(UserError, match=r"model\._target_"):
            read_config(path, ["my_models", "dlen"])
    put(path, "model._target_", "my_models.DLEN")
    read_config(path, ["my_models"])


def best(folder: Path, text: str) -> list[str]:
    path = folder / "best.yaml"
    path.write_text(text)
    return [f"+best={path}"]


@pytest.mark.parametrize(
    "text",
    [
        "defaults: [_self_]\nhydra: {searchpath: ['file:///tmp']}\n",
        "defaults: [_self_]\nhydra: {run: {dir: x}}\n",
        "defaults: [_self_]\nhydra.run.dir: x\n",
        "defaults: [{override /hydra/launcher: submitit}, _self_]\n",
        "defaults: [{hydra/launcher: basic}, _self_]\n",
        "defaults: [{override /model: ../../../tmp/evil}, _self_]\n",
        "defaults: [{override /model: /tmp/evil}, _self_]\n",
        "defaults: [{override /model@hydra.launcher: dlen}, _self_]\n",
        "defaults: [_self_]\ntrust: [evil]\n",
        "defaults: [_self_]\nrerun: run\n",
        "defaults: [_self_]\nrun_dir: /tmp/outside\n",
        "defaults: [_self_]\nlogger: {csv: {name: ../../outside}}\n",
        "defaults: [_self_]\nmodel: {dropout: {_target_: evil.system}}\n",
        "defaults: [_self_]\nmodel: {_target_: evil.Model}\n",
        "defaults: [_self_]\nmodel._target_: evil.Model\n",
        'defaults: [_self_]\n"model._target_=evil.Model,x": 1\n',
        "defaults: [_self_]\nmodel: {tower: [{_target_: evil.Model}]}\n",
        'defaults: [_self_]\nmodel: {tower: [{"a:1,_target_": evil.Model}]}\n',
        "defaults: [_self_]\ndata_dir: ${oc.env:HOME}\n",
        "defaults: &d [_self_]\nx: *d\n",
        "- _self_\n",
        "5\n",
        "",
    ],
)
def test_a_best_yaml_sets_what_a_study_searches_alone(text: str, place: Path) -> None:
    with pytest.raises(UserError, match=r"^config \+best: "):
        _with_best(best(place, text))
    assert not (place / "sentinel").exists()


def test_a_best_yaml_is_said_word_for_word(tmp_path: Path) -> None:
    values = {"a": "it's \\' , {_target_: x}", "b": "\\", "c": [1, 2.5, None, True, "x,y"], "d": {}, "e": "a=b"}
    text = yaml.safe_dump({"defaults": [{"override /model": "dlen"}, {"logger": "csv"}, "_self_"], "data": values})
    found = _with_best([*best(tmp_path, text), "seed=1"])
    assert found[:2] == ["model=dlen", "+logger=csv"]
    assert found[-1] == "seed=1"
    own = "defaults: [_self_]\nmodel: {_target_: my_own.Model}\n"
    with pytest.raises(UserError, match=r"set trust=\[my_own\]"):
        _with_best(best(tmp_path, own))
    with pytest.raises(UserError, match=r"my_own.Model cannot be imported"):
        _with_best([*best(tmp_path, own), "trust=[my_own]"])


def test_a_value_that_is_not_searched_becomes_no_setting() -> None:
    """Anyone who can write to a study's storage could name a group's file or a class."""
    space = parse_space({"model/backbone": {"choices": ["mmoe", "ple"]}, "seed": {"low": 0, "high": 3}}, [])
    plan: Any = SimpleNamespace(space=space, spec=SimpleNamespace(objectives={"auc": "maximize"}), folder=Path("study"))
    study = optuna.create_study(direction="maximize")
    for value, backbone in enumerate(("mmoe", "../../../tmp/evil")):
        kinds: dict[str, Any] = {"model/backbone": CategoricalDistribution([backbone]), "seed": IntDistribution(0, 3)}
        params = {"model/backbone": backbone, "seed": 1}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=float(value)))
    found = _best(study.trials[:1], plan)
    assert found is not None
    assert found.number == 0
    with pytest.raises(UserError, match=r"study: its best trial has model/backbone='\.\./\.\."):
        _best(study.trials, plan)


def endless(path: Path) -> None:
    """A pipe without a writer: reading it would block forever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


LAUGHS = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcd", "bcde", strict=True)
)
TEXTS = {
    "aliases": LAUGHS,
    "nesting": "x: " + "[" * 5000 + "]" * 5000,
    "braces": '{"x":' * 5000 + "1" + "}" * 5000,
    "size": '"' + "x" * (1 << 25) + '"',
    "digits": '{"x": ' + "9" * 400 + ', "seed": ' + "9" * 5000 + "}",
    "sixties": "x: 1" + ":1" * 100_000,
    "nan": '{"x": .nan, "y": NaN}',
    "tag": "x: !!python/object/apply:os.system ['touch sentinel']",
    "text": '{"seed": "x", "test/auc/mean": "high"}',
    "bytes": "\udcff\udcfe",
    "nothing": "",
    "number": "5",
}


@pytest.mark.parametrize("kind", [*TEXTS, "pipe", "device", "folder"])
@pytest.mark.parametrize("read", [read_yaml, read_json, read_figures])
def test_files_made_to_hurt_are_one_line(kind: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        endless(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(TEXTS[kind].encode(errors="surrogateescape"))
    harmless = {(read_yaml, k) for k in ("text", "nothing", "number")} | {(read_json, k) for k in ("text", "number")}
    if (read, kind) in harmless:
        read(path)
        return
    with pytest.raises(UserError) as told:
        read(path)
    assert str(told.value).startswith(str(path))
    assert len(str(told.value)) < 400 + len(str(path))


def test_what_is_no_number_is_written_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, None)})
    assert read_json(tmp_path / "f.json") == {"a": None, "b": [None, 1.5], "c": [1, None]}


READ_BY = [
    ("config.yaml", "evaluate"),
    ("config.yaml", "resume"),
    ("schema.json", "evaluate"),
    ("schema.json", "predict"),
    ("metrics.json", "rerun"),
    ("checkpoints/best.ckpt", "evaluate"),
    ("checkpoints/best.ckpt", "export"),
    ("checkpoints/last.ckpt", "resume"),
]


@pytest.mark.parametrize(("name", "command"), READ_BY)
def test_a_command_tells_of_a_file_made_to_hurt(name: str, command: str, place: Path) -> None:
    endless(place / "run" / name)
    assert f"{name}: is not a regular file" in refused(COMMANDS[command], place)


@pytest.mark.parametrize(
    "name", ["config.yaml", "schema.json", "metrics.json", "diagnostics_test.json", "logs/metrics.csv"]
)
def test_a_report_leaves_out_a_run_that_is_made_to_hurt(name: str, place: Path) -> None:
    shutil.copytree(place / "run", place / "runs" / "good")
    shutil.copytree(place / "run", place / "runs" / "bad")
    (place / "runs" / "bad" / name).write_text(TEXTS["nesting"] if name != "logs/metrics.csv" else "")
    if name == "logs/metrics.csv":
        endless(place / "runs" / "bad" / name)
    ran = run_here("report.py", ["runs=runs", "out=report.html"], place)
    assert ran.returncode == 0, ran.stderr
    assert "(1 run)" in ran.stdout
    assert f"bad/{name}" in ran.stderr
    assert "is left out" in ran.stderr


def test_a_report_leaves_out_a_comparison_and_a_study_that_are_made_to_hurt(place: Path) -> None:
    for folder, name in (("a", "table.json"), ("b", "surface.json"), ("c", "study.json")):
        (place / "runs" / folder).mkdir(parents=True)
        (place / "runs" / folder / name).write_text(TEXTS["braces"])
    ran = run_here("report.py", ["runs=runs", "out=report.html"], place)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("is left out") == 3


def test_figures_that_are_no_numbers_are_refused(place: Path) -> None:
    path = place / "run" / "metrics.json"
    kept = json.loads(path.read_text())
    for key, value in (
        ("test/auc/mean", "high"),
        ("val/auc/mean", [1]),
        ("seed", 0.5),
        ("model", 5),
        ("fit/steps", True),
    ):
        path.write_text(json.dumps(kept | {key: value}))
        for arguments in (["train.py", "rerun=run"], ["train.py", *SETTINGS, "base_run=run"]):
            assert f"metrics.json: {key} is " in refused(arguments, place).replace(
                " cannot be read (run/metrics.json", ""
            )


def test_a_checkpoint_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    path, packed = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    CheckpointFiles().save_checkpoint({"state_dict": {"w": torch.zeros(1 << 20)}}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert packed.stat().st_size < 100_000
    with pytest.raises(UserError, match="larger than the file"):
        read_checkpoint(packed)


@pytest.mark.parametrize(
    "state", [None, 5, [torch.ones(1)], {"w": [1.0]}, {1: torch.ones(1)}, {"w": torch.eye(2).to_sparse()}]
)
def test_a_state_of_other_types_is_refused(state: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    CheckpointFiles().save_checkpoint({"state_dict": state}, path)
    with pytest.raises(UserError, match="state_dict is not a mapping of names to tensors"):
        read_checkpoint(path)


def test_a_checkpoint_that_does_not_fit_is_one_line(place: Path) -> None:
    last, kept = place / "run" / "checkpoints" / "last.ckpt", {}
    kept = torch.load(last, weights_only=True)
    for key, value in (
        ("loops", 5),
        ("callbacks", dict.fromkeys(kept["callbacks"], 5)),
        ("optimizer_states", [{"state": 5}]),
        ("state_dict", {"w": torch.ones(1)}),
        ("pytorch-lightning_version", 7),
        ("epoch", "x"),
    ):
        torch.save(kept | {key: value}, last)
        line = refused(COMMANDS["resume"], place)
        assert "last.ckpt" in line
    torch.save({"state_dict": {"model.w": torch.ones(1)}}, place / "run" / "checkpoints" / "best.ckpt")
    for command in ("evaluate", "export"):
        assert "best.ckpt" in refused(COMMANDS[command], place)


def test_a_checkpoint_names_no_other_file_to_delete(tmp_path: Path) -> None:
    """A resumed run deletes its previous best checkpoint, whose path is in the last one."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    (tmp_path / "mine" / "inner" / "file").touch()
    files, inside = CheckpointFiles(), tmp_path / "checkpoints" / "best.ckpt"
    inside.touch()
    for path in (tmp_path / "checkpoints" / ".." / "mine", tmp_path / "checkpoints" / ".." / "mine" / "inner" / "file"):
        files.remove_checkpoint(path)
    assert (tmp_path / "mine" / "inner" / "file").exists()
    files.remove_checkpoint(inside)
    assert not inside.exists()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("metrics_test.json", "evaluate"),
        (".metrics_test.json.writing", "evaluate"),
        ("diagnostics_test.json", "evaluate"),
        ("export", "export"),
        ("logs", "resume"),
        ("checkpoints/best.ckpt", "resume"),
        ("config.yaml", "resume"),
        ("diagnostics_test.json", "resume"),
    ],
)
def test_nothing_is_written_through_a_link(name: str, command: str, place: Path) -> None:
    entry, outside = place / "run" / name, place / "outside"
    if entry.exists():
        entry.rename(outside)  # so that reading through the link gives valid content
    elif name == "export":
        outside.mkdir()
    else:
        outside.write_text("mine")
    entry.symlink_to(outside)
    before = {p: p.read_bytes() for p in [outside, *outside.rglob("*")] if p.is_file()}
    assert f"run/{name}: is a link out of run" in refused(COMMANDS[command], place)
    assert {p: p.read_bytes() for p in [outside, *outside.rglob("*")] if p.is_file()} == before


def test_a_new_run_is_not_written_through_a_link_either(place: Path) -> None:
    (place / "new").mkdir()
    (place / "new" / "diagnostics_test.json").symlink_to(place / "outside")
    assert "new/diagnostics_test.json: is a link" in refused(["train.py", *SETTINGS, "run_dir=new"], place)
    assert not (place / "outside").exists()


def test_the_run_folder_itself_may_be_a_link(place: Path) -> None:
    (place / "run").rename(place / "elsewhere")
    (place / "run").symlink_to(place / "elsewhere")
    (place / "elsewhere" / "newest").symlink_to("checkpoints/best.ckpt")
    ran = run_here("evaluate.py", ["run=run"], place)
    assert ran.returncode == 0, ran.stderr
    assert (place / "elsewhere" / "metrics_test.json").exists()


def test_links_to_the_log_of_wandb_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run" / "wandb" / "run-1" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "wandb" / "run-1" / "logs" / "debug-core.log").symlink_to(tmp_path / "cache.log")
    check_links(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "wandb")
    (tmp_path / "run" / "wandb").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link out of"):
        check_links(tmp_path / "run")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../x", "/x", "a\0b", 5, None])
def test_a_name_of_data_is_that_of_a_folder(name: object) -> None:
    with pytest.raises(UserError, match=r"config data\.name"):
        check_plain_name(name)
    check_plain_name("my table-1.x")


def test_a_message_moves_no_cursor() -> None:
    assert str(UserError("a\x1b[2Jb\rc\nd\te ü")) == "a\\x1b[2Jb\\rc\\nd\\te ü"


def test_a_config_that_is_checked_says_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.yaml: config model._args_: is not a setting"):
        check_config({"model": {"_args_": [1]}}, [], Path("x.yaml"))


@pytest.mark.parametrize(
    ("target", "fits"),
    [
        ("torchmetrics.classification.BinaryAveragePrecision", True),
        ("torchmetrics.MeanSquaredError", True),
        ("torchmetrics.text.BERTScore", False),  # loads a model by name
        ("torchmetrics.utilities.data.dim_zero_cat", False),
        ("torch.optim.AdamW", False),
    ],
)
def test_a_folder_names_metrics_that_only_compute(target: str, fits: bool, tmp_path: Path) -> None:
    content = {"metrics": {"own": {"x": {"_target_": target}}}}
    with nullcontext() if fits else pytest.raises(UserError, match=r"metrics\.own\.x"):
        check_config(content, (), tmp_path / "config.yaml")
