"""Decides whether a run's training steps are repeated as one CUDA graph, and builds such a step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from dlen.data.loader import BatchLoader
from dlen.data.split import ResidentSplit
from dlen.training.balancing import Fixed
from dlen.training.module import RankingModule
from dlen.training.optimizers import can_be_captured
from dlen.training.static_step import StaticStep, tell_not_compiled, tell_ordinary

_OF_BATCHES = ("on_train_batch_start", "on_train_batch_end")  # get the row numbers in place of the batch
_OF_GRADIENTS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_NO_GRAPH = "compile=true needs the CUDA graph of a step on a GPU"
_OWN = ("dlen", "lightning", "torch")  # packages whose Python code does not decide anything from step to step


def static_step(setting: str | bool, compile_loss: bool, module: RankingModule) -> StaticStep | None:
    """The static step of a training that begins; None if it takes the ordinary step.

    On a GPU, a line on stderr tells why it does.

    Args:
        setting: ``cuda_graph`` of the config: ``auto``; True to trust the Python code of classes that are not dlen's
            to do the same in each step; False for the ordinary step.
        compile_loss: ``compile`` of the config: compile the loss.
        module: module of the training, with its optimiser and loader.
    """
    trainer, device = module.trainer, module.device
    loader = trainer.train_dataloader
    if setting is False or device.type != "cuda":
        if compile_loss and trainer.is_global_zero:
            tell_not_compiled(_NO_GRAPH)
        return None
    assert loader is not None
    reason = next(_reasons(module, trusted=setting is True), None)
    if reason is not None:
        if trainer.is_global_zero:
            tell_ordinary(reason)
            if compile_loss:
                tell_not_compiled(_NO_GRAPH)
        return None
    return build(module, loader, graph=True, compile_loss=compile_loss)


def build(module: RankingModule, loader: BatchLoader, *, graph: bool, compile_loss: bool = False) -> StaticStep:
    """The static step of a module, to which the loader gives row numbers from now on."""
    assert isinstance(loader.split, ResidentSplit)
    loader.gathers = False
    bfloat16 = str(module.trainer.precision) == "bf16-mixed"
    optimizer = module.trainer.optimizers[0]
    loss, compiled = module.training_loss, None
    if compile_loss:
        torch._dynamo.reset()  # it compiles a function eight times, and a worker of a sweep trains more often
        # The table's look-up stays outside, as compiled code has no sparse gradients.
        compiled = partial(loss, fixed_loss=torch.compile(module.fixed_loss, dynamic=False))
    return StaticStep(
        loss, optimizer, loader.split, loader.batch_size, bfloat16=bfloat16, graph=graph, compiled=compiled
    )


def _reasons(module: RankingModule, *, trusted: bool) -> Iterator[str]:
    trainer, loader = module.trainer, module.trainer.train_dataloader
    if trainer.world_size > 1:
        yield "several processes train"
    if not isinstance(loader, BatchLoader) or not isinstance(loader.split, ResidentSplit):
        yield "the rows do not fit into the GPU's memory"
    elif loader.split.host.sequences is not None:
        yield "the rows have sequences, whose lengths differ between batches"
    if not isinstance(module.balancer, Fixed):
        yield "the balancer weighs the tasks anew in each step (balancing=fixed does not)"
    if trainer.accumulate_grad_batches != 1:
        yield "gradients are accumulated (trainer.accumulate_grad_batches)"
    if trainer.gradient_clip_val:
        yield "gradients are clipped (trainer.gradient_clip_val)"
    if str(trainer.precision) not in ("32-true", "bf16-mixed"):
        yield f"trainer.precision={trainer.precision} scales the loss"
    if trainer._detect_anomaly:
        yield "trainer.detect_anomaly looks into each step"
    if not can_be_captured(trainer.optimizers[0]):
        yield "the optimiser's steps cannot be captured; torch's fused Adam and AdamW can"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hook := _needs(callback):
            yield f"the callback {type(callback).__name__} uses {hook}"
    if any(p._backward_hooks for p in module.parameters()):
        yield "a hook reads gradients"
    foreign = None if trusted else _foreign(module.model)
    if foreign is not None:
        yield (
            f"{foreign} is not dlen's own; set cuda_graph=true if its Python code does the same in each step and reads "
            "no value from the GPU"
        )


def _needs(callback: Callback) -> str | None:
    """The hook of a callback that a graph has no place for."""
    package = type(callback).__module__.split(".")[0]
    hooks = _OF_GRADIENTS if package in _OWN else _OF_BATCHES + _OF_GRADIENTS
    return next((hook for hook in hooks if is_overridden(hook, callback, parent=Callback)), None)


def _foreign(model: nn.Module) -> str | None:
    """The first class of a network that comes from another package."""
    return next((type(m).__name__ for m in model.modules() if type(m).__module__.split(".")[0] not in _OWN), None)
