"""New embedding tables for later epochs: when they come, what they leave as it is, and resumed runs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch

from dlen.errors import UserError
from dlen.models import DLEN, STEM, MMoE, Ranker
from dlen.nn.embedding import EmbeddingTable
from dlen.training.callbacks import Patience
from dlen.training.fit import train
from dlen.training.fresh_tables import FreshTables
from dlen.training.module import RankingModule
from dlen.training.optimizers import adagrad, adam
from dlen.training.selection import Selection
from tests.conftest import ROOT, Compose
from tests.helpers import WITH_DIMS, WITH_SEQUENCES, make_batch, make_schema

SMALL: dict[str, Any] = {"embedding_dim": 4, "expert": (8, 6), "tower": (4,)}


def fake_trainer(**more: Any) -> L.Trainer:
    fake = SimpleNamespace(current_epoch=0, sanity_checking=False, is_global_zero=True, optimizers=[], callbacks=[])
    return cast(L.Trainer, SimpleNamespace(**{**vars(fake), **more}))


def table_of(module: RankingModule) -> torch.Tensor:
    """A copy of the table's values."""
    table: Any = module.model.embedding
    return cast(torch.Tensor, table.weight).detach().clone()


def fresh_epochs(reset: str | bool, better: tuple[bool, ...]) -> list[int]:
    """The epochs that start with a new table, if each has one validation, which is the best so far or is not."""
    selection, module = Selection("val/auc/mean", "max"), RankingModule(MMoE(make_schema(), **SMALL))
    fresh, epochs = FreshTables(reset, 0, selection), []
    for epoch, is_best in enumerate(better):
        before = table_of(module)
        trainer = fake_trainer(current_epoch=epoch)
        fresh.on_train_epoch_start(trainer, module)
        if not torch.equal(table_of(module), before):
            epochs.append(epoch)
        if is_best:
            selection.epoch = epoch
        fresh.on_validation_end(trainer, module)
    return epochs


@pytest.mark.parametrize("better", [(True, *rest) for rest in product([True, False], repeat=4)])
def test_auto_waits_for_an_epoch_without_a_better_validation(better: tuple[bool, ...]) -> None:
    worse = better.index(False) if False in better else len(better)
    assert fresh_epochs("auto", better) == list(range(worse + 1, len(better)))
    assert fresh_epochs(True, better) == list(range(1, len(better)))
    assert fresh_epochs(False, better) == []


def test_an_epoch_without_a_validation_tells_nothing() -> None:
    selection = Selection("val/auc/mean", "max")
    fresh, module = FreshTables("auto", 0, selection), RankingModule(MMoE(make_schema(), **SMALL))
    selection.epoch = 0
    fresh.on_validation_end(fake_trainer(current_epoch=0), module)
    for epoch in range(1, 4):
        fresh.on_train_epoch_start(fake_trainer(current_epoch=epoch), module)
    assert fresh.first == -1


def test_the_first_new_table_has_the_whole_patience(capsys: pytest.CaptureFixture[str]) -> None:
    selection = Selection("val/auc/mean", "max")
    fresh, module = FreshTables("auto", 0, selection), RankingModule(MMoE(make_schema(), **SMALL))
    patience = Patience("val/auc/mean", patience=3, mode="max")
    other = Patience("val/logloss/click", patience=3)
    patience.wait_count = other.wait_count = 2
    selection.epoch = 0
    fresh.on_validation_end(fake_trainer(current_epoch=1), module)
    fresh.on_train_epoch_start(fake_trainer(current_epoch=2, callbacks=[patience, other]), module)
    assert (patience.wait_count, other.wait_count) == (0, 2)
    assert "reset_embeddings" in capsys.readouterr().err
    patience.wait_count = 2
    fresh.on_train_epoch_start(fake_trainer(current_epoch=3, callbacks=[patience]), module)
    assert patience.wait_count == 2


DATA = sorted(path.stem for path in (ROOT / "conf/data").glob("*.yaml"))


@pytest.mark.parametrize("data", DATA)
def test_new_tables_can_begin_before_training_ends(data: str, composed: Compose) -> None:
    config = composed(f"data={data}")
    validations = round(1 / config.trainer.val_check_interval)
    assert config.patience > (validations - 1) + validations  # the best one is an epoch's first, the next has no better


MODELS: dict[str, Any] = {
    "mmoe": lambda: MMoE(make_schema(), **SMALL),
    "dlen": lambda: DLEN(make_schema(), hidden=(5,), **SMALL),
    "stem": lambda: STEM(make_schema(), **SMALL),
    "dims": lambda: MMoE(make_schema(fields=WITH_DIMS), **SMALL),
    "sequences": lambda: MMoE(make_schema(fields=WITH_SEQUENCES), **SMALL),
}


@pytest.mark.parametrize("make_optimizer", [adam, adagrad])
@pytest.mark.parametrize("name", MODELS)
def test_a_new_table_is_one_of_a_new_model_and_the_rest_stays(name: str, make_optimizer: Any) -> None:
    torch.manual_seed(0)
    model: Ranker = MODELS[name]()
    module = RankingModule(model)
    optimizer = make_optimizer(model, lr=0.1, embedding_lr=0.1)
    batch = make_batch(model.schema, 64)
    for _ in range(3):
        optimizer.zero_grad()
        ones = torch.ones(64, 3)
        model.head.loss(model(batch), batch.labels, ones, torch.ones(3)).backward()
        optimizer.step()
    tables = {n: p for n, p in model.named_parameters() if p.grad is not None and p.grad.is_sparse}
    before = {n: p.clone() for n, p in model.named_parameters()}
    fresh = FreshTables(True, 7, Selection("val/auc/mean", "max"))
    fresh.on_train_epoch_start(fake_trainer(current_epoch=2, optimizers=[optimizer]), module)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == (key not in tables), key
    for table in model.modules():
        if isinstance(table, EmbeddingTable):
            vectors, terms = table.weight[:, : table.dim], table.weight[:, table.dim :]
            assert not terms.any()
            assert float(vectors.detach().std()) == pytest.approx(0.05, rel=0.25)
    dense, rows = (part.state for part in optimizer.parts)
    assert not any(bool(torch.as_tensor(value).any()) for table in tables.values() for value in rows[table].values())
    assert all(bool(torch.as_tensor(value).any()) for state in dense.values() for value in state.values())


def test_tables_depend_on_seed_and_epoch_alone() -> None:
    def table(seed: int, epoch: int) -> torch.Tensor:
        module = RankingModule(MMoE(make_schema(), **SMALL))
        FreshTables(True, seed, Selection("x", "max")).on_train_epoch_start(fake_trainer(current_epoch=epoch), module)
        return table_of(module)

    torch.manual_seed(0)
    first = table(3, 1)
    assert torch.equal(table(3, 1), first)
    assert not torch.equal(table(3, 2), first)
    assert not torch.equal(table(4, 1), first)


SETTINGS = ["model=mmoe", "data.rows=6000", "data.users=50", "data.items=40", "loader.batch_size=512"]
SETTINGS += ["model.embedding.dim=4", "model.head.tower=[8]", "model.backbone.expert=[8]", "trainer.max_epochs=3"]


@pytest.mark.slow
def test_a_run_resumed_within_a_later_epoch_keeps_its_table(composed: Compose, tmp_path: Path) -> None:
    settings = [*SETTINGS, "reset_embeddings=true"]
    whole = train(composed(*settings, f"run_dir={tmp_path / 'whole'}"))
    parted = [*settings, f"run_dir={tmp_path / 'parted'}"]
    train(composed(*parted, "trainer.max_steps=15"))  # of 10 steps in an epoch
    again = train(composed(*parted, "ckpt=last", "trainer.max_steps=-1"))
    assert whole["fit/reset_from_epoch"] == again["fit/reset_from_epoch"] == 2
    same = [key for key in whole if key.startswith(("test/", "val/"))]
    assert {k: again[k] for k in same} == pytest.approx({k: whole[k] for k in same}, abs=0, nan_ok=True)
    never = train(composed(*SETTINGS, "reset_embeddings=false"))
    assert never["test/auc/mean"] != whole["test/auc/mean"]
    assert "fit/reset_from_epoch" not in never


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["reset_embeddings=yes please"], "config reset_embeddings: 'yes please' is not auto, true or false"),
        (["reset_embeddings=1"], "config reset_embeddings: 1 is not auto, true or false"),
        (["reset_embeddings=true", "init_from=runs/yesterday"], "config reset_embeddings: true loses the vectors"),
    ],
)
def test_what_cannot_be_set(more: list[str], message: str, composed: Compose) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        train(composed(*SETTINGS, *more))
