"""Labels of runs: configurations that differ have names that tell how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlen.reports.run_labels import set_labels
from dlen.reports.run_record import RunRecord


def record(number: int, **settings: Any) -> RunRecord:
    known = {"model_name": "dlen", "seed": number, **settings}
    return RunRecord(
        key=str(number),
        folder=Path(f"/runs/{number}"),
        metrics={"model": "dlen"},
        settings=known,
        data="feed",
        fingerprint="abc",
        tasks=["click"],
        targets=["click"],
        values=[],
        curves={},
        logged=[],
        diagnostics={},
        seed=number,
        written=0.0,
    )


def test_a_shared_name_is_told_apart_by_settings() -> None:
    records = [record(0, **{"optimizer.lr": 0.1}), record(1, **{"optimizer.lr": 0.2})]
    set_labels(records, {r.folder: "DLEN" for r in records})
    assert [r.label for r in records] == ["DLEN optimizer.lr=0.1", "DLEN optimizer.lr=0.2"]


def test_many_settings_are_cut_but_no_two_labels_are_the_same() -> None:
    keys = [f"loader.k{n}" for n in range(6)]
    records = [record(n, **{key: n if n < 2 else int(key == keys[n]) for key in keys}) for n in range(6)]
    set_labels(records, {})
    assert len({r.label for r in records}) == 6
    assert not any("#" in r.label for r in records)


def test_seeds_share_their_label() -> None:
    records = [record(n, **{"optimizer.lr": 0.1}) for n in range(3)]
    set_labels(records, {})
    assert {r.label for r in records} == {"dlen"}


def test_a_label_names_the_interaction() -> None:
    senet = {
        "model.interaction._target_": "dlen.models.interactions.SENetInteraction",
        "model.interaction.reduction": 3,
    }
    records = [record(0, **{"model.interaction": None}), record(1, **{"model.interaction": None}), record(2, **senet)]
    for number, r in enumerate(records):
        r.settings["loader.batch_size"] = 1 + number % 2  # two configurations without one
    set_labels(records, {})
    assert [r.label for r in records] == ["dlen", "dlen loader.batch_size=2", "dlen interaction=SENet"]
