"""A finished run in Python: load_run, predictions for frames, Lightning's own ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
import yaml

import dlen
from dlen import load_run
from dlen.errors import UserError
from dlen.serving.run import _from_pandas
from dlen.training.datamodule import RankingDataModule
from dlen.training.module import RankingModule
from tests.commands.test_own_parts import ok, refusal
from tests.commands.test_warm_start import rows, write


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on a table, and new rows without labels."""
    folder = tmp_path_factory.mktemp("python")
    users = [f"u{n}" for n in range(20)]
    ok("train.py", folder, *write(folder, "log", rows(0, users)), "run_dir=run", "data_dir=data")
    new = rows(1, [*users, "u99"], 50).drop("click", "like").with_columns(note=pl.Series([f"n{i}" for i in range(50)]))
    new.write_csv(folder / "new.csv")
    ok("predict.py", folder, "run=run", "input=new.csv", "output=scores.parquet")
    return folder


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_predictions_of_paths_and_frames_are_those_of_the_command(there: Path) -> None:
    run, wanted = load_run("run"), pl.read_parquet("scores.parquet")
    assert run.predict("new.csv").equals(wanted)
    frame = pl.read_csv("new.csv")
    kept = run.predict(frame, keep=["note", "user"], batch_size=7)
    assert kept.columns == ["note", "user", *wanted.columns]
    assert kept["note"].to_list() == frame["note"].to_list()
    np.testing.assert_allclose(kept["score"], wanted["score"], rtol=1e-6)


def test_pandas_in_pandas_out(there: Path) -> None:
    frame = pd.read_csv("new.csv").set_index(pd.Index(range(100, 150)))
    frame.loc[103, ["user", "age"]] = None
    scores = load_run("run").predict(frame, keep=["user"])
    assert isinstance(scores, pd.DataFrame)
    assert list(scores.index) == list(frame.index)
    others = [i for i in range(50) if i != 3]
    wanted = pl.read_parquet("scores.parquet")["p_click"].to_numpy()
    np.testing.assert_allclose(scores["p_click"].to_numpy()[others], wanted[others], rtol=1e-6)
    assert np.isfinite(scores["p_click"]).all()


def test_arrays_in_a_pandas_frame_are_lists() -> None:
    """As pandas reads the lists of a Parquet file."""
    cells = [np.array(["a", "b"], dtype=object), np.array([], dtype=object), None]
    vectors = [np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0]), None]
    frame = _from_pandas(pd.DataFrame({"seen": cells, "caption": vectors}))
    assert frame.to_dict(as_series=False) == {"seen": [["a", "b"], [], None], "caption": [[1, 2], [3, 4], None]}


def test_a_run_has_its_metrics_model_and_evaluation(there: Path) -> None:
    run = load_run(there / "run")
    assert run.metrics == json.loads(Path("run/metrics.json").read_text())
    assert len(run.store.split("test")) == run.metrics["test/rows"]
    assert not run.model.training
    assert run.evaluate("test")["test/auc/click"] == pytest.approx(run.metrics["test/auc/click"], abs=1e-6)
    assert "mmoe" in repr(run)


def test_lightnings_own_ways(there: Path) -> None:
    module = RankingModule.load_from_checkpoint("run/checkpoints/best.ckpt")
    run = load_run("run")
    batch = run.store.split("test").batch(torch.arange(10))
    with torch.inference_mode():
        assert torch.equal(module(batch).log_p, run.model(batch).log_p)
    data = RankingDataModule(run.store, 64, 16, seed=0)
    trainer = L.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    parts = trainer.predict(module, datamodule=data)
    assert parts is not None
    together = torch.cat([part.log_p for part in parts])  # type: ignore[union-attr]
    with torch.inference_mode():
        whole = run.model(run.store.split("test").batch(torch.arange(len(run.store.split("test")))))
    torch.testing.assert_close(together, whole.log_p)


def test_a_checkpoint_needs_no_callbacks(there: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(there / "run", tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["callbacks"] = {"mine": {"_target_": "elsewhere.Callback"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert not RankingModule.load_from_checkpoint(run / "checkpoints/best.ckpt").training


def test_what_cannot_be_loaded_or_scored(there: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_run("nowhere")
    with pytest.raises(UserError, match=r"lost\.ckpt"):
        RankingModule.load_from_checkpoint("lost.ckpt")
    run = load_run("run")
    with pytest.raises(UserError, match="item"):
        run.predict(pl.read_csv("new.csv").drop("item"))
    with pytest.raises(UserError, match="nosuch"):
        run.predict("new.csv", keep=["nosuch"])
    with pytest.raises(UserError, match="p_click"):
        run.predict(pl.read_csv("new.csv").with_columns(p_click=1), keep=["p_click"])
    with pytest.raises(UserError, match="int"):
        run.predict(3)
    with pytest.raises(AttributeError):
        dlen.nosuch  # noqa: B018


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_the_command_keeps_columns_and_writes_by_ending(there: Path, ending: str) -> None:
    ok("predict.py", there, "run=run", "input=new.csv", f"output=kept.{ending}", "keep=[note,age]")
    path = Path(f"kept.{ending}")
    frame = pl.read_parquet(path) if ending == "parquet" else pl.read_csv(path, separator=",\t"[ending == "tsv"])
    assert frame.columns[:2] == ["note", "age"]
    assert frame["note"].to_list() == [f"n{i}" for i in range(50)]
    np.testing.assert_allclose(frame["score"], pl.read_parquet("scores.parquet")["score"], rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (("output=out.xlsx",), "output"),
        (("output=out.csv", "keep=note"), "keep"),
        (("output=out.csv", "keep=[nosuch]"), "nosuch"),
    ],
)
def test_refused(there: Path, overrides: tuple[str, ...], word: str) -> None:
    assert word in refusal("predict.py", there, "run=run", "input=new.csv", *overrides)
    assert not list(there.glob("out.*"))
