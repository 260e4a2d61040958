"""quantize and dequantize."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..runtime import backends
from ..runtime.arrays import (
    DTYPE_CODES,
    FLOAT_CODES,
    FLOATS,
    Array,
    as_dtype_name,
    check_dtype,
    check_shape,
    contiguous,
    copy_contiguous,
    empty,
    float_code,
    is_array,
    is_number,
    kind_of,
    native_dtype,
    number_as_array,
    on_cuda,
    plain_address,
    pointer,
)
from ..runtime.backends import _core
from ..runtime.outputs import row_stride, store
from ..runtime.routing import Engine, float_rows, int_rows, native_for
from .op import Op, Out, Plan, outs_of

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
    if granularity == "tensor":
        scale, zero_point = number_as_array(scale, "float32", x), number_as_array(zero_point, "int32", x)
    seed = _seed(seed) if rounding == "stochastic" else None
    outs = None if out is None else _outs(out, symmetric)
    data, found, offset = QUANTIZE(
        x, granularity, group_size, symmetric, scale, zero_point, rounding, seed, nonfinite, out=outs
    )
    return Quantized(data, found, None if symmetric else offset)


def _plan_quantize(
    x: Array,
    granularity: str = "row",
    group_size: int | None = None,
    symmetric: bool = True,
    scale: Array | None = None,
    zero_point: Array | None = None,
    rounding: str = "nearest",
    seed: int | None = None,
    nonfinite: str = "clamp",
    mask: Array | None = None,
) -> Plan:
    """mask: bool, contiguous, like x, which reads as 0 where it is False; not an argument of the operator."""
    kind_of(x=x)
    float_code(x, "x")
    scale_shape, groups, group_size = _grouping(x, granularity, group_size)
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding: expected 'nearest' or 'stochastic', got {rounding!r}")
    if rounding == "stochastic" and seed is None:
        raise ValueError("seed: expected an int with rounding='stochastic', got None")
    if nonfinite not in ("clamp", "raise"):
        raise ValueError(f"nonfinite: expected 'clamp' or 'raise', got {nonfinite!r}")
    given = scale is not None
    if given or zero_point is not None:
        _check_given(x, scale_shape, symmetric, scale, zero_point)

    def check() -> None:
        if nonfinite == "raise":
            raise_nonfinite(x, "x")
        if given and not on_cuda(x):
            _check_values(scale, zero_point)

    def native(engine: Engine, data: Array, new_scale: Array, new_zero_point: Array | None) -> None:
        if given:
            store(new_scale, scale)
            if new_zero_point is not None:
                store(new_zero_point, zero_point)
        kernels, where = engine
        view, _base = float_rows(kernels, x)
        kernels.quantize(
            view,
            scales=kernels.Scales(
                pointer(new_scale),
                zero_point=0 if new_zero_point is None else pointer(new_zero_point),
                groups=groups,
                group_size=group_size,
                per_tensor=granularity == "tensor",
            ),
            mask=0 if mask is None else pointer(mask),
            data=pointer(data),
            data_row_stride=row_stride(data),
            given=given,
            stochastic=rounding == "stochastic",
            seed=(seed or 0) & (2**64 - 1),
            where=where,
        )

    def reference(module: Any) -> Any:
        masked = x if mask is None else module.apply_mask(x, mask)
        copies = [None if each is None else copy_contiguous(each) for each in (scale, zero_point)]
        chosen = *copies, rounding, seed
        return module.quantize(masked, granularity, group_size, symmetric, *chosen)

    shape, offsets = tuple(x.shape), None if symmetric else scale_shape
    results = (shape, "int8", "rows"), (scale_shape, "float32", ""), (offsets, "int32", "")
    inputs = {"x": x, "scale": scale, "zero_point": zero_point}
    looks = given or nonfinite == "raise"
    return Plan(x, inputs, results, native, reference, check if looks else None)


def _tiny_quantize(
    x: Array,
    granularity: str = "row",
    group_size: int | None = None,
    symmetric: bool = True,
    scale: Array | None = None,
    zero_point: Array | None = None,
    rounding: str = "nearest",
    seed: int | None = None,
    nonfinite: str = "clamp",
    mask: Array | None = None,
    *,
    out: Sequence[Out] | None = None,
) -> list[Array | None] | None:
    """What the plan does for a contiguous x on the CPU, with nothing but defaults; None where others come."""
    if granularity != "row" or symmetric is not True or rounding != "nearest" or nonfinite != "clamp":
        return None
    for each in (group_size, scale, zero_point, mask, out):
        if each is not None:
            return None
    address = plain_address(x, x)
    code = FLOAT_CODES.get(x.dtype, -1) if address else -1
    shape = x.shape if address else ()
    if code < 0 or not shape:
        return None
    lead, cols = tuple(shape[:-1]), shape[-1]
    if type(x) is np.ndarray:
        data, scale = np.empty(shape, np.int8), np.empty(lead, np.float32)
    else:
        data, scale = empty(shape, "int8", x), empty(lead, "float32", x)
    _core.quantize(
        _core.FloatRows(address, dtype=code, rows=math.prod(lead), cols=cols, row_stride=cols, col_stride=1),
        scales=_core.Scales(pointer(scale), zero_point=0, groups=1, group_size=cols, per_tensor=False),
        mask=0,
        data=pointer(data),
        data_row_stride=cols,
        given=False,
        stochastic=False,
        seed=0,
        where=backends.get_num_threads(),
    )
    return [data, scale, None]


# a zero_point that is not there is empty
QUANTIZE = Op(
    'quantize(Tensor x, str granularity="row", int? group_size=None, bool symmetric=True, '
    'Tensor? scale=None, Tensor? zero_point=None, str rounding="nearest", SymInt? seed=None, '
    'str nonfinite="clamp") -> (Tensor, Tensor, Tensor)',
    _plan_quantize,
    "quantize",
    tiny=_tiny_quantize,
)


def raise_nonfinite(x: Array, name: str) -> None:
    """ValueError with the count and the first index if x, taken as float32, has a NaN or an Inf."""
    engine = native_for(x, "quantize")
    if engine is not None:
        view, _base = float_rows(engine.kernels, x)
        count, first = engine.kernels.count_nonfinite(view, where=engine.where)
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


def _check_given(
    x: Array, shape: tuple[int, ...], symmetric: bool, scale: Array | None, zero_point: Array | None
) -> None:
    """Checks what a static quantization is given, but for its values."""
    if scale is None:
        raise ValueError("scale: expected a scale with a given zero_point, got None")
    if symmetric and zero_point is not None:
        raise ValueError("zero_point: expected None with symmetric=True, got a zero point")
    if not symmetric and zero_point is None:
        raise ValueError("zero_point: expected a zero point with symmetric=False and a given scale, got None")
    for value, name, dtype in ((scale, "scale", "float32"), (zero_point, "zero_point", "int32")):
        if value is None:
            continue
        if is_number(value, dtype):
            raise ValueError(f"{name}: expected shape {shape}, got the number {value!r}")
        kind_of(x=x, **{name: value})
        check_dtype(value, name, dtype)
        check_shape(value, name, shape)


def _check_values(scale: Array, zero_point: Array | None) -> None:
    bits = contiguous(scale).view(native_dtype("int32", scale))
    # On the bits, because the caller may flush denormals: 1 / 2^-128 is Inf, the next reciprocal is finite.
    if not ((bits > 0x00200000) & (bits < 0x7F800000)).all():
        raise ValueError("scale: expected positive finite values with finite reciprocals, got others")
    if zero_point is not None and not ((zero_point >= -128) & (zero_point <= 127)).all():
        raise ValueError("zero_point: expected values in [-128, 127], got others")


def _outs(out: Any, symmetric: bool) -> list[Out]:
    """`out` of quantize: data, (data, scale) or (data, scale, zero_point)."""
    if is_array(out):
        return [("out", out), None, None]
    if symmetric and isinstance(out, (tuple, list)) and len(out) == 3:
        if out[2] is not None:
            raise ValueError("out: expected no zero_point with symmetric=True, got one")
        out = out[:2]
    names = ("data", "scale", "" if symmetric else "zero_point")
    return outs_of(out, names, f"data or (data, scale{'' if symmetric else ', zero_point'})")


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
    scale, zero_point = number_as_array(scale, "float32", data), number_as_array(zero_point, "int32", data)
    name = as_dtype_name(dtype, "dtype", FLOATS)
    return DEQUANTIZE(data, scale, zero_point, name, out=None if out is None else [("out", out)])


def _plan_dequantize(
    data: Array, scale: Array, zero_point: Array | None = None, dtype: Any = "float32"
) -> Plan:
    kind_of(data=data)
    kind_of(scale=scale)
    inputs = {"data": data, "scale": scale, "zero_point": zero_point}
    kind_of(**inputs)
    check_dtype(data, "data", "int8")
    check_dtype(scale, "scale", "float32")
    name = as_dtype_name(dtype, "dtype", FLOATS)
    shape, scale_shape = tuple(data.shape), tuple(scale.shape)
    groups, group_size = _groups_of(shape, scale_shape)
    if zero_point is not None:
        check_dtype(zero_point, "zero_point", "int32")
        check_shape(zero_point, "zero_point", scale_shape)

    def native(engine: Engine, result: Array) -> None:
        kernels, where = engine
        view, _base = int_rows(kernels, data)
        scales = contiguous(scale)
        offsets = None if zero_point is None else contiguous(zero_point)
        kernels.dequantize(
            view,
            scales=kernels.Scales(
                pointer(scales),
                zero_point=0 if offsets is None else pointer(offsets),
                groups=groups,
                group_size=group_size,
                per_tensor=not scale_shape,
            ),
            out=pointer(result),
            out_dtype=DTYPE_CODES[name],
            out_row_stride=row_stride(result),
            where=where,
        )

    def reference(module: Any) -> Any:
        return module.dequantize(data, scale, zero_point, name)

    return Plan(data, inputs, ((shape, name, "rows"),), native, reference)


DEQUANTIZE = Op(
    "dequantize(Tensor data, Tensor scale, Tensor? zero_point=None, *, ScalarType dtype=float) -> Tensor",
    _plan_dequantize,
    "quantize",
)


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
