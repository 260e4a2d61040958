"""torch.ops.octavo: masks and pruning, with their gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ops.prune import (
    MAGNITUDE_THRESHOLD,
    PRUNE,
    PRUNE_MASK,
    PRUNE_MASKS,
    PRUNE_QUANTIZE,
    prune_in_place,
)
from ..reference.torch import apply_mask
from .define import define, fake, no_gradient, register

prune_mask_op = register(PRUNE_MASK, no_gradient)
register(PRUNE_MASKS, no_gradient)
register(MAGNITUDE_THRESHOLD, no_gradient)
register(PRUNE_QUANTIZE, no_gradient)


def _prune_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.selection = keyword_only_inputs


def _prune_backward(ctx: Any, grad: Tensor) -> Tensor:
    # the mask is made anew: it cannot be read off the result, where weights that are kept may be zero too
    return apply_mask(grad, prune_mask_op(*ctx.saved_tensors, **ctx.selection))


register(PRUNE, _prune_setup, _prune_backward)

# w must not want a gradient: what was overwritten is gone
define(
    PRUNE_MASK.schema.replace("prune_mask(Tensor w", "prune_(Tensor(a!) w"),
    fake(PRUNE_MASK),
    lambda w, **selection: prune_in_place([w], ["w"], **selection)[0],
    no_gradient,
)
