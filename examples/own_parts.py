# %% [markdown]
# # Your own backbone, callback, schedule and metric
#
# Everything in dlen is a `torch.nn.Module`, a Lightning class or a torchmetrics class, so yours fit in where ours are.
# This notebook puts the latent head of DLEN on a backbone that dlen does not have, trains it with a schedule of torch and
# Lightning's own early stopping, and measures it with a metric of torchmetrics.

# %%
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import polars as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import nn
from torchmetrics.classification import BinaryAveragePrecision

from dlen.data.prepare import prepare
from dlen.data.sources.frame import frame_source
from dlen.models import Ranker
from dlen.models.backbones import Backbone
from dlen.models.dlen import LatentHead
from dlen.nn.embedding import EmbeddingTable
from dlen.training.building import quiet
from dlen.training.datamodule import RankingDataModule
from dlen.training.module import RankingModule
from dlen.training.optimizers import adam
from dlen.training.own_metrics import OwnMetric

quiet()  # Lightning's own chatter

# %% [markdown]
# ## A log
#
# Yours comes from `pl.read_parquet` or a query; this one is drawn here.

# %%
rng = np.random.default_rng(0)
rows, users, items = 30_000, 300, 150
user, item = rng.integers(0, users, rows), rng.integers(0, items, rows)
liking = rng.normal(size=(users, 2))[user] * rng.normal(size=(items, 2))[item]
odds = 1 / (1 + np.exp(1.0 - 1.5 * liking.sum(1)))
log = pl.DataFrame(
    {
        "user": user,
        "item": item,
        "category": item % 10,
        "click": (rng.random(rows) < odds).astype(int),
        "like": (rng.random(rows) < 0.4 * odds).astype(int),
    }
)
spec = {
    "fields": {"user": {"side": "user"}, "item": {"side": "item"}, "category": {"side": "item"}},
    "tasks": {"click": "click", "like": "like"},
    "user": "user",
}
folder = Path("data") / "own_parts"
store = prepare(frame_source(log, spec, folder, "my_log"), folder)

# %% [markdown]
# ## A backbone
#
# A backbone maps the features of B rows to a representation for each of T tasks, (T, B, H). `features.fields` has one
# vector for each field, (B, F, E), `features.flat` all of them side by side, (B, D). This one weighs the fields by a gate
# of their own before a layer for each task (a squeeze-and-excitation network; Huang et al. 2019).


# %%
class GatedFields(Backbone):
    def __init__(self, spec, num_tasks, *, width=32, dropout=0.0):
        super().__init__()
        fields = len(spec.fields)
        self.gate = nn.Sequential(nn.Linear(fields, fields), nn.ReLU(), nn.Linear(fields, fields), nn.Sigmoid())
        self.layers = nn.ModuleList(nn.Linear(fields * spec.dim, width) for _ in range(num_tasks))
        self.dropout = nn.Dropout(dropout)
        self.out_dim = width

    def forward(self, features):
        fields = features.fields  # (B, F, E)
        weighted = fields * self.gate(fields.mean(2))[:, :, None]
        return torch.stack([self.dropout(layer(weighted.flatten(1)).relu()) for layer in self.layers])

    def shared_parameters(self):
        return list(self.gate.parameters())


L.seed_everything(0, verbose=False)
model = Ranker(
    store.schema,
    embedding=partial(EmbeddingTable, dim=8, first_order=True),
    backbone=partial(GatedFields, width=32),
    head=partial(LatentHead, tower=(16,), hidden=(32, 16)),
)
print(model.backbone)

# %% [markdown]
# ## A callback, a schedule and a metric
#
# The optimiser is one `torch.optim.Optimizer` for the dense parameters and the embedding table, so schedules of torch
# act on both learning rates.


# %%
class Best(Callback):
    """Remembers the best validation AUC, and when it came."""

    def __init__(self):
        self.step, self.auc = 0, 0.0

    def on_validation_end(self, trainer, module):
        auc = module.figures["val"].values["auc/mean"]
        if auc > self.auc:
            self.step, self.auc = trainer.global_step, auc


def schedule(optimizer, trainer):
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.7)
    return {"scheduler": scheduler, "interval": "epoch"}


precision = OwnMetric(BinaryAveragePrecision(), targets=("click", "like"), mode="max")
module = RankingModule(
    model,
    partial(adam, lr=3e-3, embedding_lr=1e-2),
    rows={name: len(store.split(split)) for name, split in (("val", "validation"), ("test", "test"))},
    make_schedule=schedule,
    own_metrics={"average_precision": precision},
)
data = RankingDataModule(store, batch_size=512, eval_batch_size=8192, seed=0)
best = Best()
trainer = L.Trainer(
    max_epochs=6,
    callbacks=[best, EarlyStopping("val/average_precision/mean", mode="max", patience=2)],
    gradient_clip_val=5.0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, datamodule=data)
trainer.test(module, datamodule=data, verbose=False)
figures = module.figures["test"].values
names = store.schema.task_names
print(
    pl.DataFrame(
        {
            "task": names,
            "auc": [figures[f"auc/{name}"] for name in names],
            "average precision": [figures[f"average_precision/{name}"] for name in names],
        }
    )
)
print(f"best validation AUC {best.auc:.4f} at step {best.step}")

# %% [markdown]
# ## The same on the command line
#
# Put `GatedFields` in `my_parts.py`, and a config beside it, `conf/model/backbone/gated.yaml`:
#
# ```yaml
# _target_: my_parts.GatedFields
# _partial_: true
# width: 32
# ```
#
# Then `PYTHONPATH=. dlen-train --config-dir conf model=dlen model/backbone=gated` trains it on any data set, with every
# head; `dlen-compare` compares it over seeds, and `dlen-sweep` searches its width.
