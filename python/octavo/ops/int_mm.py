"""int_mm and scaled_int_mm: products of integers that are there already."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..runtime.arrays import (
    Array,
    as_dtype_name,
    check_dtype,
    check_shape,
    contiguous,
    empty,
    kind_of,
    needs_dispatcher,
    number_as_array,
    on_cuda,
    pointer,
)
from ..runtime.routing import Engine, int_rows
from .layouts import MAX_K, MAX_K_UNSIGNED
from .op import Op, Plan
from .operand import (
    OUT,
    Operand,
    as_packed_weight,
    check_epilogue,
    check_operand,
    operand_of,
    scale_of,
    target_of,
    unpacked,
)
from .pack import PackedWeight
from .quantize import Quantized


def int_mm(a: Array, b: Array | PackedWeight, *, out: Array | None = None) -> Array:
    """The exact integer product a @ b in int32: torch._int_mm, for any shape.

    a: int8 or uint8 [M, K], any strides. b: int8 [K, N], any strides, or a PackedWeight of shape (N, K).
    K <= 131,071 (int8) or 65,793 (uint8), so that the sums fit int32. An int8 b is packed on every call: a
    pass over it and a temporary of its size; pack_weight(b.T) does that once.
    out: int32 [M, N] to fill; one whose rows are not contiguous costs a temporary.
    """
    outs = None if out is None else [("out", out)]
    if type(b) is PackedWeight and type(a) is not np.ndarray and needs_dispatcher(a, b.buffer):
        if getattr(a, "ndim", 2) != 2:
            raise ValueError(f"a: expected two dimensions [M, K], got shape {tuple(a.shape)}")
        return scaled_int_mm(a, 1.0, b, out_dtype="int32", out=out)
    return INT_MM(a, b, out=outs)


def _plan_int_mm(a: Array, b: Array | PackedWeight) -> Plan:
    if isinstance(b, PackedWeight):
        kind_of(a=a, b=b.buffer)
        operand = operand_of(b, None, a)
    else:
        kind_of(b=b)
        kind_of(a=a, b=b)
        check_dtype(b, "b", "int8")
        if b.ndim != 2:
            raise ValueError(f"b: expected two dimensions [K, N], got shape {tuple(b.shape)}")
        k, n = b.shape
        operand = Operand(n, k, b.T, None)
    signed = _check_integers(a, operand.k, None)[0] < 0
    if a.ndim != 2:
        raise ValueError(f"a: expected two dimensions [M, K], got shape {tuple(a.shape)}")

    def native(engine: Engine, result: Array) -> None:
        kernels, where = engine
        view, _base = int_rows(kernels, a)
        target, _alive = target_of(kernels, operand, None, None, result, needs_sums=not signed)
        kernels.scaled_int_mm(view, a_scale=0, a_zero_point=0, target=target, where=where)

    def reference(module: Any) -> Any:
        return module.int_mm(a, unpacked(operand).T)

    inputs = {"a": a, "b": operand.weight}
    return Plan(a, inputs, (((a.shape[0], operand.n), "int32", "rows"),), native, reference)


INT_MM = Op("int_mm(Tensor a, Tensor b) -> Tensor", _plan_int_mm, "linear")


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
        weight = as_packed_weight(weight)
    return SCALED_INT_MM(
        a,
        number_as_array(a_scale, "float32", a),
        weight,
        None,
        bias,
        number_as_array(a_zero_point, "int32", a),
        activation,
        as_dtype_name(out_dtype, "out_dtype", OUT),
        out=None if out is None else [("out", out)],
    )


def _plan_scaled(
    a: Array,
    a_scale: Array,
    weight: PackedWeight | Array,
    weight_scale: Array | None,
    bias: Array | None = None,
    a_zero_point: Array | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
) -> Plan:
    kind_of(a=a)
    operand = operand_of(weight, weight_scale, a)
    kind_of(a=a, weight=operand.weight, weight_scale=operand.scale, bias=bias)
    low, high = _check_integers(a, operand.k, a_zero_point)
    rows = tuple(a.shape[:-1])
    kind_of(a_scale=a_scale)
    kind_of(a=a, a_scale=a_scale, a_zero_point=a_zero_point)
    check_dtype(a_scale, "a_scale", "float32")
    check_shape(a_scale, "a_scale", rows, ())
    if a_zero_point is not None:
        check_dtype(a_zero_point, "a_zero_point", "int32")
        check_shape(a_zero_point, "a_zero_point", rows, ())
    name = "float32" if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", OUT)
    check_epilogue(operand.n, operand.scale, bias, activation, name)
    inputs = {
        "a": a,
        "a_scale": a_scale,
        "weight": operand.weight,
        "bias": bias,
        "a_zero_point": a_zero_point,
        "weight_scale": operand.scale,
    }

    def check() -> None:
        check_operand(operand, a, "a")
        inside = a_zero_point is None or on_cuda(a) or ((a_zero_point >= low) & (a_zero_point <= high)).all()
        if not inside:
            raise ValueError(f"a_zero_point: expected values in [{low}, {high}], got others")

    def native(engine: Engine, result: Array) -> None:
        kernels, where = engine
        view, _base = int_rows(kernels, a)
        needs_sums = low == 0 or a_zero_point is not None
        target, _alive = target_of(kernels, operand, bias, activation, result, needs_sums)
        scales = None if name == "int32" else _per_row(a_scale, "float32", a)
        zero_points = None if a_zero_point is None else _per_row(a_zero_point, "int32", a)
        kernels.scaled_int_mm(
            view,
            a_scale=0 if scales is None else pointer(scales),
            a_zero_point=0 if zero_points is None else pointer(zero_points),
            target=target,
            where=where,
        )

    def reference(module: Any) -> Any:
        zero_points = None if a_zero_point is None else _per_row(a_zero_point, "int32", a)
        scales = _per_row(a_scale, "float32", a)
        return module.scaled_int_mm(
            a, scales, unpacked(operand), operand.scale, bias, zero_points, activation, name
        )

    return Plan(a, inputs, (((*rows, operand.n), name, "rows"),), native, reference, check)


def _lower(
    a: Array, a_scale: Array, weight: PackedWeight | Array, weight_scale: Array | None, *more: Any
) -> tuple[Any, ...]:
    """The arguments as the schema has them: with a scale of the weight, where the sums themselves need none;
    a packed weight's K is known here, and not there."""
    if not isinstance(weight, PackedWeight):
        return a, a_scale, weight, weight_scale, *more
    n, k = weight.shape
    _check_k(a, k)
    if weight.scale is None and more[-1] == "int32":
        torch = sys.modules["torch"]
        scale = torch.ones(n, dtype=torch.float32, device=a.device)
    else:
        scale = scale_of(weight)
    return a, a_scale, weight.buffer, scale, *more


SCALED_INT_MM = Op(
    "scaled_int_mm(Tensor a, Tensor a_scale, Tensor weight, Tensor weight_scale, Tensor? bias=None, "
    "Tensor? a_zero_point=None, *, str? activation=None, ScalarType? out_dtype=None) -> Tensor",
    _plan_scaled,
    "linear",
    lower=_lower,
)


def _check_integers(a: Array, k: int, a_zero_point: object) -> tuple[int, int]:
    """Checks a's dtype, shape and K; returns the range of its dtype."""
    signed = check_dtype(a, "a", "int8", "uint8") == "int8"
    _check_k(a, k)
    limit = MAX_K if signed and a_zero_point is None else MAX_K_UNSIGNED
    if k > limit:
        why = "" if limit == MAX_K else " with uint8 activations or zero points"
        raise ValueError(f"a: expected K <= {limit}{why}, for exact int32 sums, got {k}")
    return (-128, 127) if signed else (0, 255)


def _check_k(a: Array, k: int) -> None:
    if hasattr(a, "shape") and (not a.ndim or a.shape[-1] != k):
        raise ValueError(f"a: expected shape (..., {k}) for the weight's K, got {tuple(a.shape)}")


def _per_row(value: Array, dtype: str, a: Array) -> Array:
    """A contiguous array with one value for each row of a."""
    rows = tuple(a.shape[:-1])
    if tuple(value.shape) == rows:
        return contiguous(value)
    result = empty(rows, dtype, a)
    result[...] = value
    return result
