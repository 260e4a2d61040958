"""torch.ops.octavo.int8_conv2d, with its gradient, and unpack_conv_weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.conv import INT8_CONV2D, as_checked_window, as_packed
from ..ops.conv_weight import unpack_conv
from .define import define, register
from .linear import ACTIVATION_BACKWARD


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.window, ctx.groups = as_checked_window(*inputs[4:7]), inputs[7]
    ctx.kernel_size = keyword_only_inputs["kernel_size"]
    ctx.activation = keyword_only_inputs["activation"]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Straight through the rounding of x to x', what its int8 values stand for: the gradients of
    activation(conv2d(x', weight * scale) + bias)."""
    x, weight, weight_scale, bias = ctx.saved_tensors
    window, groups = ctx.window, ctx.groups
    packed = as_packed(x, weight, weight_scale, groups, ctx.kernel_size)
    (stride, padding, dilation), n = window, packed.shape[0]
    top, bottom, left, right = padding
    grad = grad.to(torch.float32)
    needs = ctx.needs
    grad_x = grad_scale = grad_bias = None

    def product(scale: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = int8_conv2d_op(
            x,
            weight,
            scale,
            bias,
            *window,
            groups,
            kernel_size=packed.shape[2:],
            out_dtype=torch.float32,
        )
        return y

    if ctx.activation is not None:
        grad = ACTIVATION_BACKWARD[ctx.activation](grad, product(weight_scale, bias))
    if needs[0]:
        framed = torch.nn.functional.pad(x.to(torch.float32), (left, right, top, bottom))
        w = unpack_conv_weight_op(weight, packed.shape, groups).to(torch.float32)
        scaled = w * packed.scale.reshape(n, 1, 1, 1)
        grad_x = torch.ops.aten.convolution_backward(
            grad, framed, scaled, None, stride, (0, 0), dilation, False, (0, 0), groups, (True, False, False)
        )[0]
        grad_x = grad_x[:, :, top : top + x.shape[2], left : left + x.shape[3]].to(x.dtype)
    if needs[2]:
        unscaled = product(torch.ones_like(weight_scale), None)
        grad_scale = (grad * unscaled).sum((0, 2, 3)).reshape(weight_scale.shape)
    if bias is not None and needs[3]:
        grad_bias = grad.sum((0, 2, 3)).to(bias.dtype)
    return grad_x, None, grad_scale, grad_bias, None, None, None, None


int8_conv2d_op = register(INT8_CONV2D, _setup, _backward)
unpack_conv_weight_op = define(
    "unpack_conv_weight(Tensor buffer, SymInt[] shape, int groups) -> Tensor",
    lambda buffer, shape, groups: buffer.new_empty(shape, dtype=torch.int8),
    unpack_conv,
)
