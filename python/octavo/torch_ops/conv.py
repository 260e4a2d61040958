"""torch.ops.octavo.int8_conv2d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.conv import PackedConvWeight, Window, is_channels_last, output_size, unpack_conv
from ..ops.linear import ACTIVATIONS
from ..runtime.arrays import check_dtype, dtype_name
from .define import _define
from .linear import _ACTIVATION_BACKWARD


def _packed(
    x: Tensor, weight: Tensor, weight_scale: Tensor, groups: int, kernel_size: Sequence[int] | None
) -> PackedConvWeight:
    """The weight of a call: int8 [N, C / groups, kh, kw], or PackedConvWeight.buffer with its kernel_size."""
    if groups < 1:
        raise ValueError(f"groups: expected at least 1, got {groups}")
    scale = weight_scale.reshape(weight_scale.numel())
    if weight.dim() == 4:
        check_dtype(weight, "weight", "int8")
        shape: Sequence[int] = weight.shape
    elif kernel_size is None or len(kernel_size) != 2 or min(kernel_size) < 1 or x.dim() != 4:
        raise ValueError(
            f"kernel_size: expected two numbers of at least 1 with a packed weight and x [B, C, H, W], "
            f"got {kernel_size} and {tuple(x.shape)}"
        )
    else:
        shape = (scale.shape[0], x.shape[1] // groups, *kernel_size)
    if shape[0] != scale.shape[0] or shape[0] % groups:
        raise ValueError(
            f"weight_scale: expected one for each of {shape[0]} output channels, in {groups} groups, "
            f"got shape {tuple(weight_scale.shape)}"
        )
    return PackedConvWeight.trusted(weight, scale, shape, groups)


def _window(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Window:
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            "stride, padding, dilation: expected at least 1, 0 and 1, got "
            f"{tuple(stride)}, {tuple(padding)} and {tuple(dilation)}"
        )
    top, bottom, left, right = padding
    return Window((stride[0], stride[1]), (top, bottom, left, right), (dilation[0], dilation[1]))


def _int8_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    kernel_size: Sequence[int] | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    packed = _packed(x, weight, weight_scale, groups, kernel_size)
    name = None if out_dtype is None else dtype_name(out_dtype)
    window = _window(stride, padding, dilation)
    result: Tensor = ops._int8_conv2d(x, packed, bias, window, activation, name)
    return result


def _int8_conv2d_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    kernel_size: Sequence[int] | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    packed = _packed(x, weight, weight_scale, groups, kernel_size)
    n = packed.shape[0]
    size = output_size(x.shape, packed.shape, groups, _window(stride, padding, dilation))
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"bias: expected shape {(n,)}, got {tuple(bias.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {tuple(ACTIVATIONS)}, got {activation!r}")
    if out_dtype is None:
        out_dtype = torch.float32 if x.dtype == torch.float64 else x.dtype
    memory = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty((x.shape[0], n, *size), dtype=out_dtype, device=x.device, memory_format=memory)


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.window, ctx.groups = _window(*inputs[4:7]), inputs[7]
    ctx.kernel_size = keyword_only_inputs["kernel_size"]
    ctx.activation = keyword_only_inputs["activation"]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Straight through the rounding of x to x', what its int8 values stand for: the gradients of
    activation(conv2d(x', weight * scale) + bias)."""
    x, weight, weight_scale, bias = ctx.saved_tensors
    window, groups = ctx.window, ctx.groups
    packed = _packed(x, weight, weight_scale, groups, ctx.kernel_size)
    (stride, padding, dilation), n = window, packed.shape[0]
    top, bottom, left, right = padding
    grad = grad.to(torch.float32)
    needs = ctx.needs_input_grad
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
        grad = _ACTIVATION_BACKWARD[ctx.activation](grad, product(weight_scale, bias))
    if needs[0]:
        framed = torch.nn.functional.pad(x.to(torch.float32), (left, right, top, bottom))
        w = unpack_conv(weight, packed.shape, groups).to(torch.float32)
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


# padding: top, bottom, left, right. weight: int8 [N, C / groups, kh, kw], or PackedConvWeight.buffer with the
# kernel_size that it has no longer.
int8_conv2d_op = _define(
    "int8_conv2d(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, int[2] stride=1, "
    "int[4] padding=0, int[2] dilation=1, int groups=1, *, int[2]? kernel_size=None, str? activation=None, "
    "ScalarType? out_dtype=None) -> Tensor",
    _int8_conv2d_fake,
    _int8_conv2d,
    _setup,
    _backward,
)


def int8_conv2d(
    x: Tensor,
    weight: PackedConvWeight,
    bias: Tensor | None,
    window: Window,
    activation: str | None,
    out_dtype: str | None,
) -> Tensor:
    result: Tensor = int8_conv2d_op(
        x,
        weight.buffer,
        weight.scale,
        bias,
        *window,
        weight.groups,
        kernel_size=weight.shape[2:],
        activation=activation,
        out_dtype=None if out_dtype is None else getattr(torch, out_dtype),
    )
    return result
