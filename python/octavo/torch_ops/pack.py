"""torch.ops.octavo.pack_weight and unpack_weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.layouts import packed_nbytes
from ..ops.pack import UNPACK_WEIGHT, check_matrix, pack
from .define import define, register


def _pack_weight_fake(weight: Tensor, layout: str = "dense") -> Tensor:
    n, k = check_matrix(weight)
    dense = layout == "dense"  # the size of the others depends on the values
    form = "rows" if weight.is_cuda else "dense"
    size = packed_nbytes(n, k, form) if dense else torch.library.get_ctx().new_dynamic_size()
    return weight.new_empty((size,), dtype=torch.uint8)


pack_weight_op = define(
    'pack_weight(Tensor weight, str layout="dense") -> Tensor',
    _pack_weight_fake,
    lambda weight, layout="dense": pack(weight, layout)[0],
)
unpack_weight_op = register(UNPACK_WEIGHT)
