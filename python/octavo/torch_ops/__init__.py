"""torch.ops.octavo.*: octavo's operations for torch's dispatcher, with their gradients."""

from __future__ import annotations

from .conv import int8_conv2d
from .embedding import int8_embedding, int8_embedding_bag, int8_embedding_bag_op, int8_embedding_op
from .linear import (
    int8_linear,
    int8_linear_op,
    int8_linears,
    int_mm,
    pack_weight,
    scaled_int_mm,
    unpack_weight,
)
from .prune import magnitude_threshold, pack_mask, prune, prune_mask, prune_masks, prune_quantize, unpack_mask
from .quantize import dequantize, fake_quantize, norm_quantize, quantize
from .weight_only import weight_only_linear, weight_only_linear_op

__all__ = [
    "dequantize",
    "fake_quantize",
    "int8_conv2d",
    "int8_embedding",
    "int8_embedding_bag",
    "int8_embedding_bag_op",
    "int8_embedding_op",
    "int8_linear",
    "int8_linear_op",
    "int8_linears",
    "int_mm",
    "magnitude_threshold",
    "norm_quantize",
    "pack_mask",
    "pack_weight",
    "prune",
    "prune_mask",
    "prune_masks",
    "prune_quantize",
    "quantize",
    "scaled_int_mm",
    "unpack_mask",
    "unpack_weight",
    "weight_only_linear",
    "weight_only_linear_op",
]
