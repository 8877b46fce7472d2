"""Codings of vector fields: how an export's schema.json describes them, and raw values to check it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlen.batch import Batch
from dlen.data.store import Store
from dlen.schema import Field, Kind
from dlen.serving.raw_ids import Row


def vector_place(store: Store, field: Field) -> dict[str, int]:
    """First of the numbers of a vector in the input, and how many they are."""
    fields = store.schema.of_kind(Kind.VECTOR)
    return {"position": sum(f.size for f in fields[: fields.index(field)]), "size": field.size}


def raw_vectors(store: Store, batch: Batch, rows: list[Row]) -> None:
    """Add raw lists that the vectors of rows may have come from, using the store; ``rows`` is changed in place."""
    for field, vectors in zip(store.schema.of_kind(Kind.VECTOR), batch.vectors, strict=True):
        scale = store.content["statistics"][field.name]
        raw = vectors.double().numpy() * scale["deviation"] + np.array(scale["mean"])
        for row, vector, there in zip(rows, raw.tolist(), vectors.any(1).tolist(), strict=True):
            row[field.name] = vector if there else None


def encoded_vectors(schema: Mapping[str, Any], rows: Sequence[Row]) -> Tensor:
    """(B, D) float32 input of raw lists, using ``schema.json`` alone."""
    fields = [f for f in schema["fields"] if f["input"] == "vectors"]
    inputs = np.zeros((len(rows), sum(f["size"] for f in fields)), np.float32)
    for field in fields:
        first, scale = field["position"], field["statistics"]
        for number, row in enumerate(rows):
            if row[field["name"]] is not None:
                scaled = (np.array(row[field["name"]]) - scale["mean"]) / scale["deviation"]
                inputs[number, first : first + field["size"]] = scaled
    return torch.from_numpy(inputs)
