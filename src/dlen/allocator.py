"""The memory allocator: what a step frees stays with the process, for the next step."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of the parameters in glibc's malloc.h
_KEPT = 1 << 28
_LARGEST = 1 << 25  # glibc allows no more


def keep_freed_memory() -> None:
    """Keep up to 256 MiB of freed memory instead of giving it back to the system.

    By default glibc gives back what is free at the end of the heap as soon as that is twice the largest block so far.
    Each step frees all it has allocated, so in the next one the system has to find and clear the same pages again, one
    page fault after the other. Blocks above 32 MiB, such as tables, are given back as before. Does nothing with another
    C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGEST)  # setting either stops glibc from adapting both
