"""torch.ops.octavo: integer products and linear layers, with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.int_mm import SCALED_INT_MM
from ..ops.linear import INT8_LINEAR, INT8_LINEARS, given_biases
from .define import no_gradient, register
from .pack import unpack_weight_op

scaled_int_mm_op = register(SCALED_INT_MM, no_gradient)


def _int8_linear_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.activation = keyword_only_inputs["activation"]
    ctx.symmetric = keyword_only_inputs["symmetric"]


def _int8_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, weight_scale, bias = ctx.saved_tensors
    needs = ctx.needs
    needs_bias = bias is not None and needs[3]
    grad_x, grad_scale, grad_bias = _linear_gradients(
        (needs[0], needs[2], needs_bias), grad, x, weight, weight_scale, bias, ctx.activation, ctx.symmetric
    )
    return None if grad_x is None else grad_x.to(x.dtype), None, grad_scale, grad_bias


def _linear_gradients(
    needs: tuple[bool, bool, bool],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str | None,
    symmetric: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Straight through the rounding of x to x', what its int8 values stand for: the gradients of x (float32),
    weight_scale and bias in activation(x' @ (weight * weight_scale).T + bias)."""
    needs_x, needs_scale, needs_bias = needs
    n, k = weight_scale.numel(), x.shape[-1]
    grad = grad.to(torch.float32)
    if activation is not None:
        y = int8_linear_op(x, weight, weight_scale, bias, out_dtype=torch.float32, symmetric=symmetric)
        grad = ACTIVATION_BACKWARD[activation](grad, y)
    grad_x = grad_scale = grad_bias = None
    if needs_x:
        w = (unpack_weight_op(weight, n, k) if weight.dim() == 1 else weight).to(torch.float32)
        grad_x = grad @ (w * weight_scale.reshape(n, 1))
    if needs_scale:
        ones = torch.ones_like(weight_scale)  # the product is linear in its scale
        unscaled = int8_linear_op(x, weight, ones, out_dtype=torch.float32, symmetric=symmetric)
        grad_scale = (grad * unscaled).reshape(-1, n).sum(0).reshape(weight_scale.shape)
    if bias is not None and needs_bias:
        grad_bias = grad.reshape(-1, n).sum(0).to(bias.dtype)
    return grad_x, grad_scale, grad_bias


ACTIVATION_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
    "gelu": lambda grad, y: torch.ops.aten.gelu_backward(grad, y),
    "gelu_tanh": lambda grad, y: torch.ops.aten.gelu_backward(grad, y, approximate="tanh"),
    "silu": lambda grad, y: torch.ops.aten.silu_backward(grad, y),
}

int8_linear_op = register(INT8_LINEAR, _int8_linear_setup, _int8_linear_backward)


def _int8_linears_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    x, weights, weight_scales, biases, ctx.activations = inputs
    ctx.symmetric = keyword_only_inputs["symmetric"]
    ctx.save_for_backward(x, *weights, *weight_scales, *biases)


def _int8_linears_backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    x, *saved = ctx.saved_tensors
    count = len(grads)
    weights, scales = saved[:count], saved[count : 2 * count]
    biases = given_biases(saved[2 * count :], [scale.numel() for scale in scales])
    needs_x, _, needs_scales, needs_biases, _ = ctx.needs
    gradients = [
        _linear_gradients(
            (needs_x, needs_scales[i], needs_biases[i]),
            grad,
            x,
            weights[i],
            scales[i],
            biases[i],
            ctx.activations[i] or None,
            ctx.symmetric,
        )
        for i, grad in enumerate(grads)
    ]
    grads_x, grad_scales, grad_biases = (list(each) for each in zip(*gradients, strict=True))
    grad_x = sum(grads_x[1:], grads_x[0]).to(x.dtype) if needs_x else None
    return grad_x, [None] * count, grad_scales, grad_biases, None


int8_linears_op = register(INT8_LINEARS, _int8_linears_setup, _int8_linears_backward)
