"""Arrays to write into: what `out` may be, and what kernels write where it is not as they need it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from .arrays import (
    Array,
    address_of,
    byte_strides,
    check_dtype,
    check_shape,
    element_strides,
    empty,
    is_array,
    is_c_contiguous,
    is_plain,
    is_torch,
    kind_of,
    pointer,
    row_strides,
)


def byte_range(x: Array) -> tuple[int, int]:
    """The addresses [first, last) that x's elements lie in; the same address twice when there are none."""
    low = address_of(x)
    if is_c_contiguous(x):
        return low, low + x.nbytes
    high = low + x.itemsize
    for size, step in zip(x.shape, byte_strides(x), strict=True):
        if not size:
            return low, low
        if step < 0:
            low += (size - 1) * step
        else:
            high += (size - 1) * step
    return low, high


def check_out(
    out: Array, name: str, like: Array, shape: Sequence[int], dtype: str, inputs: dict[str, Array | None]
) -> None:
    """Refuses an `out` of another kind, device, dtype or shape, and one that is read-only or overlaps."""
    if out is None:  # in a list
        raise TypeError(f"{name}: expected an array, got None")
    kind_of(**{next(iter(inputs), "input"): like, name: out})
    check_dtype(out, name, dtype)
    check_shape(out, name, tuple(shape))
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one")
    if is_torch(out) and out.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise ValueError(f"{name}: expected a tensor without requires_grad, got one that wants a gradient")
    if not is_c_contiguous(out):
        _check_no_internal_overlap(out, name)
    low, high = byte_range(out)
    for other, x in inputs.items():
        if not is_array(x):
            continue
        other_low, other_high = byte_range(x)
        if low < other_high and other_low < high and not _interleaved(out, x):
            raise ValueError(f"{name}: expected memory apart from {other}, got bytes that overlap it")


def _interleaved(a: Array, b: Array) -> bool:
    """Whether a and b are different columns of one matrix, as a fused q, k, v has them."""
    strides, others = row_strides(a), row_strides(b)
    if strides is None or others is None or min(strides[1], others[1]) < 0:
        return False
    pitch = strides[0] * a.itemsize
    if pitch <= 0 or pitch != others[0] * b.itemsize:
        return False
    width, other = (
        (x.shape[-1] - 1) * stride[1] * x.itemsize + x.itemsize for x, stride in ((a, strides), (b, others))
    )
    gap = (address_of(b) - address_of(a)) % pitch
    return bool(width <= gap and gap + other <= pitch)


def _check_no_internal_overlap(out: Array, name: str) -> None:
    """Each stride must step over all that the smaller ones span; rare interleavings are refused too."""
    strides = byte_strides(out)
    reach = out.itemsize
    for step, size in sorted((abs(s), n) for s, n in zip(strides, out.shape, strict=True) if n > 1):
        if step < reach and 0 not in out.shape:
            raise ValueError(f"{name}: expected elements that do not overlap, got strides of {strides} bytes")
        reach += step * (size - 1)


def writable(out: Array, dtype: str) -> Array:
    """out, or a fresh array to compute into where out is not C-contiguous and aligned; store() copies it."""
    return out if is_plain(out) else empty(tuple(out.shape), dtype, out)


def writable_rows(out: Array, dtype: str) -> Array:
    """As writable(), but rows may lie apart (row_stride) as long as each one is contiguous."""
    if is_plain(out):
        return out
    strides = row_strides(out)
    if strides is not None and (strides[1] == 1 or out.shape[-1:] == (1,)):
        return out
    return empty(tuple(out.shape), dtype, out)


def row_stride(x: Array) -> int:
    """The elements from one row of x to the next; x is what writable_rows returns, or C-contiguous."""
    if is_plain(x):
        return x.shape[-1] if x.ndim else 1
    strides = row_strides(x)
    assert strides is not None
    return strides[0]


def is_same_memory(a: Array, b: Array) -> bool:
    """Whether the elements of two arrays are the same memory in the same order."""
    if a is b or not is_array(a) or not is_array(b):
        return a is b
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        both = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        return both and bool(a.__array_interface__ == b.__array_interface__)
    return bool(pointer(a) == pointer(b) and element_strides(a) == element_strides(b))


def store(out: Array, result: Array) -> Array:
    """Copies result into out where they are not the same array, tells autograd, and returns out."""
    if result is out:
        mark_written(out)
    elif isinstance(out, np.ndarray):
        np.copyto(out, result)
    elif is_torch(out):
        with sys.modules["torch"].no_grad():
            out.copy_(result)
    else:
        with out.device:
            out[...] = result
    return out


def mark_written(x: Array) -> None:
    """Lets autograd see that a torch tensor was changed through its pointer."""
    if is_torch(x) and not x.is_inference():
        sys.modules["torch"].autograd.graph.increment_version(x)
