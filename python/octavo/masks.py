"""Masks as bits: one byte holds eight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .arrays import Array, check_dtype, contiguous, empty, kind_of, needs_dispatcher, pointer
from .engines import Engine, native_for, reference_for


def pack_mask(mask: Array) -> Array:
    """bool [..., K] -> uint8 [..., ceil(K / 8)]: element i of a row is bit i % 8 of byte i // 8."""
    kind_of(mask=mask)
    check_dtype(mask, "mask", "bool")
    if not mask.ndim:
        raise ValueError("mask: expected at least one dimension, got shape ()")
    cols = mask.shape[-1]
    engine, reference = _engine(mask)
    if engine is None:
        packed: Array = reference.pack_mask(mask)
        return packed
    bits = empty((*mask.shape[:-1], -(-cols // 8)), "uint8", mask)
    mask = contiguous(mask)
    engine.kernels.pack_mask(pointer(mask), math.prod(mask.shape[:-1]), cols, pointer(bits), *engine.where)
    return bits


def unpack_mask(bits: Array, shape: Sequence[int]) -> Array:
    """The bool mask of this shape that pack_mask packed: uint8 [..., ceil(K / 8)] -> bool [..., K]."""
    kind_of(bits=bits)
    check_dtype(bits, "bits", "uint8")
    shape = tuple(int(n) for n in shape)
    if not shape or min(shape) < 0:
        raise ValueError(f"shape: expected at least one dimension, none negative, got {shape}")
    expected = (*shape[:-1], -(-shape[-1] // 8))
    if tuple(bits.shape) != expected:
        raise ValueError(
            f"bits: expected shape {expected} for a mask of shape {shape}, got {tuple(bits.shape)}"
        )
    engine, reference = _engine(bits)
    if engine is None:
        unpacked: Array = reference.unpack_mask(bits, shape)
        return unpacked
    mask = empty(shape, "bool", bits)
    bits = contiguous(bits)
    engine.kernels.unpack_mask(pointer(bits), math.prod(shape[:-1]), shape[-1], pointer(mask), *engine.where)
    return mask


def _engine(x: Array) -> tuple[Engine | None, Any]:
    """(native kernels, None) or (None, the reference): torch's own operations for what torch has to see."""
    if needs_dispatcher(x):
        from . import torch_reference

        return None, torch_reference
    engine = native_for(x, "prune")
    return engine, None if engine is not None else reference_for(x, "prune")
