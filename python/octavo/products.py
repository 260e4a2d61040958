"""int_mm and scaled_int_mm: products of integers that are there already."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import (
    DTYPE_CODES,
    Array,
    as_rows,
    check_dtype,
    check_out,
    check_shape,
    contiguous,
    dtype_name,
    empty,
    is_number,
    kind_of,
    needs_dispatcher,
    on_cuda,
    pointer,
    store,
    writable_rows,
)
from .engines import Engine, native_for, reference_for
from .linear import _check_epilogue, _operand, _out_dtype, _pack_operand, as_operand
from .packed import MAX_K, MAX_K_UNSIGNED, PackedWeight, unpack_buffer
from .quantization import Quantized


def int_mm(a: Array, b: Array | PackedWeight, *, out: Array | None = None) -> Array:
    """The exact integer product a @ b in int32: torch._int_mm, for any shape.

    a: int8 or uint8 [M, K], any strides. b: int8 [K, N], any strides, or a PackedWeight of shape (N, K).
    K <= 131,071 (int8) or 65,793 (uint8), so that the sums fit int32. An int8 b is packed on every call: a
    pass over it and a temporary of its size; pack_weight(b.T) does that once.
    out: int32 [M, N] to fill; one whose rows are not contiguous costs a temporary.
    """
    if type(a) is not np.ndarray and needs_dispatcher(a, b.buffer if type(b) is PackedWeight else b):
        from . import torch_ops

        return torch_ops.int_mm(a, b, **({} if out is None else {"out": out}))
    return _int_mm(a, b, out)


def _int_mm(a: Array, b: Array | PackedWeight, out: Array | None = None) -> Array:
    """int_mm, without torch's dispatcher."""
    if isinstance(b, PackedWeight):
        kind_of(a=a, b=b.buffer)
        n, k = b.shape
    else:
        kind_of(b=b)
        kind_of(a=a, b=b)
        check_dtype(b, "b", "int8")
        if b.ndim != 2:
            raise ValueError(f"b: expected two dimensions [K, N], got shape {tuple(b.shape)}")
        k, n = b.shape
    signed = _check_integers(a, k, None)[0] < 0
    if a.ndim != 2:
        raise ValueError(f"a: expected two dimensions [M, K], got shape {tuple(a.shape)}")
    if out is not None:
        inputs = {"a": a, "b": b.buffer if isinstance(b, PackedWeight) else b}
        check_out(out, "out", a, (a.shape[0], n), "int32", inputs)
    engine = native_for(a, "linear")
    if engine is None:
        result = reference_for(a, "linear").int_mm(a, b.unpack()[0].T if isinstance(b, PackedWeight) else b)
        return result if out is None else store(out, result)
    weight = b.buffer if isinstance(b, PackedWeight) else as_operand(b.T, not signed)
    return _native_product(engine, a, None, None, weight, n, out)


def scaled_int_mm(
    a: Array,
    a_scale: Array | float,
    weight: PackedWeight | Quantized | Array,
    bias: Array | None = None,
    *,
    a_zero_point: Array | int | None = None,
    activation: str | None = None,
    out_dtype: Any = "float32",
    out: Array | None = None,
) -> Array:
    """activation(((a - a_zero_point) * a_scale) @ (weight * scale).T + bias), with exact integer sums.

    a: int8 or uint8 [..., K]; a copy is made only where its leading dimensions don't collapse into one
        stride.
    a_scale: float32 of shape a.shape[:-1], or () or a Python number for all rows. a_zero_point: int32
        likewise, within the range of a's dtype (not checked on a device, which a look at values would wait
        for). weight, bias, activation, out: as for int8_linear.
    out_dtype: "float32", "float16", "bfloat16", or "int32": the sums themselves, without scale and bias.
    K <= 131,071, and 65,793 with uint8 activations or zero points, so that the sums fit int32.
    """
    if type(weight) is not PackedWeight:
        weight = _pack_operand(weight)
    if type(a) is not np.ndarray and needs_dispatcher(
        a, a_scale, weight.buffer, weight.scale, bias, a_zero_point
    ):
        from . import torch_ops

        more = {} if out is None else {"out": out}
        return torch_ops.scaled_int_mm(
            a,
            a_scale,
            weight,
            bias,
            a_zero_point=a_zero_point,
            activation=activation,
            out_dtype=out_dtype,
            **more,
        )
    return _scaled_int_mm(a, a_scale, weight, None, bias, a_zero_point, activation, out_dtype, out)


def _scaled_int_mm(
    a: Array,
    a_scale: Any,
    weight: Any,
    weight_scale: Array | None = None,
    bias: Array | None = None,
    a_zero_point: Any = None,
    activation: str | None = None,
    out_dtype: Any = "float32",
    out: Array | None = None,
) -> Array:
    """scaled_int_mm, without torch's dispatcher; weight: also a packed buffer or int8 [N, K], with scale."""
    kind_of(a=a)
    n, k, weight, weight_scale = _operand(weight, weight_scale, a)
    kind_of(a=a, weight=weight, weight_scale=weight_scale, bias=bias)
    low, high = _check_integers(a, k, a_zero_point)
    inputs = {"a": a, "a_scale": a_scale, "weight": weight, "bias": bias, "a_zero_point": a_zero_point}
    a_scale = _per_row(a_scale, "a_scale", "float32", a)
    if a_zero_point is not None:
        a_zero_point = _per_row(a_zero_point, "a_zero_point", "int32", a)
    name = _out_dtype(out_dtype)
    activation_code, bias_code = _check_epilogue(n, weight_scale, bias, activation, name)
    if out is not None:
        check_out(out, "out", a, (*a.shape[:-1], n), name, {**inputs, "weight_scale": weight_scale})
    checked = None if on_cuda(a) else a_zero_point
    if checked is not None and not ((checked >= low) & (checked <= high)).all():
        raise ValueError(f"a_zero_point: expected values in [{low}, {high}], got others")
    engine = native_for(a, "linear")
    if engine is None:
        plain = unpack_buffer(weight, n, k) if weight.ndim == 1 else weight
        result = reference_for(a, "linear").scaled_int_mm(
            a, a_scale, plain, weight_scale, bias, a_zero_point, activation, name
        )
        return result if out is None else store(out, result)
    weight = as_operand(weight, low == 0 or a_zero_point is not None)
    if name == "int32":
        return _native_product(engine, a, None, a_zero_point, weight, n, out)
    bias = None if bias is None else contiguous(bias)
    epilogue = (a_scale, weight_scale, bias, bias_code, activation_code, name)
    return _native_product(engine, a, epilogue, a_zero_point, weight, n, out)


def _native_product(
    engine: Engine,
    a: Array,
    epilogue: tuple[Array, Array, Array | None, int, int, str] | None,
    a_zero_point: Array | None,
    weight: Array,
    n: int,
    out: Array | None,
) -> Array:
    """The native product; epilogue: scales, bias and its code, activation, out dtype; None for the sums."""
    a_scale, weight_scale, bias, bias_code, activation, name = epilogue or (None, None, None, 0, 0, "int32")
    rows, cols, row_stride, col_stride, base = as_rows(a)
    if out is None:
        result, result_stride = empty((*a.shape[:-1], n), name, a), n
    else:
        result_stride, result = writable_rows(out, name)
    kernels, where = engine
    signed = dtype_name(a.dtype) == "int8"
    target = kernels.Target(
        kernels.Weight(pointer(weight), nbytes=weight.nbytes, n=n, k=cols),
        scale=0 if weight_scale is None else pointer(weight_scale),
        bias=0 if bias is None else pointer(bias),
        bias_dtype=bias_code,
        activation=activation,
        out=pointer(result),
        out_dtype=DTYPE_CODES[name],
        out_row_stride=result_stride,
    )
    kernels.scaled_int_mm(
        kernels.IntRows(
            pointer(base), signed=signed, rows=rows, cols=cols, row_stride=row_stride, col_stride=col_stride
        ),
        a_scale=0 if a_scale is None else pointer(a_scale),
        a_zero_point=0 if a_zero_point is None else pointer(a_zero_point),
        target=target,
        where=where,
    )
    return result if out is None else store(out, result)


def _check_integers(a: Array, k: int, a_zero_point: object) -> tuple[int, int]:
    """Checks a's dtype, shape and K; returns the range of its dtype."""
    signed = check_dtype(a, "a", "int8", "uint8") == "int8"
    if not a.ndim or a.shape[-1] != k:
        raise ValueError(f"a: expected shape (..., {k}) for the weight's K, got {tuple(a.shape)}")
    limit = MAX_K if signed and a_zero_point is None else MAX_K_UNSIGNED
    if k > limit:
        why = "" if limit == MAX_K else " with uint8 activations or zero points"
        raise ValueError(f"a: expected K <= {limit}{why}, for exact int32 sums, got {k}")
    return (-128, 127) if signed else (0, 255)


def _per_row(value: Any, name: str, dtype: str, a: Array) -> Array:
    """A contiguous array with one value per row of a, from one of that shape, or from one value for all."""
    rows = tuple(a.shape[:-1])
    if not is_number(value, dtype):
        kind_of(**{name: value})
        kind_of(a=a, **{name: value})
        check_dtype(value, name, dtype)
        if tuple(value.shape) == rows:
            return contiguous(value)
        check_shape(value, name, rows, ())
    result = empty(rows, dtype, a)
    result[...] = value
    return result
