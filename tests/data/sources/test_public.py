"""Public data sets by name: files in their published formats become stores with the right rows, tasks and joins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from dlen.data.prepare import prepare
from dlen.data.sources.public_table import SPECS, PublicTable
from dlen.data.sources.table import Table
from dlen.data.split import Split
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.training.fit import train
from tests.conftest import Compose
from tests.data.helpers import whole
from tests.data.sources.raw_public import ROWS, WRITERS

SIGNALS = {
    "kuairand": ["click", "like", "follow", "comment", "forward", "long_view", "hate"],
    "tenrec": ["click", "like", "share", "follow"],
    "tenrec_article": ["click", "read", "like", "share", "follow", "favorite"],
    "wechat": ["read_comment", "like", "click_avatar", "forward", "favorite", "comment", "follow"],
    "aliexpress": ["ctr", "cvr"],
    "census": ["income", "never_married"],
}


def raw(folder: Path, name: str) -> Path:
    path = folder / "raw"
    path.mkdir()
    WRITERS[name](path)
    return path


def made(folder: Path, name: str) -> Store:
    return prepare(PublicTable(name, str(raw(folder, name))), folder / "data")


def values(store: Store, split: Split, field: str) -> list[object]:
    """Raw values of a single-valued field, in stored order; None for unknown."""
    schema = store.schema
    names = [f.name for f in schema.fields if f.kind == "id"]
    ids = whole(split).ids[:, names.index(field)].numpy() - schema.offsets[field]
    known = [None, *store.vocabulary(field)["value"].to_list()]
    return [known[i] for i in ids]


def test_every_spec_has_a_writer_here_and_a_config() -> None:
    names = {p.stem for p in SPECS.glob("*.yaml")}
    assert names == set(WRITERS) == set(SIGNALS)
    for name in names:
        assert "https://" in (SPECS / f"{name}.yaml").read_text().split("obtain:")[1].splitlines()[0]


@pytest.mark.parametrize("name", SIGNALS)
def test_rows_and_tasks(name: str, tmp_path: Path) -> None:
    store = made(tmp_path, name)
    assert store.schema.task_names == SIGNALS[name]
    rows = [len(store.split(s)) for s in ("train", "validation", "test")]
    assert min(rows) > 20
    assert sum(rows) == ROWS * (1.5 if name in ("aliexpress", "census") else 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_it_trains_by_its_name(name: str, composed: Compose, tmp_path: Path) -> None:
    settings = [f"data={name}", f"data.raw_dir={raw(tmp_path, name)}", "loader.batch_size=128", "trainer.max_epochs=1"]
    model = ["model.embedding.dim=4", "model.head.tower=[8]", "model.head.hidden=[8]", "model.backbone.expert=[8]"]
    metrics = train(composed("model=dlen", *settings, *model))
    assert metrics["data"] == name
    assert 0 < metrics["test/auc/mean"] < 1


def test_kuairand_joins_users_and_videos(tmp_path: Path) -> None:
    store = made(tmp_path, "kuairand")
    users = pl.read_csv(tmp_path / "raw" / "user_features_1k.csv").with_columns(pl.all().cast(pl.String))
    degree = dict(users.select("user_id", "user_active_degree").iter_rows())
    split = store.split("train")
    for user, joined in zip(values(store, split, "user_id"), values(store, split, "user_active_degree"), strict=True):
        assert joined == degree[user]
    videos, authors = values(store, split, "video_id"), values(store, split, "author_id")
    for video, author in zip(videos, authors, strict=True):
        assert author == (None if video == "14" else str(int(video) % 3))  # type: ignore[call-overload]
    logs = [pl.read_csv(p) for p in sorted((tmp_path / "raw").glob("log_standard*.csv"))]
    missing = int((pl.concat(logs)["video_id"] == 14).sum())
    assert store.content["notes"]["rows_without_videos"] == missing > 0
    assert "rows_without_users" not in store.content["notes"]
    assert [t.dislike for t in store.schema.tasks] == [False] * 6 + [True]


def test_tenrec_leaves_out_what_is_known_afterwards(tmp_path: Path) -> None:
    names = {f.name for f in made(tmp_path, "tenrec_article").schema.fields}
    assert not names & {"read_percentage", "read_time", "click_count", "like_count", "comment_count", "exposure_count"}
    assert {"user_id", "item_id", "category_first", "category_second", "item_score1"} <= names


def test_wechat_reads_lists_with_probabilities(tmp_path: Path) -> None:
    store = made(tmp_path, "wechat")
    batch = whole(store.split("test"))
    names = [f.name for f in store.schema.fields if f.kind == "ids"]
    which = names.index("machine_tag_list")
    lengths = batch.bag_lengths
    start = int(lengths[:which].sum())
    weights = batch.bag_weights[start : start + int(lengths[which].sum())]
    assert set(lengths[which].tolist()) == {0, 2}
    assert sorted(set(np.round(weights.numpy(), 3).tolist())) == pytest.approx([0.2, 0.8])
    assert set(values(store, store.split("test"), "bgm_song_id")) == {None, "3"}  # written as 3.0


def test_another_table_of_the_set(tmp_path: Path) -> None:
    folder = raw(tmp_path, "tenrec")
    store = prepare(PublicTable("tenrec", str(folder), "QB-video.csv"), tmp_path / "data")
    assert sum(len(store.split(s)) for s in ("train", "validation", "test")) == 400


@pytest.mark.parametrize("name", SIGNALS)
def test_a_missing_file_says_where_it_comes_from(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/.*: no such file; .*https://.*data\.raw_dir"):
        prepare(PublicTable(name, str(tmp_path)), tmp_path / "data")


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config data\.name: 'movielens'"):
        PublicTable("movielens", str(tmp_path))


def test_a_key_that_occurs_twice_cannot_be_joined(tmp_path: Path) -> None:
    folder = raw(tmp_path, "wechat")
    feeds = folder / "feed_info.csv"
    feeds.write_text(feeds.read_text() + feeds.read_text().splitlines()[3] + "\n")
    with pytest.raises(UserError, match=r"feed_info\.csv: feedid 2 occurs more than once"):
        prepare(PublicTable("wechat", str(folder)), tmp_path / "data")
    assert not list((tmp_path / "data").glob("wechat/[!.]*"))


def test_a_changed_joined_table_makes_another_store(tmp_path: Path) -> None:
    store = made(tmp_path, "wechat")
    feeds = tmp_path / "raw" / "feed_info.csv"
    feeds.write_text(feeds.read_text().replace("1;2;3", "1;2;4"))
    again = prepare(PublicTable("wechat", str(tmp_path / "raw")), tmp_path / "data")
    assert again.fingerprint != store.fingerprint


MAIN = "user,item,click\n1,a,0\n2,b,1\n1,b,1\n3,a,0\n"
JOIN_ERRORS = {
    "no file": ({"by": "user"}, "joins.people.file: must be set"),
    "no key in main": (
        {"file": "people.csv", "by": "usr", "key": "user"},
        "log.csv: no column 'usr', named by joins.people.by",
    ),
    "no key in the other": (
        {"file": "people.csv", "by": "user", "key": "id"},
        "people.csv: no column 'id', the key of",
    ),
    "absent": ({"file": "persons.csv", "by": "user"}, "persons.csv: no such file"),
    "unknown setting": ({"file": "people.csv", "by": "user", "keys": "x"}, "joins.people.keys: unknown key"),
}


def spec(folder: Path, join: dict[str, str], people: str = "user,age\n1,20\n2,30\n") -> Table:
    (folder / "log.csv").write_text(MAIN)
    (folder / "people.csv").write_text(people)
    fields = {"user": {"side": "user"}, "item": {}, "age": {"side": "user"}}
    content = {"files": "log.csv", "joins": {"people": join}, "fields": fields, "tasks": {"click": "click"}}
    content["split"] = {"by": "column", "column": "item", "validation": ["b"], "test": [], "allow_one_class": True}
    (folder / "spec.yaml").write_text(yaml.safe_dump(content))
    return Table(str(folder / "spec.yaml"))


@pytest.mark.parametrize("case", JOIN_ERRORS)
def test_a_wrong_join_is_one_line(case: str, tmp_path: Path) -> None:
    join, message = JOIN_ERRORS[case]
    with pytest.raises(UserError, match=message):
        prepare(spec(tmp_path, join), tmp_path / "data")


def test_a_column_that_both_tables_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"joins\.people: log\.csv .*'item'"):
        prepare(spec(tmp_path, {"file": "people.csv", "by": "user"}, "user,item\n1,z\n"), tmp_path / "data")
