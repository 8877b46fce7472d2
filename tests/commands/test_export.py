"""export: the exported models give the run's scores, also on rows not used for tracing, for every model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from scipy.special import log_expit

from dlen.errors import UserError
from dlen.overrides import compose_train
from dlen.ranking.scoring import calibrate, load_model, score
from dlen.schema import Kind
from dlen.serving import export as exporting
from dlen.serving.codings import INPUTS
from dlen.serving.export import dense, export, for_onnx
from dlen.serving.settings import ExportSettings
from dlen.training.fit import train
from dlen.training.stores import open_run
from dlen.valid import check_group
from tests.conftest import ROOT, run_command
from tests.helpers import make_batch, make_schema

MODEL = ["model.embedding.dim=4", "model.head.tower=[8]", "loader.batch_size=512", "trainer.max_epochs=1"]
FEED = ["data=feed", "data.rows=3000", "data.users=40", "data.items=30"]
CASES = {
    "dlen on a feed": [
        *FEED,
        "model=dlen",
        "model/head=latent_match",
        "model.head.hidden=[8]",
        "model.backbone.expert=[16,8]",
    ],
    "dlen with two states": [
        *("data=feed_implied", *FEED[1:], "model=dlen", "model.head.hidden=[8]", "model.backbone.expert=[8]"),
    ],
    "dlen on a funnel with lists": [
        "data=aliccp_demo",
        "model=dlen",
        "model.head.hidden=[8]",
        "model.backbone.expert=[8]",
    ],
    "esmm": ["data=aliccp_demo", "model=esmm", "model.backbone.expert=[8]"],
    "stem after cross, with lists": ["data=aliccp_demo", "model=stem", "model/interaction=cross"],
    "dbmtl": [*FEED, "model=dbmtl", "model.backbone.expert=[8]"],
    "adatt": [*FEED, "model=adatt", "model.backbone.shared_experts=1", "model.backbone.expert=[8]"],
    "home": [*FEED, "model=home", "model.backbone.groups=[[0,1],[2,3,4]]", "model.backbone.expert=[8]"],
    "pepnet, with lists": ["data=aliccp_demo", "model=pepnet", "model.backbone.expert=[16,8]"],
    "dlen after senet": [*FEED, "model=dlen", "model/interaction=senet", "model.head.hidden=[8]"],
    "mmoe after epnet, with lists": ["data=aliccp_demo", "model=mmoe", "model/interaction=epnet"],
    "mran after the pairs": ["data=aliccp_demo", "model=mran", "model/interaction=fm", "model.backbone.expert=[8]"],
    "single task after cross": [*FEED, "model=single_task", "model/interaction=cross"],
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw") / "raw"


def trained(folder: Path, raw: Path, settings: list[str]) -> Path:
    places = [f"data_dir={folder / 'data'}", f"runs_dir={folder / 'runs'}", f"run_dir={folder / 'run'}"]
    demo = [f"data.raw_dir={raw}", "data.rows=6000"] if "data=aliccp_demo" in settings else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose_train([*places, *MODEL, *settings, *demo])
    train(config)
    return folder / "run"


def export_config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("export", list(overrides))


def served(folder: Path, inputs: tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
    """Outputs of ONNX Runtime, by name."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    taken = {item.name for item in session.get_inputs()}
    feed = {name: part.numpy() for name, part in zip(INPUTS, inputs, strict=True) if name in taken}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_every_row_of_the_test_split_has_the_runs_scores(case: str, tmp_path: Path, raw: Path) -> None:
    run = trained(tmp_path, raw, CASES[case])
    calibrates = case == "dlen on a feed"  # the demo has too few conversions to rank them in the right order
    up = ["fusion.up=0.5", f"fusion.calibrate={calibrates}"] if "dlen" in case else []
    state = int(case == "dlen with two states")
    up += ["fusion.state=watching"] * state
    export(export_config(f"run={run}", "check_rows=64", *up))
    config, store = open_run(run)
    model = load_model(run, config, store)
    split = store.split("test")
    known = score(model, split)
    batch = split.batch(torch.arange(len(split)))
    names = json.loads((run / "export" / "schema.json").read_text())["outputs"]["p"]
    inputs = dense(batch, store.schema)
    longer = tuple(torch.nn.functional.pad(p, (0, 3)) if p.dim() == 3 and p.shape[1] else p for p in inputs)
    for of_a_length in [inputs, longer] if batch.bag_lengths.numel() else [inputs]:
        found = served(run / "export", of_a_length)
        for column, name in enumerate(names[: len(store.schema.tasks)]):
            wanted = known.log_p[:, store.schema.task_names.index(name)].exp().numpy()
            assert np.abs(found["p"][:, column] - wanted).max() < 1e-5
        if known.log_states is not None:
            for name, log_state in zip(("up", "watching"), known.log_states.T, strict=False):
                assert np.abs(found[name] - log_state.exp().numpy()).max() < 1e-5
            log_p = known.log_p
            if calibrates:
                log_p = calibrate(score(model, store.split("validation")), store.schema)(known.log_p)
                assert not torch.allclose(log_p, known.log_p, atol=1e-3)
            wanted = (log_p.sum(1) + 0.5 * known.log_states[:, state]).numpy()
            assert found["score"] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert {p.name for p in (run / "export").iterdir()} == {"model.onnx", "model.pt2", "schema.json"}


@pytest.mark.slow
def test_the_schema_turns_raw_values_into_inputs(tmp_path: Path, raw: Path) -> None:
    run = trained(tmp_path, raw, CASES["dlen on a funnel with lists"])
    export(export_config(f"run={run}", "check_rows=64"))
    _, store = open_run(run)
    fields = json.loads((run / "export" / "schema.json").read_text())["fields"]
    assert [f["name"] for f in fields if f["input"] == "ids"] == [f.name for f in store.schema.of_kind(Kind.ID)]
    assert sorted(f["position"] for f in fields if f["input"] == "bag_ids") == list(range(9))
    batch = store.split("test").batch(torch.arange(200))
    for field in fields:
        vocabulary = store.vocabulary(field["name"])["value"].cast(str).to_list()
        assert field["values"] == vocabulary
        if field["input"] == "ids":
            codes = batch.ids[:, field["position"]].numpy() - field["offset"]
            assert codes.min() >= 0
            assert codes.max() <= len(vocabulary)


def test_dense_lists_are_those_of_the_batch() -> None:
    schema = make_schema()
    batch = make_batch(schema, 20)
    _, _, ids, weights, *_ = dense(batch, schema)
    at = 0
    for bag in range(2):
        for row in range(20):
            n = int(batch.bag_lengths[bag, row])
            assert ids[row, bag, :n].tolist() == batch.bag_ids[at : at + n].tolist()
            assert weights[row, bag, :n].tolist() == batch.bag_weights[at : at + n].tolist()
            assert weights[row, bag, n:].sum() == 0
            at += n


@pytest.mark.slow
def test_a_model_that_differs_is_not_written(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path, raw, CASES["single task after cross"])
    before = exporting.dense

    def wrong(batch: Any, schema: Any) -> tuple[torch.Tensor, ...]:
        ids, *rest = before(batch, schema)
        return (ids.clone().fill_(1), *rest)

    monkeypatch.setattr(exporting, "dense", wrong)
    with pytest.raises(UserError, match="the exported model differs from the run by"):
        export(export_config(f"run={run}", "check_rows=64"))
    assert not list((run / "export").iterdir())


@pytest.mark.slow
def test_logits_of_rare_events_are_exact_in_onnx(tmp_path: Path) -> None:
    class LogProbability(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.logsigmoid(logits)

    logits = torch.linspace(-80, 40, 1201)[:, None]
    program = torch.export.export(LogProbability(), (logits,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.onnx.export(for_onnx(program), (), str(tmp_path / "m.onnx"), input_names=["x"], dynamo=True, verbose=False)
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": logits.numpy()})
    np.testing.assert_allclose(found, log_expit(logits.double().numpy()), rtol=1e-6, atol=1e-17)


@pytest.mark.slow
def test_the_command_and_what_it_refuses(tmp_path: Path, raw: Path) -> None:
    run = trained(tmp_path, raw, CASES["single task after cross"])
    ran = run_command("export.py", [f"run={run}", "output=out", "check_rows=64"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"ONNX Runtime and torch.export match the run's scores on [\d,]+ rows, to \d", ran.stdout)
    assert (tmp_path / "out" / "model.onnx").exists()
    for setting, expected in (
        ("run=none", "none: not a run folder"),
        ("checkpoint=worst", "worst.ckpt: no such checkpoint"),
        ("fusion.up=1", "config fusion.up: the model has no P"),
    ):
        with pytest.raises(UserError, match=re.escape(expected)):
            export(export_config(f"run={run}", setting))
    with pytest.raises(UserError, match=r"^config check_rows: 0 is not a whole number"):
        check_group(export_config(f"run={run}", "check_rows=0"), ExportSettings)
