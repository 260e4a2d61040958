"""weight_only_linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runtime import backends
from ..runtime.arrays import (
    FLOAT_CODES,
    Array,
    as_dtype_name,
    check_dtype,
    check_shape,
    contiguous,
    float_code,
    kind_of,
    plain_address,
    pointer,
)
from ..runtime.backends import _core
from ..runtime.routing import Engine, float_rows
from .op import Op, Out, Plan
from .operand import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    FLOAT_OUT,
    Operand,
    check_epilogue,
    check_fits,
    check_operand,
    default_out_dtype,
    operand_of,
    target_of,
    unpacked,
)
from .pack import PackedWeight
from .quantize import Quantized

GROUP_MULTIPLE = 4  # terms that stand beside each other in a packed weight


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
        check_fits(x, *weight.shape)  # a trace has the buffer alone
    else:
        raise TypeError(f"weight: expected a PackedWeight or a Quantized, got {type(weight).__name__}")
    scale = scale if weight_scale is None else weight_scale
    if scale is None:
        raise ValueError("weight_scale: expected scales for a weight without its own, got None")
    name = None if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", FLOAT_OUT)
    return WEIGHT_ONLY_LINEAR(
        x, data, scale, bias, activation, name, out=None if out is None else [("out", out)]
    )


def _plan(
    x: Array,
    weight: Array,
    weight_scale: Array,
    bias: Array | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
) -> Plan:
    inputs = {"x": x, "weight": weight, "weight_scale": weight_scale, "bias": bias}
    kind_of(**inputs)
    float_code(x, "x")
    check_dtype(weight_scale, "weight_scale", "float32")
    per_row = weight_scale[..., 0] if weight_scale.ndim == 2 and weight_scale.shape[1] else weight_scale
    n, k, weight, _, known = operand_of(weight, per_row, x)
    operand = Operand(n, k, weight, weight_scale, known)
    groups = check_groups(weight_scale, n, k)
    check_fits(x, n, k)
    name = default_out_dtype(x) if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", FLOAT_OUT)
    check_epilogue(n, weight_scale, bias, activation, name)

    def check() -> None:
        check_operand(operand._replace(scale=per_row), x)

    def native(engine: Engine, result: Array) -> None:
        kernels, where = engine
        view, _base = float_rows(kernels, x)
        target, _alive = target_of(kernels, operand, bias, activation, result, scaled=False)
        scale = contiguous(weight_scale)
        kernels.weight_only_linear(view, target=target, scale=pointer(scale), groups=groups, where=where)

    def reference(module: Any) -> Any:
        scale = contiguous(weight_scale).reshape(n, groups)
        return module.weight_only_linear(x, unpacked(operand), scale, bias, activation, name)

    return Plan(x, inputs, (((*x.shape[:-1], n), name, "rows"),), native, reference, check)


def tiny_weight_only_linear(
    x: Array,
    weight: Array,
    weight_scale: Array,
    bias: Array | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
    *,
    out: Sequence[Out] | None = None,
) -> Array | None:
    """What the plan does for contiguous arrays of the usual dtypes and a packed buffer on the CPU; None where
    anything else comes.

    It repeats the checks of the plan without its function calls, which cost more than a tiny product.
    """
    if out_dtype is not None or out is not None:
        return None
    x_address, address = plain_address(x, weight), plain_address(weight, weight)
    scale_address = plain_address(weight_scale, weight)
    if not (x_address and address and scale_address) or weight.ndim != 1 or weight.itemsize != 1:
        return None
    n, k = _core.packed_shape(address, nbytes=weight.shape[0])
    code, shape, scale_shape = FLOAT_CODES.get(x.dtype, 3), x.shape, weight_scale.shape
    if code == 3 or not shape or shape[-1] != k or FLOAT_CODES.get(weight_scale.dtype) != 0:
        return None
    if len(scale_shape) not in (1, 2) or scale_shape[0] != n or address % 64:
        return None
    groups = scale_shape[1] if len(scale_shape) == 2 else 1
    if groups != 1 and (not groups or k % (GROUP_MULTIPLE * groups)):
        return None
    if activation not in ACTIVATION_NAMES:
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


WEIGHT_ONLY_LINEAR = Op(
    "weight_only_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, "
    "str? activation=None, ScalarType? out_dtype=None) -> Tensor",
    _plan,
    "weight_only",
    tiny=tiny_weight_only_linear,
)


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
