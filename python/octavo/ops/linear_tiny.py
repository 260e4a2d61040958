"""The short way of a tiny int8_linear: the checks of its plan again, without calls and closures that would
cost more than the product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runtime import backends
from ..runtime.arrays import FLOAT_CODES, Array, plain_address, pointer_of
from ..runtime.backends import _core
from ..runtime.outputs import mark_written
from .layouts import MAX_K_UNSIGNED
from .op import Out
from .operand import ACTIVATION_NAMES, ACTIVATIONS, is_empty
from .pack import PackedWeight


def tiny_int8_linear(
    x: Array,
    weight: PackedWeight | Array,
    weight_scale: Array | None,
    bias: Array | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
    symmetric: bool = True,
    out: Sequence[Out] | None = None,
) -> Array | None:
    """What the plan does for contiguous arrays of the usual dtypes on the CPU; None where others come."""
    if out_dtype is not None:
        return None
    if type(weight) is PackedWeight:
        n, k, buffer, scale = weight.operands
        x_address = plain_address(x, buffer)
        if not x_address or scale is None:
            return None
        packed = None
    else:
        known = _known_weight(weight, weight_scale)
        if known is None:
            return None
        n, k, buffer, scale, packed = known
        x_address = plain_address(x, buffer)
    if not x_address or (activation is not None and activation not in ACTIVATION_NAMES):
        return None
    shape, code = tuple(x.shape), FLOAT_CODES.get(x.dtype, 3)  # a slice of a torch.Size costs 0.3 us
    if not shape or shape[-1] != k or code == 3 or not (symmetric or k <= MAX_K_UNSIGNED):
        return None
    lead = shape[:-1]
    rows = math.prod(lead)
    bias_address = bias_code = 0
    if bias is not None:
        bias_address = plain_address(bias, buffer)
        bias_code = FLOAT_CODES.get(bias.dtype, -1) if bias_address else -1
        if bias_code < 0 or bias.shape != (n,):
            return None
    result: Any
    if out is not None:
        result = _tiny_out(out, x, (*lead, n), (x, buffer, scale, bias))
        if result is None:
            return None
    else:
        result = np.empty((*lead, n), x.dtype) if type(x) is np.ndarray else x.new_empty(*lead, n)
    if type(x) is np.ndarray:
        weight_address = _core.address(buffer)
        scale_address, address = _core.address(scale), _core.address(result)
    elif buffer.is_cpu:
        weight_address = buffer.data_ptr()
        scale_address, address = scale.data_ptr(), result.data_ptr()
    else:
        return None
    if packed is None:
        checked = weight._native
        packed = checked[1] if checked[0] == weight_address else weight._at(weight_address)
    target = _core.Target(
        packed,
        scale=scale_address,
        bias=bias_address,
        bias_dtype=bias_code,
        activation=ACTIVATIONS[activation],
        out=address,
        out_dtype=code,
        out_row_stride=n,
    )
    _core.int8_linears(
        _core.FloatRows(x_address, dtype=code, rows=rows, cols=k, row_stride=k, col_stride=1),
        targets=[target],
        symmetric=symmetric,
        where=backends.get_num_threads(),
    )
    if out is not None:
        mark_written(result)
    return result


def _tiny_out(
    out: Sequence[Out], x: Array, shape: tuple[int, ...], inputs: Sequence[Array | None]
) -> Array | None:
    """What there is to fill, if it is as plain as x and apart from contiguous inputs."""
    assert out[0] is not None
    result = out[0][1]
    if type(result) is not type(x) or result.dtype != x.dtype or result.shape != shape:
        return None
    if not (result.flags.writeable if type(x) is np.ndarray else not result.requires_grad):
        return None
    begin = plain_address(result, x)
    end = begin + result.nbytes
    for each in inputs:
        if each is not None:
            low = plain_address(each, x)
            if not low or (low < end and begin < low + each.nbytes):
                return None
    return result if begin else None


def tiny_int8_linears(
    x: Array,
    weights: Sequence[PackedWeight | Array],
    weight_scales: Sequence[Array | None],
    biases: Sequence[Array | None],
    activations: Sequence[str | None],
    out_dtype: Any = None,
    symmetric: bool = True,
    *,
    out: Sequence[Out] | None = None,
) -> list[Array] | None:
    """tiny_int8_linear with a list of weights."""
    if out_dtype is not None or out is not None or not len(weights):
        return None
    first = weights[0]
    x_address = plain_address(x, first.buffer if type(first) is PackedWeight else first)
    code = FLOAT_CODES.get(x.dtype, 3) if x_address else 3
    if code == 3 or not x.shape or not (symmetric or x.shape[-1] <= MAX_K_UNSIGNED):
        return None
    lead, cols = x.shape[:-1], x.shape[-1]
    in_numpy = type(x) is np.ndarray
    at = pointer_of(x)
    results, targets = [], []
    for weight, weight_scale, bias, activation in zip(
        weights, weight_scales, biases, activations, strict=True
    ):
        if type(weight) is PackedWeight:
            n, k, buffer, scale = weight.operands
            on_cpu = (
                type(buffer) is np.ndarray if in_numpy else type(buffer) is not np.ndarray and buffer.is_cpu
            )
            if scale is None or not on_cpu:
                return None
            packed = weight._at(at(buffer))
        else:
            known = _known_weight(weight, weight_scale)
            if known is None:
                return None
            n, k, buffer, scale, packed = known
        if k != cols or (activation and activation not in ACTIVATION_NAMES):
            return None
        bias_address = bias_code = 0
        if bias is not None and not (n and is_empty(bias)):
            bias_address = plain_address(bias, buffer)
            bias_code = FLOAT_CODES.get(bias.dtype, -1) if bias_address else -1
            if bias_code < 0 or bias.shape != (n,):
                return None
        result = np.empty((*lead, n), x.dtype) if in_numpy else x.new_empty(*lead, n)
        results.append(result)
        targets.append(
            _core.Target(
                packed,
                scale=at(scale),
                bias=bias_address,
                bias_dtype=bias_code,
                activation=ACTIVATIONS[activation or None],
                out=at(result),
                out_dtype=code,
                out_row_stride=n,
            )
        )
    rows = math.prod(lead)
    _core.int8_linears(
        _core.FloatRows(x_address, dtype=code, rows=rows, cols=cols, row_stride=cols, col_stride=1),
        targets=targets,
        symmetric=symmetric,
        where=backends.get_num_threads(),
    )
    return results


def _known_weight(weight: Array, scale: Array | None) -> tuple[int, int, Array, Array, Any] | None:
    """(N, K, weight, scale, record) of a packed buffer on the CPU with one scale for each row, where kernels
    read both as they are; else None."""
    address = plain_address(weight, weight)
    if not address or address % 64 or weight.ndim != 1 or weight.itemsize != 1:
        return None
    if scale is None or not plain_address(scale, weight) or FLOAT_CODES.get(scale.dtype) != 0:
        return None
    n, k = _core.packed_shape(address, nbytes=weight.shape[0])
    if scale.shape != (n,) and scale.shape != (n, 1):
        return None
    return n, k, weight, scale, _core.Weight(address, nbytes=weight.shape[0], n=n, k=k)
