"""RMSNorm and LayerNorm whose result is int8: what they check, allocate and call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arrays import (
    FLOATS,
    Array,
    as_rows,
    check_dtype,
    check_out,
    check_shape,
    contiguous,
    element_strides,
    empty,
    float_code,
    is_number,
    is_torch,
    kind_of,
    native_dtype,
    needs_dispatcher,
    on_device_of,
    pointer,
    store,
    writable,
)
from .engines import Engine, native_for, reference_for
from .quantization import Quantized


def rms_norm_quantize(
    x: Array,
    weight: Array | None = None,
    *,
    eps: float = 1e-6,
    residual: Array | None = None,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """quantize(x / sqrt(mean(x**2) + eps) * weight), row by row, in one pass over memory.

    x: float32, float16, bfloat16 or float64 (taken as float32) [..., K], any strides. A copy is made only
        where its leading dimensions don't collapse into one stride, or where it is not aligned to its element
        size.
    weight: [K] of any float dtype, taken as float32.
    eps: 0, or a number that is normal in float32.
    residual: like x; x + residual, rounded to x's dtype, is normalized in place of x. A contiguous copy is
        made of one that is not.
    out: (data, scale), or with a residual (data, scale, sum), to fill. sum may be the residual itself; one
        that is not C-contiguous costs a temporary.

    Returns Quantized(data int8 like x, scale float32 of shape x.shape[:-1]), and with a residual
    (Quantized, x + residual). TypeError or ValueError for anything else.
    """
    return _run(x, weight, None, eps, False, residual, out)


def layer_norm_quantize(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    residual: Array | None = None,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """quantize((x - mean(x)) / sqrt(var(x) + eps) * weight + bias), row by row, in one pass over memory.

    bias: as weight. Everything else is as for rms_norm_quantize.
    """
    return _run(x, weight, bias, eps, True, residual, out)


def _run(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    centered: bool,
    residual: Array | None,
    out: tuple[Array, ...] | None,
) -> Any:
    if type(x) is not np.ndarray and needs_dispatcher(x, weight, bias, residual):
        from . import torch_ops

        run: Callable[..., tuple[Array, Array, Array | None]] = torch_ops.norm_quantize
    else:
        run = _norm_quantize
    data, scale, total = run(x, weight, bias, residual, eps, centered, out)
    return Quantized(data, scale) if residual is None else (Quantized(data, scale), total)


def _norm_quantize(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    eps: float = 1e-6,
    centered: bool = False,
    out: tuple[Array, ...] | None = None,
) -> tuple[Array, Array, Array | None]:
    """(data, scale, sum) of both functions, without torch's dispatcher; sum is None without a residual."""
    inputs = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    kind_of(**inputs)
    dtypes = check_norm(x, weight, bias, residual, eps, out)
    if out is not None:
        check_norm_outs(out, dtypes, inputs)
    engine = native_for(x, "norm")
    if engine is not None:
        found = _native(engine, x, weight, bias, residual, eps, centered, dtypes, out)
    else:
        found = reference_for(x, "norm").norm_quantize(x, weight, bias, residual, eps, centered)
    if out is not None:
        found = [store(each, result) for each, result in zip(out, found, strict=False)]
    return found[0], found[1], None if residual is None else found[2]


def _native(
    engine: Engine,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    eps: float,
    centered: bool,
    dtypes: list[str],
    out: tuple[Array, ...] | None,
) -> list[Array]:
    if out is None:
        shapes = [tuple(x.shape), tuple(x.shape[:-1]), tuple(x.shape)]
        written = [empty(shape, dtype, x) for shape, dtype in zip(shapes, dtypes, strict=False)]
    else:
        written = [writable(each, dtype) for each, dtype in zip(out, dtypes, strict=True)]
    rows, cols, row_stride, col_stride, base = as_rows(x)
    weight, bias = _as_float32(weight), _as_float32(bias)
    residual = None if residual is None else contiguous(residual)
    engine.kernels.norm_quantize(
        pointer(base),
        float_code(x, "x"),
        rows,
        cols,
        row_stride,
        col_stride,
        0 if residual is None else pointer(residual),
        0 if residual is None else pointer(written[2]),
        0 if weight is None else pointer(weight),
        0 if bias is None else pointer(bias),
        eps,
        centered,
        pointer(written[0]),
        pointer(written[1]),
        *engine.where,
    )
    return written


def check_norm(
    x: Array, weight: Array | None, bias: Array | None, residual: Array | None, eps: float, out: Any = None
) -> list[str]:
    """Checks what has no address; returns the dtypes of what is written: data, scale, and sum if there is
    one."""
    name = FLOATS[float_code(x, "x")]
    if not x.ndim:
        raise ValueError("x: expected at least one dimension, got shape ()")
    for parameter, label in ((weight, "weight"), (bias, "bias")):
        if parameter is not None:
            float_code(parameter, label)
            check_shape(parameter, label, (x.shape[-1],))
    if not is_number(eps, "float32"):
        raise TypeError(f"eps: expected a number, got {type(eps).__name__}")
    # A caller may flush denormals, and eps with them.
    if eps and not 2.0**-126 <= eps < 2.0**127:
        raise ValueError(f"eps: expected 0 or a positive normal float32, got {eps!r}")
    dtypes = ["int8", "float32"]
    if residual is not None:
        check_dtype(residual, "residual", name)
        check_shape(residual, "residual", tuple(x.shape))
        dtypes.append(name)
    if out is not None and (not isinstance(out, (tuple, list)) or len(out) != len(dtypes)):
        expected = "(data, scale)" if residual is None else "(data, scale, sum)"
        got = f"{len(out)} arrays" if isinstance(out, (tuple, list)) else type(out).__name__
        raise TypeError(f"out: expected {expected}, got {got}")
    return dtypes


def check_norm_outs(out: tuple[Array, ...], dtypes: list[str], inputs: dict[str, Array | None]) -> None:
    """Each of out apart from the inputs and the others, but for a sum that is the residual itself."""
    x: Array = inputs["x"]
    residual, taken = inputs["residual"], dict(inputs)
    if residual is not None and out[2] is not None:
        kind_of(x=x, **{"out[2]": out[2]})
        if _is_same(out[2], residual):
            del taken["residual"]
    for i, (each, dtype) in enumerate(zip(out, dtypes, strict=True)):
        check_out(each, f"out[{i}]", x, x.shape[:-1] if i == 1 else x.shape, dtype, taken)
        taken[f"out[{i}]"] = each


def _is_same(a: Array, b: Array) -> bool:
    """Whether the elements of two arrays of one kind are the same memory in the same order."""
    if isinstance(a, np.ndarray):
        return bool(a.__array_interface__ == b.__array_interface__)
    return a is b or bool(pointer(a) == pointer(b) and element_strides(a) == element_strides(b))


def _as_float32(parameter: Array | None) -> Array | None:
    if parameter is None:
        return None
    wanted = native_dtype("float32", parameter)
    if parameter.dtype != wanted:
        if isinstance(parameter, np.ndarray):
            with np.errstate(over="ignore"):
                return parameter.astype(wanted, order="C")
        with on_device_of(parameter):
            parameter = parameter.detach().to(wanted) if is_torch(parameter) else parameter.astype(wanted)
    return contiguous(parameter)
