"""Masks as bits: one byte holds eight."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

from . import backends
from .arrays import Array, check_dtype, contiguous, empty, kind_of, needs_dispatcher, pointer
from .backends import _core
from .quantization import runs_native


def pack_mask(mask: Array) -> Array:
    """bool [..., K] -> uint8 [..., ceil(K / 8)]: element i of a row is bit i % 8 of byte i // 8."""
    kind = kind_of(mask=mask)
    check_dtype(mask, "mask", "bool")
    if not mask.ndim:
        raise ValueError("mask: expected at least one dimension, got shape ()")
    cols = mask.shape[-1]
    if kind == "numpy" or not needs_dispatcher(mask):
        if not runs_native(mask):
            packed = np.packbits(np.asarray(mask), axis=-1, bitorder="little")
            return packed if kind == "numpy" else sys.modules["torch"].from_numpy(packed)
        bits = empty((*mask.shape[:-1], -(-cols // 8)), "uint8", mask)
        mask = contiguous(mask)
        _core.pack_mask(
            pointer(mask), math.prod(mask.shape[:-1]), cols, pointer(bits), backends.get_num_threads()
        )
        return bits
    import torch

    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    bits = bits.reshape(*mask.shape[:-1], bits.shape[-1] // 8, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(-1, dtype=torch.uint8)


def unpack_mask(bits: Array, shape: Sequence[int]) -> Array:
    """The bool mask of this shape that pack_mask packed: uint8 [..., ceil(K / 8)] -> bool [..., K]."""
    kind = kind_of(bits=bits)
    check_dtype(bits, "bits", "uint8")
    shape = tuple(int(n) for n in shape)
    if not shape or min(shape) < 0:
        raise ValueError(f"shape: expected at least one dimension, none negative, got {shape}")
    expected = (*shape[:-1], -(-shape[-1] // 8))
    if tuple(bits.shape) != expected:
        raise ValueError(
            f"bits: expected shape {expected} for a mask of shape {shape}, got {tuple(bits.shape)}"
        )
    if kind == "numpy" or not needs_dispatcher(bits):
        if not runs_native(bits):
            unpacked = np.unpackbits(np.asarray(bits), axis=-1, count=shape[-1], bitorder="little").view(
                np.bool_
            )
            return unpacked if kind == "numpy" else sys.modules["torch"].from_numpy(unpacked)
        mask = empty(shape, "bool", bits)
        bits = contiguous(bits)
        _core.unpack_mask(
            pointer(bits), math.prod(shape[:-1]), shape[-1], pointer(mask), backends.get_num_threads()
        )
        return mask
    import torch

    each = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return each.reshape(*shape[:-1], 8 * bits.shape[-1])[..., : shape[-1]].to(torch.bool)
