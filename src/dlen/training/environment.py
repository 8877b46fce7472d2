"""The libraries and the machine of a run, which can affect its metrics in addition to config and data."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("lightning", "torchmetrics", "numpy", "polars")


def environment() -> dict[str, Any]:
    """Library versions and machine, as flat keys for ``metrics.json``."""
    # torch.__version__ includes the build, which the package version may omit
    entries: dict[str, Any] = {"library/python": platform.python_version(), "library/torch": str(torch.__version__)}
    entries |= {f"library/{name}": version(name) for name in LIBRARIES}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return entries | {"machine/cpu": _cpu(), "machine/threads": torch.get_num_threads(), "machine/gpu": gpu}


def _cpu() -> str:
    """Name of the CPU, from Linux if available."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
