"""torch.ops.octavo.*: schemas, kernels, fakes and gradients; octavo's functions for what torch must see.

Those of products are in torch_products and torch_weight_only, that of convolution in torch_convolution,
those of embeddings in torch_embedding, those of masks and pruning in torch_masks.

The kernels are those of `octavo.ops`: native or reference on the CPU, the torch reference on CUDA. The public
functions serve traced calls, other devices, tensor subclasses and gradients; `octavo.ops` sends them here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.norm import NORM_RESULTS, check_norm, check_norm_outs
from ..ops.quantize import Quantized, _seed
from ..runtime.arrays import FLOATS
from .define import _check_kinds, _define, _dtype, _fill, _fill_quantized, _no_gradient, _none, _quantize_fake

# ---- quantize ----


def _quantize(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    data, scale, zero_point = ops._quantize(x, *arguments)
    return data, scale, x.new_empty(0, dtype=torch.int32) if zero_point is None else zero_point


quantize_op = _define(
    'quantize(Tensor x, str granularity="row", int? group_size=None, bool symmetric=True, '
    'Tensor? scale=None, Tensor? zero_point=None, str rounding="nearest", SymInt? seed=None, '
    'str nonfinite="clamp") -> (Tensor, Tensor, Tensor)',
    _quantize_fake,
    _quantize,
    _no_gradient,
    _none,
)


def quantize(
    x: Tensor,
    *,
    granularity: str = "row",
    group_size: int | None = None,
    symmetric: bool = True,
    scale: Tensor | float | None = None,
    zero_point: Tensor | int | None = None,
    rounding: str = "nearest",
    seed: int | None = None,
    nonfinite: str = "clamp",
    out: Tensor | tuple[Tensor, ...] | None = None,
) -> Quantized:
    if isinstance(scale, (float, int)):
        scale = torch.full((), scale, dtype=torch.float32, device=x.device)
    if isinstance(zero_point, int):
        zero_point = torch.full((), zero_point, dtype=torch.int32, device=x.device)
    _check_kinds(x=x, scale=scale, zero_point=zero_point)
    # schemas know signed 64-bit integers only
    seed = (_seed(seed) + 2**63) % 2**64 - 2**63 if rounding == "stochastic" else None
    data, found, offset = quantize_op(
        x, granularity, group_size, symmetric, scale, zero_point, rounding, seed, nonfinite
    )
    result = Quantized(data, found, None if symmetric else offset)
    return result if out is None else _fill_quantized(out, result, x=x, scale=scale, zero_point=zero_point)


def _dequantize_fake(
    data: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    return data.new_empty(data.shape, dtype=dtype)


def _dequantize(
    data: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    result: Tensor = ops._dequantize(data, scale, zero_point, dtype)
    return result


def _dequantize_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of the scale, which is exact; integers have none."""
    data, scale, zero_point = ctx.saved_tensors
    ones = torch.ones_like(scale)
    steps = grad.to(torch.float32) * dequantize_op(data, ones, zero_point)
    if scale.dim() and scale.shape != data.shape[:-1]:
        steps = steps.reshape(*scale.shape, data.shape[-1] // max(scale.shape[-1], 1))
    return None, steps.sum(-1) if scale.dim() else steps.sum(), None


dequantize_op = _define(
    "dequantize(Tensor data, Tensor scale, Tensor? zero_point=None, *, ScalarType dtype=float) -> Tensor",
    _dequantize_fake,
    _dequantize,
    lambda ctx, inputs, keyword_only_inputs, output: ctx.save_for_backward(*inputs),
    _dequantize_backward,
)


def _fake_quantize(
    x: Tensor, granularity: str = "row", group_size: int | None = None, symmetric: bool = True
) -> Tensor:
    result: Tensor = ops._dequantize(*ops._quantize(x, granularity, group_size, symmetric), x.dtype)
    return result


def _fake_quantize_fake(x: Tensor, *arguments: Any) -> Tensor:
    _quantize_fake(x, *arguments)
    return x.new_empty(x.shape)


fake_quantize = _define(
    'fake_quantize(Tensor x, str granularity="row", int? group_size=None, bool symmetric=True) -> Tensor',
    _fake_quantize_fake,
    _fake_quantize,
    lambda ctx, inputs, output: None,
    lambda ctx, grad: (grad, None, None, None),  # straight through
)


def dequantize(
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    dtype: Any = "float32",
    out: Tensor | None = None,
) -> Tensor:
    _check_kinds(data=data, scale=scale, zero_point=zero_point)
    result: Tensor = dequantize_op(data, scale, zero_point, dtype=_dtype(dtype, "dtype", FLOATS))
    return result if out is None else _fill(out, "out", result, data=data, scale=scale, zero_point=zero_point)


# ---- normalization ----


def _norm_quantize(x: Tensor, *arguments: Any, **more: Any) -> tuple[Tensor, ...]:
    found = ops._norm_quantize(x, *arguments, **more)
    return tuple(
        x.new_empty(0, dtype=torch.int32 if name == "zero_point" else x.dtype) if each is None else each
        for name, each in zip(NORM_RESULTS, found, strict=True)
    )


def _norm_quantize_fake(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    centered: bool = False,
    *,
    symmetric: bool = True,
    normed: bool = False,
) -> tuple[Tensor, ...]:
    check_norm(x, weight, bias, residual, eps, symmetric, normed)
    rows = x.shape[:-1]
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(rows, dtype=torch.float32),
        x.new_empty((0,) if symmetric else rows, dtype=torch.int32),
        x.new_empty((0,) if residual is None else x.shape),
        x.new_empty(x.shape if normed else (0,)),
    )


def _norm_quantize_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    # needs_input_grad has no element for a residual that was left out
    summed = inputs[3] is not None and (ctx.needs_input_grad[0] or ctx.needs_input_grad[3])
    ctx.mark_non_differentiable(
        *(each for name, each in zip(NORM_RESULTS, output, strict=True) if not (summed and name == "sum"))
    )


def _norm_quantize_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """That of the sum x + residual; what is quantized has none."""
    grad = grads[NORM_RESULTS.index("sum")]
    return grad, None, None, grad, None, None


# Returns NORM_RESULTS; what is not there is empty.
norm_quantize_op = _define(
    "norm_quantize(Tensor x, Tensor? weight=None, Tensor? bias=None, Tensor? residual=None, "
    "float eps=1e-6, bool centered=False, *, bool symmetric=True, bool normed=False) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _norm_quantize_fake,
    _norm_quantize,
    _norm_quantize_setup,
    _norm_quantize_backward,
)


def norm_quantize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    centered: bool,
    symmetric: bool,
    normed: bool,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    inputs = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    _check_kinds(**inputs)
    found: tuple[Tensor, ...] = norm_quantize_op(
        *inputs.values(), eps, centered, symmetric=symmetric, normed=normed
    )
    if out is None:
        return found
    dtypes = check_norm(x, weight, bias, residual, eps, symmetric, normed, out)
    if not torch.compiler.is_compiling() and all(type(each) is Tensor for each in out):
        check_norm_outs(out, dtypes, inputs)
    results = dict(zip(NORM_RESULTS, found, strict=True))
    for i, (each, name) in enumerate(zip(out, dtypes, strict=True)):
        results[name] = _fill(each, f"out[{i}]", results[name])
    return tuple(results.values())
