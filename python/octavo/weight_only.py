"""weight_only_linear: what it checks, allocates and calls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import backends
from .arrays import (
    DTYPE_CODES,
    FLOAT_CODES,
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
    plain_address,
    pointer,
    store,
    writable_rows,
)
from .backends import _core
from .engines import native_for, reference_for
from .linear import _ACTIVATION_NAMES, ACTIVATIONS, _check_epilogue, _operand, as_operand
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
    if out_dtype is None and out is None and backends.native:
        tiny = _tiny_weight_only_linear(x, weight, weight_scale, bias, activation)
        if tiny is not None:
            return tiny
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
    kernels, where = engine
    target = kernels.Target(
        kernels.Weight(pointer(buffer), nbytes=buffer.nbytes, n=n, k=k),
        scale=0,
        bias=0 if bias is None else pointer(bias),
        bias_dtype=bias_code,
        activation=activation_code,
        out=pointer(result),
        out_dtype=DTYPE_CODES[name],
        out_row_stride=stride,
    )
    kernels.weight_only_linear(
        kernels.FloatRows(
            pointer(base), dtype=code, rows=rows, cols=cols, row_stride=row_stride, col_stride=col_stride
        ),
        target=target,
        scale=pointer(scale),
        groups=groups,
        where=where,
    )
    return result if out is None else store(out, result)


def _tiny_weight_only_linear(
    x: Array, weight: Array, weight_scale: Array, bias: Array | None, activation: str | None
) -> Array | None:
    """What _weight_only_linear does for contiguous arrays of the usual dtypes and a packed buffer, or None
    where anything else comes.

    It repeats the checks of _weight_only_linear without its function calls, which cost more than a tiny
    product.
    """
    x_address, address = plain_address(x, weight), plain_address(weight, weight)
    scale_address = plain_address(weight_scale, weight)
    if not (x_address and address and scale_address) or weight.ndim != 1 or weight.itemsize != 1:
        return None
    n, k = _core.packed_shape(address, nbytes=weight.shape[0])
    code, shape, scale_shape = FLOAT_CODES.get(x.dtype, 3), x.shape, weight_scale.shape
    if code == 3 or not shape or shape[-1] != k or FLOAT_CODES.get(weight_scale.dtype) != 0:
        return None
    if len(scale_shape) != 2 or scale_shape[0] != n:
        return None
    groups = scale_shape[1]
    if groups != 1 and (not groups or k % (GROUP_MULTIPLE * groups)):
        return None
    if activation is not None and activation not in _ACTIVATION_NAMES:
        return None
    bias_address = bias_code = 0
    if bias is not None:
        bias_address = plain_address(bias, weight)
        bias_code = FLOAT_CODES.get(bias.dtype, -1) if bias_address else -1
        if bias_code < 0 or bias.shape != (n,):
            return None
    lead = shape[:-1]
    result: Array = np.empty((*lead, n), x.dtype) if type(x) is np.ndarray else x.new_empty(*lead, n)
    target = _core.Target(
        _core.Weight(address, nbytes=weight.shape[0], n=n, k=k),
        scale=0,
        bias=bias_address,
        bias_dtype=bias_code,
        activation=ACTIVATIONS[activation],
        out=pointer(result),
        out_dtype=code,
        out_row_stride=n,
    )
    _core.weight_only_linear(
        _core.FloatRows(x_address, dtype=code, rows=math.prod(lead), cols=k, row_stride=k, col_stride=1),
        target=target,
        scale=scale_address,
        groups=groups,
        where=backends.get_num_threads(),
    )
    return result


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
