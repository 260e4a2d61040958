"""Masks as bits: one byte holds eight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..runtime.arrays import Array, check_dtype, contiguous, kind_of, pointer
from ..runtime.routing import Engine
from .op import Op, Plan


def pack_mask(mask: Array) -> Array:
    """bool [..., K] -> uint8 [..., ceil(K / 8)]: element i of a row is bit i % 8 of byte i // 8."""
    return PACK_MASK(mask)


def _plan_pack(mask: Array) -> Plan:
    kind_of(mask=mask)
    check_dtype(mask, "mask", "bool")
    if not mask.ndim:
        raise ValueError("mask: expected at least one dimension, got shape ()")
    *lead, cols = mask.shape

    def native(engine: Engine, bits: Array) -> None:
        base = contiguous(mask)
        rows = math.prod(lead)
        engine.kernels.pack_mask(pointer(base), rows=rows, cols=cols, bits=pointer(bits), where=engine.where)

    def reference(module: Any) -> Any:
        return module.pack_mask(mask)

    return Plan(mask, {"mask": mask}, (((*lead, -(-cols // 8)), "uint8", ""),), native, reference)


PACK_MASK = Op("pack_mask(Tensor mask) -> Tensor", _plan_pack, "prune")


def unpack_mask(bits: Array, shape: Sequence[int]) -> Array:
    """The bool mask of this shape that pack_mask packed: uint8 [..., ceil(K / 8)] -> bool [..., K]."""
    return UNPACK_MASK(bits, tuple(shape))


def _plan_unpack(bits: Array, shape: Sequence[int]) -> Plan:
    kind_of(bits=bits)
    check_dtype(bits, "bits", "uint8")
    if not shape or any(n < 0 for n in shape):  # min() would compare the sizes, which tracing remembers
        raise ValueError(f"shape: expected at least one dimension, none negative, got {tuple(shape)}")
    expected = (*shape[:-1], -(-shape[-1] // 8))
    if tuple(bits.shape) != expected:
        raise ValueError(
            f"bits: expected shape {expected} for a mask of shape {tuple(shape)}, got {tuple(bits.shape)}"
        )

    def native(engine: Engine, mask: Array) -> None:
        base = contiguous(bits)
        rows, cols = math.prod(shape[:-1]), shape[-1]
        engine.kernels.unpack_mask(
            pointer(base), rows=rows, cols=cols, mask=pointer(mask), where=engine.where
        )

    def reference(module: Any) -> Any:
        return module.unpack_mask(bits, tuple(shape))

    return Plan(bits, {"bits": bits}, ((tuple(shape), "bool", ""),), native, reference)


UNPACK_MASK = Op("unpack_mask(Tensor bits, SymInt[] shape) -> Tensor", _plan_unpack, "prune")
