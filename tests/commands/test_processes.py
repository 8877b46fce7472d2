"""train with several processes: equal to one process with the joint batch, and what is not supported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.conftest import ROOT, TINY, Command, free_port, run_command, run_here, run_program
from tests.helpers import needs_torchrec

SMALL = [*TINY, "trainer.accelerator=cpu"]
SMALL += ["trainer.max_epochs=4", "trainer.limit_train_batches=2", "trainer.val_check_interval=1.0", "patience=100"]
SMALL += ["trainer.precision=32-true", "optimizer.embedding_lr=0.01"]
SMALL += ["id_dropout.k=0"]  # each process draws for its own rows, as with dropout, so a joint batch has other draws
FEED = ["data.rows=3001", "data.users=40", "data.items=30"]
CASES = {
    "feed": ["model=dlen", "model.head.match=4", *FEED],
    "funnel": [
        "model=dlen",
        "model.head.likelihood=marginal",
        "data=aliccp_demo",
        "data.rows=6000",
        "data.min_count=2",
    ],
    "reweighted": ["model=mmoe", "balancing=dwa", *FEED],
}


PARTS = [  # of a user's own, added to one case
    "+trainer.gradient_clip_val=0.2",
    "callbacks=ema",
    "+metrics.own.ap._target_=torchmetrics.classification.BinaryAveragePrecision",
]


def weights(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, Any] = content["state_dict"]
    return state


def by_lightning(folder: Path, processes: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """One command, which starts the other processes."""
    return run_command("train.py", [*arguments, f"trainer.devices={processes}"], folder)


def by_torchrun(folder: Path, processes: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """torchrun starts every process."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(ROOT / "train.py")]
    return run_program([sys.executable, *start, *arguments, f"trainer.devices={processes}"], folder)


def by_slurm(folder: Path, processes: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Like ``srun`` on two nodes with one process each: the environment gives every process its rank."""
    port = free_port()
    started = []
    for rank in range(processes):
        who = {"PROCID": rank, "LOCALID": 0, "NODEID": rank, "NTASKS": processes, "NTASKS_PER_NODE": 1, "JOB_ID": 7}
        told = {f"SLURM_{key}": str(value) for key, value in who.items()}
        told |= {"SLURM_NNODES": str(processes), "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1"}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        command += ["trainer.devices=1", f"trainer.num_nodes={processes}"]
        started.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **told},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = [process.communicate(timeout=600) for process in started]
    out, err = ("".join(parts) for parts in zip(*ended, strict=True))
    return subprocess.CompletedProcess("srun", max(abs(p.returncode) for p in started), out, err)


STARTS = {"feed": (4, by_lightning), "funnel": (2, by_slurm), "reweighted": (2, by_torchrun)}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_several_processes_train_as_one_with_the_joint_batch(case: str, tmp_path: Path) -> None:
    """For every launcher. The reweighted run is interrupted and resumed. Every row is measured once."""
    settings = [
        *CASES[case],
        *(PARTS if case == "feed" else []),
        *(s for s in SMALL if case != "reweighted" or not s.startswith("model.backbone")),
    ]
    if case == "reweighted":
        settings += ["model.backbone.expert=[8]"]
    processes, start = STARTS[case]
    together = [*settings, f"loader.batch_size={256 // processes}", "run_dir=together"]
    if case == "reweighted":
        first = start(tmp_path, processes, [*together, "trainer.max_epochs=2"])
        assert first.returncode == 0, first.stderr
        alone = run_here("train.py", ["run_dir=together", "ckpt=last", "trainer.devices=1"], tmp_path)
        assert alone.returncode == 2
        assert "trainer.devices times trainer.num_nodes was 2 and is 1 now" in alone.stderr.splitlines()[-1]
        together = ["run_dir=together", "ckpt=last", "trainer.max_epochs=4"]
    ran = start(tmp_path, processes, together)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("test split") == 1  # only one of them prints
    ran = run_here("train.py", [*settings, "loader.batch_size=256", "run_dir=alone"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "data", "together"]
    one, several = weights(tmp_path / "alone"), weights(tmp_path / "together")
    assert one.keys() == several.keys()
    for name, value in one.items():
        # Few steps, because Adam amplifies rounding errors of gradients: 1e-9 here, 1e-5 after a dozen.
        assert (several[name] - value).abs().double().mean() < 1e-6, name
    alone_is, are = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("alone", "together"))
    assert are["fit/steps"] == alone_is["fit/steps"]
    assert are["machine/processes"] == processes
    for key, value in alone_is.items():
        if key.startswith(("test/auc/", "test/ap/", "test/logloss/", "test/calibration/", "test/gauc/")):
            assert are[key] == pytest.approx(value, abs=1e-4), key


@pytest.mark.slow
def test_weights_are_means_over_the_rows_of_all_processes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    log: dict[str, Any] = {
        "user": rng.integers(0, 9, 600),
        "click": rng.integers(0, 2, 600),
        "like": rng.integers(0, 2, 600),
    }
    log |= {"w": rng.exponential(size=600) ** 2, "seconds": rng.integers(0, 30, 600)}
    pl.DataFrame(log).write_csv(tmp_path / "log.csv")
    tasks = {"click": {"label": "click", "weight": "seconds"}, "like": "like"}
    spec = {"files": "log.csv", "fields": {"user": {"side": "user"}}, "tasks": tasks, "weight": "w"}
    (tmp_path / "log.yaml").write_text(json.dumps(spec))
    settings = ["model=dlen", "data=table", "data.spec=log.yaml", *SMALL]
    for name, devices, size, start in (("together", 2, 64, run_command), ("alone", 1, 128, run_here)):
        sizes = [f"trainer.devices={devices}", f"loader.batch_size={size}"]
        ran = start("train.py", [*settings, f"run_dir={name}", *sizes], tmp_path)
        assert ran.returncode == 0, ran.stderr
    several = weights(tmp_path / "together")
    for name, value in weights(tmp_path / "alone").items():
        assert (several[name] - value).abs().double().mean() < 1e-6, name


def with_vectors(folder: Path) -> list[str]:
    """The settings that train on a table with ids, a number, vectors in its rows and vectors of a joined table."""
    rng = np.random.default_rng(0)
    log = {"user": rng.integers(0, 40, 900), "video": rng.integers(0, 25, 900), "age": rng.integers(18, 60, 900)}
    log |= {"click": rng.integers(0, 2, 900), "like": rng.integers(0, 2, 900)}
    faces = ["" if n % 7 == 0 else str(vector.tolist()) for n, vector in enumerate(rng.normal(size=(900, 2)))]
    pl.DataFrame({**log, "face": faces}).write_csv(folder / "log.csv")
    captions = pl.Series([str(vector.tolist()) for vector in rng.normal(size=(23, 5))])
    pl.DataFrame({"video": range(23), "caption": captions}).write_csv(folder / "videos.csv")
    fields = {"user": {"side": "user"}, "video": {"side": "item"}, "age": {"kind": "numeric"}}
    fields |= {name: {"kind": "vector", "side": "item"} for name in ("caption", "face")}
    spec = {"files": "log.csv", "joins": {"videos": {"file": "videos.csv", "by": "video"}}, "fields": fields}
    (folder / "log.yaml").write_text(json.dumps(spec | {"user": "user", "tasks": {"click": "click", "like": "like"}}))
    return ["model=dlen", "data=table", "data.spec=log.yaml"]


@pytest.mark.slow
@needs_torchrec
@pytest.mark.parametrize("case", ["feed", "vectors"])
def test_a_sharded_run_is_that_of_a_copy_in_each_process(case: str, tmp_path: Path) -> None:
    """Split by rows, interrupted, split by tables; then evaluated by one process, which does not need TorchRec."""
    data = CASES["feed"] if case == "feed" else with_vectors(tmp_path)
    adagrad = [*data, *(s for s in SMALL if not s.startswith("optimizer")), "optimizer=adagrad"]
    adagrad += ["loader.batch_size=128", "trainer.devices=2", "seed=3"]
    adagrad += ["reset_embeddings=true"] if case == "feed" else []
    for settings in (
        ["run_dir=copies", "trainer.max_epochs=2"],
        ["run_dir=sharded", "trainer.max_epochs=1", "sharding=rows"],
        ["run_dir=sharded", "trainer.max_epochs=2", "sharding=tables", "ckpt=last"],
    ):
        ran = run_command("train.py", [*adagrad, *settings], tmp_path)
        assert ran.returncode == 0, ran.stderr
    copies, sharded = (
        torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=True) for n in ("copies", "sharded")
    )
    assert list(copies["state_dict"]) == list(sharded["state_dict"])
    for name, value in copies["state_dict"].items():
        torch.testing.assert_close(sharded["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(sharded["optimizer_states"], copies["optimizer_states"], rtol=1e-4, atol=1e-9)
    found, expected = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("sharded", "copies"))
    assert found.keys() == expected.keys()
    figures = [key for key in expected if key.startswith(("test/", "val/", "model/"))]
    assert {k: found[k] for k in figures} == pytest.approx({k: expected[k] for k in figures}, abs=1e-4, nan_ok=True)
    ran = run_here("evaluate.py", ["run=sharded", "+trainer.devices=1"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    again = json.loads((tmp_path / "sharded/metrics_test.json").read_text())
    assert again["test/auc/mean"] == pytest.approx(found["test/auc/mean"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["sharding=rows", "optimizer=adam"], "config optimizer: a sharded table is updated by row-wise Adagrad"),
        (["sharding=columns"], "config sharding: 'columns' is not rows, tables or null"),
        (["sharding=rows", "optimizer=adagrad", "trainer.devices=1"], "config sharding: needs several processes"),
        (
            ["sharding=rows", "optimizer=adagrad", "trainer.accumulate_grad_batches=2"],
            "set accumulate_grad_batches=1",
        ),
        (["sharding=rows", "optimizer=adagrad", "trainer.precision=64-true"], "a sharded table has 32-bit"),
        (["sharding=rows", "optimizer=adagrad", "model.embedding.dim=6"], "multiple of 4, got 6"),
        (["metrics.scores=true"], "config metrics.scores: works in one process"),
        (
            ["balancing=surgery", "model.head.likelihood=marginal"],
            "config balancing: gradient surgery works in one process",
        ),
    ],
)
def test_what_several_processes_cannot_do(settings: list[str], expected: str, refused: Command, tmp_path: Path) -> None:
    ran = refused("train.py", *FEED, *SMALL, "trainer.devices=2", *settings)
    assert ran.returncode == 2
    assert expected in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_torchrun_without_a_run_folder_is_refused_by_every_process(tmp_path: Path) -> None:
    ran = by_torchrun(tmp_path, 2, [*CASES["feed"], *SMALL])
    assert ran.returncode != 0
    assert ran.stderr.count("error: config run_dir: must be set when torchrun or Slurm") >= 1
    assert not (tmp_path / "runs").exists()
