"""The presets of conf/model: every backbone with every head, and defaults equal to those of the classes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from dlen import models
from dlen.errors import UserError
from dlen.models import PAL, Named, Ranker
from dlen.models.backbones import PLEBackbone
from dlen.overrides import compose_train
from dlen.ranking.fusion import Fusion, Score
from dlen.renamed import KEYS, present_model, present_override
from dlen.schema import Schema, Task
from dlen.serving.export import Serving, dense
from dlen.training.configs import build, read_config
from tests.conftest import ROOT
from tests.helpers import WITH_DIMS, make_batch, make_schema

OLD = Path(__file__).parents[1] / "runs_0_1_0"
FUNNEL = replace(
    make_schema((Task("ctr", 0.3), Task("cvr", 0.1, observed_where="ctr", joint="ctcvr"))), position="item"
)
BACKBONES = sorted(path.stem for path in (ROOT / "conf/model/backbone").glob("*.yaml"))
HEADS = sorted(path.stem for path in (ROOT / "conf/model/head").glob("*.yaml"))
INTERACTIONS = sorted(path.stem for path in (ROOT / "conf/model/interaction").glob("*.yaml"))
NAMED = {
    "aitm": models.AITM,
    "cgc": models.CGC,
    "dbmtl": models.DBMTL,
    "cross_stitch": models.CrossStitch,
    "adatt": models.AdaTT,
    "pepnet": models.PEPNet,
    "home": models.HoME,
    "dlen": models.DLEN,
    "escm2": models.ESCM2,
    "esmm": models.ESMM,
    "mmoe": models.MMoE,
    "moe": models.MoE,
    "mran": models.MRAN,
    "pal": models.PAL,
    "ple": models.PLE,
    "shared_bottom": models.SharedBottom,
    "single_task": models.SingleTask,
    "stem": models.STEM,
}


@cache
def config_of(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose_train(["data=feed", *overrides])


def made(*overrides: str) -> Ranker:
    torch.manual_seed(0)
    model = build(config_of(*overrides).model, "model", FUNNEL)
    assert isinstance(model, Ranker)
    return model


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_goes_with_every_head(backbone: str, head: str) -> None:
    model = made("model=mmoe", f"model/backbone={backbone}", f"model/head={head}", "model.embedding.dim=4")
    batch = make_batch(FUNNEL, 16)
    predictions = model(batch)
    assert predictions.log_p.shape == (16, 2)
    ones = torch.ones(16, 2)
    model.head.loss(predictions, batch.labels, ones, torch.ones(2)).backward()
    trained = [p.grad for p in (*model.backbone.parameters(), *model.head.parameters()) if p.grad is not None]
    assert trained
    assert all(bool(grad.isfinite().all()) for grad in trained)


@pytest.mark.parametrize("interaction", [name for name in INTERACTIONS if name != "none"])
@pytest.mark.parametrize("name", NAMED)
def test_every_preset_goes_with_every_interaction(name: str, interaction: str) -> None:
    model = made(f"model={name}", f"model/interaction={interaction}", "model.embedding.dim=4")
    assert model.interaction is not None
    for parameter in model.interaction.parameters():
        torch.nn.init.normal_(parameter)
    batch = make_batch(FUNNEL, 64)
    ones = torch.ones(64, 2)
    model.head.loss(model(batch), batch.labels, ones, torch.ones(2)).backward()
    for key, parameter in model.interaction.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
    assert any(bool(p.grad.any()) for p in model.interaction.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMED)
def test_every_preset_trains_and_serves_fields_with_vectors_of_their_own_length(name: str) -> None:
    schema = replace(FUNNEL, fields=WITH_DIMS)
    model = build(config_of(f"model={name}", "model.embedding.dim=4").model, "model", schema)
    batch, ones = make_batch(schema, 64), torch.ones(64, 2)
    model.head.loss(model(batch), batch.labels, ones, torch.ones(2)).backward()
    for key, parameter in model.embedding.named_parameters():
        torch.nn.init.normal_(parameter)
        assert parameter.grad is not None, key
        assert bool(parameter.grad.to_dense().isfinite().all()), key
        assert bool(parameter.grad.to_dense().any()), key
    serving = Serving(model, Score(Fusion(), torch.ones(2))).eval()
    wanted = model.eval()(batch).log_p.exp()
    torch.testing.assert_close(serving(*dense(batch, schema))[0][:, :2], wanted, rtol=1e-4, atol=1e-6)


def test_pal_refuses_heads_without_a_loss_of_the_probability_alone() -> None:
    for head in ("latent", "esmm", "aitm", "escm2", "dbmtl"):
        with pytest.raises(UserError, match="set model/head=independent"):
            made("model=pal", f"model/head={head}", "model.embedding.dim=4")


@pytest.mark.parametrize("name", NAMED)
def test_a_preset_is_the_named_model(name: str) -> None:
    """A default appears in one YAML file and one signature, and the two agree."""
    preset = made(f"model={name}")
    torch.manual_seed(0)
    named: Named = NAMED[name](FUNNEL)
    assert {k: v.shape for k, v in preset.state_dict().items()} == {k: v.shape for k, v in named.state_dict().items()}
    batch = make_batch(FUNNEL, 4)
    assert torch.equal(preset.eval()(batch).log_score, named.eval()(batch).log_score)


@pytest.mark.parametrize(("part", "choices"), [("interaction", INTERACTIONS), ("backbone", BACKBONES), ("head", HEADS)])
def test_defaults_of_a_part_are_those_of_its_class(part: str, choices: list[str]) -> None:
    for choice in choices:
        if choice in ("none", "single_task", "latent_match", "latent_paper"):  # nothing, or settings of another choice
            continue
        node = OmegaConf.to_container(config_of("model=mmoe", f"model/{part}={choice}").model[part])
        assert isinstance(node, Mapping)
        module, _, name = str(node["_target_"]).rpartition(".")
        kind = getattr(__import__(module, fromlist=[name]), name)
        wanted = {k: p.default for k, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
        wanted.pop("dropout", None)
        said = {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if not str(k).startswith("_")}
        assert said == wanted, choice


@pytest.mark.parametrize("name", sorted(path.name for path in OLD.iterdir()))
def test_a_run_of_version_0_1_0_predicts_as_it_did(name: str) -> None:
    config = read_config(OLD / name / "config.yaml", ())
    schema = Schema.from_dict(json.loads((OLD / name / "schema.json").read_text()))
    model = build(config.model, "model", schema).eval()
    saved = torch.load(OLD / name / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in saved.items() if k.startswith("model.")})
    expected = json.loads((OLD / name / "expected.json").read_text())
    with torch.no_grad():
        predictions = model(make_batch(schema, 4))
    torch.testing.assert_close(predictions.log_p, torch.tensor(expected["log_p"]))
    torch.testing.assert_close(predictions.log_score, torch.tensor(expected["log_score"]))
    if expected["log_up"] is not None:
        torch.testing.assert_close(predictions.latent.log_up, torch.tensor(expected["log_up"]))


def test_old_keys_are_read_under_their_present_names() -> None:
    settings = ["model.alpha=0.2", "model.embedding_dim=4", "model.tower=[8]", "model.hidden=null", "model.match=2"]
    found = config_of("model=dlen", *settings).model
    assert (found.head.alpha, found.head.tower, found.head.hidden, found.head.match) == (0.2, [8], None, 2)
    assert found.embedding.dim == 4
    assert config_of("model=ple", "model.levels=1", "model.expert=[8]").model.backbone.levels == 1
    assert config_of("model=dlen", "model/variant=paper").model.head.likelihood == "marginal"
    assert config_of("model=dlen", "model/variant=match").model.head.match == 8
    for override in ("model.dropout=0.1", "model.backbone.expert=[4]", "data.model.alpha=1", "model=dlen"):
        assert present_override(override) == override
    assert present_override("++model.alpha.click=0.1,0.2") == "++model.head.alpha.click=0.1,0.2"


def test_no_present_key_is_an_old_one() -> None:
    assert not set(KEYS) & set(KEYS.values())


def test_a_named_model_refuses_settings_that_it_does_not_have() -> None:
    with pytest.raises(TypeError, match="alpah"):
        models.DLEN(make_schema(), alpah=0.1)
    with pytest.raises(TypeError, match="levels"):
        models.MMoE(make_schema(), levels=2)
    assert PAL(FUNNEL, position_network=(3,)).position_network.out_dim == 3


def test_the_latent_head_goes_on_any_backbone_in_python_too() -> None:
    batch = make_batch(make_schema(), 4)
    for model in (
        models.DLEN(make_schema(), backbone=partial(PLEBackbone, levels=3), alpha=0.2, hidden=(5,)),
        models.DLEN(make_schema(), backbone=PLEBackbone, levels=3, alpha=0.2, hidden=(5,)),
    ):
        assert model(batch).latent is not None
        assert isinstance(model.backbone, PLEBackbone)
        assert len(model.backbone.levels) == 3


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("model.head=null", "head"),
        ("model.backbone=null", "backbone"),
        ("model.embedding=null", "embedding"),
        ("model.interaction=senet", "interaction must be callable, got 'senet'; choose one with model/interaction="),
        ("model.dropout=x", "dropout"),
        ("model.dropout=1.5", "dropout"),
        ("model.head.tower=null", "layer sizes"),
        ("model.head.tower=[8.5]", "layer sizes"),
        ("model.head.alpha=null", "alpha"),
        ("model.embedding.dim=null", r"embedding\.dim"),
        ("model.embedding.first_order=x", r"embedding\.first_order"),
        ("model.embedding.private=null", r"embedding\.private"),
        ("model.embedding.shared_part=null", r"embedding\.shared_part"),
        ("model.embedding.shared_part=true", r"embedding\.shared_part is .*; set embedding\.private=true"),
    ],
)
def test_a_setting_of_another_type_is_named(setting: str, named: str) -> None:
    with pytest.raises(UserError, match=f"^config model: .*{named}"):
        made("model=dlen", setting)


@pytest.mark.parametrize(
    "more",
    [{"backbone": "x"}, {"backbone": 3}, {"a.b": 1}, {"embedding": 3, "embedding_dim": 2}, {3: 1}, {"head": None}],
)
def test_a_damaged_old_config_is_left_to_the_checks_of_configs(more: dict[Any, Any]) -> None:
    assert present_model({"_target_": "dlen.models.DLEN", **more})["_target_"].startswith("dlen.models.")
