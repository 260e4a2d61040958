"""torch.ops.octavo.*: octavo's operations for torch's dispatcher, with their gradients.

The operations are those of octavo.ops, checked and run by the same plans; the gradients are written here.
"""

from __future__ import annotations

from ..ops.op import OPS
from . import conv, define, embedding, linear, norm, pack, prune, qat, quantize, weight_only

__all__ = ["conv", "embedding", "linear", "norm", "pack", "prune", "qat", "quantize", "weight_only"]

for each in OPS.values():
    if each.name not in define.REGISTERED:  # it has no gradient
        define.register(each)
