"""StaticStep: a training step whose tensors keep their shapes, so that a CUDA graph can repeat it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlen.batch import Batch
from dlen.data.split import ResidentSplit, Split
from dlen.training.optimizers import captured

_SAMPLE = 1 << 16  # rows from which the number of values of a batch is estimated
_DEVIATIONS = 6.0  # a batch has more values than estimated once in 10^9
_WARM_UP = 3  # steps before the capture, in which torch chooses kernels and the optimiser allocates its state


class StaticStep:
    """A training step from row numbers to updated weights, which launches the same kernels for every batch.

    At a batch of some thousand rows, a GPU waits for the launches of a step's hundreds of small kernels. A CUDA graph
    launches all of them at once, if no shape depends on the data and nothing is read from the device. So multi-valued
    fields are padded with values of weight 0 to a number that a batch hardly ever exceeds, and the row-sparse
    optimisers pad their rows. Losses and weights are those of the ordinary step, up to the order of sums.

    The first steps run without the graph and count as any other. So do those that do not fit: the last, smaller batch
    of an epoch, or one with more values. Learning rates are constants of a graph: after a change of one, three steps
    run without it before the next capture, so a schedule that moves them at each step never has one. Without a GPU all
    steps run without a graph, in the same shapes.

    Args:
        loss: computes the training loss of a batch on the split's device.
        optimizer: one that :func:`~dlen.training.optimizers.can_be_captured`.
        split: the training rows, without sequences.
        batch_size: rows of a batch B.
        bfloat16: compute the loss in bfloat16, as ``precision=bf16-mixed`` does.
        graph: repeat the step as a CUDA graph; needs a GPU.
        compiled: ``loss`` as ``torch.compile`` makes it, for batches of the step's shapes; None for ``loss`` itself. If
            it fails at the first batch, a line on stderr tells why and ``loss`` takes its place.

    Attributes:
        refused: why the step could not be captured, so that all run without a graph; empty if it could.

    Raises:
        ValueError: the rows have sequences, whose places are not padded.
    """

    def __init__(
        self,
        loss: Callable[[Batch], Tensor],
        optimizer: Optimizer,
        split: ResidentSplit,
        batch_size: int,
        *,
        bfloat16: bool = False,
        graph: bool = False,
        compiled: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        if split.host.sequences is not None:
            raise ValueError("a static step pads no sequences; train without it")
        self.loss, self.optimizer, self.split, self.bfloat16 = loss, optimizer, split, bfloat16
        self.totals = likely_totals(split.host, batch_size)
        self.index = torch.zeros(batch_size, dtype=torch.int64, device=split.device)
        self.graph, self.compiled = graph, compiled
        self.refused = ""
        self._captured: torch.cuda.CUDAGraph | None = None
        self._result = torch.zeros(())
        self._rates: list[Any] = []
        self._steps = 0  # since the rates changed
        self._compiles = False

    def __call__(self, index: Tensor) -> Tensor:
        """Train on rows ``index`` (B,) int64, a host tensor, and return the loss, which the next step may overwrite."""
        if not self.fits(index):
            return self._train(self.split.batch(index), self.loss)
        self.index.copy_(index.pin_memory() if self.index.is_cuda else index, non_blocking=True)
        if not self.graph or self.refused:
            return self._step()
        rates = [(group["lr"], group.get("betas")) for group in self.optimizer.param_groups]
        if rates != self._rates:
            self._rates, self._steps, self._captured = rates, 0, None
        if self._steps < _WARM_UP:
            self._steps += 1
            return self._aside()
        if self._captured is None:
            self._capture()
        if self._captured is None:
            return self._step()
        self._captured.replay()
        return self._result

    def _capture(self) -> None:
        self.optimizer.zero_grad()  # the gradients must lie in the graph's own memory
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with captured(self.optimizer), torch.cuda.graph(graph):
                self._result = self._step()
        except Exception as error:  # of a model that reads a value from the device, for example; it may be the user's
            torch.cuda.set_stream(stream)  # a capture that failed leaves its own stream in place
            self.optimizer.zero_grad()
            self.refused = first_lines(error)
            tell_ordinary(self.refused)
        else:
            self._captured = graph

    def fits(self, index: Tensor) -> bool:
        """Whether rows ``index`` make a batch of the step's shapes."""
        if len(index) != len(self.index):
            return False
        return all(n <= most for n, most in zip(self.split.host.count_values(index), self.totals, strict=True))

    def _aside(self) -> Tensor:
        """A step on a stream of its own, as torch wants it before a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self._step()
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _step(self) -> Tensor:
        batch = self.split.copy.batch(self.index, self.totals, padded=True)
        if self.compiled is None:
            return self._train(batch, self.loss)
        try:
            loss = self._train(batch, self.compiled)
        except Exception as error:  # of a compiler that is missing or fails, which a user's own parts may bring about
            if self._compiles:
                raise
            self.compiled = None
            tell_not_compiled(first_lines(error, 2))
            return self._train(batch, self.loss)
        self._compiles = True
        return loss

    def _train(self, batch: Batch, loss_of: Callable[[Batch], Tensor]) -> Tensor:
        self.optimizer.zero_grad()
        # The cache of autocast would keep weights of before the graph's step.
        kind = self.split.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
            loss = loss_of(batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def first_lines(error: Exception, number: int = 1) -> str:
    """The kind of an error and the first lines of its message, as one line."""
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return " ".join(lines[:number])


def tell_ordinary(reason: str) -> None:
    """Tell the user why training takes ordinary steps on a GPU."""
    print(f"training steps are not repeated as a CUDA graph: {reason}", file=sys.stderr)


def tell_not_compiled(reason: str) -> None:
    """Tell the user why training steps are not compiled although they should be."""
    print(f"training steps are not compiled: {reason}", file=sys.stderr)


def likely_totals(split: Split, batch_size: int) -> tuple[int, int]:
    """Numbers of ragged values of rows and of their user groups that a random batch hardly ever exceeds.

    They are the mean of a batch and six standard deviations, from a sample of rows.
    """
    rows = torch.linspace(0, len(split) - 1, min(len(split), _SAMPLE), dtype=torch.float64).long()
    of_rows, of_groups = (
        math.ceil(n.double().mean() * batch_size + _DEVIATIONS * n.double().std(correction=0) * batch_size**0.5)
        for n in split.values_of(rows)
    )
    return of_rows, of_groups
