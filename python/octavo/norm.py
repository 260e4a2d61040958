"""RMSNorm and LayerNorm whose result is int8: what they check, allocate and call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

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
    on_cuda,
    on_device_of,
    pointer,
    store,
    writable,
)
from .engines import Engine, native_for, reference_for
from .quantization import Quantized

NORM_RESULTS = ("data", "scale", "zero_point", "sum", "normed")
NormFound: TypeAlias = "tuple[Array | None, ...]"  # in that order


def rms_norm_quantize(
    x: Array,
    weight: Array | None = None,
    *,
    eps: float = 1e-6,
    residual: Array | None = None,
    symmetric: bool = True,
    normed: bool = False,
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
    symmetric: False gives each row a zero point too. normed: the normalized rows are wanted as well, rounded
        once to x's dtype. On a device neither is there: ValueError.
    out: (data, scale), then zero_point if not symmetric, sum with a residual, and normed if wanted, to fill.
        sum may be the residual itself; one that is not C-contiguous costs a temporary.

    Returns Quantized(data int8 like x, scale float32 of shape x.shape[:-1], zero_point int32 likewise or
    None), and in a tuple after it x + residual, if there is one, and the normalized rows, if wanted. Only
    x + residual has a gradient. TypeError or ValueError for anything else.
    """
    return _run(x, weight, None, eps, False, residual, symmetric, normed, out)


def layer_norm_quantize(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    residual: Array | None = None,
    symmetric: bool = True,
    normed: bool = False,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """quantize((x - mean(x)) / sqrt(var(x) + eps) * weight + bias), row by row, in one pass over memory.

    bias: as weight. Everything else is as for rms_norm_quantize.
    """
    return _run(x, weight, bias, eps, True, residual, symmetric, normed, out)


def _run(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    centered: bool,
    residual: Array | None,
    symmetric: bool,
    normed: bool,
    out: tuple[Array, ...] | None,
) -> Any:
    if type(x) is not np.ndarray and needs_dispatcher(x, weight, bias, residual):
        from . import torch_ops

        run: Callable[..., NormFound] = torch_ops.norm_quantize
    else:
        run = _norm_quantize
    data, scale, zero_point, total, y = run(x, weight, bias, residual, eps, centered, symmetric, normed, out)
    more = [each for each, wanted in ((total, residual is not None), (y, normed)) if wanted]
    quantized = Quantized(data, scale, None if symmetric else zero_point)
    return (quantized, *more) if more else quantized


def _norm_quantize(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    eps: float = 1e-6,
    centered: bool = False,
    symmetric: bool = True,
    normed: bool = False,
    out: tuple[Array, ...] | None = None,
) -> NormFound:
    """(data, scale, zero_point, sum, normed) of both functions, without torch's dispatcher; None for what is
    not there."""
    inputs = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    kind_of(**inputs)
    dtypes = check_norm(x, weight, bias, residual, eps, symmetric, normed, out)
    if out is not None:
        check_norm_outs(out, dtypes, inputs)
    engine = native_for(x, "norm")
    if engine is not None:
        found = _native(engine, x, weight, bias, residual, eps, centered, dtypes, out)
    else:
        run = reference_for(x, "norm").norm_quantize
        results = run(x, weight, bias, residual, eps, centered, symmetric, normed)
        found = dict(zip(NORM_RESULTS, results, strict=True))
    if out is not None:
        found = {name: store(each, found[name]) for name, each in zip(dtypes, out, strict=True)}
    return tuple(found.get(name) for name in NORM_RESULTS)


def _native(
    engine: Engine,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    eps: float,
    centered: bool,
    dtypes: dict[str, str],
    out: tuple[Array, ...] | None,
) -> dict[str, Array]:
    if out is None:
        written = {name: empty(_shape(name, x), dtype, x) for name, dtype in dtypes.items()}
    else:
        written = {
            name: writable(each, dtype) for each, (name, dtype) in zip(out, dtypes.items(), strict=True)
        }
    addresses = {name: pointer(each) for name, each in written.items()}
    rows, cols, row_stride, col_stride, base = as_rows(x)
    weight, bias = _as_float32(weight), _as_float32(bias)
    residual = None if residual is None else contiguous(residual)
    kernels, where = engine
    code = float_code(x, "x")
    kernels.norm_quantize(
        kernels.FloatRows(
            pointer(base), dtype=code, rows=rows, cols=cols, row_stride=row_stride, col_stride=col_stride
        ),
        residual=0 if residual is None else pointer(residual),
        sum=addresses.get("sum", 0),
        weight=0 if weight is None else pointer(weight),
        bias=0 if bias is None else pointer(bias),
        eps=eps,
        centered=centered,
        data=addresses["data"],
        scale=addresses["scale"],
        zero_point=addresses.get("zero_point", 0),
        normed=addresses.get("normed", 0),
        where=where,
    )
    return written


def check_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    eps: float,
    symmetric: bool,
    normed: bool,
    out: Any = None,
) -> dict[str, str]:
    """Checks what has no address; returns the names of what is written and their dtypes, in out's order."""
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
    if residual is not None:
        check_dtype(residual, "residual", name)
        check_shape(residual, "residual", tuple(x.shape))
    if on_cuda(x) and (normed or not symmetric):
        what = "normed: expected False" if normed else "symmetric: expected True"
        raise ValueError(f"{what} for an array on a device, got {normed if normed else symmetric}")
    written = (True, True, not symmetric, residual is not None, normed)
    dtypes = {
        each: dtype
        for each, dtype, is_written in zip(
            NORM_RESULTS, ("int8", "float32", "int32", name, name), written, strict=True
        )
        if is_written
    }
    if out is not None and (not isinstance(out, (tuple, list)) or len(out) != len(dtypes)):
        got = f"{len(out)} arrays" if isinstance(out, (tuple, list)) else type(out).__name__
        raise TypeError(f"out: expected ({', '.join(dtypes)}), got {got}")
    return dtypes


def check_norm_outs(out: tuple[Array, ...], dtypes: dict[str, str], inputs: dict[str, Array | None]) -> None:
    """Each of out apart from the inputs and the others, but for a sum that is the residual itself."""
    x: Array = inputs["x"]
    residual, taken = inputs["residual"], dict(inputs)
    for i, (each, name) in enumerate(zip(out, dtypes, strict=True)):
        if name == "sum" and each is not None:
            kind_of(x=x, **{f"out[{i}]": each})
            if _is_same(each, residual):
                del taken["residual"]
    for i, (each, (name, dtype)) in enumerate(zip(out, dtypes.items(), strict=True)):
        check_out(each, f"out[{i}]", x, _shape(name, x), dtype, taken)
        taken[f"out[{i}]"] = each


def _shape(name: str, x: Array) -> tuple[int, ...]:
    return tuple(x.shape[:-1] if name in ("scale", "zero_point") else x.shape)


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
