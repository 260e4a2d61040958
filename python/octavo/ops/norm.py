"""RMSNorm and LayerNorm whose result is int8."""

from __future__ import annotations

from typing import Any

from ..runtime.arrays import (
    FLOATS,
    Array,
    as_float32,
    check_dtype,
    check_shape,
    contiguous,
    float_code,
    is_number,
    kind_of,
    on_cuda,
    pointer,
)
from ..runtime.routing import Engine, float_rows
from .op import Op, Plan, outs_of
from .quantize import Quantized

NORM_RESULTS = ("data", "scale", "zero_point", "sum", "normed")


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
    out: Any,
) -> Any:
    there = True, True, not symmetric, residual is not None, normed
    outs = None
    if out is not None:
        outs = outs_of(out, [name if each else "" for name, each in zip(NORM_RESULTS, there, strict=True)])
    found = NORM_QUANTIZE(x, weight, bias, residual, eps, centered, symmetric, normed, out=outs)
    data, scale, zero_point, *more = (
        each if is_there else None for each, is_there in zip(found, there, strict=True)
    )
    more = [each for each in more if each is not None]
    quantized = Quantized(data, scale, zero_point)
    return (quantized, *more) if more else quantized


def _plan(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    eps: float = 1e-6,
    centered: bool = False,
    symmetric: bool = True,
    normed: bool = False,
) -> Plan:
    inputs = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    kind_of(**inputs)
    name = FLOATS[float_code(x, "x")]
    if not x.ndim:
        raise ValueError("x: expected at least one dimension, got shape ()")
    for parameter, label in ((weight, "weight"), (bias, "bias")):
        if parameter is not None:
            float_code(parameter, label)
            check_shape(parameter, label, (x.shape[-1],))
    _check_is_number(eps)
    # A caller may flush denormals, and eps with them.
    if eps and not 2.0**-126 <= eps < 2.0**127:
        raise ValueError(f"eps: expected 0 or a positive normal float32, got {eps!r}")
    if residual is not None:
        check_dtype(residual, "residual", name)
        check_shape(residual, "residual", tuple(x.shape))
    if on_cuda(x) and (normed or not symmetric):
        what = "normed: expected False" if normed else "symmetric: expected True"
        raise ValueError(f"{what} for an array on a device, got {normed if normed else symmetric}")

    def native(
        engine: Engine,
        data: Array,
        scale: Array,
        zero_point: Array | None,
        total: Array | None,
        normed_rows: Array | None,
    ) -> None:
        kernels, where = engine
        view, _base = float_rows(kernels, x)
        weights, biases = as_float32(weight), as_float32(bias)
        added = None if residual is None else contiguous(residual)
        kernels.norm_quantize(
            view,
            residual=0 if added is None else pointer(added),
            sum=0 if total is None else pointer(total),
            weight=0 if weights is None else pointer(weights),
            bias=0 if biases is None else pointer(biases),
            eps=eps,
            centered=centered,
            data=pointer(data),
            scale=pointer(scale),
            zero_point=0 if zero_point is None else pointer(zero_point),
            normed=0 if normed_rows is None else pointer(normed_rows),
            where=where,
        )

    def reference(module: Any) -> Any:
        return module.norm_quantize(x, weight, bias, residual, eps, centered, symmetric, normed)

    shape = tuple(x.shape)
    results = (
        (shape, "int8", ""),
        (shape[:-1], "float32", ""),
        (None if symmetric else shape[:-1], "int32", ""),
        (None if residual is None else shape, name, ""),
        (shape if normed else None, name, ""),
    )
    return Plan(x, inputs, results, native, reference)


def _check_is_number(eps: object) -> None:
    if not is_number(eps, "float32"):
        raise TypeError(f"eps: expected a number, got {type(eps).__name__}")


def _lower(
    x: Array, weight: Array | None, bias: Array | None, residual: Array | None, eps: float, *more: Any
) -> tuple[Any, ...]:
    """A schema would take True for a number."""
    _check_is_number(eps)
    return x, weight, bias, residual, float(eps), *more


# Returns NORM_RESULTS; what is not there is empty. The sum may be written over the residual.
NORM_QUANTIZE = Op(
    "norm_quantize(Tensor x, Tensor? weight=None, Tensor? bias=None, Tensor? residual=None, "
    "float eps=1e-6, bool centered=False, *, bool symmetric=True, bool normed=False) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _plan,
    "norm",
    lower=_lower,
    in_place=(NORM_RESULTS.index("sum"), "residual"),
)
