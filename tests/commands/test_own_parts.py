"""A user's own configs, callbacks, schedules, optimisers, loggers and metrics, from a folder outside of the clone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import optuna
import polars as pl
import pytest
import torch
import yaml
from sklearn.metrics import average_precision_score

from dlen.data.store import Store
from dlen.sweeping.journal import Journal
from tests.conftest import Compose, run_here

SMALL = ("data=feed", "data.rows=1500", "data.users=50", "data.items=30", "loader.batch_size=256")
TINY = ("model=mmoe", "model.embedding.dim=4", "model.backbone.expert=[8]", "model.backbone.num_experts=2")
MODULE = '''
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

class Counting(Callback):
    """Counts steps; the text is of the config."""
    def __init__(self, text):
        self.text, self.steps = text, 0
    def on_train_batch_end(self, *args):
        self.steps += 1
    def on_fit_end(self, trainer, module):
        print(f"{self.text}: {self.steps} steps")

class Silent(Logger):
    """A logger that has no save_dir."""
    name, version = "silent", 0
    def __init__(self, greeting):
        self.greeting = greeting
    def log_metrics(self, metrics, step=None):
        if "val/auc/mean" in metrics:
            print(f"{self.greeting} {step}")
    def log_hyperparams(self, params, *args, **kwargs):
        print(f"{self.greeting} params")
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configs and a module of a user's own."""
    configs = {
        "model/mine": {"defaults": ["mmoe", "_self_"], "backbone": {"expert": [8], "num_experts": 2}},
        "data/mine": {"defaults": ["feed", "_self_"], "data": {"rows": 1500, "users": 50, "items": 30}},
        "experiment/mine": {
            "defaults": [{"override /data": "mine"}],
            "experiment": {"title": "Mine", "base": "a", "seeds": 1, "models": {"a": ["model=mine"]}},
        },
        "experiment/quick": {
            "defaults": [{"override /model": "mine"}, {"override /data": "mine"}, {"override /scheduler": "cosine"}],
            "width": 8,
            "model": {"head": {"tower": ["${width}"]}},
            "trainer": {"gradient_clip_val": 1.0},
        },
        "sweep/mine": {
            "defaults": ["base", "_self_"],
            "title": "Mine",
            "settings": ["model=mine"],
            "space": {"optimizer.lr": {"low": 0.001, "high": 0.01, "log": True}},
        },
    }
    for name, content in configs.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        package = "" if name.startswith(("model", "sweep")) else "# @package _global_\n"
        path.write_text(package + yaml.safe_dump(content, sort_keys=False))
    (tmp_path / "my_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def ok(script: str, folder: Path, *arguments: str) -> str:
    """Standard output of a command that has to succeed."""
    done = run_here(script, arguments, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(script: str, folder: Path, *arguments: str) -> str:
    """The one line of a command that has to be refused."""
    done = run_here(script, arguments, folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def run_config(folder: Path) -> dict[str, object]:
    content: dict[str, object] = yaml.safe_load((folder / "config.yaml").read_text())
    return content


@pytest.mark.slow
def test_own_configs_act_in_every_command(place: Path) -> None:
    """By ``--config-dir`` and by ``hydra.searchpath`` in turn."""
    search = ("hydra.searchpath=[conf]",)
    ok("train.py", place, "--config-dir", "conf", "experiment=quick", "run_dir=run")
    config = run_config(place / "run")
    assert config["data"]["rows"] == 1500  # type: ignore[index]
    assert config["model"]["head"]["tower"] == [8]  # type: ignore[index]
    ok("compare.py", place, *search, "experiment=mine", "workers=1", "loader.batch_size=256")
    assert json.loads((place / "runs/compare/mine-feed/table.json").read_text())["base"] == "a"
    small = ("data=mine", "loader.batch_size=256", "sweep.trials=1", "sweep.confirm=1", "sweep.workers=1")
    ok("sweep.py", place, "--config-dir", "conf", "sweep=mine", *small)
    best = place / "runs/sweeps/mine-feed/best.yaml"
    assert "searchpath" not in best.read_text()
    table = json.loads((best.parent / "confirm/table.json").read_text())
    sizes = {row["model"]: row["extras"]["model/dense_parameters"] for row in table["rows"]}
    assert sizes["default"] == sizes["best"]  # the default is of the study's own model
    study = json.loads(best.with_name("study.json").read_text())
    assert "on fresh seeds" in study["sections"][0]["title"]  # the answer of a study comes first
    journal = optuna.storages.JournalStorage(Journal(best.with_name("journal.log")))
    assert optuna.load_study(study_name=None, storage=journal).metric_names == ["val/auc/mean"]
    ok("train.py", place, *search, f"+best={best}", "run_dir=again")
    assert run_config(place / "again")["model"]["backbone"]["expert"] == [8]  # type: ignore[index]
    for script in ("evaluate.py", "export.py"):
        ok(script, place, *search, "run=run")


def test_a_file_that_is_hidden_by_one_of_ours_is_told(place: Path) -> None:
    (place / "conf/model/mmoe.yaml").write_text("defaults: [mine]\n")
    done = run_here("train.py", ["--config-dir", "conf", *SMALL, *TINY, "trainer.max_steps=1"], place)
    assert "conf/model/mmoe.yaml" in done.stderr


def test_a_damaged_config_is_one_line(place: Path) -> None:
    (place / "conf/model/broken.yaml").write_text("backbone: {expert: [8}\n")
    line = refusal("train.py", place, "--config-dir", "conf", "model=broken")
    assert "broken.yaml, line 1" in line


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("+calbacks.x._target_=a.B", "callbacks"),
        ("+loader.batchsize=1", "loader.batch_size"),
        ("+metrics.conflict_evry=1", "metrics.conflict_every"),
        ("+shcheduler.warmup=1", "scheduler"),
        ("+nothing_like_it=1", "--help"),
    ],
)
def test_an_added_key_that_nothing_reads_is_refused(tmp_path: Path, typed: str, near: str) -> None:
    line = refusal("train.py", tmp_path, typed)
    assert typed.lstrip("+").split("=")[0].split("._target_")[0].split(".x")[0] in line or near in line
    assert near in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", ["compare.py", "sweep.py", "evaluate.py", "predict.py", "export.py", "report.py"])
def test_every_command_refuses_keys_that_nothing_reads(tmp_path: Path, script: str) -> None:
    needed = {"compare.py": ["experiment=table1"], "sweep.py": ["sweep=alpha"]}.get(script, [])
    assert "nosuchkey" in refusal(script, tmp_path, *needed, "+nosuchkey=1")


@pytest.mark.parametrize("data", ["feed", "aliccp_demo", "feed_sparse"])
def test_prepare_takes_every_data_set(tmp_path: Path, data: str) -> None:
    assert "rows" in ok("prepare.py", tmp_path, f"data={data}", "data.rows=3000")


def test_several_machines_need_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_RANK", raising=False)
    assert "trainer.num_nodes" in refusal("train.py", tmp_path, *SMALL, *TINY, "trainer.num_nodes=2")


def test_a_run_of_several_machines_is_evaluated_on_one(tmp_path: Path) -> None:
    ok("train.py", tmp_path, *SMALL, *TINY, "trainer.max_steps=2", "run_dir=run")
    path = tmp_path / "run/config.yaml"
    path.write_text(path.read_text().replace("num_nodes: 1", "num_nodes: 2"))
    ok("evaluate.py", tmp_path, "run=run")


def test_an_experiment_is_told_to_the_other_command(place: Path) -> None:
    assert "compare.py experiment=mine" in refusal("train.py", place, "--config-dir", "conf", "experiment=mine")
    assert "train.py experiment=quick" in refusal("compare.py", place, "--config-dir", "conf", "experiment=quick")


def test_hydras_own_keys_set_the_run_folder(tmp_path: Path) -> None:
    few = (*SMALL, *TINY, "trainer.max_steps=2")
    ok("train.py", tmp_path, *few, "hydra.run.dir=here")
    assert (tmp_path / "here/metrics.json").exists()
    ok("train.py", tmp_path, *few, "-m", "seed=0,1", "hydra.sweep.dir=many")
    assert [json.loads((tmp_path / f"many/{i}/metrics.json").read_text())["seed"] for i in (0, 1)] == [0, 1]
    ok("train.py", tmp_path, *few, "-m", "seed=3", "hydra.sweep.dir=many", "hydra.sweep.subdir=seed${seed}")
    assert (tmp_path / "many/seed3/metrics.json").exists()
    assert not (tmp_path / "runs/feed").exists()
    assert "run_dir" in refusal("train.py", tmp_path, *few, "hydra.run.dir=there", "run_dir=elsewhere")
    assert not (tmp_path / "there").exists()


def test_own_callbacks_and_loggers(place: Path) -> None:
    own = ["+callbacks.mine={_target_: my_parts.Counting, text: counted}", "callbacks=[lr_monitor,model_checkpoint]"]
    own += ["+logger.mine={_target_: my_parts.Silent, greeting: hello}", "trainer.log_every_n_steps=1"]
    out = ok("train.py", place, *SMALL, *TINY, *own, "run_dir=run")
    steps = json.loads((place / "run/metrics.json").read_text())["fit/steps"]
    assert f"counted: {steps} steps" in out
    assert "hello params" in out
    assert len(list((place / "run/checkpoints/top").glob("*.ckpt"))) == 3
    assert "lr-Combined" in (place / "run/logs/metrics.csv").read_text().splitlines()[0]
    assert "trust=[my_parts]" in refusal("evaluate.py", place, "run=run")  # for its logger
    ok("evaluate.py", place, "run=run", "trust=[my_parts]")
    ok("train.py", place, *SMALL, *TINY, own[0], "trainer.max_steps=2", "run_dir=callback")
    ok("evaluate.py", place, "run=callback")  # which needs no callback of the training
    assert "trust=[my_parts]" in refusal("train.py", place, "run_dir=callback", "ckpt=last")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model._target_=no_such_module.Model", "model: no_such_module.Model"),
        ("+callbacks.x._target_=no_such_module.X", "callbacks.x: no_such_module.X"),
        ("+trainer.max_epoch=1", "trainer"),
        ("+callbacks.x=1", "callbacks.x"),
        ("+callbacks.x._target_=torch.nn.Linear", "callbacks.x"),
        ("+callbacks.x={_target_: torch.nn.Flatten}", "callbacks.x"),
        ("+logger.x={_target_: torch.nn.Flatten}", "logger.x"),
        ("+logger.x={project: 3}", "logger.x"),
        ("+logger.wandb=3", "logger.wandb"),
        ("callbacks=nosuch", "callbacks=nosuch"),
        ("callbacks=[emaa,lr_monitor]", "callbacks=emaa: there is no such choice; did you mean ema?"),
        ("callbacks=ema callbacks.ema.decay=1", "callbacks.ema"),
        (
            "callbacks=model_checkpoint callbacks.model_checkpoint.dirpath=../../away",
            "callbacks.model_checkpoint.dirpath",
        ),
        ("scheduler=cosine scheduler.warmup=1.5", "scheduler"),
        ("scheduler=cosine +scheduler.interval=month", "scheduler.interval"),
        ("scheduler=cosine +scheduler.nosuch=1", "scheduler"),
        ("+scheduler._target_=torch.optim.lr_scheduler.StepLR", "scheduler"),
        ("+scheduler.warmup=1", "scheduler"),
        ("optimizer.dense={_target_: torch.optim.SGD, _partial_: true, nosuch: 1}", "optimizer"),
        ("trainer.max_epochs=1 +trainer.gradient_clip_val=1 +trainer.gradient_clip_algorithm=nosuch", "trainer"),
    ],
)
def test_wrong_parts_are_one_line(tmp_path: Path, override: str, key: str) -> None:
    overrides = [override] if "{" in override else override.split()
    assert f"config {key}" in refusal("train.py", tmp_path, *SMALL, *TINY, *overrides)
    assert not (tmp_path / "runs").exists()


def lasting(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.mark.parametrize("schedule", [("warmup", "scheduler.warmup=4"), ("plateau", "scheduler.patience=0")])
def test_schedules_averages_and_clipping_go_on_exactly(tmp_path: Path, schedule: tuple[str, str]) -> None:
    parts = (f"scheduler={schedule[0]}", schedule[1], "callbacks=ema", "+trainer.gradient_clip_val=0.5")
    few = (*SMALL, *TINY, *parts, "trainer.val_check_interval=1.0")
    ok("train.py", tmp_path, *few, "trainer.max_epochs=2", "run_dir=whole")
    ok("train.py", tmp_path, *few, "trainer.max_epochs=1", "run_dir=halves")
    halfway = torch.load(tmp_path / "halves/checkpoints/last.ckpt", weights_only=True)
    assert halfway["lr_schedulers"]
    assert halfway["callbacks"]["DenseEMA"]["averaged"]
    line = refusal("train.py", tmp_path, "run_dir=halves", "ckpt=last", "scheduler=cosine")
    assert "scheduler" in line
    ok("train.py", tmp_path, "run_dir=halves", "ckpt=last", "trainer.max_epochs=2")
    whole, halves = lasting(tmp_path / "whole"), lasting(tmp_path / "halves")
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_schedules_of_all_steps(tmp_path: Path, name: str) -> None:
    few = (*SMALL, *TINY, f"scheduler={name}", "trainer.max_epochs=2", "callbacks=lr_monitor")
    ok("train.py", tmp_path, *few, "trainer.log_every_n_steps=1", "run_dir=run")
    rates = pl.read_csv(tmp_path / "run/logs/metrics.csv", infer_schema_length=None)["lr-Combined/pg1"].drop_nulls()
    assert rates.max() == pytest.approx(0.001, rel=0.3)
    assert rates[-1] < 0.0003


def test_an_average_is_what_is_validated(tmp_path: Path) -> None:
    few = (*SMALL, *TINY, "trainer.max_steps=6", "trainer.val_check_interval=1.0")
    ok("train.py", tmp_path, *few, "run_dir=plain")
    ok("train.py", tmp_path, *few, "callbacks=ema", "callbacks.ema.decay=0", "run_dir=last_step")
    ok("train.py", tmp_path, *few, "callbacks=ema", "callbacks.ema.decay=0.9", "run_dir=average")
    plain, last_step, average = (lasting(tmp_path / name) for name in ("plain", "last_step", "average"))
    table = "model.embedding.weight"
    assert all(torch.equal(plain[name], average[name]) for name in plain if name == table)
    assert all(torch.allclose(plain[name], last_step[name]) for name in plain)
    assert not any(torch.equal(plain[name], average[name]) for name in plain if name.endswith("0.weight"))


def test_a_multirun_ends_with_a_table_of_its_jobs(tmp_path: Path) -> None:
    few = (*SMALL, "model.embedding.dim=4", "trainer.max_steps=2")
    out = ok("train.py", tmp_path, *few, "-m", "model=mmoe,shared_bottom", "seed=0,1")
    table = out[out.index("4 jobs") :]
    assert all(f"model=mmoe seed={seed}" in table for seed in (0, 1))
    assert "model=shared_bottom, 2 seeds" in table
    assert "±" in table


def test_an_optimizer_has_its_own_learning_rate_of_the_table(tmp_path: Path, composed: Compose) -> None:
    assert composed("data=aliccp_demo").optimizer.embedding_lr == 0.01
    assert composed("data=aliccp_demo", "optimizer=adagrad").optimizer.embedding_lr == 0.02
    assert composed("data=feed", "optimizer.embedding_lr=0.3").optimizer.embedding_lr == 0.3


def test_any_dense_optimizer_of_torch(tmp_path: Path) -> None:
    dense = "optimizer.dense={_target_: torch.optim.SGD, _partial_: true, momentum: 0.9}"
    ok("train.py", tmp_path, *SMALL, *TINY, dense, "run_dir=run", "optimizer.lr=0.1")
    ok("evaluate.py", tmp_path, "run=run")
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["parts"]
    assert "momentum_buffer" in state[0]["state"][0]
    assert "first" in state[1]["state"][0]


@pytest.mark.parametrize("debug", ["fast_dev_run", "limit", "overfit", "profiler"])
def test_debug_groups_keep_out_of_runs(tmp_path: Path, debug: str) -> None:
    done = run_here("train.py", [*SMALL, *TINY, f"debug={debug}", "optimizer.lr=0.01"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()
    (run,) = (tmp_path / "debug/feed/mmoe").iterdir()
    metrics = json.loads((run / "metrics.json").read_text())
    if debug == "overfit":
        assert metrics["val/auc/mean"] > 0.99
    if debug == "limit":
        assert metrics["test/rows"] < 1500
    if debug == "profiler":
        assert "run_training_batch" in (run / "fit-profile.txt").read_text()


def test_own_metrics_are_monitored_logged_and_compared(tmp_path: Path) -> None:
    own = [
        "+metrics.own.ap._target_=torchmetrics.classification.BinaryAveragePrecision",
        "+metrics.own.hinge={_target_: torchmetrics.classification.BinaryHingeLoss, tasks: [click, like]}",
    ]
    stop = ["monitor=val/hinge/click", "callbacks=early_stopping", "callbacks.early_stopping.monitor=val/ap/mean"]
    out = ok("train.py", tmp_path, *SMALL, *TINY, *own, *stop, "run_dir=run", "metrics.scores=true")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert "hinge" in out
    store = Store(Path(json.loads((tmp_path / "run/schema.json").read_text())["store"]))
    labels = store.split("test").labels
    scores = np.load(tmp_path / "run/scores_test.npy")
    names = store.schema.task_names
    wanted = [average_precision_score(labels[:, i], scores[:, i]) for i in range(len(names))]
    assert [metrics[f"test/ap/{name}"] for name in names] == pytest.approx(wanted, abs=1e-5)
    assert metrics["test/ap/mean"] == pytest.approx(np.mean(wanted), abs=1e-5)
    assert "test/hinge/share" not in metrics
    rows = pl.read_csv(tmp_path / "run/logs/metrics.csv", infer_schema_length=None)
    assert metrics["val/hinge/click"] == pytest.approx(rows["val/hinge/click"].drop_nulls().min(), abs=1e-6)
    ok("evaluate.py", tmp_path, "run=run", "split=validation")
    again = json.loads((tmp_path / "run/metrics_validation.json").read_text())
    assert again["validation/hinge/click"] == pytest.approx(metrics["val/hinge/click"], abs=1e-6)
    ok("report.py", tmp_path, "runs=run", "out=page.html")
    assert f"{metrics['test/ap/mean']:.4f}" in (tmp_path / "page.html").read_text()
    compare = ["experiment=table1", "models=[MMoE]", "seeds=1", "workers=1", *SMALL, *TINY[1:], own[0]]
    assert "ap/mean" in ok("compare.py", tmp_path, *compare)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+metrics.own.auc._target_=torchmetrics.classification.BinaryAveragePrecision", "metrics.own.auc"),
        ("+metrics.own.x._target_=torch.nn.Flatten", "metrics.own.x"),
        ("+metrics.own.x._target_=torchmetrics.classification.BinaryROC", "metrics.own.x"),
        ("+metrics.own.x._target_=torchmetrics.classification.BinaryConfusionMatrix", "metrics.own.x"),
        ("+metrics.own.x={_target_: torchmetrics.MeanSquaredError, tasks: [nosuch]}", "metrics.own.x.tasks"),
        ("+metrics.own.x={_target_: torchmetrics.MeanSquaredError, nosuch: 1}", "metrics.own.x"),
        ("+metrics.own.x=1", "metrics.own.x"),
    ],
)
def test_wrong_metrics_are_one_line(tmp_path: Path, override: str, key: str) -> None:
    assert f"config {key}" in refusal("train.py", tmp_path, *SMALL, *TINY, override)
    assert not (tmp_path / "runs").exists()


def test_no_logger(tmp_path: Path) -> None:
    ok("train.py", tmp_path, *SMALL, *TINY, "logger=null", "run_dir=run", "trainer.max_steps=1")
    assert not (tmp_path / "run/logs").exists()


@pytest.mark.parametrize(
    "script",
    ["train.py", "compare.py", "sweep.py", "prepare.py", "evaluate.py", "predict.py", "export.py", "report.py"],
)
def test_help_and_version_are_ours(tmp_path: Path, script: str) -> None:
    text = ok(script, tmp_path, "--help")
    assert text.startswith(f"python {script}")
    assert "data_dir:" in text
    assert "Powered by Hydra" not in text
    assert ok(script, tmp_path, "--version").startswith("dlen ")
