"""The export's schema.json and the example server: raw values give the scores of predict, and nothing gives a 500."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from dlen.errors import UserError
from dlen.overrides import compose_train
from dlen.serving import codings
from dlen.serving.export import dense, export
from dlen.serving.predict import predict
from dlen.serving.sequence_codings import sequence_codings
from dlen.training.fit import train
from dlen.training.stores import open_run
from tests.conftest import ROOT

SPEC = """
files: {train: train.csv, validation: validation.csv, test: test.csv}
joins: {users: {file: users.parquet, by: user}}
fields:
  user: {kind: id, side: user}
  tags: {kind: ids, side: item, max_values: 6, dim: 2}
  liked: {kind: ids, side: item, weight_separator: ":", max_values: 3, pooling: sum}
  seller: {hash: 7, side: item, dim: 3}
  seen: {kind: ids, separator: ",", weight_separator: ":", hash: 11, max_values: 3}
  price: {kind: numeric, transform: quantile, buckets: 5}
  amount: {kind: numeric, transform: log1p}
  age: {kind: numeric}
  shown: {kind: time, column: ts, parts: [hour, weekday, day, month]}
  user_rate: {rate: {of: click, by: user}}
  shelf_count: {count: {by: [shelf, tags]}}
  viewed: {kind: sequence, share: seller, side: user, max_values: 4, order: newest_first}
  viewed_how: {kind: sequence, along: viewed, side: user, dim: 2}
  clicked: {history: {of: [seller, user], by: user, where: click, labels: [like], length: 3}, side: user}
  face: {kind: vector, side: user}
  style: {kind: vector, side: item}
tasks: {click: click, like: like, spent: {label: spent, kind: regression}}
"""
FIELDS = ["user", "tags", "liked", "seller", "seen", "price", "amount", "age"]
# Vectors of some users; the last one never occurs in the log, only in new rows
FACES = {str(user): [user % 5 - 2.0, user / 30, -1.0] for user in (*range(25), 99)}
PARTS = {"shown_hour": (0, 23), "shown_weekday": (1, 7), "shown_day": (1, 31), "shown_month": (1, 12)}


def rows(rng: np.random.Generator, n: int, most: int) -> pl.DataFrame:
    """Rows with lists of up to ``most`` values; one cell in twenty is empty, and so is one value in twelve."""

    def some(values: list[str]) -> list[str | None]:
        return [v if rng.random() > 0.05 else None for v in values]

    tags = ["|".join(f"t{t}" if t else "" for t in rng.integers(0, 12, rng.integers(1, most + 1))) for _ in range(n)]
    liked = [rng.permutation(12)[: rng.integers(1, most + 1)] for _ in range(n)]
    users = rng.integers(0, 30, n)
    chance = 1 / (1 + np.exp(-rng.normal(size=30)[users] + 0.5))
    return pl.DataFrame(
        {
            "user": some([str(u) for u in users]),
            "tags": some(tags),
            "liked": some(["|".join(f"l{v}:{rng.choice([0.5, 1.0, 2.5, -1.0])}" for v in row) for row in liked]),
            "seller": [None if u % 9 == 0 else f"s{u * 7 % 13}" for u in users],
            "seen": [",".join(f"v{v}:{v % 3 + 0.5}" for v in row) for row in liked],
            "price": some([f"{p:.1f}" for p in rng.lognormal(size=n)]),
            "amount": some([f"{a:.3f}" for a in rng.normal(size=n) * 100]),
            "age": some([str(a) for a in rng.integers(18, 80, n)]),
            "ts": 1_600_000_000 + np.sort(rng.integers(0, 40_000_000, n)),
            "shelf": rng.choice(["a", "b"], n),
            "viewed": ["|".join("" if v == 11 else f"s{v}" for v in row) for row in liked],
            "viewed_how": ["|".join("ab"[v % 2] for v in row) for row in liked],
            "style": some([f"[{x:.3f}, {y:.3f}]" for x, y in rng.normal(size=(n, 2)) * [1, 4] + 7]),
            "click": (rng.random(n) < chance).astype(int),
            "like": (rng.random(n) < 0.3).astype(int),
            "spent": rng.lognormal(size=n) * 20,
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose lists are all short in training but not in test."""
    folder, rng = tmp_path_factory.mktemp("serve"), np.random.default_rng(0)
    for name, n, most in (("train", 1200, 2), ("validation", 200, 2), ("test", 300, 10)):
        rows(rng, n, most).write_csv(folder / f"{name}.csv")
    pl.DataFrame({"user": list(FACES), "face": list(FACES.values())}).write_parquet(folder / "users.parquet")
    (folder / "log.yaml").write_text(SPEC)
    places = [f"data_dir={folder / 'data'}", f"runs_dir={folder / 'runs'}", f"run_dir={folder / 'run'}"]
    small = [
        "model=mmoe",
        "model.backbone.expert=[8]",
        "model.head.tower=[8]",
        "model.embedding.dim=4",
        "trainer.max_epochs=2",
    ]
    data = ["data=table", f"data.spec={folder / 'log.yaml'}", "loader.batch_size=128", "optimizer.embedding_lr=0.05"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train(compose_train([*places, *data, *small]))
    write_export(folder / "run")
    return folder / "run"


def write_export(run: Path, *overrides: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        export(compose("export", [f"run={run}", *overrides]))


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[TestClient]:
    """A client under which an uncaught exception of the server fails the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPORT", str(run / "export"))
        server = runpy.run_path(str(ROOT / "examples" / "serve.py"))
    with TestClient(server["app"]) as found:
        yield found


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table as JSON from a client."""
    shown = datetime.fromtimestamp(row["ts"], tz=UTC)
    pairs = [pair.split(":") for pair in (row["liked"] or "").split("|") if pair]
    parts = {"shown_hour": shown.hour, "shown_weekday": shown.isoweekday()}
    parts |= {"shown_day": shown.day, "shown_month": shown.month}
    numbers = {name: row[name] for name in ("price", "amount", "age", "user", "seller", "shelf")}
    seen = {value: float(weight) for value, weight in (pair.split(":") for pair in row["seen"].split(","))}
    liked = {value: float(weight) for value, weight in pairs}
    lists = {name: (row[name] or "").split("|") for name in ("tags", "viewed", "viewed_how")}
    vectors = {"face": FACES.get(str(row["user"])), "style": json.loads(row["style"] or "[]")}
    return {**numbers, **parts, **lists, **vectors, "liked": liked, "seen": seen, "now": row["ts"]}


CLOCKS: dict[str, dict[str, Any]] = {
    "to the second": {"at": {"kind": "time", "utc_offset": 8, "parts": ["hour"]}},
    "to the millisecond": {"at": {"kind": "time", "unit": "ms", "parts": ["hour"]}},
    "by the day": {"at": {"kind": "time", "utc_offset": -3, "parts": ["hour"]}},
    "in a unit of its own": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("clock", list(CLOCKS))
def test_the_server_shows_rows_of_the_past_what_predict_shows_them(
    clock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the log, many at the time of an event, and later ones. The lists of ``few`` lack older events."""
    rng, fields, hour = np.random.default_rng(0), CLOCKS[clock], 3_600_000 if "milli" in clock else 3600
    log: dict[str, Any] = {
        "user": rng.integers(0, 12, 400),
        "item": rng.integers(0, 9, 400),
        "at": 1_600_000_000_000 // 3_600_000 * hour + rng.integers(0, 24 * 20, 400) * hour + 7 * (hour == 3_600_000),
        "click": rng.integers(0, 2, 400),
    }
    pl.DataFrame(log).write_csv(tmp_path / "log.csv")
    history = {"of": "item", "by": "user", "labels": ["click"]}
    spec: dict[str, Any] = {
        "files": "log.csv",
        "fields": {"user": {"side": "user"}, "item": {"side": "item"}, **fields},
        "tasks": {"click": "click"},
        "rates": {"time": "at", "every": "day" if "day" in clock else "row"},
    }
    spec["fields"] |= {"seen": {"history": history}, "clicked": {"history": history | {"where": "click", "gap": False}}}
    few = spec["fields"] | {"seen": {"history": history | {"length": 4}}}
    monkeypatch.chdir(tmp_path)
    for name, content in (("all", spec), ("few", spec | {"fields": few})):
        Path(f"{name}.yaml").write_text(json.dumps(content))
        small = ["model=mmoe", "model.backbone.expert=[8]", "model.head.tower=[8]", "trainer.max_epochs=1"]
        small += ["data=table", f"data.spec={name}.yaml", f"run_dir={name}", "optimizer.embedding_lr=0.1"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            train(compose_train([*small, "loader.batch_size=32"]))
        write_export(tmp_path / name)
    later = 30 * 24 * hour
    rows = pl.concat([pl.DataFrame(log), pl.DataFrame(log | {"at": log["at"] + later})])
    rows.drop("click").write_csv("new.csv")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        predict(compose("predict", ["run=all", "input=new.csv", "output=scores.parquet"]))
    wanted = pl.read_parquet("scores.parquet")["p_click"]
    asked: list[dict[str, Any]] = []
    for row in rows.iter_rows(named=True):
        asked.append(
            {"user": row["user"], "item": row["item"], "now": row["at"] * 3600 / hour if fields else row["at"]}
        )
        if fields:
            local = datetime.fromtimestamp(asked[-1]["now"] + 3600 * fields["at"].get("utc_offset", 0), tz=UTC)
            asked[-1]["at_hour"] = local.hour
    servers = {}
    for name in ("all", "few"):
        monkeypatch.setenv("EXPORT", str(tmp_path / name / "export"))
        servers[name] = runpy.run_path(str(ROOT / "examples" / "serve.py"))
    with TestClient(servers["all"]["app"]) as client:
        answer = client.post("/rank", json={"candidates": asked})
        assert answer.status_code == 200, answer.text
        for found in answer.json():
            assert found["p"]["click"] == pytest.approx(wanted[found["place"]], abs=1e-5)
    every, fewer = ({s["name"]: s for s in servers[name]["sequences"]}["seen"] for name in ("all", "few"))
    longest = 0
    for row in asked[:400]:  # what the four latest events of a user leave of the past
        whole, lists = servers["all"]["from_log"](every, row), servers["few"]["from_log"](fewer, row)
        length = len(lists[0])
        assert lists == [values[len(values) - length :] for values in whole]
        longest = max(longest, length)
    assert longest in (3, 4)


@pytest.mark.slow
def test_the_server_gives_the_scores_of_predict_whatever_the_length_of_a_list(run: Path, client: TestClient) -> None:
    frame = rows(np.random.default_rng(1), 400, 12).with_columns(pl.col("ts") + 100_000_000)
    frame = frame.with_columns(pl.when(pl.int_range(400) % 20 == 0).then(pl.lit("99")).otherwise("user").alias("user"))
    frame.write_csv(run / "new.csv")
    arguments = [f"run={run}", f"input={run / 'new.csv'}", f"output={run / 'scores.parquet'}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        predict(compose("predict", arguments))
    wanted = pl.read_parquet(run / "scores.parquet")
    asked = [as_json(row) for row in pl.read_csv(run / "new.csv").iter_rows(named=True)]
    answer = client.post("/rank", json={"candidates": asked})
    assert answer.status_code == 200, answer.text
    for row in answer.json():
        known = wanted.row(row["place"], named=True)
        assert row["p"]["click"] == pytest.approx(known["p_click"], abs=1e-5)
        assert row["p"]["like"] == pytest.approx(known["p_like"], abs=1e-5)
        assert row["values"]["spent"] == pytest.approx(known["value_spent"], rel=1e-4)


def test_the_caps_are_those_of_the_data_and_not_of_the_longest_training_row(run: Path) -> None:
    fields = {f["name"]: f for f in json.loads((run / "export" / "schema.json").read_text())["fields"]}
    assert (fields["tags"]["max_values"], fields["liked"]["max_values"]) == (6, 3)
    assert {name: tuple(fields[name]["range"]) for name in PARTS} == PARTS


def _shorter(coding: dict[str, Any]) -> None:
    coding["max_values"] -= 1


def _longer(coding: dict[str, Any]) -> None:
    coding["max_values"] += 1


def _other_order(coding: dict[str, Any]) -> None:
    coding["values"] = coding["values"][::-1]


def _fewer_buckets(coding: dict[str, Any]) -> None:
    coding["hash"]["buckets"] -= 1


def _other_digest(coding: dict[str, Any]) -> None:
    coding["hash"]["digest_size"] = 16


def _shifted(coding: dict[str, Any]) -> None:
    coding["range"] = [coding["range"][0] + 1, coding["range"][1] + 1]


def _other_edge(coding: dict[str, Any]) -> None:
    coding["statistics"]["edges"][0] += 1


def _other_scale(coding: dict[str, Any]) -> None:
    coding["statistics"]["deviation"] *= 1.01


def _other_mean(coding: dict[str, Any]) -> None:
    coding["statistics"]["mean"][-1] += 0.1


def _other_transform(coding: dict[str, Any]) -> None:
    coding["statistics"].pop("transform")


def _earlier(coding: dict[str, Any]) -> None:
    coding["rate"]["latest"] = [value + 0.1 for value in coding["rate"]["latest"]]


DAMAGES = {
    "shorter": ("tags", _shorter),
    "longer": ("liked", _longer),
    "order of an id": ("user", _other_order),
    "order of a list": ("tags", _other_order),
    "buckets of an id": ("seller", _fewer_buckets),
    "hash of an id": ("seller", _other_digest),
    "buckets of a list": ("seen", _fewer_buckets),
    "length of a hashed list": ("seen", _longer),
    "hour": ("shown_hour", _shifted),
    "month": ("shown_month", _shifted),
    "edge": ("price", _other_edge),
    "scale": ("age", _other_scale),
    "scale of a vector": ("style", _other_scale),
    "mean of a vector": ("face", _other_mean),
    "transform": ("amount", _other_transform),
    "rate": ("user_rate", _earlier),
    "count": ("shelf_count", _earlier),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_schema_that_gives_other_inputs_is_known_by_the_field(damage: str, run: Path) -> None:
    name, change = DAMAGES[damage]
    store = open_run(run)[1]
    told, wanted = codings.raw_rows(store, store.split("test").batch(torch.arange(300)))
    fields, inputs = codings.field_codings(store), dense(wanted, store.schema)
    schema = {"fields": fields, "sequences": sequence_codings(store)}
    assert codings.different_field(fields, codings.encoded(schema, told), inputs) is None
    change(next(field for field in fields if field["name"] == name))
    assert codings.different_field(fields, codings.encoded(schema, told), inputs) == name


@pytest.mark.slow
def test_an_export_whose_schema_gives_other_inputs_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = codings._coding

    def wrong(store: Any, field: Any) -> dict[str, Any]:
        coding = right(store, field)
        if field.name == "liked":
            coding["max_values"] += 1
        return coding

    monkeypatch.setattr(codings, "_coding", wrong)
    with pytest.raises(UserError, match=r"field liked: raw values .*schema\.json"):
        write_export(run, f"output={tmp_path / 'out'}", "check_rows=300")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["tags", "seen", "seller", "shown_day", "price", "user_rate"])
def test_a_store_of_an_earlier_version_is_refused_by_the_field(name: str, run: Path) -> None:
    store = open_run(run)[1]
    del store.content["statistics"][name]
    with pytest.raises(UserError, match=f"the coding of field {name} is missing"):
        codings.field_codings(store)


ROW: dict[str, Any] = {"user": "3", "tags": ["t1"], "liked": {"l1": 1.0}, "price": 2.0, "amount": 1.5, "age": 40}
ROW |= {name: last for name, (_, last) in PARTS.items()} | {"shelf": "a"}


def answer(client: TestClient, **changes: Any) -> Any:
    return client.post(
        "/rank",
        content=json.dumps({"candidates": [{**ROW, **changes}]}),
        headers={"content-type": "application/json"},
    )


def score(client: TestClient, **changes: Any) -> float:
    found = answer(client, **changes)
    assert found.status_code == 200, found.text
    return float(found.json()[0]["score"])


def test_an_id_has_one_meaning_in_every_spelling(client: TestClient) -> None:
    known = score(client)
    assert known != score(client, user="4")
    for spelling in (3, 3.0, "3", " 3 ", "3.0", "3.00"):
        assert score(client, user=spelling) == known
    absent = score(client, user=None)
    for spelling in ("", "  ", "nobody"):
        assert score(client, user=spelling, shelf=None) == score(client, user=None, shelf=None)
    assert absent != known
    known = score(client)
    for tags in (["t1", None, "", " "], ["", "t1"], [" t1 "]):  # as ids, and as a key
        assert score(client, tags=tags) == known
    nothing = score(client, tags=None)
    for tags in ([], [""], [None, " "]):
        assert score(client, tags=tags) == nothing


def test_a_hashed_id_has_one_meaning_in_every_spelling(client: TestClient) -> None:
    known = score(client, seller="12", seen={"12": 1.0})
    for spelling in (12, 12.0, " 12 ", "12.0"):
        assert score(client, seller=spelling, seen={str(spelling): 1.0}) == known
    assert len({score(client, seller=f"new{n}") for n in range(40)}) == 7  # each bucket has its own score
    assert score(client, seller=None) == score(client, seller=" ") == score(client)


def test_an_absent_value_of_a_sequence_keeps_its_place(client: TestClient) -> None:
    none = score(client)
    one, three = ({"viewed": ["s1", *more], "viewed_how": ["a", *how]} for more, how in (([], []), ([""], ["a"])))
    known = score(client, **one)
    assert len({none, known, score(client, **three), score(client, viewed=[""], viewed_how=["a"])}) == 4
    for absent in (None, "", " "):
        assert score(client, viewed=["s1", absent], viewed_how=["a", "a"]) == score(client, **three)
    assert score(client, viewed=[], viewed_how=None) == none
    assert answer(client, viewed=["s1"], viewed_how=[]).status_code == 422


def test_a_vector_is_what_the_request_says(client: TestClient) -> None:
    known = score(client, style=[7.0, 9])
    assert known == score(client, style=[7, 9.0])
    assert known != score(client, style=[7.5, 9])
    assert score(client, style=None) == score(client, style=[]) == score(client)


def test_true_and_false_are_ids_like_others(tmp_path: Path, run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPORT", str(run / "export"))
        canonical = runpy.run_path(str(ROOT / "examples" / "serve.py"))["canonical"]
    assert {canonical("x", v) for v in (True, "True", "TRUE", " true ")} == {"true"}
    assert {canonical("x", v) for v in (False, "False", "false")} == {"false"}
    assert [canonical("x", v) for v in (1, 1.5, "1.50", -2.0, "-2.0", 1e20, "v1.0")] == [
        "1",
        "1.5",
        "1.50",
        "-2",
        "-2",
        "100000000000000000000",
        "v1.0",
    ]


@pytest.mark.parametrize("name", list(PARTS))
def test_a_part_of_a_time_is_within_its_range(name: str, client: TestClient) -> None:
    first, last = PARTS[name]
    assert len({score(client, **{name: part}) for part in (None, *range(first, last + 1))}) > 3
    assert score(client, **{name: float(last)}) == score(client, **{name: last})
    for wrong in (first - 1, last + 1, -5, 1000, 2**63, -(2**63), first + 0.5, str(first), True, [first], 10**400):
        found = answer(client, **{name: wrong})
        assert found.status_code == 422
        assert name in found.json()["detail"]


HOSTILE = [
    ("amount", 10**400),
    ("amount", -(10**400)),
    ("age", 1e300),
    ("price", "5"),
    ("price", True),
    ("age", [1]),
    ("user", [1]),
    ("user", {"a": 1}),
    ("tags", "t1"),
    ("tags", [["t1"]]),
    ("tags", [{"a": 1}]),
    ("tags", {"t1": "x"}),
    ("tags", {"t1": None}),
    ("tags", {"t1": True}),
    ("tags", {"t1": [1]}),
    ("liked", {"l1": 1e39}),
    ("liked", {"l1": -(10**400)}),
    ("liked", {f"l{i}": 1.0 for i in range(501)}),
    ("shelf", {"a": 1}),
    ("style", 1.0),
    ("style", {"a": 1}),
    ("style", [1.0]),
    ("style", [1.0, 2.0, 3.0]),
    ("style", [1.0, None]),
    ("style", ["1", 2.0]),
    ("face", [1e39, 0, 0]),
    ("now", "yesterday"),
    ("now", 1e300),
    ("face", [10**400, 0, 0]),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_what_cannot_be_scored_is_refused_by_its_name(name: str, value: Any, client: TestClient) -> None:
    found = answer(client, **{name: value})
    assert found.status_code == 422, found.text
    assert re.search(f"{name}|candidate 0: its numbers", found.json()["detail"])


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "NaN": b'{"candidates": [{"age": NaN}]}',
    "infinite weight": b'{"candidates": [{"liked": {"l1": Infinity}}]}',
    "a float beyond 64 bits": b'{"candidates": [{"age": 1e999}]}',
    "an id beyond 64 bits": b'{"candidates": [{"user": 1e999}]}',
    "many digits": b'{"candidates": [{"age": ' + b"9" * 5000 + b"}]}",
    "deep": b'{"candidates": [{"user": ' + b"[" * 50_000 + b"]" * 50_000 + b"}]}",
    "deep context": b'{"context": {"user": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b'}, "candidates": [{}]}',
    "deep in place of a row": b'{"candidates": [' + b"[" * 900 + b"]" * 900 + b"]}",
    "no UTF-8": b'{"candidates": [{"user": "\xff"}]}',
    "a key that is no Unicode": b'{"candidates": [{"\\ud800": 1}]}',
    "a key beside": b'{"candidates": [{}], "\\ud800": 1}',
    "a context that is no Unicode": b'{"context": "\\ud800", "candidates": [{}]}',
    "a value that is no Unicode": b'{"candidates": [{"age": "\\ud800"}]}',
}


@pytest.mark.parametrize("body", list(BODIES))
def test_a_body_of_another_form_is_refused(body: str, client: TestClient) -> None:
    found = client.post("/rank", content=BODIES[body])
    assert found.status_code == 422
    assert found.json()["detail"]


def test_a_body_that_is_too_large_is_refused(client: TestClient) -> None:
    assert client.post("/rank", content=b'{"context": {"user": "' + b"x" * (17 << 20)).status_code == 413


def test_what_is_odd_and_can_be_scored_is(client: TestClient) -> None:
    surrogate, twice = b'{"candidates": [{"user": "\\ud800"}]}', b'{"candidates": [{"age": 1, "age": 2}]}'
    for body in (surrogate, surrogate.replace(b"user", b"seller"), twice):
        assert client.post("/rank", content=body).status_code == 200
    assert score(client, price=-1e38) == score(client, price=0)  # both in the first bucket
    assert client.get("/openapi.json").json()["paths"]["/rank"]["post"]["requestBody"]


ODD = st.sampled_from([10**400, 1e38, -0.0, "\ud800"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | ODD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from([*FIELDS, *PARTS, "shelf", "face", "style", "now"])


@settings(max_examples=300)
@given(
    context=st.dictionaries(KEYS, JSON, max_size=3),
    candidates=st.lists(st.dictionaries(KEYS | st.text(max_size=3), JSON, max_size=4), max_size=3),
)
def test_no_request_gives_an_error_of_the_server(client: TestClient, context: Any, candidates: Any) -> None:
    found = client.post("/rank", content=json.dumps({"context": context, "candidates": candidates}))
    assert found.status_code in (200, 422)
    if found.status_code == 200:
        assert [np.isfinite([*row["p"].values(), row["score"]]).all() for row in found.json()]


def test_an_export_of_an_earlier_version_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((run / "export" / "schema.json").read_text())
    next(f for f in content["fields"] if f["name"] == "shown_hour").pop("range")
    (tmp_path / "schema.json").write_text(json.dumps(content))
    monkeypatch.setenv("EXPORT", str(tmp_path))
    with pytest.raises(SystemExit, match="does not say how shown_hour is coded"):
        runpy.run_path(str(ROOT / "examples" / "serve.py"))
    content = json.loads((run / "export" / "schema.json").read_text())
    next(s for s in content["sequences"] if s["name"] == "clicked")["history"].pop("gap")
    (tmp_path / "schema.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="does not say when events were"):
        runpy.run_path(str(ROOT / "examples" / "serve.py"))
