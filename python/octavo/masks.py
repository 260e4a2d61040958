"""Masks as bits: one byte holds eight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .arrays import Array, check_dtype, contiguous, empty, kind_of, needs_dispatcher, pointer
from .engines import native_for, reference_for


def pack_mask(mask: Array) -> Array:
    """bool [..., K] -> uint8 [..., ceil(K / 8)]: element i of a row is bit i % 8 of byte i // 8."""
    if type(mask) is not np.ndarray and needs_dispatcher(mask):
        from . import torch_ops

        return torch_ops.pack_mask(mask)
    return _pack_mask(mask)


def _pack_mask(mask: Array) -> Array:
    """pack_mask, without torch's dispatcher."""
    kind_of(mask=mask)
    check_dtype(mask, "mask", "bool")
    if not mask.ndim:
        raise ValueError("mask: expected at least one dimension, got shape ()")
    cols = mask.shape[-1]
    engine = native_for(mask, "prune")
    if engine is None:
        packed: Array = reference_for(mask, "prune").pack_mask(mask)
        return packed
    bits = empty((*mask.shape[:-1], -(-cols // 8)), "uint8", mask)
    mask = contiguous(mask)
    rows = math.prod(mask.shape[:-1])
    engine.kernels.pack_mask(pointer(mask), rows=rows, cols=cols, bits=pointer(bits), where=engine.where)
    return bits


def unpack_mask(bits: Array, shape: Sequence[int]) -> Array:
    """The bool mask of this shape that pack_mask packed: uint8 [..., ceil(K / 8)] -> bool [..., K]."""
    if type(bits) is not np.ndarray and needs_dispatcher(bits):
        from . import torch_ops

        return torch_ops.unpack_mask(bits, shape)
    return _unpack_mask(bits, tuple(int(n) for n in shape))


def _unpack_mask(bits: Array, shape: tuple[int, ...]) -> Array:
    """unpack_mask, without torch's dispatcher."""
    kind_of(bits=bits)
    check_dtype(bits, "bits", "uint8")
    check_mask_shape(bits, shape)
    engine = native_for(bits, "prune")
    if engine is None:
        unpacked: Array = reference_for(bits, "prune").unpack_mask(bits, shape)
        return unpacked
    mask = empty(shape, "bool", bits)
    bits = contiguous(bits)
    rows, cols = math.prod(shape[:-1]), shape[-1]
    engine.kernels.unpack_mask(pointer(bits), rows=rows, cols=cols, mask=pointer(mask), where=engine.where)
    return mask


def check_mask_shape(bits: Array, shape: Sequence[int]) -> None:
    """ValueError where a mask of this shape has other bytes than bits has."""
    if not shape or any(n < 0 for n in shape):  # min() would compare the sizes, which tracing remembers
        raise ValueError(f"shape: expected at least one dimension, none negative, got {tuple(shape)}")
    expected = (*shape[:-1], -(-shape[-1] // 8))
    if tuple(bits.shape) != expected:
        raise ValueError(
            f"bits: expected shape {expected} for a mask of shape {tuple(shape)}, got {tuple(bits.shape)}"
        )
