"""torch.ops.octavo: layers that compute what int8 ones compute, on float weights that train.

The gradients are straight through (Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877):
a layer f(x, W) returns f(x', W'), where ' is quantize and then dequantize, and its backward pass is that of f
at (x', W'), with d x' / d x and d W' / d W taken as the identity. Scales and zero points are constants: they
cover what they were computed from, so that nothing finite is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.conv import INT8_CONV2D
from ..ops.linear import INT8_LINEAR
from ..ops.quantize import QUANTIZE, raise_nonfinite
from .conv import int8_conv2d_op
from .define import define, fake
from .linear import int8_linear_op
from .quantize import dequantize_op, quantize_op


def _quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(data, scale) of a weight, one scale per output. ValueError for NaN and Inf: as 0 and the largest value
    they would hide that training has diverged."""
    raise_nonfinite(weight, "weight")
    data, scale, _ = QUANTIZE.run(weight.flatten(1))
    return data.reshape(weight.shape), scale


def _quantized_fake(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.new_empty(weight.shape[0], dtype=torch.float32)
    return weight.new_empty(weight.shape, dtype=torch.int8), scale


def _fake_quantized(t: Tensor, dtype: torch.dtype, symmetric: bool = True) -> Tensor:
    """What the int8 values of t, with one scale for each row along the last axis, stand for."""
    data, scale, zero_point = quantize_op(t, "row", None, symmetric)
    result: Tensor = dequantize_op(data, scale, None if symmetric else zero_point, dtype=dtype)
    return result


def _refuse_second_derivatives() -> None:
    # left alone, autograd would differentiate what follows with W' and x' as constants, and say nothing
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph: expected False, got True, as torch.func has it: a fake-quantized layer has no "
            "second derivatives; torch.autograd.grad and backward() make the first"
        )


# What backward passes need of x' and W' they compute again from x and W, which autograd holds anyway: that is
# a pass over memory beside a matrix product, and holding them would be a copy of every activation.


# ---- linear ----


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, symmetric: bool = True) -> Tensor:
    data, scale = _quantize_weight(weight)
    y: Tensor = int8_linear_op(x, data, scale, bias, symmetric=symmetric)
    return y


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, symmetric: bool = True) -> Tensor:
    data, scale = _quantized_fake(weight)
    return fake(INT8_LINEAR)(  # type: ignore[no-any-return]
        x, data, scale, bias, symmetric=symmetric
    )


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.symmetric = keyword_only_inputs["symmetric"]


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    _refuse_second_derivatives()
    x, weight, bias = ctx.saved_tensors
    needs_x, needs_weight = ctx.needs[:2]
    grad_x = grad_weight = grad_bias = None
    rows = grad.reshape(-1, grad.shape[-1])
    if needs_x:
        grad_x = (grad @ _fake_quantized(weight, grad.dtype)).to(x.dtype)
    if needs_weight:
        used = _fake_quantized(x, grad.dtype, ctx.symmetric).reshape(rows.shape[0], x.shape[-1])
        grad_weight = (rows.t() @ used).to(weight.dtype)
    if bias is not None and ctx.needs[2]:
        grad_bias = rows.sum(0, dtype=bias.dtype)
    return grad_x, grad_weight, grad_bias


fake_quantized_linear_op = define(
    "fake_quantized_linear(Tensor x, Tensor weight, Tensor? bias=None, *, bool symmetric=True) -> Tensor",
    _linear_fake,
    _linear,
    _linear_setup,
    _linear_backward,
)


# ---- conv2d ----


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    top, left = padding
    y: Tensor = int8_conv2d_op(
        x, *_quantize_weight(weight), bias, stride, (top, top, left, left), dilation, groups
    )
    return y


def _conv2d_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    data, scale = _quantized_fake(weight)
    top, left = padding
    return fake(INT8_CONV2D)(  # type: ignore[no-any-return]
        x, data, scale, bias, stride, (top, top, left, left), dilation, groups
    )


def _conv2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.arguments = inputs[3:]


def _conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    _refuse_second_derivatives()
    x, weight, bias = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.arguments
    needs_x, needs_weight = ctx.needs[:2]
    needs_bias = bias is not None and ctx.needs[2]
    used_x = _fake_quantized(x.flatten(1), grad.dtype).reshape(x.shape)
    used_weight = _fake_quantized(weight.flatten(1), grad.dtype).reshape(weight.shape)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, used_x, used_weight, None, stride, padding, dilation, False, [0, 0], groups,
        [needs_x, needs_weight, False],
    )  # fmt: skip
    return (
        grad_x.to(x.dtype) if needs_x else None,
        grad_weight.to(weight.dtype) if needs_weight else None,
        grad.sum((0, 2, 3), dtype=bias.dtype) if needs_bias else None,
        *[None] * 4,
    )


fake_quantized_conv2d_op = define(
    "fake_quantized_conv2d(Tensor x, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, "
    "SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1) -> Tensor",
    _conv2d_fake,
    _conv2d,
    _conv2d_setup,
    _conv2d_backward,
)
