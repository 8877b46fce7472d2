"""dlen: multi-task ranking experiments around the Deep Latent Emotion Network."""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import :func:`dlen.serving.run.load_run` when it is first used: it needs torch and Lightning."""
    if name == "load_run":
        return import_module("dlen.serving.run").load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
