"""predict: new rows get the scores that evaluate measures, in order, for every source."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.errors import UserError
from dlen.overrides import compose_train
from dlen.ranking.fusion import fuse
from dlen.ranking.scoring import SplitScores, load_model, score
from dlen.serving.export import export
from dlen.serving.predict import predict
from dlen.serving.settings import PredictSettings
from dlen.training.fit import train
from dlen.training.run_folder import load_run_config
from dlen.training.stores import open_run, open_store
from dlen.valid import check_group
from tests.conftest import ROOT, run_command

MODEL = ["model.embedding.dim=4", "model.head.tower=[8]", "loader.batch_size=256", "trainer.max_epochs=1"]
DLEN = [*MODEL, "model=dlen", "model.head.hidden=[16,8]", "model.backbone.expert=[16,8]"]
TABLE = """
fields:
  user: {kind: id, side: user}
  tags: {kind: ids, side: item, weight_separator: ":", max_values: 3}
  age: {kind: numeric}
  price: {kind: numeric, transform: quantile, buckets: 5}
  shown: {kind: time, unit: s, parts: [hour, weekday]}
  city: {kind: id, side: user}
  amount: {kind: numeric, column: price, transform: log1p}
  city_rate: {rate: {of: [click, hate], by: city}, side: user}
  pairs: {count: {by: [user, city]}}
joins:
  cities: {file: cities.csv, by: user}
tasks: {click: is_click, hate: {label: is_hate, dislike: true}}
split: {by: column, column: part, validation: [b], test: [c]}
user: user
"""


def run_config(folder: Path, *overrides: str) -> DictConfig:
    places = [f"data_dir={folder / 'data'}", f"runs_dir={folder / 'runs'}", f"run_dir={folder / 'run'}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose_train([*places, *overrides])


def predict_config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("predict", list(overrides))


def predicted(folder: Path, path: Path, *overrides: str) -> pl.DataFrame:
    out = folder / "out" / "scores.parquet"
    predict(predict_config(f"run={folder / 'run'}", f"input={path}", f"output={out}", *overrides))
    assert sorted(out.parent.iterdir()) == [out]
    return pl.read_parquet(out)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table with every kind of column, whose test rows are also in a separate file."""
    folder = tmp_path_factory.mktemp("table")
    rng, n = np.random.default_rng(0), 1500
    columns: dict[str, Any] = {
        "user": [f"u{i}" for i in rng.integers(0, 30, n)],
        "tags": [
            "|".join(f"t{t}:{w:.2f}" for t, w in zip(rng.integers(0, 9, k), rng.random(k), strict=True))
            for k in rng.integers(0, 6, n)
        ],
        "age": [
            None if missing else float(a) for a, missing in zip(rng.normal(30, 9, n), rng.random(n) < 0.1, strict=True)
        ],
        "price": rng.exponential(3, n),
        "shown": rng.integers(1_600_000_000, 1_600_900_000, n),
        "is_click": rng.integers(0, 2, n),
        "is_hate": (rng.random(n) < 0.2).astype(int),
        "part": rng.choice(["a", "a", "a", "b", "c"], n),
    }
    frame = pl.DataFrame(columns)
    frame.write_csv(folder / "log.csv")
    pl.DataFrame({"user": [f"u{i}" for i in range(30)], "city": [f"c{i % 7}" for i in range(30)]}).write_csv(
        folder / "cities.csv"
    )
    (folder / "log.yaml").write_text(f"files: log.csv\n{TABLE}")
    frame.filter(pl.col("part") == "c").drop("is_click", "is_hate", "part").write_csv(folder / "new.csv")
    train(run_config(folder, "data=table", f"data.spec={folder / 'log.yaml'}", *DLEN))
    return folder


def known_scores(run: Path) -> SplitScores:
    """The run's own predictions of its test split."""
    config, store = open_run(run)
    return score(load_model(run, config, store), store.split("test"))


def same(frame: pl.DataFrame, names: list[str], log_p: torch.Tensor) -> None:
    found = frame.select(f"p_{name}" for name in names).to_numpy()
    assert found.shape == tuple(log_p.shape)
    assert np.abs(found - log_p.exp().numpy()).max() < 1e-6


@pytest.mark.parametrize("batch", [16384, 7])
def test_a_table_without_labels_gets_the_scores_of_evaluate(table: Path, batch: int) -> None:
    frame = predicted(table, table / "new.csv", f"batch_size={batch}", "fusion.up=0.5", "fusion.weights={click: 2}")
    known = known_scores(table / "run")
    same(frame, ["click", "hate"], known.log_p)
    assert known.log_states is not None
    assert np.abs(frame["up"].to_numpy() - known.log_states[:, 0].exp().numpy()).max() < 1e-6
    wanted = fuse(known.log_p, known.log_states[:, 0], torch.tensor([2.0, -1.0]), 0.5)
    assert frame["score"].to_numpy() == pytest.approx(wanted.numpy(), abs=1e-5)


def test_parquet_rows_keep_their_order_and_number(table: Path) -> None:
    rows = pl.read_csv(table / "new.csv").with_columns(pl.lit(None).alias("user").cast(pl.String))
    rows = pl.concat([rows.head(5), rows.head(1).select(pl.lit(None).cast(t).alias(n) for n, t in rows.schema.items())])
    rows.write_parquet(table / "new.parquet")
    frame = predicted(table, table / "new.parquet")
    assert len(frame) == 6
    assert frame.null_count().sum_horizontal().item() == 0
    whole = predicted(table, table / "new.csv")
    assert (frame["score"].head(5) - whole["score"].head(5)).abs().max() > 0  # type: ignore[operator]  # another user


def test_the_raw_log_may_be_gone_and_unknown_values_are_told(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(table, tmp_path / "copy")
    folder = tmp_path / "copy"
    (folder / "log.csv").unlink()
    rows = pl.read_csv(folder / "new.csv").with_columns(user=pl.lit("never seen"))
    rows.write_csv(folder / "unseen.csv")
    frame = predicted(folder, folder / "unseen.csv")
    assert len(frame) == len(rows)
    told = capsys.readouterr()
    assert f"user: {len(rows):,} of {len(rows):,} rows have a value that is missing or new" in told.err
    assert f"{len(rows):,} rows: {folder}/out/scores.parquet" in told.out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: f.drop("price"), "no column 'price', which field price needs"),
        (lambda f: f.rename({"price": "prise"}), "did you mean prise?"),
        (lambda f: f.with_columns(age=pl.lit("old")), "row 2: column age: 'old' is not a number"),
        (lambda f: f.head(0), "no rows"),
    ],
)
def test_a_wrong_table_is_one_line_and_leaves_nothing(
    table: Path, tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], expected: str
) -> None:
    change(pl.read_csv(table / "new.csv")).write_csv(tmp_path / "wrong.csv")
    out = tmp_path / "out" / "scores.parquet"
    out.parent.mkdir()
    out.write_text("what was there")
    with pytest.raises(UserError, match=re.escape(expected)):
        predict(predict_config(f"run={table / 'run'}", f"input={tmp_path / 'wrong.csv'}", f"output={out}"))
    assert list(out.parent.iterdir()) == [out]
    assert out.read_text() == "what was there"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["input=none.csv"], "config input: none.csv: no such file"),
        (["output=scores.txt"], "config output: 'scores.txt' is not a file that ends in .parquet, .csv or .tsv"),
        (["run=none"], "none: not a run folder"),
        (["checkpoint=worst"], "config checkpoint: 'worst' is not best or last"),
        (["batch_size=0"], "config batch_size: 0"),
        (["fusion.form=mean"], "config fusion: form must be one of product, sum, got 'mean'"),
        (["fusion.weights={clik: 1}"], "config fusion: weights name an unknown task clik; the tasks are click, hate"),
    ],
)
def test_wrong_settings(table: Path, tmp_path: Path, settings: list[str], expected: str) -> None:
    usual = [f"run={table / 'run'}", f"input={table / 'new.csv'}", f"output={tmp_path / 's.parquet'}"]

    def checked() -> None:
        config = predict_config(*usual, *settings)
        check_group(config, PredictSettings)
        predict(config)

    with pytest.raises(UserError, match=re.escape(expected)):
        checked()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ali_ccp_in_its_own_two_files_with_every_row(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    AliCCPDemo(str(raw), rows=8000).files()
    train(run_config(tmp_path, "data=aliccp_demo", "data.rows=8000", f"data.raw_dir={raw}", *DLEN))
    frame = predicted(tmp_path, raw / "sample_skeleton_test.csv")
    head = [line.split(",")[:3] for line in (raw / "sample_skeleton_test.csv").read_text().splitlines()]
    assert len(frame) == len(head)
    possible = np.array([click >= conversion for _, click, conversion in head])
    known = known_scores(tmp_path / "run")
    same(frame.filter(pl.Series(possible)), ["ctr", "cvr"], known.log_p)
    assert np.allclose(frame["p_ctcvr"], frame["p_ctr"] * frame["p_cvr"], atol=1e-6)
    (raw / "common_features_test.csv").rename(raw / "elsewhere.csv")
    with pytest.raises(UserError, match=r"common_features_test\.csv: no such file; a skeleton is joined"):
        predicted(tmp_path, raw / "sample_skeleton_test.csv")


@pytest.mark.slow
def test_a_simulated_feed_by_its_fields(tmp_path: Path) -> None:
    settings = ["data=feed", "data.rows=4000", "data.users=50", "data.items=40"]
    train(run_config(tmp_path, *settings, *MODEL, "model=mmoe", "model.backbone.expert=[16,8]"))
    store = open_store(load_run_config(tmp_path / "run"))
    batch = store.split("test").batch(torch.arange(len(store.split("test"))))
    names = list(store.schema.offsets)
    rows = {name: batch.ids[:, i] - store.schema.offsets[name] - 1 for i, name in enumerate(names)}
    pl.DataFrame({name: values.numpy() for name, values in rows.items()}).write_parquet(tmp_path / "new.parquet")
    frame = predicted(tmp_path, tmp_path / "new.parquet")
    same(frame, store.schema.task_names, known_scores(tmp_path / "run").log_p)
    assert "up" not in frame.columns
    with pytest.raises(UserError, match=r"config fusion\.up: the model has no P"):
        predicted(tmp_path, tmp_path / "new.parquet", "fusion.up=1")


@pytest.fixture(scope="module")
def client(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The example server with the exported run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        export(compose("export", [f"run={table / 'run'}", "check_rows=64", "fusion.up=0.5"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPORT", str(table / "run" / "export"))
        server = runpy.run_path(str(ROOT / "examples" / "serve.py"))
    with TestClient(server["app"]) as found:
        yield found


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table as JSON from a client: lists by weight, and the parts of its time."""
    shown = datetime.fromtimestamp(row["shown"], tz=UTC)
    tags = {t.split(":")[0]: float(t.split(":")[1]) for t in (row["tags"] or "").split("|") if t}
    city = f"c{int(row['user'][1:]) % 7}"
    parts = {"shown_hour": shown.hour, "shown_weekday": shown.isoweekday()}
    price = {"price": row["price"], "amount": row["price"]}
    return {"user": row["user"], "age": row["age"], "tags": tags, "city": city, **price, **parts}


@pytest.mark.slow
def test_the_example_server_gives_the_scores_of_predict(table: Path, client: TestClient) -> None:
    rows = pl.read_csv(table / "new.csv")
    # A JSON object has each key once; the test of the export covers repeated values of a list.
    keys = pl.col("tags").fill_null("").str.split("|").list.eval(pl.element().str.split(":").list.first())
    distinct = rows.filter(keys.list.n_unique() == keys.list.len())
    assert len(distinct) > 50
    distinct = distinct.with_columns(pl.col("shown") + 52 * 604_800)  # a server has the log's rates as of now
    distinct.write_csv(table / "distinct.csv")
    frame = predicted(table, table / "distinct.csv", "fusion.up=0.5")
    answer = client.post("/rank", json={"candidates": [as_json(row) for row in distinct.iter_rows(named=True)]})
    assert answer.status_code == 200, answer.text
    places = [row["place"] for row in answer.json()]
    assert sorted(places) == list(range(len(distinct)))
    assert [row["score"] for row in answer.json()] == sorted((row["score"] for row in answer.json()), reverse=True)
    for row in answer.json():
        known = frame.row(row["place"], named=True)
        assert row["p"]["click"] == pytest.approx(known["p_click"], abs=1e-5)
        assert row["up"] == pytest.approx(known["up"], abs=1e-5)
        assert row["score"] == pytest.approx(known["score"], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"candidates": []}, "at least 1 item"),
        ({"candidates": [{}] * 1001}, "at most 1000 items"),
        ({"candidates": [{"usr": 1}]}, "no field 'usr'; the fields are age, amount, city"),
        ({"candidates": [{"age": "old"}]}, "age: 'old' is not a number"),
        ({"candidates": [{"tags": 3}]}, "tags: 3 is neither a list nor values with weights"),
        ({"candidates": [{"tags": ["x"] * 501}]}, "tags: has 501 values; 500 are the most"),
        ({"context": {}}, "Field required"),
    ],
)
def test_the_example_server_refuses_what_is_wrong(body: dict[str, Any], expected: str, client: TestClient) -> None:
    answer = client.post("/rank", json=body)
    assert answer.status_code == 422
    assert expected in answer.text


def test_the_example_server_takes_unknown_and_missing_values(client: TestClient) -> None:
    answer = client.post("/rank", json={"context": {"user": "never seen"}, "candidates": [{}, {"tags": ["t1", "t?"]}]})
    assert answer.status_code == 200
    assert len(answer.json()) == 2


@pytest.mark.slow
def test_the_command(table: Path, tmp_path: Path) -> None:
    arguments = [f"run={table / 'run'}", f"input={table / 'new.csv'}", "output=scores.parquet"]
    ran = run_command("predict.py", arguments, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert len(pl.read_parquet(tmp_path / "scores.parquet")) == len(pl.read_csv(table / "new.csv"))
    assert yaml.safe_load((table / "run" / "config.yaml").read_text())["data_name"] == "log"
