"""Device assignment: how many processes train at once, and the GPUs or share of CPU cores of each."""

from __future__ import annotations

import os

import torch

from dlen.checks import is_whole
from dlen.errors import UserError


def available() -> int:
    """Number of GPUs, or of CPU cores if there is no GPU."""
    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def number_of_workers(asked: int | str, most: int, key: str = "workers", devices: int = 1) -> int:
    """Number of processes that train at once: as requested, or one per GPU, or per CPU core without GPUs.

    Args:
        asked: ``auto`` or a number.
        most: upper limit, such as the number of jobs.
        key: config key, for the error message.

    Raises:
        UserError: ``asked`` is neither ``auto`` nor a positive number.
    """
    if asked == "auto":
        return max(1, min(available() // devices, most))
    if not is_whole(asked) or asked < 1:
        raise UserError(f"config {key}: {asked!r} is neither auto nor a positive whole number")
    return min(asked, most)


def worker_environment(number: int, workers: int, devices: int = 1) -> dict[str, str]:
    """Environment variables that assign a worker its GPUs, or its share of the cores.

    Args:
        number: number of the worker, counted from 0.
    """
    gpus = torch.cuda.device_count()
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        assigned = [visible[(number * devices + i) % len(visible)] for i in range(devices)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(assigned)}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // (workers * devices)))}
