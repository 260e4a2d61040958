"""torch.ops.octavo.weight_only_linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.weight_only import OUT_DTYPES, check_groups
from .define import _check_kinds, _define, _dtype, _fill
from .linear import _ACTIVATION_BACKWARD, _linear_fake, unpack_weight


def _fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    if out_dtype is None:
        out_dtype = torch.float32 if x.dtype == torch.float64 else x.dtype
    n = weight_scale.shape[0]
    y = _linear_fake(x, weight, weight_scale.reshape(n, -1)[:, 0], bias, activation, out_dtype)
    check_groups(weight_scale, n, x.shape[-1])
    return y


def _kernel(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    result: Tensor = ops._weight_only_linear(x, weight, weight_scale, bias, activation, out_dtype)
    return result


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.activation = keyword_only_inputs["activation"]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Exact: nothing is rounded to int8 but the weight, which is a constant."""
    x, weight, weight_scale, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad  # without one for a bias that was left out
    needs_x, needs_scale, needs_bias = needs[0], needs[2], bias is not None and needs[3]
    n, k = weight_scale.shape[0], x.shape[-1]
    grad = grad.to(torch.float32)
    if ctx.activation is not None:
        y = weight_only_linear_op(x, weight, weight_scale, bias, out_dtype=torch.float32)
        grad = _ACTIVATION_BACKWARD[ctx.activation](grad, y)
    grad = grad.reshape(x.shape[:-1].numel(), n)
    rows = x.reshape(grad.shape[0], k)
    grad_x = grad_scale = grad_bias = None
    if needs_x or needs_scale:
        q = (unpack_weight(weight, n, k) if weight.dim() == 1 else weight).to(torch.float32)
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


weight_only_linear_op = _define(
    "weight_only_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, "
    "str? activation=None, ScalarType? out_dtype=None) -> Tensor",
    _fake,
    _kernel,
    _setup,
    _backward,
)


def weight_only_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str | None,
    out_dtype: Any,
    out: Tensor | None,
) -> Tensor:
    inputs = {"x": x, "weight": weight, "weight_scale": weight_scale, "bias": bias}
    _check_kinds(**inputs)
    dtype = None if out_dtype is None else _dtype(out_dtype, "out_dtype", OUT_DTYPES)
    result: Tensor = weight_only_linear_op(
        x, weight, weight_scale, bias, activation=activation, out_dtype=dtype
    )
    return result if out is None else _fill(out, "out", result, **inputs)
