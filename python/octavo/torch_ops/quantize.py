"""torch.ops.octavo.quantize, dequantize and fake_quantize, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.quantize import DEQUANTIZE, QUANTIZE
from .define import define, no_gradient, register

quantize_op = register(QUANTIZE, no_gradient)


def _dequantize_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of the scale, which is exact; integers have none."""
    data, scale, zero_point = ctx.saved_tensors
    ones = torch.ones_like(scale)
    steps = grad.to(torch.float32) * dequantize_op(data, ones, zero_point)
    if scale.dim() and scale.shape != data.shape[:-1]:
        steps = steps.reshape(*scale.shape, data.shape[-1] // max(scale.shape[-1], 1))
    return None, steps.sum(-1) if scale.dim() else steps.sum(), None


dequantize_op = register(
    DEQUANTIZE,
    lambda ctx, inputs, keyword_only_inputs, output: ctx.save_for_backward(*inputs),
    _dequantize_backward,
)


def _fake_quantize(
    x: Tensor, granularity: str = "row", group_size: int | None = None, symmetric: bool = True
) -> Tensor:
    found = QUANTIZE.run(x, granularity, group_size, symmetric)
    result: Tensor = DEQUANTIZE.run(*found, x.dtype)
    return result


def _fake_quantize_fake(x: Tensor, *arguments: Any) -> Tensor:
    QUANTIZE.plan(x, *arguments)
    return x.new_empty(x.shape)


fake_quantize_op = define(
    'fake_quantize(Tensor x, str granularity="row", int? group_size=None, bool symmetric=True) -> Tensor',
    _fake_quantize_fake,
    _fake_quantize,
    lambda ctx, inputs, output: None,
    lambda ctx, grad: (grad, None, None, None),  # straight through
)
