"""The functional API in one place: public functions, and (with an underscore) what torch's CPU operators
call.

Every public function hands a torch tensor that needs the dispatcher to `torch_ops`, and everything else to
its twin with the underscore, which validates and runs the native kernels or the reference.
"""

from __future__ import annotations

from .conv import PackedConvWeight, _int8_conv2d, int8_conv2d, pack_conv_weight
from .embedding import _int8_embedding, _int8_embedding_bag, int8_embedding, int8_embedding_bag
from .int_mm import _int_mm, _scaled_int_mm, int_mm, scaled_int_mm
from .linear import _int8_linear, _int8_linears, int8_linear, pack_weight
from .masks import _pack_mask, _unpack_mask, pack_mask, unpack_mask
from .norm import _norm_quantize, layer_norm_quantize, rms_norm_quantize
from .pack import PackedWeight
from .pack import pack_buffer as _pack_weight_buffer
from .pack import unpack_buffer as _unpack_weight_buffer
from .prune import (
    _magnitude_threshold,
    _prune_mask,
    _prune_masks,
    _prune_quantize,
    _pruned,
    _pruned_in_place,
    magnitude_threshold,
    prune,
    prune_,
    prune_mask,
    prune_quantize,
)
from .quantize import Quantized, _dequantize, _quantize, dequantize, quantize
from .weight_only import _weight_only_linear, weight_only_linear

__all__ = [
    "PackedConvWeight",
    "PackedWeight",
    "Quantized",
    "_dequantize",
    "_int8_conv2d",
    "_int8_embedding",
    "_int8_embedding_bag",
    "_int8_linear",
    "_int8_linears",
    "_int_mm",
    "_magnitude_threshold",
    "_norm_quantize",
    "_pack_mask",
    "_pack_weight_buffer",
    "_prune_mask",
    "_prune_masks",
    "_prune_quantize",
    "_pruned",
    "_pruned_in_place",
    "_quantize",
    "_scaled_int_mm",
    "_unpack_mask",
    "_unpack_weight_buffer",
    "_weight_only_linear",
    "dequantize",
    "int8_conv2d",
    "int8_embedding",
    "int8_embedding_bag",
    "int8_linear",
    "int_mm",
    "layer_norm_quantize",
    "magnitude_threshold",
    "pack_conv_weight",
    "pack_mask",
    "pack_weight",
    "prune",
    "prune_",
    "prune_mask",
    "prune_quantize",
    "quantize",
    "rms_norm_quantize",
    "scaled_int_mm",
    "unpack_mask",
    "weight_only_linear",
]
