"""Which kernels a call on an array runs: the native ones of its device, or the reference."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from . import backends
from .arrays import Array, as_rows, dtype_name, empty, float_code, is_torch, on_cuda, pointer
from .backends import _core


class Engine(NamedTuple):
    """Native kernels for an array: engine.kernels.quantize(..., where=engine.where)."""

    kernels: Any  # the module _core or _cuda
    where: Any  # how many threads, or where on which device


_on_cpu = Engine(_core, 1)  # the last one: to make one anew costs a tiny call 0.3 us


def native_for(x: Array, *families: str) -> Engine | None:
    """The native kernels for x, or None for the reference. families: all the CUDA kernels that are needed."""
    global _on_cpu
    if on_cuda(x):
        return None if why_reference_for(x, *families) else Engine(backends.cuda()[0], _where(x))
    if not backends.native or not (isinstance(x, np.ndarray) or x.is_cpu):
        return None
    found, threads = _on_cpu, backends.get_num_threads()
    if found.where != threads or found.kernels is not _core:
        found = _on_cpu = Engine(_core, threads)
    return found


def float_rows(kernels: Any, x: Array) -> tuple[Any, Array]:
    """x as a record of its kernels, FloatRows, and the array whose memory that is: to be kept meanwhile."""
    rows, cols, row_step, col_step, base = as_rows(x)
    view = kernels.FloatRows(
        pointer(base),
        dtype=float_code(x, "x"),
        rows=rows,
        cols=cols,
        row_stride=row_step,
        col_stride=col_step,
    )
    return view, base


def int_rows(kernels: Any, x: Array) -> tuple[Any, Array]:
    """The same for int8 or uint8: IntRows."""
    rows, cols, row_step, col_step, base = as_rows(x)
    signed = dtype_name(x.dtype) == "int8"
    view = kernels.IntRows(
        pointer(base), signed=signed, rows=rows, cols=cols, row_stride=row_step, col_stride=col_step
    )
    return view, base


def reference_for(x: Array, *families: str) -> Any:
    """The module that defines the operations for arrays like x, where native_for(x, *families) is None.

    RuntimeError for CuPy arrays, which have none.
    """
    if isinstance(x, np.ndarray):
        from ..reference import numpy as reference

        return reference
    if on_cuda(x):
        why = why_reference_for(x, *families)
        if not is_torch(x):
            raise RuntimeError(
                f"octavo: expected native kernels for a cupy.ndarray, which has no reference, got none: {why}"
            )
        if not backends.why_reference():
            backends.warn_once(
                f"octavo: {why}; tensors on a device run on the torch reference, there and slowly "
                "(octavo.show_config() says more)"
            )
    from ..reference import torch as torch_reference

    return torch_reference


def why_reference_for(x: Array, *families: str) -> str:
    """Why x, on a device, has no native kernels; "" if it has them."""
    device = x.device.index if is_torch(x) else x.device.id
    return backends.why_reference() or backends.why_not_cuda(device, families)


def _where(x: Array) -> tuple[int, int, Any]:
    """x's device, the current stream there, and allocate(nbytes) -> address of memory there that lives as
    long as this function does."""
    held = []

    def allocate(nbytes: int) -> int:
        held.append(empty((nbytes,), "uint8", x))
        return pointer(held[-1])

    if is_torch(x):
        stream = sys.modules["torch"].cuda.current_stream(x.device)
        return x.device.index, stream.cuda_stream, allocate
    with x.device:
        return x.device.id, sys.modules["cupy"].cuda.get_current_stream().ptr, allocate
