"""How much of the gap to the oracle can be closed: the simulator's own formula, fitted to the same rows.

The oracle knows every user's habits and taste. A model that learns them from the training rows cannot match it. This
bench fits a model with the true form (habit of user and category, dot product of taste and topic, the true leak) and
priors as wide as the world's. No network can be expected to do better.

python bench/reachable.py            # data=feed as shipped
python bench/reachable.py 1000000    # more rows
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from common import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.batch import Batch
from dlen.data.loader import BatchLoader
from dlen.data.prepare import prepare
from dlen.data.sources.feed import Feed
from dlen.data.split import Split
from dlen.metrics.functional import exact_auc
from dlen.models.dlen import joint_loss
from dlen.models.predictions import Latent
from dlen.nn.logspace import log1mexp
from dlen.schema import Schema

EPOCHS, FACTORS, LEAK = 12, 4, 0.1


class TrueForm(nn.Module):
    """The feed's formula with unknown habits, tastes and topics."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        ids, tasks = schema.num_embeddings, len(schema.tasks)
        self.columns = [f.name for f in schema.fields]
        self.offsets, self.genders = schema.offsets, 2
        self.habit, self.vector, self.bias = nn.Embedding(ids, tasks), nn.Embedding(ids, FACTORS), nn.Embedding(ids, 1)
        self.profile = nn.Embedding(7 * self.genders, FACTORS)
        nn.init.normal_(self.habit.weight, std=0.01)
        for table in (self.vector, self.profile):
            nn.init.normal_(table.weight, std=0.3)
        nn.init.zeros_(self.bias.weight)
        self.task_bias = nn.Parameter(torch.logit(torch.tensor([t.rate / 0.4 for t in schema.tasks])))
        self.up_bias = nn.Parameter(torch.tensor(-0.6))

    def forward(self, batch: Batch) -> tuple[Latent, Tensor]:
        """The hidden state and conditionals, and this batch's share of the negative log-prior."""
        ids = dict(zip(self.columns, batch.ids.long().T, strict=True))
        age, gender = (ids[n] - self.offsets[n] - 1 for n in ("age", "gender"))
        user, item = self.vector(ids["user"]), self.vector(ids["item"])
        taste = user + self.profile(age * self.genders + gender)
        match = (taste * (item + self.vector(ids["category"]))).sum(1)
        up = match + self.bias(ids["item"])[:, 0] + self.bias(ids["hour"])[:, 0] + self.up_bias
        habit = self.habit(ids["user"])
        log_c = F.logsigmoid(habit + self.habit(ids["category"]) + self.task_bias)
        log_n = log_c + torch.tensor(LEAK).log()
        log_up, log_not_up = F.logsigmoid(up), F.logsigmoid(-up)
        joint = log_up[:, None] + log_c
        latent = Latent(log_up, log_not_up, log_c, log_n, log1mexp(log_c), log1mexp(log_n), joint)
        # 60 rows per user, 120 per item; widths as in the world, where strength doubles taste times topic.
        prior = habit.square().sum() / (1.5**2 * 60) + 2 * user.square().sum() / (0.6**2 * 60)
        return latent, (prior + 2 * item.square().sum() / (0.44**2 * 120)) / (2 * len(batch))


@torch.no_grad()
def mean_auc(model: TrueForm, split: Split) -> float:
    """Mean AUC of equation (1) over the tasks."""
    scores, labels = [], []
    for batch in BatchLoader(split, 16384, shuffle=False):
        latent, _ = model(batch)
        without = latent.log_given_not_up + latent.log_not_up[:, None]
        scores.append(torch.logaddexp(latent.log_joint, without))
        labels.append(batch.labels)
    columns = zip(torch.cat(scores).T, torch.cat(labels).T, strict=True)
    return float(torch.stack([exact_auc(s, y) for s, y in columns]).mean())


def main() -> None:
    """Fit the model, select the epoch on validation, and print its test AUC."""
    torch.manual_seed(0)
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    store = prepare(Feed(rows=rows), Path(ROOT / "data"))
    model = TrueForm(store.schema)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = BatchLoader(store.split("train"), 1024, shuffle=True)
    best = (0.0, 0.0)
    for _ in range(EPOCHS):
        for batch in loader:
            latent, prior = model(batch)
            optimizer.zero_grad()
            (joint_loss(latent, batch.labels, torch.ones_like(batch.labels)) + prior).backward()
            optimizer.step()
        best = max(best, (mean_auc(model, store.split("validation")), mean_auc(model, store.split("test"))))
    print(f"true form fitted to {rows:,} rows: mean AUC {best[0]:.4f} on validation, {best[1]:.4f} on test")


if __name__ == "__main__":
    main()
