"""torch.ops.octavo: packing, integer products and linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.linear import _OUT_DTYPES, ACTIVATIONS
from ..ops.pack import PackedWeight, packed_nbytes
from .define import _check_kinds, _define, _dtype, _fill, _no_gradient, _none


def _int_mm_fake(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(
            f"a, b: expected shapes [M, K] and [K, N], got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return a.new_empty((a.shape[0], b.shape[1]), dtype=torch.int32)


int_mm_op = _define("int_mm(Tensor a, Tensor b) -> Tensor", _int_mm_fake, lambda a, b: ops._int_mm(a, b))


def int_mm(a: Tensor, b: Tensor | PackedWeight, *, out: Tensor | None = None) -> Tensor:
    if isinstance(b, PackedWeight):
        if a.dim() != 2:
            raise ValueError(f"a: expected two dimensions [M, K], got shape {tuple(a.shape)}")
        return scaled_int_mm(a, 1.0, b, out_dtype=torch.int32, out=out)
    _check_kinds(a=a, b=b)
    result: Tensor = int_mm_op(a, b)
    return result if out is None else _fill(out, "out", result, a=a, b=b)


def _pack_weight_fake(weight: Tensor, layout: str = "dense") -> Tensor:
    dense = layout == "dense"  # the size of the others depends on the values
    n, k = weight.shape
    form = "rows" if weight.is_cuda else "dense"
    size = packed_nbytes(n, k, form) if dense else torch.library.get_ctx().new_dynamic_size()
    return weight.new_empty((size,), dtype=torch.uint8)


pack_weight = _define(
    'pack_weight(Tensor weight, str layout="dense") -> Tensor',
    _pack_weight_fake,
    lambda weight, layout="dense": ops._pack_weight_buffer(weight, layout),
)

unpack_weight = _define(
    "unpack_weight(Tensor packed, SymInt n, SymInt k) -> Tensor",
    lambda packed, n, k: packed.new_empty((n, k), dtype=torch.int8),
    lambda packed, n, k: ops._unpack_weight_buffer(packed, n, k),
)


def _linear_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str | None,
    out_dtype: torch.dtype,
) -> Tensor:
    n = weight_scale.numel()
    if not x.dim() or (weight.dim() == 2 and x.shape[-1] != weight.shape[1]):
        raise ValueError(
            f"expected [..., K] times a weight [N, K], got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"bias: expected shape {(n,)}, got {tuple(bias.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {tuple(ACTIVATIONS)}, got {activation!r}")
    return x.new_empty((*x.shape[:-1], n), dtype=out_dtype)


def _int8_linear_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
    symmetric: bool = True,
) -> Tensor:
    if out_dtype is None:
        out_dtype = torch.float32 if x.dtype == torch.float64 else x.dtype
    return _linear_fake(x, weight, weight_scale, bias, activation, out_dtype)


def _int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
    symmetric: bool = True,
) -> Tensor:
    result: Tensor = ops._int8_linear(
        x, weight, weight_scale, bias, activation, out_dtype, symmetric=symmetric
    )
    return result


def _int8_linear_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.activation = keyword_only_inputs["activation"]
    ctx.symmetric = keyword_only_inputs["symmetric"]


def _int8_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, weight_scale, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
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
        grad = _ACTIVATION_BACKWARD[activation](grad, y)
    grad_x = grad_scale = grad_bias = None
    if needs_x:
        w = (unpack_weight(weight, n, k) if weight.dim() == 1 else weight).to(torch.float32)
        grad_x = grad @ (w * weight_scale.reshape(n, 1))
    if needs_scale:
        ones = torch.ones_like(weight_scale)  # the product is linear in its scale
        unscaled = int8_linear_op(x, weight, ones, out_dtype=torch.float32, symmetric=symmetric)
        grad_scale = (grad * unscaled).reshape(-1, n).sum(0).reshape(weight_scale.shape)
    if bias is not None and needs_bias:
        grad_bias = grad.reshape(-1, n).sum(0).to(bias.dtype)
    return grad_x, grad_scale, grad_bias


_ACTIVATION_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
    "gelu": lambda grad, y: torch.ops.aten.gelu_backward(grad, y),
    "gelu_tanh": lambda grad, y: torch.ops.aten.gelu_backward(grad, y, approximate="tanh"),
    "silu": lambda grad, y: torch.ops.aten.silu_backward(grad, y),
}

int8_linear_op = _define(
    "int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, str? activation=None, "
    "ScalarType? out_dtype=None, bool symmetric=True) -> Tensor",
    _int8_linear_fake,
    _int8_linear,
    _int8_linear_setup,
    _int8_linear_backward,
)


def int8_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    symmetric: bool = True,
    out_dtype: Any = None,
    out: Tensor | None = None,
) -> Tensor:
    if weight.scale is None:
        raise ValueError("weight: expected a weight with a scale, got one without")
    _check_kinds(x=x, weight=weight.buffer, bias=bias)
    dtype = None if out_dtype is None else _dtype(out_dtype, "out_dtype", _OUT_DTYPES)
    result: Tensor = int8_linear_op(
        x, weight.buffer, weight.scale, bias, activation=activation, out_dtype=dtype, symmetric=symmetric
    )
    return result if out is None else _fill(out, "out", result, x=x, weight=weight.buffer, bias=bias)


def _int8_linears_fake(
    x: Tensor,
    weights: Sequence[Tensor],
    weight_scales: Sequence[Tensor],
    biases: Sequence[Tensor],
    activations: Sequence[str],
    *,
    out_dtype: torch.dtype | None = None,
    symmetric: bool = True,
) -> list[Tensor]:
    return [
        _int8_linear_fake(x, weight, scale, bias, activation=activation or None, out_dtype=out_dtype)
        for weight, scale, bias, activation in zip(
            weights, weight_scales, _given(biases, weight_scales), activations, strict=True
        )
    ]


def _given(biases: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor | None]:
    """The biases, None for one that stands for none."""
    return [
        bias if bias.numel() or not scale.numel() else None
        for bias, scale in zip(biases, scales, strict=True)
    ]


def _int8_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    weight_scales: Sequence[Tensor],
    biases: Sequence[Tensor],
    activations: Sequence[str],
    *,
    out_dtype: torch.dtype | None = None,
    symmetric: bool = True,
) -> list[Tensor]:
    names = [activation or None for activation in activations]
    given = _given(biases, weight_scales)
    return ops._int8_linears(x, weights, weight_scales, given, names, out_dtype, symmetric=symmetric)


def _int8_linears_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    x, weights, weight_scales, biases, ctx.activations = inputs
    ctx.symmetric = keyword_only_inputs["symmetric"]
    ctx.save_for_backward(x, *weights, *weight_scales, *biases)


def _int8_linears_backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    x, *saved = ctx.saved_tensors
    count = len(grads)
    weights, scales = saved[:count], saved[count : 2 * count]
    biases = _given(saved[2 * count :], scales)
    needs_x, _, needs_scales, needs_biases, _ = ctx.needs_input_grad
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


# An empty bias is no bias, and "" no activation: autograd does not see into a list with None, and a schema
# has no such list of strings.
int8_linears_op = _define(
    "int8_linears(Tensor x, Tensor[] weights, Tensor[] weight_scales, Tensor[] biases, str[] activations, "
    "*, ScalarType? out_dtype=None, bool symmetric=True) -> Tensor[]",
    _int8_linears_fake,
    _int8_linears,
    _int8_linears_setup,
    _int8_linears_backward,
)


def int8_linears(
    x: Tensor,
    weights: Sequence[PackedWeight],
    biases: Sequence[Tensor | None],
    activations: Sequence[str | None],
    symmetric: bool,
    out_dtype: Any,
    out: Sequence[Tensor] | None,
) -> list[Tensor]:
    inputs: dict[str, Any] = {"x": x}
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.scale is None:
            raise ValueError(f"weight[{i}]: expected a weight with a scale, got one without")
        inputs[f"weight[{i}]"], inputs[f"bias[{i}]"] = weight.buffer, bias
    _check_kinds(**inputs)
    dtype = None if out_dtype is None else _dtype(out_dtype, "out_dtype", _OUT_DTYPES)
    results: list[Tensor] = int8_linears_op(
        x,
        [weight.buffer for weight in weights],
        [weight.scale for weight in weights],
        [x.new_empty(0) if bias is None else bias for bias in biases],
        [activation or "" for activation in activations],
        out_dtype=dtype,
        symmetric=symmetric,
    )
    if out is None:
        return results
    for i, (each, result) in enumerate(zip(out, results, strict=True)):
        inputs[f"out[{i}]"] = _fill(each, f"out[{i}]", result, **inputs)
    return list(out)


def _scaled_int_mm_fake(
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    a_zero_point: Tensor | None = None,
    *,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return _linear_fake(a, weight, weight_scale, bias, activation, out_dtype or torch.float32)


def _scaled_int_mm(
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    a_zero_point: Tensor | None = None,
    *,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    dtype = out_dtype or torch.float32
    result: Tensor = ops._scaled_int_mm(
        a, a_scale, weight, weight_scale, bias, a_zero_point, activation, dtype
    )
    return result


scaled_int_mm_op = _define(
    "scaled_int_mm(Tensor a, Tensor a_scale, Tensor weight, Tensor weight_scale, Tensor? bias=None, "
    "Tensor? a_zero_point=None, *, str? activation=None, ScalarType? out_dtype=None) -> Tensor",
    _scaled_int_mm_fake,
    _scaled_int_mm,
    _no_gradient,
    _none,
)


def scaled_int_mm(
    a: Tensor,
    a_scale: Tensor | float,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    a_zero_point: Tensor | int | None = None,
    activation: str | None = None,
    out_dtype: Any = "float32",
    out: Tensor | None = None,
) -> Tensor:
    dtype = _dtype(out_dtype, "out_dtype", _OUT_DTYPES)
    scale = weight.scale
    if scale is None:
        if dtype != torch.int32:
            raise ValueError("weight: expected a weight with a scale, got one without")
        scale = torch.ones(weight.shape[0], dtype=torch.float32, device=a.device)
    if isinstance(a_scale, (float, int)):
        a_scale = torch.full((), a_scale, dtype=torch.float32, device=a.device)
    if isinstance(a_zero_point, int):
        a_zero_point = torch.full((), a_zero_point, dtype=torch.int32, device=a.device)
    _check_kinds(a=a, a_scale=a_scale, weight=weight.buffer, bias=bias, a_zero_point=a_zero_point)
    result: Tensor = scaled_int_mm_op(
        a,
        a_scale,
        weight.buffer,
        scale,
        bias,
        a_zero_point=a_zero_point,
        activation=activation,
        out_dtype=dtype,
    )
    return result if out is None else _fill(out, "out", result, a=a, weight=weight.buffer, bias=bias)
