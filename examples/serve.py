"""A scorer over HTTP: receives candidates as JSON and returns them ranked. Needs an export, but not the dlen package.

python export.py run=DIR output=DIR/export
EXPORT=DIR/export uvicorn --app-dir examples serve:app
curl -d '{"context": {"user": 3, "hour": 12}, "candidates": [{"item": 7}, {"item": 9}]}' localhost:8000/rank

Histories of the log come with the export and are looked up by their key. `now` in the context is the time of the
request, in seconds since 1970 or the unit of the log; by default it is the server's time. A request sees strictly
earlier events. The export has the latest ones of each key, so a request of the past may see fewer than in predict.py.

A request that cannot be read or scored as in predict.py is rejected with 422, a body over 16 MiB with 413.
"""

import hashlib
import json
import math
import os
import re
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

FOLDER = Path(os.environ.get("EXPORT", "export"))
MOST_BYTES, MOST_CANDIDATES, MOST_VALUES = 16 << 20, 1000, 500
LARGEST = float(np.finfo(np.float32).max)
WHOLE = re.compile(r"([+-]?[0-9]+)\.0+")


class Candidates(BaseModel):
    """Values shared by all candidates, and values of each one.

    A list is ``[value, ...]`` or ``{value: weight}``, and a vector is ``[number, ...]``.
    """

    model_config = ConfigDict(extra="forbid")
    context: dict[str, Any] = {}
    candidates: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_CANDIDATES)


def refuse(problem: str) -> NoReturn:
    """Respond with 422. Invalid Unicode is escaped, because a response body cannot contain it."""
    raise HTTPException(422, problem.encode("ascii", "backslashreplace").decode())


def canonical(name: str, value: object) -> str:
    """Canonical text of an id: 12, 12.0, "12" and " 12 " are the same; empty if absent."""
    if isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
        refuse(f"{name}: {shown(value)} is no id")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    return WHOLE.sub(r"\1", text) if WHOLE.fullmatch(text) else text


def shown(value: object) -> str:
    """A value for a message. Lists and objects are not shown, because they may be too large or nested too deeply."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return text if len(text := repr(value)) <= 60 else f"{text[:60]}..."


def finite(name: str, value: object) -> float:
    """A finite number from JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(f"{name}: {shown(value)} is not a number")
    try:
        number = float(value)
    except OverflowError:  # JSON integers may have any size
        number = math.inf
    return number if math.isfinite(number) else refuse(f"{name}: {shown(value)} is too large")


def in_32_bits(number: float, name: str, value: object) -> float:
    """A number that is also finite in 32 bits; ``value`` is the original value in the request."""
    return number if abs(number) <= LARGEST else refuse(f"{name}: {shown(value)} is too large")


def is_coded(field: dict) -> bool:
    """Whether the schema says how the field is encoded; that of an older export may not."""
    if field["input"] == "sequence_ids":
        return True
    if field["input"] == "bag_ids":
        return bool({"values", "share", "hash"} & set(field)) and "max_values" in field
    return bool({"values", "share", "hash", "range", "statistics"} & set(field)) and "separators" in field.get(
        "rate", {"separators": []}
    )


schema = json.loads((FOLDER / "schema.json").read_text())
fields = schema["fields"]
field_of = {f["name"]: f for f in fields}
uncoded = [f["name"] for f in fields if not is_coded(f)]
if uncoded:
    raise SystemExit(f"{FOLDER}: does not say how {uncoded[0]} is coded, as an older export.py wrote it; export again")
by_input = {
    name: sorted((f for f in fields if f["input"] == name), key=lambda f: f["position"]) for name in schema["inputs"]
}
codes = {f["name"]: {v: f["offset"] + i + 1 for i, v in enumerate(f["values"])} for f in fields if "values" in f}
rates = {f["name"]: dict(zip(f["rate"]["keys"], f["rate"]["latest"], strict=True)) for f in fields if "rate" in f}
codes |= {f["name"]: codes[f["share"]] for f in fields if f.get("share") in codes}
sequences = schema["sequences"]
histories = [s["history"] | {"name": s["name"]} for s in sequences if "history" in s]
found_in_log = {name for s in sequences if "history" in s for name in s["lists"]}
keyed = [*(f["rate"] for f in fields if "rate" in f), *histories]
known = {f["name"] for f in fields if "rate" not in f} - found_in_log
known |= {by for feature in keyed for by in feature["by"]} | ({"now"} if histories else set())
if any("gap" not in h for h in histories):
    raise SystemExit(f"{FOLDER}: does not say when events were, as an older export.py wrote it; export again")
ranges = {
    h["name"]: dict(zip(h["keys"], zip([0, *h["ends"]], h["ends"], strict=False), strict=True)) for h in histories
}
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # one core per process; start more processes for more requests
session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), options, providers=["CPUExecutionProvider"])
taken = {i.name for i in session.get_inputs()}
outputs = [o.name for o in session.get_outputs()]
app = FastAPI(title="dlen scorer")


def text_code(field: dict, text: str) -> int:
    """The id of a canonical text, by the list of values or by its hash; the offset if absent or unseen."""
    if "hash" not in field:
        return codes[field["name"]].get(text, field["offset"])
    if not text:
        return field["offset"]
    digest = hashlib.new(
        field["hash"]["function"], text.encode(errors="replace"), digest_size=field["hash"]["digest_size"]
    ).digest()
    return field["offset"] + 1 + int.from_bytes(digest, "little") % field["hash"]["buckets"]


def code(field: dict, value: object) -> int:
    """The id of a single value. Unseen values get the offset, as do missing numbers without their own bucket."""
    name, offset = field["name"], field["offset"]
    if {"values", "share", "hash"} & set(field):
        return text_code(field, canonical(name, value))
    if value is None:
        return offset + field.get("statistics", {}).get("absent", 0)
    number = in_32_bits(finite(name, value), name, value)
    if "range" in field:
        first, last = field["range"]
        if not number.is_integer() or not first <= number <= last:
            refuse(f"{name}: {shown(value)} is not a whole number from {first} to {last}")
        return offset + 1 + int(number) - first
    bucket = int(np.searchsorted(field["statistics"]["edges"], number, side="right"))
    return offset + field["statistics"]["absent"] + 1 + bucket


def number(field: dict, row: dict) -> float:
    """A scaled number; a missing one becomes the mean. A rate is looked up by the row's key, and is 0 for a new key."""
    name, scale = field["name"], field["statistics"]
    if "rate" in field:
        told = value = rates[name].get(key(field["rate"], row), 0.0)
    elif (told := row.get(name)) is None:
        return 0.0
    else:
        value = in_32_bits(finite(name, told), name, told)
        value = math.copysign(math.log1p(abs(value)), value) if scale.get("transform") == "log1p" else value
    return in_32_bits((value - scale["mean"]) / scale["deviation"], name, told)


def key(rate: dict, row: dict) -> str:
    """The key of a rate for this row; empty if a part is missing."""
    parts = []
    for by, separator in zip(rate["by"], rate["separators"], strict=True):
        value = row.get(by)
        texts = [canonical(by, v) for v in value] if isinstance(value, list) else [canonical(by, value)]
        parts.append(separator.join(text for text in texts if text))
    return "\x1f".join(parts) if all(parts) else ""


def several(field: dict, value: object) -> list[tuple[int, float]]:
    """Ids and weights of a list, limited to those predict.py would keep."""
    name = field["name"]
    if not isinstance(value, list | dict | None):
        refuse(f"{name}: {shown(value)} is neither a list nor values with weights")
    items = list(value.items()) if isinstance(value, dict) else [(v, 1.0) for v in value or []]
    if len(items) > MOST_VALUES:
        refuse(f"{name}: has {len(items)} values; {MOST_VALUES} are the most")
    weighed = [(canonical(name, v), float(np.float32(in_32_bits(finite(name, w), name, w)))) for v, w in items]
    kept, cap, keep = [(v, w) for v, w in weighed if v], field["max_values"], field.get("keep", "heaviest")
    if keep == "heaviest":
        kept = sorted(kept, key=lambda item: -item[1])
    kept = kept[-cap:] if keep == "last" else kept[:cap]
    return [(text_code(field, v), w) for v, w in kept]


def vector(field: dict, value: object) -> list[float]:
    """Scaled numbers of a vector; a missing one becomes the mean, 0."""
    name, scale, size = field["name"], field["statistics"], field["size"]
    if not isinstance(value, list | None):
        refuse(f"{name}: {shown(value)} is no list")
    if not value:
        return [0.0] * size
    if len(value) != size:
        refuse(f"{name}: has {len(value)} numbers instead of {size}")
    numbers = [in_32_bits(finite(name, v), name, v) for v in value]
    scaled = [(v - mean) / scale["deviation"] for v, mean in zip(numbers, scale["mean"], strict=True)]
    return [in_32_bits(number, name, v) for number, v in zip(scaled, value, strict=True)]


def in_order(sequence: dict, row: dict) -> list[list[int]]:
    """Ids of each list of a sequence, oldest first; the newest count."""
    lists = []
    for name in sequence["lists"]:
        values = row.get(name)
        if not isinstance(values, list | None):
            refuse(f"{name}: {shown(values)} is no list")
        if len(values or []) > MOST_VALUES:
            refuse(f"{name}: has {len(values)} values; {MOST_VALUES} are the most")
        turned = (values or [])[::-1] if sequence["order"] == "newest_first" else values or []
        lists.append([code(field_of[name], value) for value in turned[-sequence["max_values"] :]])
        if len(values or []) != len(row.get(sequence["lists"][0]) or []):
            refuse(f"{name}: has another number of values than {sequence['lists'][0]}")
    return lists


def moment(history: dict, row: dict) -> float:
    """The time of a request, as the export has the times of events."""
    seconds, told = history["seconds"], row.get("now")
    if seconds is None:
        return refuse("now: is needed, in the unit of the log's own time") if told is None else finite("now", told)
    now = time.time() if told is None else in_32_bits(finite("now", told), "now", told)
    # The log's times were whole microseconds. Made of the same ones, the time of an event is not after the event.
    micro = round(1e6 * now) + round(3_600_000_000 * seconds["utc_offset"])
    now = micro * 1e-6
    return now - now % seconds["step"] if seconds["step"] else now


def from_log(sequence: dict, row: dict) -> list[list[int]]:
    """Ids of each list of a history, by the key of the row, of strictly earlier events; empty for a new key."""
    history, now = sequence["history"], moment(sequence["history"], row)
    first, last = ranges[sequence["name"]].get(key(history, row), (0, 0))
    last = bisect_left(history["when"], now, first, last)
    lists = [ids[first:last] for ids in history["events"]]
    if not history["gap"]:
        return lists
    offset = field_of[sequence["lists"][-1]]["offset"]
    gaps = [min(now - when, 2.0**32) for when in history["when"][first:last]]
    return [*lists, [offset + min(int(gap + 1).bit_length(), 32) for gap in gaps]]


async def read(request: Request) -> Candidates:
    """Parse and validate the JSON body."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"the body has more than {MOST_BYTES} bytes")
    try:
        content = json.loads(body, parse_constant=lambda name: refuse(f"{name} is no JSON"))
    except RecursionError:
        refuse("the body is too deep")
    except ValueError as error:
        refuse(f"the body is no JSON: {error}")
    try:
        return Candidates.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        refuse(f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}")


def inputs_of(rows: list[dict]) -> dict[str, np.ndarray]:
    """Convert raw values to the inputs of the model."""
    singles = [[code(f, row.get(f["name"])) for f in by_input["ids"]] for row in rows]
    numbers = [[number(f, row) for f in by_input["numeric"]] for row in rows]
    bags = [[several(f, row.get(f["name"])) for f in by_input["bag_ids"]] for row in rows]
    longest = max((len(bag) for row in bags for bag in row), default=0) or 1
    shape = (len(rows), len(by_input["bag_ids"]), longest)
    ids, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for place in np.ndindex(shape[:2]):
        for i, (value, weight) in enumerate(bags[place[0]][place[1]]):
            ids[*place, i], weights[*place, i] = value, weight
    singles, numbers = np.array(singles, np.int64), np.array(numbers, np.float32)
    inputs = {"ids": singles, "numeric": numbers, "bag_ids": ids, "bag_weights": weights}
    lists = [[from_log(s, row) if "history" in s else in_order(s, row) for row in rows] for s in sequences]
    lengths = [[len(of_row[0]) for of_row in of_sequence] for of_sequence in lists]
    width = max((n for of_sequence in lengths for n in of_sequence), default=0) or 1
    ids = np.zeros((len(rows), sum(len(s["lists"]) for s in sequences), width), np.int64)
    for i in range(len(rows)):
        for place, values in enumerate(values for of_sequence in lists for values in of_sequence[i]):
            ids[i, place, : len(values)] = values
    inputs["sequence_ids"] = ids
    inputs["sequence_lengths"] = np.array(lengths, np.int64).reshape(len(sequences), len(rows)).T
    vectors = [[n for f in by_input["vectors"] for n in vector(f, row.get(f["name"]))] for row in rows]
    inputs["vectors"] = np.array(vectors, np.float32)
    return inputs


@app.post(
    "/rank",
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": Candidates.model_json_schema()}}}},
)
async def rank(request: Request) -> JSONResponse:
    """Candidates by descending score: place in the request, score, the probability or value of each task, and of each
    hidden state.

    The handler is async so that no other thread competes with the model for its core.
    """
    asked = await read(request)
    unknown = {k for row in (asked.context, *asked.candidates) for k in row} - known
    if unknown:
        refuse(f"no field {sorted(unknown)[0]!r}; the fields are {', '.join(sorted(known))}")
    inputs = inputs_of([{**asked.context, **candidate} for candidate in asked.candidates])
    found = dict(zip(outputs, session.run(outputs, {k: v for k, v in inputs.items() if k in taken}), strict=True))
    valued = schema["outputs"].get("values", [])
    scored = np.isfinite(found["score"]) & np.isfinite(found["p"]).all(1)
    scored &= np.isfinite(found["values"]).all(1) if valued else True
    if not scored.all():
        refuse(f"candidate {int(scored.argmin())}: its numbers or weights are too large for the model")
    names, states = schema["outputs"]["p"], [name for name in found if name not in ("p", "score", "values")]
    ranked = [
        {"place": int(i), "score": float(found["score"][i]), "p": dict(zip(names, found["p"][i].tolist(), strict=True))}
        | {state: float(found[state][i]) for state in states}
        | ({"values": dict(zip(valued, found["values"][i].tolist(), strict=True))} if valued else {})
        for i in np.argsort(-found["score"], kind="stable")
    ]
    return JSONResponse(ranked)  # returned directly, because FastAPI would validate every number first
