"""A scorer over HTTP: JSON with candidates in, the same ranked out. It needs an export and no part of the dlen package.

python export.py run=DIR output=DIR/export
EXPORT=DIR/export uvicorn --app-dir examples serve:app
curl -d '{"context": {"user": 3, "hour": 12}, "candidates": [{"item": 7}, {"item": 9}]}' localhost:8000/rank
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

FOLDER = Path(os.environ.get("EXPORT", "export"))
MOST_CANDIDATES, MOST_VALUES = 1000, 500
schema = json.loads((FOLDER / "schema.json").read_text())
fields = schema["fields"]
codes = {f["name"]: {v: f["offset"] + i + 1 for i, v in enumerate(f["values"])} for f in fields if "values" in f}
rates = {f["name"]: dict(zip(f["rate"]["keys"], f["rate"]["latest"], strict=True)) for f in fields if "rate" in f}
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # one core for each process: start more of them for more requests
session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), options, providers=["CPUExecutionProvider"])
taken = {i.name for i in session.get_inputs()}
outputs = [o.name for o in session.get_outputs()]
app = FastAPI(title="dlen scorer")


class Request(BaseModel):
    """Values that all candidates share, and those of each; a list is ``[value, ...]`` or ``{value: weight}``."""

    context: dict[str, Any] = {}
    candidates: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_CANDIDATES)


def one(field: dict, value: object) -> float:
    """The input of a single-valued field; what training did not know is the offset, no number is the mean or its own bucket."""
    if "values" in field:
        return codes[field["name"]].get(str(value), field["offset"])
    if value is None:
        return field.get("offset", 0.0) + field.get("statistics", {}).get("absent", 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise HTTPException(422, f"{field['name']}: {value!r} is not a number")
    if "edges" in field.get("statistics", {}):
        bucket = int(np.searchsorted(field["statistics"]["edges"], value, side="right"))
        return field["offset"] + 1 + field["statistics"]["absent"] + bucket
    if "statistics" in field:
        if field["statistics"].get("transform") == "log1p":
            value = float(np.sign(value) * np.log1p(abs(value)))
        return (value - field["statistics"]["mean"]) / field["statistics"]["deviation"]
    return field["offset"] + int(value)


def rate(field: dict, row: dict) -> float:
    """What the log says of the row's key, scaled; as of a new key where it has none."""
    parts = ["|".join(map(str, v)) if isinstance(v, list | dict) else v for v in map(row.get, field["rate"]["by"])]
    key = "\x1f".join(map(str, parts))
    known = rates[field["name"]].get(key, 0.0) if None not in parts else 0.0
    return (known - field["statistics"]["mean"]) / field["statistics"]["deviation"]


def several(field: dict, value: object) -> list[tuple[int, float]]:
    """Ids and weights of a list, the heaviest that training would have kept."""
    if not isinstance(value, list | dict | None):
        raise HTTPException(422, f"{field['name']}: {value!r} is neither a list nor values with weights")
    items = list(value.items()) if isinstance(value, dict) else [(v, 1.0) for v in value or []]
    if len(items) > MOST_VALUES:
        raise HTTPException(422, f"{field['name']}: has {len(items)} values; {MOST_VALUES} are the most")
    kept = sorted(items, key=lambda item: -item[1])[: field["max_values"]]
    return [(codes[field["name"]].get(str(v), field["offset"]), w) for v, w in kept]


@app.post("/rank")
async def rank(request: Request) -> JSONResponse:
    """Candidates by falling score: their place in the request, score, P(UP) and the probability of each task.

    Async, so that no thread takes turns with the model for the one core.
    """
    keys = {column for f in fields if "rate" in f for column in f["rate"]["by"]}
    known = {f["name"] for f in fields if "rate" not in f} | keys
    unknown = {k for row in (request.context, *request.candidates) for k in row} - known
    if unknown:
        raise HTTPException(422, f"no field {sorted(unknown)[0]!r}; the fields are {', '.join(sorted(known))}")
    rows = [{**request.context, **candidate} for candidate in request.candidates]
    by_input = {
        name: sorted((f for f in fields if f["input"] == name), key=lambda f: f["position"])
        for name in schema["inputs"]
    }
    single = [[one(f, row.get(f["name"])) for f in by_input["ids"]] for row in rows]
    numeric = [
        [rate(f, row) if "rate" in f else one(f, row.get(f["name"])) for f in by_input["numeric"]] for row in rows
    ]
    bags = [[several(f, row.get(f["name"])) for f in by_input["bag_ids"]] for row in rows]
    longest = max((len(bag) for row in bags for bag in row), default=0) or 1
    shape = (len(rows), len(by_input["bag_ids"]), longest)
    ids, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for place in np.ndindex(shape[:2]):
        for i, (code, weight) in enumerate(bags[place[0]][place[1]]):
            ids[*place, i], weights[*place, i] = code, weight
    inputs = {
        "ids": np.array(single, np.int64),
        "numeric": np.array(numeric, np.float32),
        "bag_ids": ids,
        "bag_weights": weights,
    }
    found = dict(zip(outputs, session.run(outputs, {k: v for k, v in inputs.items() if k in taken}), strict=True))
    names = schema["outputs"]["p"]
    ranked = [
        {"place": int(i), "score": float(found["score"][i]), "p": dict(zip(names, found["p"][i].tolist(), strict=True))}
        | ({"up": float(found["up"][i])} if "up" in found else {})
        for i in np.argsort(-found["score"], kind="stable")
    ]
    return JSONResponse(ranked)  # as it is: FastAPI would look at every number of it first
