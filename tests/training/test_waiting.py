"""No training step waits for a GPU: on the meta device, which has no values, nothing can be read from a tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Adam
from torch.overrides import TorchFunctionMode

from dlen import models
from dlen.data.split import ResidentSplit
from dlen.models import Named
from dlen.nn.id_dropout import IdDropout
from dlen.schema import Field, Task
from dlen.targets import Targets
from dlen.training.optimizers import adagrad, adam
from dlen.training.static_step import likely_totals
from tests.helpers import FIELDS, WITH_DIMS, WITH_VECTORS, make_batch, make_schema
from tests.training.test_static_step import with_groups

FUNNEL = (
    Task("ctr", 0.3),
    Task("cvr", 0.1, observed_where="ctr", joint="ctcvr"),
    Task("pay", 0.1, observed_where="cvr", joint="paid"),
    Task("hide", 0.1, dislike=True),
)
NAMES = [name for name, kind in vars(models).items() if isinstance(kind, type) and issubclass(kind, Named)]
NAMES.remove("Named")


class Sent(TorchFunctionMode):
    """Records what would be sent to a GPU or read from it: values of Python, and tensors of the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, index = getattr(func, "__name__", ""), args[1] if len(args) > 1 else ()
        if name in ("__getitem__", "__setitem__"):
            parts = index if isinstance(index, tuple) else (index,)
            waits = any(isinstance(p, list) or (isinstance(p, Tensor) and p.dtype is torch.bool) for p in parts)
        else:
            waits = name in ("tensor", "as_tensor", "new_tensor", "from_numpy", "to")
            waits = waits and not (isinstance(args[0], Tensor) and args[0].is_meta)
        if waits:
            self.calls.append(f"{name} {index}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fields", [FIELDS, WITH_VECTORS, WITH_DIMS], ids=["bags", "all kinds", "own tables"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_for_nothing(name: str, fields: tuple[Field, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    make = adagrad if name == "MMoE" else adam
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # which the meta device does not know
    schema = replace(make_schema(FUNNEL, fields), position="item")
    model = getattr(models, name)(schema).to("meta")
    batch, targets = make_batch(schema, 8).to("meta"), Targets(schema)
    id_dropout = IdDropout(schema, torch.ones(schema.num_embeddings)).to("meta")
    optimizer = make(model, lr=0.1, embedding_lr=0.1, dense=Adam)
    weights = torch.ones(len(FUNNEL), device="meta")
    with Sent() as sent:
        batch = id_dropout(batch)
        labels, mask = targets.training_labels(batch.labels), targets.trained(batch.labels)
        model.head.loss(model(batch), labels, mask, weights).backward()
        optimizer.parts[1].step()  # type: ignore[attr-defined]  # torch's own Adam asks whether its device can be captured
    assert sent.calls == []


def test_a_step_that_a_graph_can_repeat_waits_for_nothing() -> None:
    schema = make_schema(FUNNEL)
    resident = ResidentSplit(with_groups(schema), torch.device("meta"))
    model = models.MMoE(schema).to("meta")
    optimizer = adam(model, lr=0.1, embedding_lr=0.1, dense=Adam)
    rows = optimizer.parts[1]  # type: ignore[attr-defined]
    index, totals = torch.zeros(8, dtype=torch.int64, device="meta"), likely_totals(resident.host, 8)

    def step() -> None:
        model(resident.copy.batch(index, totals, padded=True)).log_p.sum().backward()
        rows.step()

    step()  # allocates the state
    with Sent() as sent:
        step()
    assert sent.calls == []
