"""torch.ops.octavo.norm_quantize, with its gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ops.norm import NORM_QUANTIZE, NORM_RESULTS
from .define import register


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    # needs has no element for a residual that was left out
    summed = inputs[3] is not None and (ctx.needs[0] or ctx.needs[3])
    ctx.mark_non_differentiable(
        *(each for name, each in zip(NORM_RESULTS, output, strict=True) if not (summed and name == "sum"))
    )


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """That of the sum x + residual; what is quantized has none."""
    grad = grads[NORM_RESULTS.index("sum")]
    return grad, None, None, grad, None, None


norm_quantize_op = register(NORM_QUANTIZE, _setup, _backward)
