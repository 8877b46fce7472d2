"""Memory that a step frees is there for the next step, without a page fault."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import numpy as np
from dlen.allocator import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(1 << 17) for _ in range(50)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_step_reuses_the_memory_of_the_one_before() -> None:
    faults = int(subprocess.check_output([sys.executable, "-c", STEPS], text=True))
    assert faults < 50 * (1 << 20) // 4096 / 100  # a hundredth of the pages that the third step allocates
