"""sweep: studies with real workers and faults, the files they write, and storages shared by several coordinators."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import psutil
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import TrialState

from dlen.cli import _one_line
from dlen.errors import UserError
from dlen.sweeping.settings import SweepSettings
from dlen.sweeping.study import connect
from dlen.sweeping.sweep import make_plan
from dlen.valid import check_group
from tests.conftest import BRAKE, ROOT, Command, free_port, run_command, run_here, wait_for
from tests.wandb_files import WandbRun, read_wandb

DATA = ["data.rows=3000", "data.users=40", "data.items=30"]
MODEL = [
    "loader.batch_size=256",
    "trainer.max_epochs=1",
    "model.embedding.dim=4",
    "model.head.tower=[8]",
    "model.head.hidden=[8]",
]
MODEL += ["model.backbone.expert=[8]", "model.backbone.num_experts=2", "optimizer.embedding_lr=0.02"]
SMALL = ["sweep=alpha", "sweep.maximize=[val/auc/mean]", "sweep.minimize=[]", *DATA, *MODEL, "sweep.workers=2"]
SMALL += ["sweep.confirm=0", "sweep.pruner=none"]
LONG = [
    *SMALL,
    "trainer.max_epochs=12",
    "trainer.val_check_interval=1.0",
    "patience=1000",
]  # a few seconds per trial
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
NAME = "alpha-feed"

pytestmark = pytest.mark.slow


def folder_of(tmp_path: Path, name: str = NAME) -> Path:
    return tmp_path / "runs" / "sweeps" / name


def study_of(tmp_path: Path, name: str = NAME) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=connect(str(folder_of(tmp_path, name) / "journal.log")))


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "sweep.py"), *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)


def running(tmp_path: Path) -> list[optuna.trial.FrozenTrial]:
    """Trials that are training and have validated once."""
    return [t for t in study_of(tmp_path).trials if t.state == TrialState.RUNNING and t.intermediate_values]


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [c for c in psutil.Process(process.pid).children() if "dlen.sweeping" in c.cmdline()]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of four trials by two workers."""
    tmp_path = tmp_path_factory.mktemp("sweep")
    ran = run_command("sweep.py", [*SMALL, "sweep.trials=4", "sweep.confirm=2"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "4 trials, 0 of them pruned" in ran.stdout
    assert "| best |" in ran.stdout
    assert "+best=" in ran.stdout
    for number in range(4):
        assert f"trial {number} complete" in ran.stderr
    return tmp_path


def test_what_a_study_leaves(done: Path) -> None:
    folder = folder_of(done)
    table = pl.read_parquet(folder / "trials.parquet")
    assert table["number"].to_list() == [0, 1, 2, 3]
    assert set(table["state"]) == {"complete"}
    assert table["worker"].n_unique() == 2
    assert table["val/auc/mean"].max() == table.filter("best")["val/auc/mean"].item()
    for row in table.iter_rows(named=True):
        metrics = json.loads((folder / "trials" / f"{row['number']:04d}" / "metrics.json").read_text())
        assert metrics["val/auc/mean"] == row["val/auc/mean"] == row["auc/mean"]
        assert metrics["state"] == "complete"
        assert not [key for key in metrics if key.startswith("test/")]  # a trial never uses the test split
        config = yaml.safe_load((folder / "trials" / f"{row['number']:04d}" / "config.yaml").read_text())
        assert config["model"]["head"]["alpha"] == row["param/model.head.alpha"]
        assert config["model"]["head"]["bound"] == row["param/model.head.bound"]
    page = (folder / "study.html").read_text()
    for title in ("History of val/auc/mean", "AUC of each task by parameter", "Parallel coordinates", "Workers"):
        assert title in page
    assert 'src="http' not in page  # works offline


def test_a_trial_is_the_same_training_as_train_py(done: Path) -> None:
    row = pl.read_parquet(folder_of(done) / "trials.parquet").row(2, named=True)
    settings = [
        *row["overrides"].split(),
        "model.head.likelihood=marginal",
        "model.head.initial_leak=0.9",
        *DATA,
        *MODEL,
    ]
    ran = run_here("train.py", [*settings, "run_dir=r"], done)
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads((done / "r" / "metrics.json").read_text())
    assert metrics["val/auc/mean"] == row["val/auc/mean"]


def test_best_yaml_trains_the_best(done: Path) -> None:
    best = pl.read_parquet(folder_of(done) / "trials.parquet").filter("best").row(0, named=True)
    for path in (folder_of(done) / "best.yaml", folder_of(done)):
        ran = run_here("train.py", [f"+best={path}", f"run_dir={path.name}-run", "trainer.max_epochs=2"], done)
        assert ran.returncode == 0, ran.stderr
        config = yaml.safe_load((done / f"{path.name}-run" / "config.yaml").read_text())
        assert config["model"]["head"]["alpha"] == best["param/model.head.alpha"]
        assert config["model"]["head"]["likelihood"] == "marginal"
        assert config["data"]["rows"] == 3000
        assert config["trainer"]["max_epochs"] == 2  # the command line wins
    wrong = run_here("train.py", ["+best=nowhere.yaml"], done)
    assert wrong.returncode == 2
    assert "config +best: nowhere.yaml: no such file" in wrong.stderr


def test_the_best_is_tested_beside_the_default_on_fresh_seeds(done: Path) -> None:
    table = json.loads((folder_of(done) / "confirm" / "table.json").read_text())
    assert [row["model"] for row in table["rows"]] == ["default", "best"]
    assert table["seeds"] == [1000, 1001]
    gain = table["rows"][1]["differences"]["mean"]
    assert gain["low"] <= gain["mean"] <= gain["high"]
    cached = [json.loads(p.read_text()) for p in (done / "runs" / "compare" / "cache").glob("*/metrics.json")]
    assert sorted(m["seed"] for m in cached) == [1000, 1000, 1001, 1001]


def test_a_done_study_is_not_run_again_and_can_be_made_longer(done: Path) -> None:
    before = pl.read_parquet(folder_of(done) / "trials.parquet")
    again = run_here("sweep.py", [*SMALL, "sweep.trials=4"], done)
    assert again.returncode == 0, again.stderr
    assert pl.read_parquet(folder_of(done) / "trials.parquet").equals(before)
    longer = run_here("sweep.py", [*SMALL, "sweep.trials=5"], done)
    assert longer.returncode == 0, longer.stderr
    after = pl.read_parquet(folder_of(done) / "trials.parquet")
    assert len(after) == 5
    assert after.head(4).drop("best").equals(before.drop("best"))


def test_a_changed_space_is_refused_with_a_diff(done: Path) -> None:
    ran = run_here("sweep.py", [*SMALL, "sweep.space={model.head.alpha: {high: 0.6}}", "sweep.trials=9"], done)
    assert ran.returncode == 2
    assert "started with other settings" in ran.stderr
    assert "! space model.head.alpha attributes high: was 0.5, is 0.6" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_dashboard_opens_the_storage(done: Path) -> None:
    port = free_port()
    program = Path(sys.executable).with_name("optuna-dashboard")
    command = [str(program), str(folder_of(done) / "journal.log"), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def studies() -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                return json.load(answer)["study_summaries"]

        def answered() -> Any:
            try:
                return studies()
            except OSError:
                return None

        assert wait_for(answered)[0]["study_name"] == NAME
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_loses_and_repeats_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "sweep.trials=3")
    wait_for(lambda: running(tmp_path))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=BRAKE)
    assert process.returncode == 130, errors
    assert "interrupted: run the same command" in errors
    assert "Traceback" not in errors
    trials = study_of(tmp_path).trials
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    stopped = [t for t in trials if t.user_attrs.get("reason") == "interrupted"]
    waiting = [t for t in trials if t.state == TrialState.WAITING]
    assert len(stopped) == len(waiting) > 0
    again_as = {t.user_attrs["retry_of"]: t.system_attrs["fixed_params"] for t in waiting}
    assert again_as == {t.number: t.params for t in stopped}
    assert all(t.params for t in stopped)
    again = run_command("sweep.py", [*LONG, "sweep.trials=3"], tmp_path)
    assert again.returncode == 0, again.stderr
    ended = [t for t in study_of(tmp_path).trials if t.state == TrialState.COMPLETE]
    assert len(ended) == 3
    assert len({json.dumps(t.params, sort_keys=True) for t in ended}) == 3


def test_a_killed_worker_costs_a_retry_and_no_more(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "sweep.trials=3")
    trial = wait_for(lambda: running(tmp_path))[0]
    (victim,) = (w for w in workers_of(process) if trial.user_attrs["worker"] in w.cmdline())
    victim.kill()
    _, errors = process.communicate(timeout=BRAKE)
    assert process.returncode == 0, errors
    trials = study_of(tmp_path).trials
    dead = trials[trial.number]
    assert dead.state == TrialState.FAIL
    assert "its worker died with signal 9 (SIGKILL)" in dead.user_attrs["reason"]
    (retry,) = (t for t in trials if t.user_attrs.get("retry_of") == trial.number)
    assert retry.state == TrialState.COMPLETE
    assert retry.params == dead.params
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 3
    assert f"trial {trial.number} failed (its worker died with signal 9 (SIGKILL)" in errors


def test_workers_end_with_a_killed_coordinator(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "trainer.max_epochs=10000", "sweep.trials=50")  # no trial ends by itself
    wait_for(lambda: len(running(tmp_path)) == 2)
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=BRAKE)
    assert not alive
    assert len(gone) == 2
    trials = study_of(tmp_path).trials
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    assert sum(t.state == TrialState.WAITING for t in trials) == 2


def test_two_coordinators_share_a_study(tmp_path: Path) -> None:
    run_here("prepare.py", DATA, tmp_path)
    both = [start(tmp_path, *SMALL, "sweep.trials=5", "sweep.workers=1") for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=BRAKE)
        assert process.returncode == 0, errors
    trials = study_of(tmp_path).trials
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 5
    assert len({t.user_attrs["worker"] for t in trials if t.state == TrialState.COMPLETE}) == 2


def test_failed_trials_say_why_and_pruned_ones_stop_at_a_validation(tmp_path: Path) -> None:
    """A diverging learning rate fails only its own trial; one that learns nothing is pruned and keeps its metrics."""
    space = ["~sweep.space", "+sweep.space={optimizer.lr: {choices: [0.01, 0.011, 1e30, 1e-9]}}"]
    arguments = ["sweep=dlen", *DATA, *MODEL, "sweep.confirm=0", *space, "sweep.start=[]", "sweep.sampler=grid"]
    arguments += ["sweep.workers=1", "sweep.pruner=median", "sweep.pruner_options={n_startup_trials: 2}"]
    arguments += ["sweep.name=faults", "patience=100", "trainer.max_epochs=4", "logger=wandb"]
    ran = run_command("sweep.py", arguments, tmp_path)
    assert ran.returncode == 0, ran.stderr
    good, better, exploded, idle = study_of(tmp_path, "faults").trials
    assert good.state == better.state == TrialState.COMPLETE
    assert exploded.state == TrialState.FAIL
    assert "training has diverged" in exploded.user_attrs["reason"]
    assert exploded.user_attrs["retried"] is False
    assert f"trial 2 failed ({exploded.user_attrs['reason']})" in ran.stderr
    assert idle.state == TrialState.PRUNED
    steps = sorted(good.intermediate_values)
    assert len(steps) == 20
    assert max(idle.intermediate_values) == steps[len(idle.intermediate_values) - 1] < steps[-1]
    metrics = json.loads((folder_of(tmp_path, "faults") / "trials" / "0003" / "metrics.json").read_text())
    assert metrics["state"] == "pruned"
    assert metrics["fit/steps"] == max(idle.intermediate_values)
    assert metrics["val/auc/mean"] == max(idle.intermediate_values.values())
    marked: dict[int, WandbRun] = {}
    for number in range(4):
        (file,) = folder_of(tmp_path, "faults").glob(f"trials/{number:04d}/wandb/offline-run-*/run-*.wandb")
        marked[number] = read_wandb(file)
    assert {run.group for run in marked.values()} == {"faults"}
    assert [run.name for run in marked.values()] == [f"trial-{n:04d}" for n in range(4)]
    assert [run.tags[-1] for run in marked.values()] == ["complete", "complete", "failed", "pruned"]


def test_several_objectives_and_seeds(tmp_path: Path) -> None:
    arguments = ["sweep=pareto", *DATA, *MODEL, "sweep.trials=4", "sweep.workers=2", "sweep.confirm=0", "sweep.seeds=2"]
    ran = run_here("sweep.py", arguments, tmp_path)
    assert ran.returncode == 0, ran.stderr
    table = pl.read_parquet(folder_of(tmp_path, "pareto-feed") / "trials.parquet")
    tasks = ["click", "like", "share", "follow", "comment"]
    for task in tasks:
        assert table[f"val/auc/{task}"].null_count() == 0
        assert table[f"auc/{task}/deviation"].min() > 0  # type: ignore[operator]
        assert table[f"param/balancing.weights.{task}"].n_unique() == 4
    assert table["best"].any()
    assert "Pareto front" in (folder_of(tmp_path, "pareto-feed") / "study.html").read_text()
    for seed in (0, 1):
        metrics = json.loads((folder_of(tmp_path, "pareto-feed") / f"trials/0000/seed{seed}/metrics.json").read_text())
        assert metrics["seed"] == seed


def test_a_trial_over_two_processes(tmp_path: Path) -> None:
    """Half the steps, the metrics of one process with twice the batch, and both processes are pruned together."""
    space = ["~sweep.space", "+sweep.space={optimizer.lr: {choices: [0.01, 0.011, 1e-9]}}"]
    arguments = [*SMALL, *space, "sweep.sampler=grid", "sweep.pruner=median", "trainer.precision=32-true"]
    arguments += ["sweep.pruner_options={n_startup_trials: 2}", "trainer.accelerator=cpu", "trainer.max_epochs=3"]
    arguments += ["id_dropout.k=0"]  # each process draws for its own rows
    ran = run_command("sweep.py", [*arguments, "sweep.devices_per_trial=2", "loader.batch_size=128"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    one = run_here("sweep.py", [*arguments, "sweep.workers=1", "sweep.name=one"], tmp_path)
    assert one.returncode == 0, one.stderr
    both, single = study_of(tmp_path).trials, study_of(tmp_path, "one").trials
    assert [t.state for t in both] == [t.state for t in single]
    assert [t.state for t in both] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
    for a, b in zip(both, single, strict=True):
        assert a.intermediate_values == pytest.approx(b.intermediate_values, abs=1e-4)
        assert a.user_attrs["steps"] == b.user_attrs["steps"]


def test_submitit(tmp_path: Path) -> None:
    """On this machine, through the same code as on Slurm."""
    arguments = [*SMALL, "sweep.trials=3", "sweep.launcher=submitit", "sweep.submitit.cluster=local"]
    ran = run_command("sweep.py", [*arguments, "sweep.submitit.parameters={timeout_min: 5}"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert [t.state for t in study_of(tmp_path).trials] == [TrialState.COMPLETE] * 3


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server on loopback, and the URL of an empty database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    if not programs[-1].is_file():
        pytest.skip("PostgreSQL is not installed (no initdb in /usr/lib/postgresql or on the path)")
    bin_folder, data = programs[-1].parent, tmp_path_factory.mktemp("postgres") / "data"
    root = os.geteuid() == 0
    as_user: list[str] = []
    if root:  # PostgreSQL refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser")
        as_user = ["runuser", "-u", "nobody", "--"]
        data.parent.chmod(0o777)
        for folder in data.parents:
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)
    port = free_port()
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*as_user, str(bin_folder / "initdb"), "-D", str(data), "-U", "dlen", "-A", "trust"], **quiet)
    options = f"-p {port} -h 127.0.0.1 -k {data}"
    server = [*as_user, str(bin_folder / "pg_ctl"), "-D", str(data), "-w", "-l", str(data / "log")]
    subprocess.run([*server, "-o", options, "start"], **quiet)
    try:
        place = ["-h", "127.0.0.1", "-p", str(port), "-U", "dlen"]
        subprocess.run([*as_user, str(bin_folder / "createdb"), *place, "study"], **quiet)
        yield f"postgresql+psycopg://dlen:secret@127.0.0.1:{port}/study"
    finally:
        subprocess.run([*server, "-m", "immediate", "stop"], **quiet)


def test_postgresql(postgres: str, tmp_path: Path) -> None:
    """Two coordinators with separate folders that share only the database."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    arguments = [*SMALL, "sweep.trials=6", "sweep.workers=1", f"sweep.storage={postgres}", f"data_dir={tmp_path}/data"]
    run_here("prepare.py", [*DATA, f"data_dir={tmp_path}/data"], tmp_path)
    both = [start(folder, *arguments) for folder in folders]
    for process in both:
        output, errors = process.communicate(timeout=BRAKE)
        assert process.returncode == 0, errors
        assert "secret" not in output + errors
    trials = optuna.load_study(study_name=NAME, storage=connect(postgres)).trials
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 6
    assert len({t.user_attrs["worker"] for t in trials if t.state == TrialState.COMPLETE}) == 2
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"secret" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sweep=base", *DATA], "config sweep.space: is empty"),
        ([*SMALL, "sweep.sampler=tpee"], "config sweep.sampler: there is no tpee; did you mean tpe"),
        ([*SMALL, "sweep.trials=0"], "config sweep.trials: 0"),
        ([*SMALL, "sweep.hours=-1"], "config sweep.hours: -1"),
        ([*SMALL, "sweep.launcher=k8s"], "config sweep.launcher: 'k8s'"),
        ([*SMALL, "model.head.alpha=0.3"], "config model.head.alpha: is searched by the study"),
        ([*SMALL, "+sweep.space={modle.alpha: {low: 0.1, high: 0.5}}"], "modle"),
        ([*SMALL, "+sweep.space={model/backbone: {choices: [mmoe, plee]}}"], "plee: there is no such choice"),
        ([*SMALL, "sweep.space={model.head.alpha: {high: 1.5}}"], "model.head.alpha=1.5: config model: "),
        ([*SMALL, "+sweep.space={loader.seed: {low: 1, high: 5}}"], "config loader.seed: there is no such key"),
        ([*SMALL, "+sweep.space={data.users: {low: 1, high: 5}}"], "data.users is the same for all trials"),
        ([*SMALL, "sweep.minimize=[val/auc/clik]"], "config sweep.minimize: there is no val/auc/clik"),
        ([*SMALL, "sweep.minimize=[val/xauc/*]"], "config sweep.minimize: the data have no task for val/xauc/*"),
        ([*SMALL, "sweep.minimize=val/auc/mean"], "config sweep.minimize: 'val/auc/mean' is not a list"),
        ([*SMALL, "sweep.start=[{model.head.alpha: 0.9}]"], "config sweep.start: model.head.alpha=0.9 lies outside"),
        ([*SMALL, "sweep.start=[{model.head.match: 0}]"], "config sweep.start: model.head.match is not searched"),
        ([*SMALL, "sweep.devices_per_trial=2", "sweep.seeds=2"], "config sweep.seeds: with several devices"),
        ([*SMALL, "sweep.devices_per_trial=2", "sweep.confirm=1"], "config sweep.confirm: the final comparison"),
        ([*SMALL, "sweep.name=a/b"], "config sweep.name: 'a/b'"),
        ([*SMALL, "sharding=rows", "optimizer=adagrad"], "config sharding: needs several processes"),
    ],
)
def test_wrong_settings(arguments: list[str], expected: str, tmp_path: Path) -> None:
    places = [f"data_dir={tmp_path / 'data'}", f"runs_dir={tmp_path / 'runs'}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("sweep", [*places, *arguments], return_hydra_config=True)
        HydraConfig.instance().set_config(config)

        def planned() -> None:
            check_group(config, SweepSettings)
            make_plan(config)

        with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as caught:
            planned()
    assert expected in _one_line(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sweep=alhpa"], "config sweep=alhpa: there is no such choice; did you mean alpha"),
        ([*SMALL, "sweep.workers=0"], "config sweep.workers: 0"),
    ],
)
def test_a_wrong_command_is_one_line(arguments: list[str], expected: str, refused: Command, tmp_path: Path) -> None:
    ran = refused("sweep.py", *arguments)
    assert ran.returncode == 2, ran.stderr
    assert expected in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "runs").exists()


def test_fusion_weights_are_searched_on_a_finished_run(done: Path) -> None:
    """Nothing is trained. The best is at least as good as equal weights on validation and is measured once on test."""
    run = done / "fused"
    trained = run_here("train.py", ["model=dlen", *DATA, *MODEL, f"run_dir={run}"], done)
    assert trained.returncode == 0, trained.stderr
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    asked = [
        "sweep=fusion",
        f"sweep.run={run}",
        "sweep.trials=12",
        "sweep.workers=2",
        "sweep.values={click: 1, like: 2}",
        "sweep.sessions=null",
    ]
    ran = run_here("sweep.py", asked, done)
    assert ran.returncode == 0, ran.stderr
    assert "test ndcg@10: best" in ran.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before
    folder = folder_of(done, "fusion-feed")
    table = pl.read_parquet(folder / "trials.parquet")
    assert len(table) == 12
    equal = table.row(0, named=True)
    assert [equal[f"param/{p}"] for p in ("weight.click", "weight.comment", "up")] == [1.0, 1.0, 0.0]
    best = table.filter("best").row(0, named=True)
    assert best["ndcg@10"] >= equal["ndcg@10"]
    found = yaml.safe_load((folder / "best.yaml").read_text())
    assert found["fusion"]["up"] == best["param/up"]
    assert found["fusion"]["weights"]["like"] == best["param/weight.like"]
    figures = json.loads((folder / "confirm.json").read_text())
    assert figures["low"] <= figures["gain"] <= figures["high"]
    # By the stay time of sessions, on users outside the test.
    sessions = ["sweep.maximize=[stay_time]", "sweep.sessions.users=20", "sweep.sessions.sessions=5", "sweep.name=stay"]
    few = ["sweep.trials=4", "sweep.workers=1", "sweep.calibrate=true"]
    ran = run_here("sweep.py", ["sweep=fusion", f"sweep.run={run}", *sessions, *few], done)
    assert ran.returncode == 0, ran.stderr
    assert "95 % over 20 users outside the search" in ran.stdout
    kept = yaml.safe_load((folder_of(done, "stay") / "best.yaml").read_text())["fusion"]
    assert kept["calibrate"] is True
    top = pl.read_parquet(folder_of(done, "stay") / "trials.parquet").filter("best").row(0, named=True)
    assert 5 <= top["stay_time"] <= 40 * 25
    nowhere = [f"sweep.run={run}", "sweep.maximize=[stay_time]", "sweep.sessions=null", "sweep.name=none"]
    wrong = run_here("sweep.py", ["sweep=fusion", *nowhere], done)
    assert wrong.returncode == 2
    assert "config sweep.sessions: stay_time is measured in sessions" in wrong.stderr.splitlines()[-1]
    wrong = run_here("sweep.py", ["sweep=fusion", f"sweep.run={done}"], done)
    assert wrong.returncode == 2
    assert "not a run folder" in wrong.stderr.splitlines()[-1]
