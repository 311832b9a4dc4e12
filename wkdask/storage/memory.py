"""Memory for large arrays of voxels, which takes over that of arrays that are gone.

The system hands out memory page by page and zeroed, which takes a third of the time of a large
read. A process that reads chunk after chunk pays that once: the memory of an array that is gone is
kept for the next one. It is marked as free, so that the system takes it when it needs it.

In workers of dask that goes for all arrays of a MiB and more: their `MALLOC_TRIM_THRESHOLD_` makes
the C library give each of them back at once.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import weakref
from collections import deque

import numpy as np
from numpy.typing import DTypeLike

from wkdask.storage.volume import Voxels

__all__ = ["KEPT_BYTES", "SMALLEST_BYTES", "new_array"]

SMALLEST_BYTES = 2**20
"""Smaller arrays are left to NumPy, whose allocator keeps them itself."""

# Large pages where little of the last one is lost.
_PAGE_BYTES, _LARGE_PAGE_BYTES = 2**16, 2**21
_LARGE_FROM_BYTES = 2**22
# A buffer serves arrays that fill at least so much of it.
_LEAST_SHARE = 0.75


def _kept_bytes() -> int:
    """Return an eighth of a core's share of the memory, at most 1 GiB."""
    try:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
    return min(2**30, memory_bytes // (8 * (os.cpu_count() or 1)))


KEPT_BYTES = _kept_bytes()
"""How much is kept at most, in all threads of a process together."""

# Appending and popping need no lock, which a finalizer in any thread could not wait for.
_kept: deque[mmap.mmap] = deque()


def new_array(shape: tuple[int, ...], dtype: DTypeLike) -> tuple[Voxels, bool]:
    """Return an array in Fortran order, and whether it is known to be all zeros.

    If it is not, it holds what another array left: write every element, or fill it.

    Examples
    --------
    >>> array, is_zero = new_array((1, 256, 256, 256), "uint8")
    >>> array.shape, array.flags.f_contiguous
    ((1, 256, 256, 256), True)
    """
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if not SMALLEST_BYTES <= size_bytes <= KEPT_BYTES:
        return np.zeros(shape, dtype, order="F"), True
    page_bytes = _LARGE_PAGE_BYTES if size_bytes >= _LARGE_FROM_BYTES else _PAGE_BYTES
    whole_bytes = -(-size_bytes // page_bytes) * page_bytes
    buffer = _taken(whole_bytes)
    is_new = buffer is None
    if buffer is None:
        buffer = _mapped(whole_bytes)
    owner = np.frombuffer(buffer, np.uint8)
    # All views of an array keep alive the one at the end of their bases, which is this one.
    weakref.finalize(owner, _keep, buffer).atexit = False
    return owner[:size_bytes].view(dtype).reshape(shape, order="F"), is_new


def _taken(size_bytes: int) -> mmap.mmap | None:
    """Return a kept buffer of about a size."""
    for _ in range(len(_kept)):
        try:
            buffer = _kept.popleft()
        except IndexError:
            return None
        if _LEAST_SHARE * len(buffer) <= size_bytes <= len(buffer):
            return buffer
        _kept.append(buffer)
    return None


def _mapped(size_bytes: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size_bytes >= _LARGE_FROM_BYTES:
        _advise(buffer, "MADV_HUGEPAGE")
    return buffer


def _keep(buffer: mmap.mmap) -> None:
    """Keep a buffer whose array is gone, and let the oldest go if they are too many."""
    _advise(buffer, "MADV_FREE")
    _kept.append(buffer)
    while sum(map(len, tuple(_kept))) > KEPT_BYTES:
        with contextlib.suppress(IndexError):
            _kept.popleft()


def _advise(buffer: mmap.mmap, name: str) -> None:
    """Tell the system how memory is used, where it knows the word."""
    if (advice := getattr(mmap, name, None)) is not None:
        with contextlib.suppress(OSError):
            buffer.madvise(advice)
