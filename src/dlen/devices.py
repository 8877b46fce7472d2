"""Who computes where: how many processes train at once, and which GPUs or share of the CPU cores each one gets."""

from __future__ import annotations

import os

import torch

from dlen.errors import UserError


def available() -> int:
    """GPUs, or CPU cores where there is none."""
    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def number_of_workers(asked: int | str, most: int, key: str = "workers", devices: int = 1) -> int:
    """How many processes train at once: as asked, or as many as there are GPUs, or CPU cores without one.

    Args:
        asked: ``auto`` or a number.
        most: there is no work for more.
        key: of the config, for the error.
        devices: of each process.

    Raises:
        UserError: it is neither ``auto`` nor a positive number.
    """
    if asked == "auto":
        return max(1, min(available() // devices, most))
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise UserError(f"config {key}: {asked!r} is neither auto nor a positive number")
    return min(asked, most)


def worker_environment(number: int, workers: int, devices: int = 1) -> dict[str, str]:
    """The GPUs, or the share of the cores, of one worker.

    Args:
        number: of the worker, from 0.
        workers: on this machine.
        devices: of each worker.
    """
    gpus = torch.cuda.device_count()
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        own = [visible[(number * devices + i) % len(visible)] for i in range(devices)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // (workers * devices)))}
