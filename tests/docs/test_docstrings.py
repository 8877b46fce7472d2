"""Run the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import dlen


def test_examples_in_docstrings() -> None:
    names = {module.name for module in pkgutil.walk_packages(dlen.__path__, "dlen.")}
    names -= {"dlen.nn.row_kernels"}  # needs Triton, which is there with CUDA only
    results = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert not [name for name, result in results.items() if result.failed]
    assert sum(result.attempted for result in results.values()) >= 25
