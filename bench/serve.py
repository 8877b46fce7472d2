"""The example server under load: latency of 200 candidates at 20 requests per second, and correctness of every score.

python bench/serve.py [requests=10000] [seconds=60]     # about 5 minutes on 2 cores
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import torch
from common import DATA, OUT, ROOT, report

from dlen.batch import Batch
from dlen.data.store import Store
from dlen.models.model import Model
from dlen.ranking.scoring import load_model
from dlen.training.stores import open_run

CANDIDATES, RATE = 200, 20
RUN = OUT / "serve"
RANDOM_ITEMS = {"item": 2000, "category": 40, "author": 300}
RANDOM_CONTEXT = {"hour": 24, "user": 4100, "age": 7, "gender": 2, "city": 60}  # some users are unknown


def prepare() -> None:
    """Train and export a model with the default sizes of data=feed."""
    if not (RUN / "metrics.json").exists():
        settings = [
            "model=dlen",
            "model/head=latent_match",
            "trainer.max_epochs=1",
            f"data_dir={DATA}",
            f"run_dir={RUN}",
        ]
        subprocess.run([sys.executable, "train.py", *settings], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "export.py", f"run={RUN}"], cwd=ROOT, check=True)


@contextmanager
def server() -> Iterator[str]:
    """Start one process with one thread for the model, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples"), "serve:app", "--port", str(port)]
    environment = {**os.environ, "EXPORT": str(RUN / "export"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--log-level", "warning"], env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                httpx.get(f"{address}/docs")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a request. Training has not seen some of its users and items."""
    context = {name: int(rng.integers(size)) for name, size in RANDOM_CONTEXT.items()}
    columns = {name: rng.integers(size + size // 50, size=CANDIDATES).tolist() for name, size in RANDOM_ITEMS.items()}
    return {
        "context": context,
        "candidates": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }


def wanted(request: dict[str, Any], model: Model, store: Store) -> np.ndarray:
    """(B, T) probabilities from PyTorch."""
    schema = store.schema
    rows = [{**request["context"], **candidate} for candidate in request["candidates"]]
    ids = [
        [schema.offsets[f.name] + (row[f.name] + 1 if row[f.name] < f.vocab_size - 1 else 0) for f in schema.fields]
        for row in rows
    ]
    labels = torch.zeros(len(rows), len(schema.tasks))
    with torch.inference_mode():
        return model(Batch.of_ids(torch.tensor(ids), labels)).log_p.exp().numpy()


def latencies(client: httpx.Client, seconds: int, rng: np.random.Generator) -> np.ndarray:
    """Seconds per request. Requests start on schedule, independent of the duration of earlier ones."""
    bodies = [json.dumps(draw(rng)).encode() for _ in range(50)]
    found = []
    started = time.perf_counter()
    for number in range(seconds * RATE):
        turn = started + number / RATE
        time.sleep(max(turn - time.perf_counter(), 0))
        answer = client.post(
            "/rank", content=bodies[number % len(bodies)], headers={"content-type": "application/json"}
        )
        found.append(time.perf_counter() - turn)
        answer.raise_for_status()
    return np.array(found)


def wrong_scores(client: httpx.Client, requests: int, rng: np.random.Generator) -> tuple[int, float]:
    """Number of requests with a probability off by more than 1e-5 or out of order, and the largest difference."""
    config, store = open_run(RUN)
    model = load_model(RUN, config, store)
    wrong, worst = 0, 0.0
    for number in range(requests):
        request = draw(rng)
        answer = client.post("/rank", json=request).json()
        own = wanted(request, model, store)[[row["place"] for row in answer]]
        served = np.array([list(row["p"].values()) for row in answer])
        scores = np.array([row["score"] for row in answer])
        off = float(np.abs(own - served).max())
        worst = max(worst, off)
        wrong += off > 1e-5 or bool((np.diff(scores) > 0).any()) or len({row["place"] for row in answer}) < CANDIDATES
        if (number + 1) % 1000 == 0:
            print(f"{number + 1} of {requests} requests checked, {wrong} wrong", file=sys.stderr, flush=True)
    return wrong, worst


def main() -> None:
    """Measure latency, then correctness."""
    asked = dict(argument.split("=") for argument in sys.argv[1:])
    prepare()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with server() as address, httpx.Client(base_url=address, timeout=10) as client:
        latencies(client, 2, rng)
        found = 1000 * latencies(client, int(asked.get("seconds", 60)), rng)
        wrong, worst = wrong_scores(client, int(asked.get("requests", 10_000)), rng)
    percentiles = {f"p{p}, ms": f"{np.percentile(found, p):.1f}" for p in (50, 90, 99)}
    row = {"candidates": CANDIDATES, "requests/s": RATE, **percentiles}
    row |= {
        "requests checked": int(asked.get("requests", 10_000)),
        "wrong": wrong,
        "largest difference": f"{worst:.1e}",
    }
    report("serve", [row])


if __name__ == "__main__":
    main()
