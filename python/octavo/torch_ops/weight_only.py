"""torch.ops.octavo.weight_only_linear, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.weight_only import WEIGHT_ONLY_LINEAR
from .define import register
from .linear import ACTIVATION_BACKWARD
from .pack import unpack_weight_op


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.activation = keyword_only_inputs["activation"]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Exact: nothing is rounded to int8 but the weight, which is a constant."""
    x, weight, weight_scale, bias = ctx.saved_tensors
    needs = ctx.needs  # without one for a bias that was left out
    needs_x, needs_scale, needs_bias = needs[0], needs[2], bias is not None and needs[3]
    n, k = weight_scale.shape[0], x.shape[-1]
    grad = grad.to(torch.float32)
    if ctx.activation is not None:
        y = weight_only_linear_op(x, weight, weight_scale, bias, out_dtype=torch.float32)
        grad = ACTIVATION_BACKWARD[ctx.activation](grad, y)
    grad = grad.reshape(x.shape[:-1].numel(), n)
    rows = x.reshape(grad.shape[0], k)
    grad_x = grad_scale = grad_bias = None
    if needs_x or needs_scale:
        q = (unpack_weight_op(weight, n, k) if weight.dim() == 1 else weight).to(torch.float32)
        q = q.reshape(n, weight_scale.numel() // n if n else 1, -1)
    if needs_x:
        w = (q * weight_scale.reshape(n, -1, 1)).reshape(n, k)
        grad_x = (grad @ w).reshape(x.shape).to(x.dtype)
    if needs_scale:
        products = (grad.t() @ rows.to(torch.float32)).reshape(q.shape)
        grad_scale = (products * q).sum(-1).reshape(weight_scale.shape)
    if needs_bias:
        grad_bias = grad.sum(0).to(bias.dtype)
    return grad_x, None, grad_scale, grad_bias


weight_only_linear_op = register(WEIGHT_ONLY_LINEAR, _setup, _backward)
