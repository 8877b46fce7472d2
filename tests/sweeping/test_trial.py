"""The reason of a failed trial, in one line."""

from __future__ import annotations

import pytest
import torch

from dlen.errors import UserError
from dlen.sweeping.trial import TrialFailedError, _reason


def test_memory_that_runs_out_is_called_that() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 56, dtype=torch.uint8)  # more than any machine has
    for error in (caught.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")):
        assert _reason(error).startswith("out of memory: ")
        assert "\n" not in _reason(error)


def test_other_reasons() -> None:
    assert _reason(UserError("config model: no")) == "config model: no"
    assert _reason(TrialFailedError("the training loss is nan at step 3")) == "the training loss is nan at step 3"
    assert _reason(KeyError("x")) == "KeyError: 'x'"
