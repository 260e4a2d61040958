"""Arrays between pages that may not be touched: one byte read or written beyond an array ends the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

PROT_NONE, PROT_READ = 0, 1
SIDES = ("start", "end")  # the side of the array that a forbidden page is flush against

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _protect(address: int, nbytes: int, protection: int) -> None:
    if nbytes and _mprotect(address, nbytes, protection):
        raise OSError(ctypes.get_errno(), "mprotect")


def empty(shape, dtype, side="end", *, row_pad=0):
    """A writable array; row_pad: elements between the rows (the last axis keeps unit stride)."""
    return _build(shape, np.dtype(dtype), side, row_pad)[0]


def copy(array, side="end", *, row_pad=0):
    """A copy that may only be read."""
    a, address, nbytes = _build(array.shape, array.dtype, side, row_pad)
    a[...] = array
    _protect(address, nbytes, PROT_READ)
    a.flags.writeable = False
    return a


def _build(shape, dtype, side, row_pad):
    strides, step = [], dtype.itemsize
    for i, size in enumerate(reversed(shape)):
        strides.insert(0, step)
        step *= size + (row_pad if i == 0 and len(shape) > 1 else 0)
    extent = (
        0 if 0 in shape else dtype.itemsize + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    )
    page = mmap.PAGESIZE
    inner = -(-extent // page) * page
    region = mmap.mmap(-1, inner + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    _protect(address, page, PROT_NONE)
    _protect(address + page + inner, page, PROT_NONE)
    offset = page if side == "start" else page + inner - extent
    # The array keeps the region alive; the last one that refers to it unmaps it.
    return np.ndarray(shape, dtype, region, offset, tuple(strides)), address + page, inner
