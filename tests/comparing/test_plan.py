"""Plans: what a run's fingerprint depends on, seeds, selected models, grids, and every shipped experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from dlen.comparing.grid import cells_of, parse_grid
from dlen.comparing.plan import Plan, make_plan
from dlen.comparing.settings import CompareSettings, parse_seeds
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.devices import local_processes, number_of_workers
from dlen.errors import UserError
from dlen.training.building import build_model
from dlen.training.size import dense_parameters
from dlen.valid import check_group
from tests.conftest import ROOT

SMALL = ["data.rows=1500", "data.users=30", "data.items=20"]
# those of published figures need public data; tests/docs/test_reproductions.py composes them
EXPERIMENTS = sorted(p.stem for p in (ROOT / "conf/experiment").glob("*.yaml") if not p.stem.startswith("reproduce_"))


def planned(folder: Path, *overrides: str, cell: tuple[str, ...] = ()) -> Plan:
    """A plan as compare.py makes it, with everything below ``folder``."""
    OmegaConf.register_new_resolver("stem", lambda path: Path(str(path)).stem, replace=True)
    places = [f"data_dir={folder / 'data'}", f"runs_dir={folder / 'runs'}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("compare", [*places, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            config.pop("hydra")
        return make_plan(config, cell)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_shipped_experiment_composes(experiment: str, tmp_path: Path) -> None:
    small = SMALL
    if experiment == "table3":
        raw = tmp_path / "raw"
        AliCCPDemo(str(raw), rows=2000).files()
        small = [f"data.raw_dir={raw}", "data.min_count=2"]
    plan = planned(tmp_path, f"experiment={experiment}", *small)
    assert len(plan.runs) == len(plan.models) * len(plan.seeds)
    assert len({run.folder for run in plan.runs.values()}) == len(plan.runs)
    assert plan.base in plan.models


def folders(plan: Plan) -> list[str]:
    return [run.folder.name for run in plan.runs.values()]


@pytest.mark.slow
def test_a_fingerprint_depends_on_settings_and_data_and_not_on_places(tmp_path: Path) -> None:
    table = ["experiment=table1", "seeds=1", "models=[MMoE]", *SMALL]
    first = folders(planned(tmp_path / "a", *table))
    assert folders(planned(tmp_path / "b", *table)) == first
    for change in ("trainer.max_epochs=2", "optimizer.lr=0.002", "data.seed=5", "model.head.tower=[8]", "patience=1"):
        assert folders(planned(tmp_path / "a", *table, change)) != first
    assert folders(planned(tmp_path / "a", *table, "logger=tensorboard")) == first


def test_another_model_or_seed_leaves_the_other_runs_as_they_are(tmp_path: Path) -> None:
    few = folders(planned(tmp_path, "experiment=table1", "seeds=[0]", "models=[MMoE]", *SMALL))
    more = folders(planned(tmp_path, "experiment=table1", "seeds=[0,3]", "models=[MMoE,DLEN]", *SMALL))
    assert set(few) < set(more)
    assert len(more) == 4


def test_settings_of_the_command_line_reach_every_run(tmp_path: Path) -> None:
    plan = planned(tmp_path, "experiment=table1", "seeds=1", "optimizer.lr=0.5", *SMALL)
    for run in plan.runs.values():
        assert "optimizer.lr=0.5" in run.overrides
        assert "seed=0" in run.overrides
        assert not [o for o in run.overrides if o.startswith(("seeds=", "experiment="))]


@pytest.mark.parametrize(("value", "seeds"), [(3, [0, 1, 2]), ([4, 2], [4, 2])])
def test_seeds(value: Any, seeds: list[int]) -> None:
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize("value", [0, -1, ["a"], [-2], True])
def test_wrong_seeds(value: Any) -> None:
    with pytest.raises(UserError, match="config seeds: "):
        check_group(OmegaConf.create({"seeds": value}), CompareSettings, partial=True)


@pytest.mark.parametrize("value", [[], [1, 1]])
def test_no_distinct_seeds(value: Any) -> None:
    with pytest.raises(UserError, match="config seeds: "):
        parse_seeds(value)


def test_models_must_exist_and_hold_the_base(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="config models: there is no MMOE; the experiment has MMoE, PLE, DLEN, DLEN match, DLEN paper"
    ):
        planned(tmp_path, "experiment=table1", "models=[MMOE]", *SMALL)
    with pytest.raises(UserError, match=r"config models: .*base model 'MMoE'"):
        planned(tmp_path, "experiment=table1", "models=[DLEN]", *SMALL)
    with pytest.raises(UserError, match="config models: a grid shows the gain of the last model over MMoE"):
        planned(tmp_path, "experiment=when", "models=[MMoE]", *SMALL)


def test_number_of_workers() -> None:
    assert number_of_workers(3, 2) == 2
    assert number_of_workers("auto", 1) == 1


@pytest.mark.parametrize(
    ("devices", "accelerator", "processes"),
    [(3, "auto", 3), (-1, "auto", 8), ("auto", "gpu", 8), (-1, "cpu", 1), ([0], "gpu", 1), ([2, 5], "auto", 2)],
)
def test_number_of_processes(devices: Any, accelerator: str, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert local_processes(OmegaConf.create({"devices": devices, "accelerator": accelerator})) == processes


GRID: dict[str, Any] = {
    "grid": {"rows": {"few": ["data.rows=10"], "many": ["data.rows=20"]}, "leak": {"a": [], "b": ["data.leak=0.3"]}},
    "planes": [["rows", "leak"]],
}


def test_cells_of_a_grid() -> None:
    axes = GRID["grid"] | {"tasks": {"all": [], "one": ["x"]}}
    config = OmegaConf.create({"experiment": {"grid": axes, "planes": [["rows", "leak"], ["rows", "tasks"]]}})
    grid = parse_grid(config)
    assert grid is not None
    cells = cells_of(grid)
    assert len(cells) == 6  # 4 in the first plane, 2 more in the second
    assert grid.settings(grid.cell(rows="many", leak="b")) == ["data.rows=20", "data.leak=0.3"]
    assert grid.cell() == (("rows", "few"), ("leak", "a"), ("tasks", "all"))
    assert parse_grid(OmegaConf.create({"experiment": {}})) is None


@pytest.mark.parametrize("planes", [[], [["rows"]], [["rows", "colour"]]])
def test_wrong_planes(planes: list[list[str]]) -> None:
    config = OmegaConf.create({"experiment": GRID | {"planes": planes}})
    with pytest.raises(UserError, match=r"config experiment\.planes: "):
        parse_grid(config)


@pytest.mark.slow
def test_models_whose_needs_are_not_met_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(tmp_path, "experiment=field", "seeds=1", *SMALL)
    assert "MMoE" in plan.models
    assert not {"ESMM", "AITM", "ESCM2", "PAL"} & set(plan.models)
    told = capsys.readouterr().err
    assert "ESMM is skipped: config model: esmm needs a funnel" in told
    assert "PAL is skipped: config model: pal needs a position" in told
    with_places = planned(tmp_path, "experiment=field", "seeds=1", "data.positions=3", *SMALL)
    assert "PAL" in with_places.models
    with pytest.raises(UserError, match="esmm needs a funnel"):
        planned(tmp_path, "experiment=field", "seeds=1", "experiment.base=ESMM", *SMALL)


@pytest.mark.slow
def test_widths_are_chosen_for_equal_numbers_of_parameters(tmp_path: Path) -> None:
    chosen = "models=[MMoE,PLE,DLEN,shared bottom]"
    plan = planned(tmp_path, "experiment=field", "seeds=1", "experiment.match=parameters", chosen, *SMALL)
    numbers = {}
    for (model, _), run in plan.runs.items():
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("train", [*run.overrides, "model_name=model"])
        numbers[model] = dense_parameters(build_model(config, run.store))
    assert len({tuple(run.overrides) for run in plan.runs.values()}) == 4
    for model, number in numbers.items():
        assert number == pytest.approx(numbers["MMoE"], rel=0.03), model


def test_what_cannot_be_balanced_is_left_out_and_wrong_sizes_are_not(tmp_path: Path) -> None:
    some = "models=[MMoE,DLEN,DLEN paper]"
    plan = planned(tmp_path, "experiment=field", "seeds=1", "balancing=uncertainty", some, *SMALL)
    assert plan.models == ["MMoE", "DLEN paper"]
    wrong = 'experiment.models.MRAN=["model=mran","model.backbone.heads=0"]'
    with pytest.raises(UserError, match="heads must be a whole number from 1"):
        planned(tmp_path, "experiment=field", "seeds=1", wrong, "models=[MMoE,MRAN]", *SMALL)


@pytest.mark.slow
def test_a_size_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    sizes = '"model.backbone.expert=[4]","model.head.tower=[4]","model.backbone.num_experts=1"'
    tiny = f'experiment.models.MMoE=["model=mmoe",{sizes}]'
    with pytest.raises(UserError, match=r"experiment\.match: .*PLE"):
        planned(
            tmp_path, "experiment=field", "seeds=1", "experiment.match=parameters", tiny, "models=[MMoE,PLE]", *SMALL
        )


def test_an_unknown_match_is_refused() -> None:
    config = OmegaConf.create({"experiment": {"match": "flops"}})
    with pytest.raises(UserError, match=r"config experiment\.match: 'flops' is not parameters or null"):
        check_group(config, CompareSettings, partial=True)
