"""Device assignment: how many processes train at once, and the GPUs or share of CPU cores of each."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf

from dlen.checks import is_whole
from dlen.limits import cores


def available() -> int:
    """Number of GPUs, or of CPU cores that this process may use if there is no GPU."""
    return _gpus() or cores()


def number_of_workers(asked: int | str, most: int, devices: int = 1) -> int:
    """Number of processes that train at once: as requested, or one per GPU, or per CPU core without GPUs.

    Args:
        asked: ``auto`` or a number.
        most: upper limit, such as the number of jobs.
    """
    return min(asked, most) if is_whole(asked) else max(1, min(available() // devices, most))


def usable_gpus(accelerator: object) -> int:
    """Number of GPUs that a training with ``trainer.accelerator`` may use."""
    return _gpus() if accelerator in ("auto", "gpu", "cuda") else 0


def local_processes(trainer: DictConfig) -> int:
    """Number of processes on this machine that the group ``trainer`` asks for."""
    devices = trainer.devices
    if OmegaConf.is_list(devices):
        return len(devices)
    return devices if is_whole(devices) and devices > 0 else max(usable_gpus(trainer.accelerator), 1)


def worker_environment(number: int, workers: int, devices: int = 1) -> dict[str, str]:
    """Environment variables that assign a worker its GPUs, or its share of the cores.

    Args:
        number: number of the worker, counted from 0.
    """
    gpus = _gpus()
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        assigned = [visible[(number * devices + i) % len(visible)] for i in range(devices)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(assigned)}
    return {"OMP_NUM_THREADS": str(max(1, cores() // (workers * devices)))}


def _gpus() -> int:
    from torch import cuda  # here, because the number of workers is checked before torch is imported

    return cuda.device_count()
