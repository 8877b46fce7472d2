"""init_from: a run that starts from another run's weights, on data with other ids."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from tests.commands.test_own_parts import TINY, ok, refusal
from tests.conftest import run_here

SPEC = {
    "fields": {
        "user": {"side": "user"},
        "item": {"side": "item"},
        "tags": {"kind": "ids", "separator": "|"},
        "age": {"kind": "numeric", "transform": "quantile", "buckets": 5},
        "when": {"kind": "time", "unit": "s", "parts": ["hour"]},
    },
    "tasks": {"click": "click", "like": "like"},
    "split": {"by": "fraction", "validation": 0.2, "test": 0.2},
    "user": "user",
}
TWO = "{watching:[click,long],liking:[like,share]}"  # model.head.states
STILL = ("optimizer.lr=0", "optimizer.embedding_lr=0", "id_dropout.k=0", "trainer.max_steps=3")


def rows(seed: int, users: list[str], count: int = 400) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": draw.choice(users, count),
            "item": draw.choice([f"i{n}" for n in range(20)], count),
            "tags": ["|".join(draw.choice(["a", "b", "c"], 2)) for _ in range(count)],
            "age": draw.integers(18, 60, count),
            "when": draw.integers(0, 86400 * 5, count),
            "click": draw.integers(0, 2, count),
            "like": draw.integers(0, 2, count),
        }
    )


def write(folder: Path, name: str, frame: pl.DataFrame, **changes: object) -> tuple[str, ...]:
    """Write a table and its spec, and return the overrides that train on it."""
    frame.write_csv(folder / f"{name}.csv")
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"files": f"{name}.csv", **SPEC, **changes}))
    return ("data=table", f"data.spec={name}.yaml", "loader.batch_size=64", *TINY)


def predictions(folder: Path, run: str, rows: str) -> pl.DataFrame:
    ok("predict.py", folder, f"run={run}", f"input={rows}", f"output={run}.parquet")
    return pl.read_parquet(folder / f"{run}.parquet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yesterday")
    first = write(folder, "old", rows(0, [f"u{n}" for n in range(10, 30)]))
    ok("train.py", folder, *first, "run_dir=old_run", "optimizer.embedding_lr=0.05")
    return folder


@pytest.fixture
def yesterday(trained: Path, tmp_path: Path) -> Path:
    """A folder with a run on yesterday's log."""
    return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


def test_known_ids_keep_their_vectors(yesterday: Path) -> None:
    old = pl.read_csv(yesterday / "old.csv")
    more = rows(1, [f"u{n}" for n in range(5, 15)], 100)  # u5 to u9 are new, and in front of the known ones
    second = write(yesterday, "new", pl.concat([old, more]))
    done = run_here("train.py", [*second, "run_dir=new_run", "init_from=old_run", *STILL], yesterday)
    assert done.returncode == 0, done.stderr
    assert "init_from: user: 20 of 25 ids" in done.stderr or "init_from: user: 20 of 2" in done.stderr
    few = write(yesterday, "few", rows(1, ["u11", "u12", "u99"], 200))
    done = run_here("train.py", [*few, "run_dir=few_run", "init_from=old_run", *STILL], yesterday)
    assert "user: 2 of 3 ids are known" in done.stderr
    assert "18 of its 20 are not in these data and are dropped" in done.stderr
    same = write(yesterday, "same", old)
    ok("train.py", yesterday, *same, "run_dir=same_run", "init_from=old_run", *STILL)
    before, after = predictions(yesterday, "old_run", "old.csv"), predictions(yesterday, "same_run", "old.csv")
    for column in before.columns:
        np.testing.assert_allclose(after[column], before[column], rtol=1e-5)


def test_vectors_follow_their_ids_when_codes_move_and_new_ids_start_as_unknown(yesterday: Path) -> None:
    fields = {k: v for k, v in SPEC["fields"].items() if k in ("user", "item")}  # type: ignore[attr-defined]
    known = rows(0, [f"u{n}" for n in range(10, 30)])
    first = write(yesterday, "a", known, fields=fields, ignore="rest")
    ok("train.py", yesterday, *first, "run_dir=a_run", "optimizer.embedding_lr=0.05")
    more = rows(1, [f"u{n}" for n in range(5)], 300)
    second = write(yesterday, "b", pl.concat([more, known, known]), fields=fields, ignore="rest")
    ok("train.py", yesterday, *second, "run_dir=b_run", "init_from=a_run", *STILL)
    before, after = predictions(yesterday, "a_run", "b.csv"), predictions(yesterday, "b_run", "b.csv")
    np.testing.assert_allclose(after["p_click"], before["p_click"], rtol=1e-5)


def test_vectors_of_their_own_length_follow_their_ids(yesterday: Path) -> None:
    fields = {"item": {"side": "item"}, "user": {"side": "user", "dim": 2}, "tags": {"kind": "ids", "dim": 1}}
    known = rows(0, [f"u{n}" for n in range(10, 30)])
    first = write(yesterday, "a", known, fields=fields, ignore="rest")
    ok("train.py", yesterday, *first, "run_dir=a_run", "optimizer.embedding_lr=0.05")
    second = write(yesterday, "b", known[::-1][:390], fields=fields, ignore="rest")
    ok("train.py", yesterday, *second, "run_dir=b_run", "init_from=a_run", *STILL)
    before, after = predictions(yesterday, "a_run", "b.csv"), predictions(yesterday, "b_run", "b.csv")
    np.testing.assert_allclose(after["p_click"], before["p_click"], rtol=1e-5)
    other = write(yesterday, "c", known, fields=fields | {"user": {"side": "user"}}, ignore="rest")
    line = refusal("train.py", yesterday, *other, "run_dir=c_run", "init_from=a_run")
    assert "was trained on other fields (user (id, dim 2), user (id))" in line
    line = refusal("train.py", yesterday, *first, "run_dir=c_run", "model.embedding.dim=1")
    assert "config model: embedding.dim must be at least 2, the dim of field user in the data, got 1" in line


def test_projections_read_vectors_in_any_unit(yesterday: Path) -> None:
    """Vectors of a joined table and of the rows, today in another unit: their scale is learned again."""
    fields = {name: {"kind": "vector"} for name in ("caption", "place")} | {"user": {}, "item": {"side": "item"}}
    changes = {"fields": fields, "joins": {"items": {"file": "items.csv", "by": "item"}}, "ignore": "rest"}
    draw, known = np.random.default_rng(3), rows(0, ["u"])
    captions, places = draw.normal(size=(18, 3)), draw.normal(size=(len(known), 2))
    for day, (factor, shift) in {"a": (1, 0), "b": (3, 1)}.items():
        texts = [[str((vector * factor + shift).tolist()) for vector in part] for part in (captions, places)]
        pl.DataFrame({"item": [f"i{n}" for n in range(18)], "caption": texts[0]}).write_csv(yesterday / "items.csv")
        data = write(yesterday, day, known.with_columns(place=pl.Series(texts[1])), **changes)
        init = ("optimizer.embedding_lr=0.05",) if day == "a" else ("init_from=a_run", *STILL)
        ok("train.py", yesterday, *data, f"run_dir={day}_run", *init)
        predictions(yesterday, f"{day}_run", f"{day}.csv")
    before, after = (pl.read_parquet(yesterday / f"{day}_run.parquet") for day in "ab")
    assert before["p_click"].n_unique() > 300
    np.testing.assert_allclose(after["p_click"], before["p_click"], rtol=1e-5)
    pl.DataFrame({"item": ["i1", "i2"], "caption": ["[1, 2]", "[0, 1]"]}).write_csv(yesterday / "items.csv")
    line = refusal("train.py", yesterday, *data, "run_dir=c_run", "init_from=a_run")
    assert "was trained on other fields (caption (vector, 3 numbers), caption (vector, 2 numbers))" in line


def test_lists_follow_their_ids_when_codes_move(yesterday: Path) -> None:
    """A list with ids of its own, one that shares those of the item, and a history with labels and gaps."""
    history = {"of": "item", "by": "user", "where": "click", "labels": ["like"]}
    fields: dict[str, dict[str, object]] = {
        "user": {"side": "user"},
        "item": {"side": "item"},
        "tags": {"kind": "sequence", "side": "user"},
        "liked": {"kind": "sequence", "share": "item", "side": "user"},
        "seen": {"history": history, "side": "user"},
    }
    known = rows(0, [f"u{n}" for n in range(9)]).with_columns(when=pl.Series(np.arange(400) * 61))
    draw = np.random.default_rng(4)
    known = known.with_columns(liked=pl.Series(["|".join(draw.choice(["i1", "i2", "i3"], 2)) for _ in range(400)]))
    later = known.with_columns(pl.col("when") + 10**6, item=pl.lit("h"), tags=pl.lit("0|00"))  # new ids come first
    split = {"by": "time", "column": "when", "validation": 0.1, "test": 0.1}
    for day, log, init in (("a", known, ()), ("b", pl.concat([later, known]), ("init_from=a_run", *STILL))):
        data = write(yesterday, day, log, fields=fields, ignore="rest", split=split, rates={"time": "when"})
        ok("train.py", yesterday, *data, f"run_dir={day}_run", "optimizer.embedding_lr=0.05", *init)
    before, after = predictions(yesterday, "a_run", "a.csv"), predictions(yesterday, "b_run", "a.csv")
    np.testing.assert_allclose(after["p_click"], before["p_click"], rtol=1e-5)
    of_click = {"history": history | {"labels": ["click"]}, "side": "user"}
    other = write(
        yesterday, "d", known, fields=fields | {"seen": of_click}, ignore="rest", split=split, rates={"time": "when"}
    )
    done = run_here("train.py", [*other, "run_dir=d_run", "init_from=a_run"], yesterday)
    assert "init_from: seen_labels: 0 of " in done.stderr
    own = write(
        yesterday, "c", known, fields=fields | {"liked": {"kind": "sequence"}}, ignore="rest", rates={"time": "when"}
    )
    line = refusal("train.py", yesterday, *own, "run_dir=c_run", "init_from=a_run", "model/sequence=mean")
    assert "was trained on other fields (liked (sequence, share item), liked (sequence))" in line


@pytest.mark.slow
def test_no_id_is_known_to_a_field_that_was_read_otherwise(yesterday: Path) -> None:
    """Buckets of numbers, ids of a vocabulary and buckets of a hash, each after each other one."""
    known, age = rows(0, ["u1", "u2"]), {"numbers": {"kind": "numeric", "transform": "quantile", "buckets": 5}}
    age |= {"texts": {}, "hashes": {"hash": 9}}
    for name, how in age.items():
        data = write(yesterday, name, known, fields={"user": {}, "age": how}, ignore="rest")
        ok("train.py", yesterday, *data, f"run_dir={name}_run")
    for name, was in ((a, b) for a in age for b in age if a != b):
        data = ("data=table", f"data.spec={name}.yaml", "loader.batch_size=64", *TINY, *STILL)
        done = run_here("train.py", [*data, f"run_dir={name}_{was}", f"init_from={was}_run"], yesterday)
        assert done.returncode == 0, done.stderr
        assert "init_from: age: 0 of " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("states", "others", "advice"), [("1", TWO, "1"), (TWO, "1", "2, or name the tasks of both, as in the run")]
)
def test_views_are_those_of_todays_labels(yesterday: Path, states: str, others: str, advice: str) -> None:
    """Today a long view follows the click, and a column tells afterwards how long it was; yesterday neither was so."""
    tasks = {"click": "click", "like": "like", "long": "long", "share": "share"}
    fields = {"user": {"side": "user"}, "item": {"side": "item"}}
    model = (*TINY[1:], "model=dlen", "model.head.tower=[4]", "model.head.hidden=[4]")
    for day in ("a", "b"):
        draw, log = np.random.default_rng(ord(day)), rows(ord(day), [f"u{n}" for n in range(20)])
        long = log["click"] if day == "b" else pl.Series(draw.integers(0, 2, len(log)))
        log = log.with_columns(long=long, share=pl.Series(draw.integers(0, 2, len(log))), seconds=draw.random(len(log)))
        view = {"watched": {"kind": "view", "column": "seconds"}} if day == "b" else {}
        data = write(yesterday, day, log, tasks=tasks, fields=fields | view, ignore="rest")
        init = ("init_from=a_run", *STILL) if day == "b" else ()
        ok("train.py", yesterday, *data, *model, f"model.head.states={states}", f"run_dir={day}_run", *init)
    before, after = predictions(yesterday, "a_run", "a.csv"), predictions(yesterday, "b_run", "a.csv")
    np.testing.assert_allclose(after["p_click"], before["p_click"], rtol=1e-5)
    weights = torch.load(yesterday / "b_run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert "model.head.privileged.logits.0" in weights
    assert ("model.head.views.log_ratios" in weights) == (states == "1")  # W has both tasks of the view
    new_run = ("run_dir=c_run", "init_from=a_run", f"model.head.states={others}")
    line = refusal("train.py", yesterday, *data, *model, *new_run)
    assert line.endswith(f"set model.head.states={advice}")


@pytest.mark.slow
def test_buckets_are_the_same_if_there_are_as_many(yesterday: Path) -> None:
    old = rows(0, [f"u{n}" for n in range(10, 30)])
    more = rows(1, [f"u{n}" for n in range(90, 99)])
    for buckets, frame, init in ((30, old, ()), (30, more, ("init_from=h30_run", *STILL)), (31, more, ())):
        fields = {"user": {"side": "user", "hash": buckets}, "item": {"hash": 9}}
        name = f"h{buckets}" + ("_new" if init else "")
        data = write(yesterday, name, frame, fields=fields, ignore="rest")
        ok("train.py", yesterday, *data, f"run_dir={name}_run", "optimizer.embedding_lr=0.05", *init)
    before, after = predictions(yesterday, "h30_run", "h30.csv"), predictions(yesterday, "h30_new_run", "h30.csv")
    np.testing.assert_allclose(after["p_click"], before["p_click"], rtol=1e-5)
    other = run_here(
        "train.py",
        [*write(yesterday, "h31", more, fields=fields, ignore="rest"), "run_dir=x", "init_from=h30_run"],
        yesterday,
    )
    assert other.returncode == 0, other.stderr
    assert "init_from: user: 0 of 31 ids are known" in other.stderr
    assert "init_from: item: 9 of 9 ids are known" in other.stderr


@pytest.mark.parametrize(
    ("changes", "overrides", "word"),
    [
        ({"tasks": {"click": "click"}, "ignore": "rest"}, (), "like"),
        ({"fields": {"user": {"side": "user"}}, "ignore": "rest"}, (), "item"),
        ({}, ("model.backbone.expert=[9]",), "model"),
        ({}, ("model.embedding.dim=5",), "model.embedding"),
        ({}, ("model=ple",), "another model"),
        ({}, ("model=single_task",), "another model"),
        ({}, ("model=logistic",), "weights"),
        ({}, ("sharding=rows", "optimizer=adagrad", "trainer.devices=2"), "a sharded table cannot start from a run"),
        ({}, ("init_from=nowhere",), "nowhere"),
        ({}, ("init_from=3",), "init_from"),
    ],
)
def test_what_cannot_agree_is_refused(
    yesterday: Path, changes: dict[str, object], overrides: tuple[str, ...], word: str
) -> None:
    tiny = write(yesterday, "new", rows(1, ["u11", "u12", "u13"]), **changes)
    if overrides and overrides[0].startswith("model="):
        tiny = tiny[:3]
    line = refusal("train.py", yesterday, *tiny, "run_dir=new_run", "init_from=old_run", *overrides)
    assert word in line
    assert not (yesterday / "new_run").exists()
