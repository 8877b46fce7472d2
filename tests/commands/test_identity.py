"""The inputs of a run stay fixed when it is measured, resumed or compared; every change is detected or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from omegaconf import OmegaConf

from dlen.data.prepare import prepare
from dlen.data.sources.table import Table
from dlen.data.writer import StoreWriter
from dlen.errors import UserError
from dlen.overrides import leaves, written
from dlen.schema import Schema
from dlen.training.resume import continued
from dlen.training.run_folder import check_same_run
from tests.conftest import Compose, run_here
from tests.data.helpers import refusal

SMALL = [
    "model=mmoe",
    "model.embedding.dim=4",
    "model.head.tower=[8]",
    "model.backbone.expert=[8]",
    "loader.batch_size=64",
]
SMALL += ["trainer.max_epochs=2", "metrics.conflict_every=0", "data_dir=data", "loader.eval_batch_size=32"]
FEED = ["data=feed", "data.rows=3000", "data.users=40", "data.items=30"]
SPEC = """
files: log.csv
fields:
  user: {side: user}
  tags: {kind: ids, separator: ":", max_values: 3}
  shown: {kind: time, column: ts, parts: [hour, weekday]}
  price: {kind: numeric}
tasks: {click: click, like: like}
split: {by: hash, column: user, validation: 0.2, test: 0.2}
user: user
"""


def table(folder: Path, turned: bool = False) -> Path:
    rows = 600
    generator = torch.Generator().manual_seed(0)
    user, tag, ts, noise = (torch.randint(0, top, (rows,), generator=generator).tolist() for top in (60, 5, 90_000, 9))
    frame = pl.DataFrame(
        {
            "user": user,
            "tags": [f"{t}:{(t + n) % 7}:{n}" for t, n in zip(tag, noise, strict=True)],
            "ts": [1_700_000_000 + t for t in ts],
            "price": noise,
            "click": [int((u % 3 + t % 2 + n % 2 > 2) != turned) for u, t, n in zip(user, tag, noise, strict=True)],
            "like": [n % 2 for n in noise],
        }
    )
    frame.write_csv(folder / "log.csv")
    (folder / "spec.yaml").write_text(SPEC)
    return folder / "log.csv"


def ran(folder: Path, *arguments: str, script: str = "train.py") -> Any:
    return run_here(script, arguments, folder)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    table(tmp_path)
    done = ran(tmp_path, *SMALL, "data=table", "data.spec=spec.yaml", "run_dir=run")
    assert done.returncode == 0, done.stderr
    return tmp_path


def figures(folder: Path, name: str = "metrics.json") -> dict[str, float]:
    content = json.loads((folder / "run" / name).read_text())
    return {k: v for k, v in content.items() if k.startswith("test/")}


@pytest.mark.slow
def test_a_run_goes_on_with_no_other_data(trained: Path) -> None:
    """The labels are inverted; the number of rows and the ids are the same."""
    kept = {p: p.read_bytes() for p in (trained / "run").rglob("*") if p.is_file()}
    table(trained, turned=True)
    done = ran(trained, "run_dir=run", "ckpt=last", "trainer.max_epochs=4")
    assert done.returncode == 2
    assert "cannot resume: run was trained on data" in done.stderr.splitlines()[-1]
    elsewhere = ran(trained, *SMALL, "data=table", "data.spec=spec.yaml", "run_dir=b", "ckpt=run/checkpoints/last.ckpt")
    assert elsewhere.returncode == 2
    assert "cannot resume" in elsewhere.stderr.splitlines()[-1]
    assert {p: p.read_bytes() for p in (trained / "run").rglob("*") if p.is_file()} == kept
    assert not (trained / "b").exists()


@pytest.mark.slow
def test_a_run_goes_on_in_no_other_world(tmp_path: Path) -> None:
    assert ran(tmp_path, *SMALL, *FEED, "run_dir=run").returncode == 0
    for override in ("data.seed=5", "data.leak=0.9", "data.rows=4000"):
        done = ran(tmp_path, "run_dir=run", "ckpt=last", override, "trainer.max_epochs=3")
        assert done.returncode == 2
        assert "cannot resume" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_run_is_measured_by_the_data_it_was_trained_on(trained: Path) -> None:
    """Whatever happened to the log and its YAML. New rows are read with the original YAML."""
    rows = pl.read_csv(trained / "log.csv")
    rows.write_csv(trained / "new.csv")
    assert ran(trained, "run=run", "input=new.csv", "output=before.parquet", script="predict.py").returncode == 0
    changes = [("[hour, weekday]", "[weekday, hour]"), ("max_values: 3", "max_values: 1"), ('":"', '"|"')]
    for was, now in [*changes, ("user: {side: user}\n", ""), (SPEC, "no: spec")]:
        (trained / "spec.yaml").write_text(SPEC.replace(was, now))
        table_now = pl.read_csv(trained / "log.csv").head(300)
        table_now.write_csv(trained / "log.csv")
        done = ran(trained, "run=run", "input=new.csv", "output=after.parquet", script="predict.py")
        assert done.returncode == 0, done.stderr
        assert pl.read_parquet(trained / "after.parquet").equals(pl.read_parquet(trained / "before.parquet"))
        assert ran(trained, "run=run", script="evaluate.py").returncode == 0
        assert figures(trained, "metrics_test.json").items() <= figures(trained).items()
    (trained / "spec.yaml").unlink()
    assert ran(trained, "run=run", "input=new.csv", "output=after.parquet", script="predict.py").returncode == 0


@pytest.mark.slow
def test_a_run_is_used_from_another_folder(trained: Path) -> None:
    other = trained / "elsewhere"
    other.mkdir()
    assert ran(other, f"run={trained}/run", script="evaluate.py").returncode == 0
    arguments = [f"run={trained}/run", f"input={trained}/log.csv", "output=o.parquet"]
    assert ran(other, *arguments, script="predict.py").returncode == 0


@pytest.mark.slow
def test_a_gain_is_over_figures_of_the_same_rows(trained: Path) -> None:
    assert ran(trained, *SMALL, *FEED, "run_dir=feed").returncode == 0
    other = ran(trained, *SMALL, *FEED, "data.seed=2", "base_run=feed", "run_dir=b")
    assert other.returncode == 2
    assert "base_run: feed was tested on other rows" in other.stderr.splitlines()[-1]
    vocabulary = ["data=table", "data.spec=rare.yaml", "data.name=rare"]
    (trained / "rare.yaml").write_text(SPEC.replace("{side: user}", "{side: user, min_count: 3}"))
    same = ran(trained, *SMALL, *vocabulary, "base_run=run", "run_dir=c")  # other ids, but the same rows and labels
    assert same.returncode == 0, same.stderr


@pytest.mark.slow
@pytest.mark.parametrize("value", ["NaN", "Infinity", '"0.7"', "[1]", "1" + "0" * 400])
def test_a_base_with_figures_that_are_no_numbers(trained: Path, value: str) -> None:
    path = trained / "run" / "metrics.json"
    content = json.loads(path.read_text())
    content["test/auc/click"] = "HERE"
    path.write_text(json.dumps(content).replace('"HERE"', value))
    done = ran(trained, *SMALL, "data=table", "data.spec=spec.yaml", "base_run=run", "run_dir=b")
    assert done.returncode == 2
    assert "base_run" in done.stderr.splitlines()[-1]
    assert not (trained / "b").exists()


@pytest.mark.slow
def test_figures_of_some_rows_say_so(tmp_path: Path) -> None:
    settings = [*SMALL, *FEED, "metrics.scores=true", "run_dir=run", "++trainer.limit_test_batches=2"]
    done = ran(tmp_path, *settings)
    assert done.returncode == 0, done.stderr
    assert "64 of its" in " ".join(done.stdout.split())
    assert figures(tmp_path)["test/rows"] == 64
    assert not (tmp_path / "run" / "scores_test.npy").exists()
    base = ran(tmp_path, *SMALL, *FEED, "base_run=run", "run_dir=b")
    assert base.returncode == 2
    assert "64 rows" in base.stderr.splitlines()[-1]
    compared = ran(tmp_path, "experiment=table1", "++trainer.limit_test_batches=2", script="compare.py")
    assert compared.returncode == 2
    assert "limit_test_batches" in compared.stderr.splitlines()[-1]


def test_a_comparison_is_of_the_same_rows(tmp_path: Path) -> None:
    models = [f"+experiment.models.{m}=['model=mmoe','data.seed={n}']" for n, m in enumerate("AB")]
    chosen = ["experiment=table1", "experiment.base=A", *models, "models=[A,B]", *FEED, "seeds=1", "data_dir=data"]
    done = ran(tmp_path, *chosen, script="compare.py")
    assert done.returncode == 2
    assert "tested on different rows" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_two_inputs_of_one_table_are_compared_if_its_tasks_are_the_same(tmp_path: Path) -> None:
    table(tmp_path)
    (tmp_path / "fewer.yaml").write_text(SPEC.replace("  price: {kind: numeric}\n", "") + "ignore: [price]\n")
    (tmp_path / "renamed.yaml").write_text(SPEC.replace("like: like", "liked: like"))
    chosen = [*SMALL, "experiment=table1", "data=table", "data.spec=spec.yaml", "seeds=2", "experiment.base=A"]
    for other, code in (("fewer", 0), ("renamed", 2)):
        models = [
            f"+experiment.models.{m}=['model=mmoe','data.spec={f}.yaml']" for m, f in (("A", "spec"), ("B", other))
        ]
        done = ran(tmp_path, *chosen, *models, "models=[A,B]", "data_dir=data", script="compare.py")
        assert done.returncode == code, done.stderr
        assert ("other tasks than A" in done.stderr.splitlines()[-1]) == (code == 2)


# Raw files


class Slow(Table):
    """Changes its file while the store is written, as another process might."""

    def write(self, writer: StoreWriter) -> Schema:
        schema = super().write(writer)
        table(self.path.parent, turned=True)
        return schema


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    log = table(tmp_path)
    stamp = log.stat()
    assert "changed while it was read" in refusal(lambda: prepare(Slow(str(tmp_path / "spec.yaml")), tmp_path / "data"))
    assert not list((tmp_path / "data").rglob("store.json"))
    table(tmp_path)
    os.utime(log, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    prepare(Table(str(tmp_path / "spec.yaml")), tmp_path / "data")


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    log = table(tmp_path)
    first = prepare(Table(str(tmp_path / "spec.yaml")), tmp_path / "data")
    stamp, content = log.stat(), log.read_bytes()
    log.write_bytes(content.replace(b",1,0\n", b",0,1\n", 1))
    os.utime(log, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert log.stat().st_size == stamp.st_size
    assert prepare(Table(str(tmp_path / "spec.yaml")), tmp_path / "data").fingerprint != first.fingerprint
    log.write_bytes(content)  # restored at another time: the same data
    assert prepare(Table(str(tmp_path / "spec.yaml")), tmp_path / "data").fingerprint == first.fingerprint


def test_a_hash_is_kept_as_long_as_the_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlen.data import prepare as module

    read: list[Path] = []
    real = module._hash

    def told(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(module, "_hash", told)
    monkeypatch.setattr(module, "_SETTLED", -(10**18))  # as if the file were old
    log = table(tmp_path)
    for _ in range(2):
        prepare(Table(str(tmp_path / "spec.yaml")), tmp_path / "data")
    assert read == [log]
    (tmp_path / "data" / ".files.json").write_text("[broken")
    prepare(Table(str(tmp_path / "spec.yaml")), tmp_path / "data")
    assert read == [log, log]


# Settings of a resumed run


@pytest.mark.slow
def test_patience_that_is_typed_is_used(tmp_path: Path) -> None:
    settings = [*SMALL, *FEED, "optimizer.lr=0.05", "trainer.max_epochs=12"]

    def steps(*arguments: str) -> int:
        done = ran(tmp_path, *arguments, "run_dir=run")
        assert done.returncode == 0, done.stderr
        return int(json.loads((tmp_path / "run" / "metrics.json").read_text())["fit/steps"])

    stopped = steps(*settings, "patience=1")
    whole = steps("ckpt=last", "patience=100")
    assert whole > stopped
    assert whole % 12 == 0  # as many epochs as requested


def _others(value: Any) -> Iterator[Any]:
    """Other values of the same type."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + 1
    elif isinstance(value, str):
        yield f"{value}x"
    elif value is None:
        yield 7
    elif isinstance(value, list):
        yield [*value, 9]


@pytest.mark.slow
def test_every_setting_that_is_typed_acts_or_is_refused(composed: Compose, tmp_path: Path) -> None:
    """All keys of train.py: a given setting is never replaced by that of the resumed run."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    base = composed("model=dlen", *FEED, f"run_dir={folder}", "ckpt=last")
    plain = OmegaConf.to_container(base, resolve=True)
    OmegaConf.save(OmegaConf.create(plain), folder / "config.yaml")
    assert isinstance(plain, dict)
    refused = set()
    for key, value in leaves({str(k): v for k, v in plain.items()}):
        if key.startswith(("run_dir", "ckpt", "rerun", "data_name", "model_name", "paper.", "trust")) or key.endswith(
            "_target_"
        ):
            continue
        for other in _others(value):
            override = f"++{key}={written(other, quote=True)}"
            typed = composed("model=dlen", *FEED, f"run_dir={folder}", "ckpt=last", override)
            found = continued(typed, [override])
            assert OmegaConf.select(found, key) == other, key
            with suppress(UserError):
                check_same_run(found)
                continue
            refused.add(key.split(".")[0])
    lasting = {"model", "balancing", "optimizer", "id_dropout", "reset_embeddings", "days", "seed", "monitor"}
    assert refused == lasting | {"loader"}
