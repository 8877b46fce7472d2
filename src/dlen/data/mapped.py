"""Maps the files of several shards into one range of addresses, so that their rows are gathered as those of one array.

A file can only be mapped to the start of a page. So the rows of each file start at a row that is a multiple of the
page size, whatever the size of a row, and there are unused rows between two files, which take no memory.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path

import numpy as np

from dlen.data.columns import Array

_FIXED = 0x10  # MAP_FIXED of Linux and macOS: replace what is mapped at the address
_NO_RESERVE = {"linux": 0x4000, "darwin": 0x40}  # MAP_NORESERVE: unused rows count towards no limit
_PAGE = mmap.ALLOCATIONGRANULARITY


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of several files lie in one array.

    Attributes:
        starts: row at which each file starts.
        rows: number of rows of the array, with the unused ones.
    """

    starts: tuple[int, ...]
    rows: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Layout:
        """Lay out files of these lengths. A single one has no unused rows."""
        if len(lengths) == 1:
            return cls((0,), lengths[0])
        *starts, rows = accumulate((-(-n // _PAGE) * _PAGE for n in lengths), initial=0)
        return cls(tuple(starts), rows)


def map_files(files: Sequence[tuple[Path, int]], layout: Layout, dtype: str, width: tuple[int, ...]) -> Array:
    """The rows of several files as one array. Writing to it never changes a file.

    Args:
        files: path and number of rows of each file; one without rows need not exist.
        layout: where their rows lie.
        dtype: type of an element.
        width: shape of a row.

    Returns:
        (layout.rows, *width), where unused rows are zeros; (n, *width) of a single file, (0, *width) if none has rows.
    """
    rows = layout.rows if len(files) > 1 and any(n for _, n in files) else sum(n for _, n in files)
    shape, row = (rows, *width), np.dtype(dtype).itemsize * prod(width)
    filled = [(path, start * row, n * row) for (path, n), start in zip(files, layout.starts, strict=True) if n * row]
    if not filled:
        return np.zeros(shape, dtype)
    if len(files) == 1:
        # Mode "c" (copy on write) never changes the file and avoids torch's warning about read-only arrays.
        return np.memmap(files[0][0], dtype, "c", shape=shape)
    place: mmap.mmap | Array
    try:
        place = mmap.mmap(-1, rows * row, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE[sys.platform])
        address = ctypes.addressof(ctypes.c_char.from_buffer(place))
        for path, offset, size in filled:
            _map_at(path, address + offset, size)
    except (OSError, KeyError):  # too many maps, or an unknown platform
        place = np.zeros(rows * row, np.uint8)
        for path, offset, size in filled:
            place[offset : offset + size] = np.fromfile(path, np.uint8, size)
    return np.frombuffer(place, dtype).reshape(shape)


def _map_at(path: Path, address: int, size: int) -> None:
    """Map a file to an address within a range that is mapped already, and that is unmapped as a whole."""
    with path.open("rb") as file:
        flags, access = mmap.MAP_PRIVATE | _FIXED, mmap.PROT_READ | mmap.PROT_WRITE
        if _mmap(address, size, access, flags, file.fileno(), 0) != address:
            raise OSError(ctypes.get_errno(), "mmap failed")


_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
