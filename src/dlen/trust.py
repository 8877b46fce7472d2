"""Checks which classes a config file may name: an untrusted folder must not decide which code runs.

Hydra instantiates whatever a config names as ``_target_``. Configs that the user composes are trusted. Configs read
from a run, a study or a best.yaml are checked here first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import _locate

from dlen.errors import UserError

_PACKAGE = "dlen"
_TARGET, _PARTIAL = "_target_", "_partial_"
# Keys whose object gets further arguments later.
_PARTIAL_KEYS = (
    *(f"model.{part}" for part in ("embedding", "sequence", "interaction", "backbone", "head")),
    *("optimizer", "optimizer.dense", "scheduler"),
)
_NAMES = {
    "optimizer": ("dlen.training.optimizers.adam", "dlen.training.optimizers.adagrad"),
    "logger": (
        "dlen.training.loggers.ContinuedCSVLogger",
        "dlen.training.loggers.mlflow_logger",
        "dlen.training.loggers.wandb_logger",
        "lightning.pytorch.loggers.TensorBoardLogger",
    ),
    "callbacks": (
        "dlen.training.callbacks.DenseEMA",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.RichModelSummary",
        "lightning.pytorch.callbacks.RichProgressBar",
        "lightning.pytorch.callbacks.Timer",
    ),
    "scheduler": tuple(f"dlen.training.schedulers.{name}" for name in ("warmup", "cosine", "one_cycle")),
    "trainer.profiler": ("lightning.pytorch.profilers.SimpleProfiler",),
}
_LIBRARIES = {  # key -> module that names a class, modules that define it, and its base; no side effects
    "scheduler": ("torch.optim.lr_scheduler", ("torch.optim.",), "torch.optim.lr_scheduler.LRScheduler"),
    "optimizer.dense": ("torch.optim", ("torch.optim.",), "torch.optim.optimizer.Optimizer"),
    # Metrics of texts and images load models.
    "metrics.own": (
        "torchmetrics",
        ("torchmetrics.classification.", "torchmetrics.regression."),
        "torchmetrics.metric.Metric",
    ),
}
_IN_FOLDER = (
    "dlen.training.loggers.ContinuedCSVLogger",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.loggers.TensorBoardLogger",
    "lightning.pytorch.profilers.SimpleProfiler",
)


def packages(value: Any) -> tuple[str, ...]:
    """Parse the config key ``trust``: packages, besides dlen, whose classes a folder may name.

    Raises:
        UserError: the value is not a list of top-level packages.
    """
    wanted = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
    if wanted is None or not all(isinstance(name, str) and name.isidentifier() for name in wanted):
        raise UserError(f"config trust: {value!r} is not a list of packages, such as [my_models]")
    return tuple(name for name in wanted if name != _PACKAGE)  # dlen has its own, stricter rules


def check_config(content: Any, trust: Sequence[str], path: Path) -> None:
    """Raise UserError unless a config from a file instantiates only trusted classes, each at a suitable key.

    Args:
        trust: trusted packages besides dlen.
        path: path of the file, for error messages.
    """
    for key, node in _nodes("", content):
        if isinstance(node, str) and "${" in node:
            raise UserError(f"{path}: config {key}: refers to another value ({node[:50]!r}); write out the value")
        if isinstance(node, dict):
            _check_node(key, node, trust, path)


def _nodes(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every part of nested values under its dotted key."""
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _nodes(f"{key}.{name}" if key else str(name), inner)
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _nodes(f"{key}[{number}]", inner)


def _check_node(key: str, node: dict[Any, Any], trust: Sequence[str], path: Path) -> None:
    for name in node:
        special = str(name).startswith("_") and str(name).endswith("_") and name not in (_TARGET, _PARTIAL)
        if special or "${" in str(name):
            raise UserError(f"{path}: config {_join(key, name)}: is not a setting; delete it")
    target, partial = node.get(_TARGET), node.get(_PARTIAL)
    if target is not None:
        _check_target(key, target, trust, path)
    if partial is not None and (partial is not True or not (key in _PARTIAL_KEYS or _is_of(target, trust))):
        raise UserError(f"{path}: config {_join(key, _PARTIAL)}: is not a setting of {key or 'a config'}; delete it")
    if target in _IN_FOLDER or key in ("logger.csv", "logger.tensorboard"):  # their strings become folder names
        for name, value in node.items():
            if name != "monitor" and isinstance(value, str) and not re.fullmatch(r"(?!\.)[\w.{}=-]*", value):
                raise UserError(f"{path}: config {key}.{name}: {value!r} is not a plain name; write it without slashes")


def _check_target(key: str, target: Any, trust: Sequence[str], path: Path) -> None:
    where = f"{path}: config {_join(key, _TARGET)}"
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
        raise UserError(f"{where}: {str(target)[:80]!r} is not a class of dlen")
    package = target.split(".")[0]
    slot = re.sub(r"^(logger|callbacks|metrics\.own)\.[\w-]+$", r"\1", key)
    if target in _NAMES.get(slot, ()) or _is_of_library(slot, target):
        return
    if package not in (_PACKAGE, *trust):
        extensible = slot in _KINDS or slot in _NAMES or slot in _LIBRARIES  # keys that accept a user's own class
        hint = f"; if you trust this folder, set trust=[{package}]" if extensible else ""
        raise UserError(f"{where}: {target} is not a class of dlen{hint}")
    kind, fits = _KINDS.get(slot, (slot if slot in _NAMES else "setting", lambda _: False))
    named = _located(where, target)
    defined = str(getattr(named, "__module__", "")).split(".")[0]  # where it is defined, not where it was found
    if defined == _PACKAGE and isinstance(named, type) and fits(named):
        return
    if defined not in trust or not callable(named):
        raise UserError(f"{where}: {target} is not a {kind} of {' or '.join((_PACKAGE, *trust))}")


def _is_of_library(slot: str, target: str) -> bool:
    """Whether a target is a public class of the library that a key may use."""
    module, defined_in, base = _LIBRARIES.get(slot, ("", (), ""))
    if not module or not re.fullmatch(rf"{re.escape(module)}(\.[a-z]\w*)*\.[A-Z]\w*", target):
        return False
    try:
        found = _locate(target)
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(found, type) and f"{found.__module__}.".startswith(defined_in) and _is_kind(base)(found)


def _is_of(target: Any, trust: Sequence[str]) -> bool:
    return isinstance(target, str) and target.split(".")[0] in trust


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _located(where: str, target: str) -> Any:
    try:
        return _locate(target)  # as Hydra's own instantiate finds it
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: {target} cannot be imported ({str(error).splitlines()[-1]})") from None


def _is_kind(base: str) -> Callable[[type], bool]:
    """Make a test for subclasses of a base class, which is given by name to avoid importing it."""
    return lambda named: any(f"{c.__module__}.{c.__qualname__}" == base for c in named.__mro__)


def _is_source(named: type) -> bool:
    return named.__module__.startswith("dlen.data.sources.") and all(
        hasattr(named, method) for method in ("settings", "files", "write")
    )


# The required kind of class at each config key.
_KINDS: dict[str, tuple[str, Callable[[type], bool]]] = {
    "data": ("data source", _is_source),
    "model": ("model", _is_kind("dlen.models.model.Model")),
    "model.embedding": ("embedding table", _is_kind("dlen.nn.embedding.EmbeddingTable")),
    "model.sequence": ("pooling of sequences", _is_kind("dlen.nn.sequences.SequencePool")),
    "model.interaction": ("interaction", _is_kind("dlen.models.interactions.Interaction")),
    "model.backbone": ("backbone", _is_kind("dlen.models.backbones.base.Backbone")),
    "model.head": ("head", _is_kind("dlen.models.heads.Head")),
    "balancing": ("balancing", _is_kind("dlen.training.balancing.Balancer")),
}
