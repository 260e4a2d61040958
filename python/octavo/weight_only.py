"""weight_only_linear: what it checks, allocates and calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import (
    DTYPE_CODES,
    FLOATS,
    Array,
    as_dtype_name,
    as_rows,
    check_dtype,
    check_out,
    check_shape,
    contiguous,
    empty,
    float_code,
    kind_of,
    needs_dispatcher,
    on_cuda,
    pointer,
    store,
    writable_rows,
)
from .engines import native_for, reference_for
from .linear import _check_epilogue, _operand, as_operand
from .packed import PackedWeight, unpack_buffer
from .quantization import Quantized

GROUP_MULTIPLE = 4  # terms that stand beside each other in a packed weight
OUT_DTYPES = ("float32", "float16", "bfloat16")


def weight_only_linear(
    x: Array,
    weight: PackedWeight | Quantized,
    bias: Array | None = None,
    *,
    weight_scale: Array | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
    out: Array | None = None,
) -> Array:
    """y = activation(x @ (weight * scale).T + bias) with x as it is: only the weight is int8, and stays so.

    x: float32, float16, bfloat16 or float64 (taken as float32) [..., K]; a copy is made only where its
        leading dimensions don't collapse into one stride.
    weight: a PackedWeight of shape (N, K); or a Quantized, symmetric, per row or per group, which is packed
        on every call.
    weight_scale: float32 [N], or [N, G] with one scale for each of G groups of K / G adjacent weights, a
        multiple of 4; None: the one that weight has.
    bias, activation, out: as for int8_linear. out_dtype: "float32", "float16" or "bfloat16"; x's own by
        default, float32 for float64.

    Sums are float32 in an order of their own (docs/numerics.md): a row's result depends on nothing but that
    row and the weight.
    """
    if isinstance(weight, Quantized):
        if weight.zero_point is not None:
            raise ValueError("weight: expected a symmetric Quantized, got one with a zero_point")
        data, scale = weight.data, weight.scale
    elif isinstance(weight, PackedWeight):
        data, scale = weight.buffer, weight.scale
    else:
        raise TypeError(f"weight: expected a PackedWeight or a Quantized, got {type(weight).__name__}")
    scale = scale if weight_scale is None else weight_scale
    if scale is None:
        raise ValueError("weight_scale: expected scales for a weight without its own, got None")
    if type(x) is not np.ndarray and needs_dispatcher(x, data, scale, bias):
        from . import torch_ops

        return torch_ops.weight_only_linear(x, data, scale, bias, activation, out_dtype, out)
    return _weight_only_linear(x, data, scale, bias, activation, out_dtype, out)


def _weight_only_linear(
    x: Array,
    weight: Array,
    weight_scale: Array,
    bias: Array | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
    out: Array | None = None,
) -> Array:
    """weight_only_linear, without torch's dispatcher; weight: a packed buffer or int8 [N, K]."""
    inputs = {"x": x, "weight": weight, "weight_scale": weight_scale, "bias": bias}
    kind_of(**inputs)
    code = float_code(x, "x")
    check_dtype(weight_scale, "weight_scale", "float32")
    n, k, weight, _ = _operand(weight, weight_scale[..., :1] if on_cuda(weight) else None, x)
    groups = check_groups(weight_scale, n, k)
    if not x.ndim or x.shape[-1] != k:
        raise ValueError(f"x: expected shape (..., {k}) for a weight of shape {(n, k)}, got {tuple(x.shape)}")
    name = FLOATS[code % 3] if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", OUT_DTYPES)
    activation_code, bias_code = _check_epilogue(n, weight_scale, bias, activation, name)
    shape = (*x.shape[:-1], n)
    if out is not None:
        check_out(out, "out", x, shape, name, inputs)
    engine = native_for(x, "weight_only")
    scale = contiguous(weight_scale)
    if engine is None:
        plain = unpack_buffer(weight, n, k) if weight.ndim == 1 else weight
        result = reference_for(x, "weight_only").weight_only_linear(
            x, plain, scale.reshape(n, groups), bias, activation, name
        )
        return result if out is None else store(out, result)
    rows, cols, row_stride, col_stride, base = as_rows(x)
    buffer = as_operand(weight)
    bias = None if bias is None else contiguous(bias)
    stride, result = (n, empty(shape, name, x)) if out is None else writable_rows(out, name)
    engine.kernels.weight_only_linear(
        pointer(base),
        code,
        rows,
        n,
        cols,
        row_stride,
        col_stride,
        pointer(buffer),
        buffer.nbytes,
        pointer(scale),
        groups,
        0 if bias is None else pointer(bias),
        bias_code,
        activation_code,
        pointer(result),
        DTYPE_CODES[name],
        stride,
        *engine.where,
    )
    return result if out is None else store(out, result)


def check_groups(weight_scale: Array, n: int, k: int) -> int:
    """The groups of a row that a scale of this shape means."""
    if weight_scale.ndim != 2:
        check_shape(weight_scale, "weight_scale", (n,), (n, 1))
        return 1
    groups = int(weight_scale.shape[1])
    if weight_scale.shape[0] != n or groups < 1 or (groups > 1 and k % (groups * GROUP_MULTIPLE)):
        raise ValueError(
            f"weight_scale: expected shape {(n,)} or ({n}, groups) with groups that split {k} into multiples "
            f"of {GROUP_MULTIPLE}, got {tuple(weight_scale.shape)}"
        )
    return groups
