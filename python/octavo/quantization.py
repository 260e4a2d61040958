"""quantize and dequantize: what they check, allocate and call."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

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
    copy_contiguous,
    empty,
    float_code,
    is_array,
    is_number,
    kind_of,
    native_dtype,
    needs_dispatcher,
    on_cuda,
    on_device_of,
    pointer,
    store,
    writable_rows,
)
from .engines import native_for, reference_for

GRANULARITIES = ("row", "tensor", "group")


class Quantized(NamedTuple):
    """int8 data, its float32 scale, and an int32 zero_point shaped like scale (None when symmetric)."""

    data: Array
    scale: Array
    zero_point: Array | None = None


def quantize(
    x: Array,
    *,
    granularity: str = "row",
    group_size: int | None = None,
    symmetric: bool = True,
    scale: Array | float | None = None,
    zero_point: Array | int | None = None,
    rounding: str = "nearest",
    seed: int | None = None,
    nonfinite: str = "clamp",
    out: Array | tuple[Array, ...] | None = None,
) -> Quantized:
    """Quantizes x to int8: data = clamp(round(x / scale) + zero_point).

    x: float32, float16, bfloat16 or float64 (taken as float32), any shape and strides. A copy is made only
        where its leading dimensions don't collapse into one stride, or where it is not aligned to its element
        size.
    granularity: one scale per "row" (shape x.shape[:-1]), for the whole "tensor" (shape ()), or per "group"
        of group_size elements along the last axis (shape x.shape[:-1] + (K // group_size,)).
    symmetric: True: zero is 0, values lie in [-127, 127], and scale is max |x| / 127 over the finite
        elements;
        False: values lie in [-128, 127], and zero_point is found too.
    scale, zero_point: given, they are used instead of found (static quantization): float32 and int32 of the
        shape above, or Python numbers where that is (). scale must be positive and finite with a finite
        reciprocal; on a device, where looking at values would wait for it, that is not checked.
    rounding: "nearest" (ties to even), or "stochastic", the same for the same seed (an int) everywhere.
    nonfinite: "clamp": NaN becomes 0 (the zero point), Inf the end of the range; "raise": ValueError, for
        which a call on a device waits for it.
    out: an int8 array like x to fill with the data, or (data, scale) or (data, scale, zero_point), as a
        Quantized or a tuple. Rows of data that are not contiguous or don't collapse, and the other arrays
        where they are not contiguous, cost a temporary.

    Returns Quantized(data int8 like x, scale float32, zero_point int32 or None): for static quantization,
    copies of what was given. TypeError or ValueError for anything else.
    """
    if type(x) is not np.ndarray and needs_dispatcher(x, scale, zero_point):
        from . import torch_ops

        return torch_ops.quantize(
            x,
            granularity=granularity,
            group_size=group_size,
            symmetric=symmetric,
            scale=scale,
            zero_point=zero_point,
            rounding=rounding,
            seed=seed,
            nonfinite=nonfinite,
            **({} if out is None else {"out": out}),
        )
    return _quantize(x, granularity, group_size, symmetric, scale, zero_point, rounding, seed, nonfinite, out)


def _quantize(
    x: Array,
    granularity: str = "row",
    group_size: int | None = None,
    symmetric: bool = True,
    scale: Array | float | None = None,
    zero_point: Array | int | None = None,
    rounding: str = "nearest",
    seed: int | None = None,
    nonfinite: str = "clamp",
    out: Array | tuple[Array, ...] | None = None,
    mask: Array | None = None,
) -> Quantized:
    """quantize, without torch's dispatcher; x reads as 0 where mask (bool, contiguous, like x) is False."""
    kind_of(x=x)
    code = float_code(x, "x")
    scale_shape, groups, group_size = _grouping(x, granularity, group_size)
    if rounding == "stochastic":
        seed = _seed(seed)
    elif rounding != "nearest":
        raise ValueError(f"rounding: expected 'nearest' or 'stochastic', got {rounding!r}")
    if nonfinite == "raise":
        raise_nonfinite(x, "x")
    elif nonfinite != "clamp":
        raise ValueError(f"nonfinite: expected 'clamp' or 'raise', got {nonfinite!r}")
    given = scale is not None
    inputs = {"x": x, "scale": scale, "zero_point": zero_point}
    if given or zero_point is not None:
        scale, zero_point = _static(x, scale_shape, symmetric, scale, zero_point)
    outs = _outs(x, scale_shape, symmetric, out, inputs)

    engine = native_for(x, "quantize")
    if engine is None:
        reference = reference_for(x, "quantize")
        if mask is not None:
            x = reference.apply_mask(x, mask)
        found = reference.quantize(x, granularity, group_size, symmetric, scale, zero_point, rounding, seed)
        if not isinstance(x, np.ndarray):
            return _store(outs, Quantized(*found))
        return _store(outs, Quantized(*(None if f is None else np.asarray(f) for f in found)))

    rows, cols, row_stride, col_stride, base = as_rows(x)
    if outs is None:
        data, data_stride = empty(tuple(x.shape), "int8", x), cols
    else:
        data_stride, data = writable_rows(outs.data, "int8")
    if not given:
        scale = empty(scale_shape, "float32", x)
        zero_point = None if symmetric else empty(scale_shape, "int32", x)
    kernels, where = engine
    kernels.quantize(
        kernels.FloatRows(
            pointer(base), dtype=code, rows=rows, cols=cols, row_stride=row_stride, col_stride=col_stride
        ),
        scales=kernels.Scales(
            pointer(scale),
            zero_point=0 if zero_point is None else pointer(zero_point),
            groups=groups,
            group_size=group_size,
            per_tensor=granularity == "tensor",
        ),
        mask=0 if mask is None else pointer(mask),
        data=pointer(data),
        data_row_stride=data_stride,
        given=given,
        stochastic=rounding == "stochastic",
        seed=(seed or 0) & (2**64 - 1),
        where=where,
    )
    return _store(outs, Quantized(data, scale, zero_point))


def raise_nonfinite(x: Array, name: str) -> None:
    """ValueError with the count and the first index if x, taken as float32, has a NaN or an Inf."""
    engine = native_for(x, "quantize")
    if engine is not None:
        kernels, where = engine
        code = float_code(x, name)
        rows, cols, row_stride, col_stride, base = as_rows(x)
        view = kernels.FloatRows(
            pointer(base), dtype=code, rows=rows, cols=cols, row_stride=row_stride, col_stride=col_stride
        )
        count, first = kernels.count_nonfinite(view, where=where)
    elif isinstance(x, np.ndarray):
        with np.errstate(over="ignore"):
            bad = np.flatnonzero(~np.isfinite(x.astype(np.float32)))
        count, first = bad.size, bad[0] if bad.size else -1
    else:
        bad = (~x.detach().float().isfinite()).reshape(-1).nonzero()
        count, first = bad.shape[0], int(bad[0]) if bad.shape[0] else -1
    if count:
        index = tuple(int(i) for i in np.unravel_index(first, tuple(x.shape)))
        raise ValueError(f"{name}: expected finite values, got {count} that are not, the first at {index}")


def _grouping(x: Array, granularity: str, group_size: int | None) -> tuple[tuple[int, ...], int, int]:
    """(shape of scale, groups per row, elements per group)."""
    shape = tuple(x.shape)
    if granularity == "tensor" and group_size is None:
        return (), 1, shape[-1] if shape else 1
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity: expected 'row', 'tensor' or 'group', got {granularity!r}")
    if granularity != "group" and group_size is not None:
        raise ValueError(f"group_size: expected None with granularity={granularity!r}, got {group_size!r}")
    if not shape:
        raise ValueError(f"x: expected at least one dimension with granularity={granularity!r}, got shape ()")
    if granularity == "row":
        return shape[:-1], 1, shape[-1]
    if not isinstance(group_size, (int, np.integer)) or isinstance(group_size, bool):
        raise TypeError(f"group_size: expected an int with granularity='group', got {group_size!r}")
    size = int(group_size)
    if size < 1 or shape[-1] % size:
        raise ValueError(
            f"group_size: expected a positive divisor of the last axis ({shape[-1]}), got {size}"
        )
    groups = shape[-1] // size
    return (*shape[:-1], groups), groups, size


def _seed(seed: int | None) -> int:
    if seed is None:
        raise ValueError("seed: expected an int with rounding='stochastic', got None")
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}") from None
    value &= 2**64 - 1  # 64 bits, two's complement: what the native module takes
    return value - 2**64 if value >= 2**63 else value


def _static(
    x: Array,
    shape: tuple[int, ...],
    symmetric: bool,
    scale: Any,
    zero_point: Any,
) -> tuple[Array, Array | None]:
    """Contiguous copies of a given scale and zero_point, with their values checked on the CPU."""
    if scale is None:
        raise ValueError("scale: expected a scale with a given zero_point, got None")
    if symmetric and zero_point is not None:
        raise ValueError("zero_point: expected None with symmetric=True, got a zero point")
    if not symmetric and zero_point is None:
        raise ValueError("zero_point: expected a zero point with symmetric=False and a given scale, got None")
    scale = _parameter(scale, "scale", "float32", shape, x)
    if zero_point is not None:
        zero_point = _parameter(zero_point, "zero_point", "int32", shape, x)
    if on_cuda(x):
        return scale, zero_point
    bits = scale.view(native_dtype("int32", scale))
    # On the bits, because the caller may flush denormals: 1 / 2^-128 is Inf, the next reciprocal is finite.
    if not ((bits > 0x00200000) & (bits < 0x7F800000)).all():
        raise ValueError("scale: expected positive finite values with finite reciprocals, got others")
    if zero_point is not None and not ((zero_point >= -128) & (zero_point <= 127)).all():
        raise ValueError("zero_point: expected values in [-128, 127], got others")
    return scale, zero_point


def _parameter(value: Any, name: str, dtype: str, shape: tuple[int, ...], x: Array) -> Array:
    """A contiguous copy of a scale or zero_point array; Python and NumPy numbers serve where shape is ()."""
    if is_number(value, dtype):
        if shape:
            raise ValueError(f"{name}: expected shape {shape}, got the number {value!r}")
        array = empty((), dtype, x)
        with on_device_of(array):
            array[()] = value
        return array
    kind_of(x=x, **{name: value})
    check_dtype(value, name, dtype)
    check_shape(value, name, shape)
    return copy_contiguous(value)


def _outs(
    x: Array,
    scale_shape: tuple[int, ...],
    symmetric: bool,
    out: Array | tuple[Array, ...] | None,
    inputs: dict[str, Any],
) -> Quantized | None:
    if out is None:
        return None
    if is_array(out):
        check_out(out, "out", x, x.shape, "int8", inputs)
        return Quantized(out, None, None)
    wanted = 2 if symmetric else 3
    if not isinstance(out, (tuple, list)) or not wanted <= len(out) <= 3:
        got = f"{len(out)} arrays" if isinstance(out, (tuple, list)) else type(out).__name__
        raise TypeError(
            f"out: expected data or (data, scale{'' if symmetric else ', zero_point'}), got {got}"
        )
    outs = Quantized(*out)
    if symmetric and outs.zero_point is not None:
        raise ValueError("out: expected no zero_point with symmetric=True, got one")
    check_out(outs.data, "out[0]", x, x.shape, "int8", inputs)
    check_out(outs.scale, "out[1]", x, scale_shape, "float32", {**inputs, "out[0]": outs.data})
    if not symmetric:
        others = {**inputs, "out[0]": outs.data, "out[1]": outs.scale}
        check_out(outs.zero_point, "out[2]", x, scale_shape, "int32", others)
    return outs


def _store(outs: Quantized | None, found: Quantized) -> Quantized:
    if outs is None:
        return found
    store(outs.data, found.data)
    if outs.scale is None:
        return Quantized(outs.data, found.scale, found.zero_point)
    store(outs.scale, found.scale)
    if found.zero_point is not None:
        store(outs.zero_point, found.zero_point)
    return outs


def dequantize(
    data: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    dtype: Any = "float32",
    out: Array | None = None,
) -> Array:
    """The numbers that int8 data stands for: float(data - zero_point) * scale, rounded once to dtype.

    data: int8, any shape and strides (a copy is made only where leading dimensions don't collapse into one
        stride).
    scale: float32 of shape () (tensor), data.shape[:-1] (row), or data.shape[:-1] + (groups,) with groups
        dividing the last axis; zero_point: int32 like scale, or None.
    dtype: "float32", "float16", "bfloat16" or "float64", or a NumPy or torch dtype (bfloat16 in NumPy:
        ml_dtypes).
    out: array of data's shape and that dtype to fill; rows that are not contiguous or don't collapse cost a
        temporary.
    """
    if type(data) is not np.ndarray and needs_dispatcher(data, scale, zero_point):
        from . import torch_ops

        return torch_ops.dequantize(
            data, scale, zero_point, dtype=dtype, **({} if out is None else {"out": out})
        )
    return _dequantize(data, scale, zero_point, dtype, out)


def _dequantize(
    data: Array,
    scale: Array,
    zero_point: Array | None = None,
    dtype: Any = "float32",
    out: Array | None = None,
) -> Array:
    """dequantize, without torch's dispatcher."""
    kind_of(data=data)
    if is_number(scale, "float32"):
        scale = _parameter(scale, "scale", "float32", (), data)
    if is_number(zero_point, "int32"):
        zero_point = _parameter(zero_point, "zero_point", "int32", (), data)
    kind_of(scale=scale)
    kind_of(data=data, scale=scale, zero_point=zero_point)
    check_dtype(data, "data", "int8")
    check_dtype(scale, "scale", "float32")
    name = as_dtype_name(dtype, "dtype", FLOATS)
    groups, group_size = _groups_of(tuple(data.shape), tuple(scale.shape))
    if zero_point is not None:
        check_dtype(zero_point, "zero_point", "int32")
        check_shape(zero_point, "zero_point", tuple(scale.shape))
        zero_point = contiguous(zero_point)
    if out is not None:
        inputs = {"data": data, "scale": scale, "zero_point": zero_point}
        check_out(out, "out", data, data.shape, name, inputs)
    engine = native_for(data, "quantize")
    if engine is None:
        result = reference_for(data, "quantize").dequantize(data, scale, zero_point, name)
        return store(out, result) if out is not None else result

    rows, cols, row_stride, col_stride, base = as_rows(data)
    if out is None:
        result, result_stride = empty(tuple(data.shape), name, data), cols
    else:
        result_stride, result = writable_rows(out, name)
    scale = contiguous(scale)
    kernels, where = engine
    kernels.dequantize(
        kernels.IntRows(
            pointer(base), signed=True, rows=rows, cols=cols, row_stride=row_stride, col_stride=col_stride
        ),
        scales=kernels.Scales(
            pointer(scale),
            zero_point=0 if zero_point is None else pointer(zero_point),
            groups=groups,
            group_size=group_size,
            per_tensor=not scale.shape,
        ),
        out=pointer(result),
        out_dtype=DTYPE_CODES[name],
        out_row_stride=result_stride,
        where=where,
    )
    return store(out, result) if out is not None else result


def _groups_of(shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> tuple[int, int]:
    """(groups per row, elements per group) that a scale of this shape means."""
    k = shape[-1] if shape else 1
    if not scale_shape or scale_shape == shape[:-1]:
        return 1, k
    groups = scale_shape[-1]
    if scale_shape[:-1] != shape[:-1] or not shape or (k % groups if groups else k):
        raise ValueError(
            f"scale: expected shape (), {shape[:-1]} or {shape[:-1]} + (groups,) with groups dividing {k}, "
            f"got {scale_shape}"
        )
    return groups, k // groups if groups else 0
