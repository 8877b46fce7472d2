"""RankingModule: the LightningModule for any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from dlen.batch import Batch
from dlen.data.split import Rows
from dlen.errors import UserError
from dlen.models.features import Features
from dlen.models.model import Model
from dlen.models.predictions import Predictions
from dlen.models.ranker import Ranker
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.id_dropout import IdDropout
from dlen.nn.logspace import log_odds
from dlen.nn.processes import exchange_rows
from dlen.nn.sharded import ShardedTable
from dlen.schema import check_known_tasks, read_schema
from dlen.targets import Targets
from dlen.training.balancing import Balancer, Fixed, OnGradients
from dlen.training.checkpoints import load_weights
from dlen.training.clipping import clip_gradients
from dlen.training.configs import build
from dlen.training.measures import Figures, Measures
from dlen.training.optimizers import Combined, ShardedAdagrad, split_for_sharding
from dlen.training.own_metrics import OwnMetric
from dlen.training.run_folder import load_run_config
from dlen.training.schedulers import MakeSchedule, look_for_plateaus
from dlen.training.static_step import StaticStep


class RankingModule(L.LightningModule):
    """Trains a ranker on its head's loss, and evaluates any model.

    Args:
        model: ranker or baseline.
        make_optimizer: function from a module to the optimiser of its parameters; None for evaluation only.
        auc: ``auto``, ``histogram`` or ``exact``.
        rows: number of rows by stage (``val``, ``test``), for ``auto``.
        base: content of ``metrics.json`` of the run that gains are measured against.
        by_user: compute ranking metrics within users in the test pass.
        balancer: combines the task losses; by default a weighted sum.
        sharding: how the table is split over processes: ``rows`` or ``tables``; None for a copy in each process. A
            sharded table must be created inside ``deferred_tables``.
        id_dropout: replaces rare ids in training batches; None to disable.
        make_schedule: function from the optimiser and the trainer to the learning rate schedule, in the form that
            ``configure_optimizers`` returns; None for constant learning rates.
        own_metrics: the user's own metrics by name.
        make_static: function from this module, at the start of a training, to its static step, which takes the place of
            loss, backward and optimiser; None for the ordinary step.

    Raises:
        ValueError: the model has a single loss for all tasks but the balancer needs one per task, or a balancer weight
            names an unknown task.
    """

    def __init__(
        self,
        model: Model,
        make_optimizer: Callable[[nn.Module], Optimizer] | None = None,
        auc: str = "auto",
        rows: Mapping[str, int] | None = None,
        base: Mapping[str, float] | None = None,
        by_user: bool = False,
        balancer: Balancer | None = None,
        sharding: str | None = None,
        id_dropout: IdDropout | None = None,
        make_schedule: MakeSchedule | None = None,
        own_metrics: Mapping[str, OwnMetric] | None = None,
        make_static: Callable[[RankingModule], StaticStep | None] | None = None,
    ) -> None:
        super().__init__()
        self.make_static = make_static
        self._static: StaticStep | None = None
        self.model = model
        self.make_schedule = make_schedule
        self.id_dropout = id_dropout
        self.balancer = Fixed() if balancer is None else balancer
        self.balancer.setup(len(model.schema.tasks))
        check_balanceable(model, self.balancer)
        self._graph: tuple[Tensor, Tensor, Tensor] | None = None  # set in steps with gradient surgery
        self.make_optimizer = make_optimizer
        self.sharding = sharding
        self._optimizer: Optimizer | None = None  # built early for a sharded table, which needs its settings
        self.targets = Targets(model.schema)
        factors = self.balancer.weights
        check_known_tasks("weights", factors, model.schema.task_names)
        weights = torch.tensor([task.weight * float(factors.get(task.name, 1.0)) for task in model.schema.tasks])
        self.register_buffer("task_weights", weights, persistent=False)
        self.task_weights: Tensor
        self.measures = torch.nn.ModuleDict(
            {
                stage: Measures(
                    model.schema,
                    auc,
                    (rows or {}).get(stage, 0),
                    model.ranking,
                    _base_auc(base, stage, self.targets.names),
                    by_user=by_user and stage == "test",
                    own=own_metrics,
                    states=model.state_names,
                )
                for stage in ("val", "test")
            }
        )
        self.figures: dict[str, Figures] = {}  # metrics of the latest pass of each stage
        # DDP reads the attribute below and skips what it names: tables, whose gradients this module exchanges itself,
        # and buffers, which are constants or sums of one process.
        tables = {name: m for name, m in self.named_modules() if isinstance(m, EmbeddingTable)}
        self._tables = list(tables.values())
        buffers = [name for name, _ in self.named_buffers()]
        self._ddp_params_and_buffers_to_ignore = [*(f"{name}.weight" for name in tables), *buffers]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *args: Any, trust: Sequence[str] = (), **kwargs: Any
    ) -> RankingModule:
        """Load a checkpoint of a run folder for evaluation and prediction, on the CPU.

        The model comes from the run's ``config.yaml`` and ``schema.json``, so the checkpoint has to lie in its folder.

        Args:
            checkpoint_path: ``RUN/checkpoints/best.ckpt`` or another checkpoint of the run.
            args: not used; Lightning's signature.
            trust: packages, besides dlen, whose classes the run's config may name.
            kwargs: not used; Lightning's signature.

        Raises:
            UserError: the checkpoint is not that of a run, or is damaged.
        """
        path = Path(checkpoint_path)
        run = next((folder for folder in path.absolute().parents if (folder / "config.yaml").exists()), None)
        if run is None:
            raise UserError(f"{path}: lies in no run folder, so its model is not known")
        config = load_run_config(run, trust, to_train=False)
        model: Model = build(config.model, "model", read_schema(run / "schema.json"))
        load_weights(model, path)
        return cls(model).eval()

    def predict_step(self, batch: Batch, batch_idx: int) -> Predictions:
        """Predict the probability of every task."""
        return self._predict(batch)

    def configure_model(self) -> None:
        """Shard the table, once the processes are connected."""
        if self.sharding is None or not isinstance(self.model, Ranker):
            return
        table: nn.Module = self.model.embedding
        if not isinstance(table, EmbeddingTable):
            return
        dense, settings = split_for_sharding(self._make_optimizer())
        device = self.trainer.strategy.root_device
        sharded = ShardedTable(table, self.model.schema, self.sharding, device, settings)
        self.model.embedding = sharded  # type: ignore[assignment]  # only exporting needs more
        self._tables = []
        self._optimizer = Combined([dense, ShardedAdagrad(sharded, settings)])

    def forward(self, batch: Batch) -> Predictions:
        """Predict the probability of every task for B rows."""
        predictions: Predictions = self.model(batch)
        return predictions

    def on_train_start(self) -> None:
        """Set up the static step, if this training can have one."""
        self._static = None if self.make_static is None else self.make_static(self)
        # Lightning neither resets gradients nor calls backward then, nor the ten hooks around them.
        optimization = self.trainer.fit_loop.epoch_loop.automatic_optimization
        optimization._skip_backward = self._static is not None

    def training_step(self, batch: Batch | Rows, batch_idx: int) -> Tensor:
        """Compute the training loss, or train by the static step, which computes the gradients and updates as well."""
        if isinstance(batch, Rows):
            assert self._static is not None
            return self._static(batch.index)
        return self.training_loss(batch)

    def training_loss(self, batch: Batch, fixed_loss: Callable[..., Tensor] | None = None) -> Tensor:
        """Compute the training loss of the head and the balancer.

        Args:
            fixed_loss: takes the place of :meth:`fixed_loss`, such as its compiled form.
        """
        assert isinstance(self.model, Ranker)  # a baseline is fitted in one go
        if self.id_dropout is not None:
            batch = self.id_dropout(batch)  # here, so that it works for every model
        labels, mask = self.targets.training_labels(batch.labels), self.targets.trained(batch.labels)
        head, row_weights = self.model.head, batch.row_weights
        features = self.model.features(batch)
        if isinstance(self.balancer, Fixed):
            loss = (fixed_loss or self.fixed_loss)(features.values, labels, mask, row_weights, batch.known_views)
        else:
            predictions = self.model.predict(features)
            losses = head.task_losses(predictions, labels, mask, row_weights)
            extra = head.extra_loss(predictions, row_weights)
            loss = self.balancer(losses, self.task_weights) + extra
            if self.balancer.on_gradients:
                self._graph = (losses * self.task_weights, features.values, extra)
        return loss

    def fixed_loss(
        self, values: Tensor, labels: Tensor, mask: Tensor, row_weights: Tensor | None, known_views: Tensor | None
    ) -> Tensor:
        """The training loss with constant task weights, from the (B, D) features of a batch."""
        assert isinstance(self.model, Ranker)
        predictions = self.model.predict(Features(values, self.model.spec))
        return self.model.head.loss(predictions, labels, mask, self.task_weights, row_weights, known_views)

    def on_train_batch_end(self, outputs: Any, batch: Batch | Rows, batch_idx: int) -> None:
        """Log the loss only at the steps that Lightning writes; logging every step costs 4 % of a step."""
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", outputs["loss"], batch_size=len(batch))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients of the loss, or apply gradient surgery to those of the tasks."""
        if self._graph is None:
            loss.backward(*args, **kwargs)
            return
        assert isinstance(self.balancer, OnGradients)
        assert isinstance(self.model, Ranker)
        losses, x, extra = self._graph
        self._graph = None
        self.balancer.backward(self.model, losses, x, extra if extra.requires_grad else None)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Update the weights, which a static step has done."""
        if self._static is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        else:
            assert optimizer_closure is not None
            optimizer_closure()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average the tables' gradients over processes."""
        for table in self._tables:
            exchange_rows(table.weight)

    def on_train_epoch_end(self) -> None:
        """Notify the balancer."""
        self.balancer.end_epoch()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._measure("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add a batch to the test metrics, and return the (B, K) ranking log-odds of all measured targets."""
        predictions = self._measure("test", batch)
        return log_odds(self.targets.log_probabilities(predictions.log_score))

    def _measure(self, stage: str, batch: Batch) -> Predictions:
        measures = self.measures[stage]
        assert isinstance(measures, Measures)
        predictions = self._predict(batch)
        measures.update(predictions, batch)
        return predictions

    def _predict(self, batch: Batch) -> Predictions:
        """Predict in 32 bits: bfloat16 logits take few distinct values, and ties cannot be ranked."""
        with torch.autocast(self.device.type, enabled=False):
            predictions: Predictions = self.model(batch)
        return predictions

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._report("val")
        weights = self.balancer.task_weights()
        if weights is not None:
            self.log_dict({f"train/weight/{n}": w for n, w in zip(self.model.schema.task_names, weights, strict=True)})

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._report("test")

    def _report(self, stage: str) -> None:
        measures = self.measures[stage]
        assert isinstance(measures, Measures)
        figures = measures.compute()
        if stage == "test":
            figures.curves = measures.curves()
        measures.reset()
        self.figures[stage] = figures
        values = {f"{stage}/{key}": value for key, value in figures.values.items()}
        self.log_dict({key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()})
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            look_for_plateaus(self.trainer, values)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of the dense parameters and of the tables' rows together."""
        if gradient_clip_val:
            clip_gradients(self.parameters(), float(gradient_clip_val), gradient_clip_algorithm or "norm")

    def configure_optimizers(self) -> Any:
        """Return the optimiser and the schedule given at construction."""
        optimizer = self._make_optimizer() if self._optimizer is None else self._optimizer
        if self.make_schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_schedule(optimizer, self.trainer)}

    def _make_optimizer(self) -> Optimizer:
        if self.make_optimizer is None:
            raise ValueError("this module has no make_optimizer, so it can only evaluate")
        return self.make_optimizer(nn.ModuleList([self.model, self.balancer]))


def _base_auc(base: Mapping[str, float] | None, stage: str, names: list[str]) -> dict[str, float] | None:
    auc = {n: base.get(f"{stage}/auc/{n}") for n in names} if base else {}
    return {n: v for n, v in auc.items() if v is not None} or None


def check_balanceable(model: Model, balancer: Balancer) -> None:
    """Raise ValueError if the balancer needs one loss per task and the model has none."""
    if isinstance(balancer, Fixed):
        return
    if not isinstance(model, Ranker):
        raise ValueError("the model fits each task separately, so there is no loss to balance; set balancing=fixed")
    nothing = torch.zeros(1, len(model.schema.tasks))
    predictions = Predictions(nothing, nothing, nothing, log_joint=nothing - 1, imputed=nothing)
    model.head.task_losses(predictions, nothing, nothing)
