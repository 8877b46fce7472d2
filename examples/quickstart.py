# %% [markdown]
# # DLEN on a Polars frame
#
# From a log as a Polars frame to a trained DLEN, its plots and its scores, in Python alone: no config files, no command
# line. Every part is a class or a function of the package that you can use by itself.

# %%
# %matplotlib inline
from functools import partial
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import torch

from dlen.data.prepare import prepare
from dlen.data.sources.frame import frame_source
from dlen.metrics.hidden import NEGATIVES, PATTERNS
from dlen.models import DLEN
from dlen.models.backbones import MMoEBackbone
from dlen.ranking.scoring import score
from dlen.training.building import quiet
from dlen.training.datamodule import RankingDataModule
from dlen.training.gates import GateMonitor
from dlen.training.module import RankingModule
from dlen.training.optimizers import adam

quiet()  # Lightning's own chatter

# %% [markdown]
# ## A log
#
# One row for each impression: who saw what, and what they did. Yours comes from `pl.read_parquet` or a query; this one is
# drawn here, so that the notebook runs anywhere. Whether the user liked the item (`liked`) is never logged; a click or a
# share mostly happens when they did.

# %%
rng = np.random.default_rng(0)
rows, users, items = 60_000, 400, 200
user, item = rng.integers(0, users, rows), rng.integers(0, items, rows)
user_taste, item_taste = rng.normal(size=(users, 3)), rng.normal(size=(items, 3))
quality = 1.5 * rng.normal(size=items)
liked = rng.random(rows) < 1 / (1 + np.exp(0.5 - quality[item] - (user_taste[user] * item_taste[item]).sum(1)))
habit = rng.normal(size=(users, 3))  # some click on everything, some never share


def happened(column: int, bias: float) -> np.ndarray:
    """A task's labels: by the user's habit, and a tenth as likely where the item is not liked."""
    odds = 1 / (1 + np.exp(-habit[user, column] - bias))
    return (rng.random(rows) < np.where(liked, odds, 0.1 * odds)).astype(int)


log = pl.DataFrame(
    {
        "user": user,
        "item": item,
        "category": item % 12,
        "hour": rng.integers(0, 24, rows),
        "click": happened(0, 0.4),
        "like": happened(1, -0.6),
        "share": happened(2, -1.6),
    }
)
print(log.head())

# %% [markdown]
# ## From columns to batches
#
# The spec says what the columns are, in the words of the YAML that `data=table` reads. The frame is written next to the
# prepared data, which are memory-mapped: training never holds the log in memory.

# %%
spec = {
    "fields": {
        "user": {"kind": "id", "side": "user"},
        "item": {"kind": "id", "side": "item"},
        "category": {"kind": "id", "side": "item"},
        "hour": {"kind": "id"},
    },
    "tasks": {"click": "click", "like": "like", "share": "share"},
    "split": {"by": "fraction", "validation": 0.1, "test": 0.1},
    "user": "user",
}
folder = Path("data") / "quickstart"
store = prepare(frame_source(log, spec, folder, "my_log"), folder)
print({name: len(store.split(name)) for name in ("train", "validation", "test")})
print({task.name: round(task.rate, 3) for task in store.schema.tasks})

# %% [markdown]
# ## A model
#
# A `torch.nn.Module` that takes the schema and its sizes. The latent head stands on any backbone.

# %%
L.seed_everything(0, verbose=False)
model = DLEN(
    store.schema,
    backbone=partial(MMoEBackbone, num_experts=3, expert=(64, 32)),
    embedding_dim=8,
    tower=(32,),
    hidden=(64, 32),
    likelihood="full",
    alpha=1.0,
    initial_leak=0.05,
    match=4,
)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# ## Training
#
# `RankingModule` measures every figure of `metrics.json`; the trainer is Lightning's own.

# %%
splits = {"val": len(store.split("validation")), "test": len(store.split("test"))}
module = RankingModule(model, partial(adam, lr=2e-3, embedding_lr=1e-2), rows=splits)
data = RankingDataModule(store, batch_size=512, eval_batch_size=8192, seed=0)
gates = GateMonitor()
trainer = L.Trainer(
    max_epochs=4,
    callbacks=[gates],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, datamodule=data)
trainer.test(module, datamodule=data, verbose=False)
figures = module.figures["test"]
tasks = store.schema.task_names
table = pl.DataFrame(
    {
        "task": tasks,
        "auc": [figures.values[f"auc/{t}"] for t in tasks],
        "logloss": [figures.values[f"logloss/{t}"] for t in tasks],
        "predicted over observed": [figures.values[f"calibration/{t}"] for t in tasks],
        "leak": [figures.values[f"leak/{t}"] for t in tasks],
    }
)
print(table)

# %% [markdown]
# ## What it has learnt
#
# P(UP), which no label says: rows with an interaction lie to the right. And what a negative means: another interaction,
# silent liking, or detest.

# %%
counts = figures.hidden.counts.numpy()  # (patterns, bins)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5))
for pattern, rows in zip(PATTERNS, counts, strict=True):
    if rows.sum():
        left.stairs(rows / rows.sum() * len(rows), np.linspace(0, 1, len(rows) + 1), label=pattern)
left.set(xlabel="P(UP)", ylabel="density", title="P(UP) by what happened")
left.legend()
bottom = np.zeros(len(tasks))
for kind, share in zip(NEGATIVES, figures.hidden.kinds.numpy().T, strict=True):
    right.bar(tasks, share, bottom=bottom, label=kind)
    bottom += share
right.set(title="What a negative means")
right.legend()

# %% [markdown]
# Which experts each task listens to:

# %%
figure, panel = plt.subplots(figsize=(6, 2.5))
image = panel.imshow([gate.weights for gate in gates.last], cmap="Blues", vmin=0, vmax=1, aspect="auto")
panel.set(xticks=range(len(gates.last[0].experts)), xticklabels=gates.last[0].experts)
panel.set(yticks=range(len(gates.last)), yticklabels=[gate.owner for gate in gates.last], title="Mean weight")
figure.colorbar(image)

# %% [markdown]
# ## Scores
#
# Probabilities of every test row, and `up`, P(UP): higher where something happened.

# %%
found = score(model, store.split("test"))
scores = pl.DataFrame(found.log_p.exp().numpy(), schema=[f"P({t})" for t in tasks]).with_columns(
    up=pl.Series(found.log_states[:, 0].exp().numpy()),
    interacted=pl.Series(found.labels.amax(1).numpy().astype(bool)),
)
print(scores.group_by("interacted").agg(pl.col("up").mean(), pl.len()).sort("interacted"))
best = torch.topk(found.log_p[:, tasks.index("share")], 5).indices
print(scores[best.tolist()])
