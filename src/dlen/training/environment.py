"""What a run's figures can depend on beside its config and data: the libraries and the machine."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("lightning", "torchmetrics", "numpy", "polars")


def environment() -> dict[str, Any]:
    """Flat keys for ``metrics.json``."""
    # torch's own word tells the build, which the version of its package need not
    found: dict[str, Any] = {"library/python": platform.python_version(), "library/torch": str(torch.__version__)}
    found |= {f"library/{name}": version(name) for name in LIBRARIES}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found | {"machine/cpu": _cpu(), "machine/threads": torch.get_num_threads(), "machine/gpu": gpu}


def _cpu() -> str:
    """Its name, by Linux where that tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
