"""torch.ops.octavo.*: schemas, kernels, fakes and gradients; octavo's functions for what torch must see.

Those of products are in torch_products.

The kernels are those of `octavo.ops`: native or reference on the CPU, the torch reference on CUDA. The public
functions serve traced calls, other devices, tensor subclasses and gradients; `octavo.ops` sends them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .arrays import FLOATS
from .norm import check_norm, check_norm_outs
from .quantization import Quantized, _grouping, _seed
from .selection import _check_units, _number, _selection
from .torch_library import _check_kinds, _define, _dtype, _fill, _fill_quantized, _no_gradient, _none
from .torch_products import (
    int8_linear,
    int8_linear_op,
    int8_linears,
    int_mm,
    pack_weight,
    scaled_int_mm,
    unpack_weight,
)

__all__ = [
    "dequantize",
    "fake_quantize",
    "int8_linear",
    "int8_linear_op",
    "int8_linears",
    "int_mm",
    "norm_quantize",
    "pack_weight",
    "prune_mask",
    "prune_masks",
    "prune_quantize",
    "quantize",
    "scaled_int_mm",
    "unpack_weight",
]

# ---- quantize ----


def _quantize(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    data, scale, zero_point = ops._quantize(x, *arguments)
    return data, scale, x.new_empty(0, dtype=torch.int32) if zero_point is None else zero_point


def _quantize_fake(
    x: Tensor, granularity: str = "row", group_size: int | None = None, symmetric: bool = True, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _grouping(x, granularity, group_size)[0]
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(shape, dtype=torch.float32),
        x.new_empty((0,) if symmetric else shape, dtype=torch.int32),
    )


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
        steps = steps.reshape(*scale.shape, -1)
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


def _norm_quantize(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    data, scale, total = ops._norm_quantize(x, *arguments)
    return data, scale, x.new_empty(0) if total is None else total


def _norm_quantize_fake(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    centered: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    check_norm(x, weight, bias, residual, eps)
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(x.shape[:-1], dtype=torch.float32),
        x.new_empty((0,) if residual is None else x.shape),
    )


norm_quantize_op = _define(
    "norm_quantize(Tensor x, Tensor? weight=None, Tensor? bias=None, Tensor? residual=None, "
    "float eps=1e-6, bool centered=False) -> (Tensor, Tensor, Tensor)",
    _norm_quantize_fake,
    _norm_quantize,
    _no_gradient,
    _none,
)


def norm_quantize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    centered: bool,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    _check_kinds(**inputs)
    found: tuple[Tensor, Tensor, Tensor] = norm_quantize_op(*inputs.values(), eps, centered)
    if out is None:
        return found
    dtypes = check_norm(x, weight, bias, residual, eps, out)
    if not torch.compiler.is_compiling() and all(type(each) is Tensor for each in out):
        check_norm_outs(out, dtypes, inputs)
    filled = [
        _fill(each, f"out[{i}]", result)
        for i, (each, result) in enumerate(zip(out, found[: len(dtypes)], strict=True))
    ]
    return filled[0], filled[1], filled[-1]


# ---- pruning ----

_SELECTION = (
    "float? threshold=None, float? ratio=None, float? sparsity=None, "
    'str pattern="unstructured", str nonfinite="keep"'
)


def _prune_mask_fake(w: Tensor, **selection: Any) -> Tensor:
    _check_selection([w], **selection)
    return w.new_empty(w.shape, dtype=torch.bool)


def _prune_masks_fake(ws: Sequence[Tensor], **selection: Any) -> list[Tensor]:
    _check_selection(ws, **selection)
    return [w.new_empty(w.shape, dtype=torch.bool) for w in ws]


def _check_selection(
    ws: Sequence[Tensor],
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
) -> None:
    chosen = _selection(threshold, ratio, sparsity, pattern, nonfinite)
    for w in ws:
        _check_units(w, "w", chosen)


prune_mask_op = _define(
    f"prune_mask(Tensor w, *, {_SELECTION}) -> Tensor",
    _prune_mask_fake,
    lambda w, **selection: ops._prune_mask(w, **selection),
)

prune_masks_op = _define(
    f"prune_masks(Tensor[] ws, *, {_SELECTION}) -> Tensor[]",
    _prune_masks_fake,
    lambda ws, **selection: ops._prune_masks(ws, **selection),
)


def prune_mask(w: Tensor, *, out: Tensor | None = None, **selection: Any) -> Tensor:
    mask: Tensor = prune_mask_op(w, **_numbers(selection))
    return mask if out is None else _fill(out, "out", mask, w=w)


def prune_masks(
    ws: Sequence[Tensor], *, out: Sequence[Tensor] | None = None, **selection: Any
) -> list[Tensor]:
    _check_kinds(**{f"w[{i}]": w for i, w in enumerate(ws)})
    masks: list[Tensor] = prune_masks_op(list(ws), **_numbers(selection))
    if out is None:
        return masks
    if not isinstance(out, (list, tuple)) or len(out) != len(ws):
        raise TypeError(f"out: expected a sequence of {len(ws)} arrays, got {type(out).__name__}")
    return [
        _fill(each, f"out[{i}]", mask, w=w)
        for i, (each, mask, w) in enumerate(zip(out, masks, ws, strict=True))
    ]


def _prune_quantize_fake(
    w: Tensor, *, granularity: str = "row", group_size: int | None = None, **selection: Any
) -> tuple[Tensor, Tensor, Tensor]:
    data, scale, _ = _quantize_fake(w, granularity, group_size)
    return data, scale, _prune_mask_fake(w, **selection)


def _prune_quantize(w: Tensor, **arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    found, mask = ops._prune_quantize(w, **arguments)
    return found.data, found.scale, mask


prune_quantize_op = _define(
    f'prune_quantize(Tensor w, *, str granularity="row", int? group_size=None, {_SELECTION}) '
    "-> (Tensor, Tensor, Tensor)",
    _prune_quantize_fake,
    _prune_quantize,
    _no_gradient,
    _none,
)


def prune_quantize(
    w: Tensor, *, out: tuple[Tensor, Tensor, Tensor] | None = None, **arguments: Any
) -> tuple[Quantized, Tensor]:
    data, scale, mask = prune_quantize_op(w, **_numbers(arguments))
    found = Quantized(data, scale)
    if out is None:
        return found, mask
    if not isinstance(out, (list, tuple)) or len(out) != 3:
        raise TypeError("out: expected (data, scale, mask)")
    return _fill_quantized(tuple(out[:2]), found, w=w), _fill(out[2], "out[2]", mask, w=w)


# ---- arguments ----


def _numbers(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with threshold, ratio and sparsity as the Python floats that schemas take."""
    names = [name for name in ("threshold", "ratio", "sparsity") if arguments.get(name) is not None]
    return {**arguments, **{name: _number(arguments[name], name) for name in names}}
