"""int8_linear, of one weight or of several that share their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runtime import backends
from ..runtime.arrays import (
    Array,
    as_dtype_name,
    float_code,
    is_jit_traced,
    kind_of,
    needs_dispatcher,
)
from ..runtime.routing import Engine, float_rows
from .layouts import check_k
from .linear_tiny import tiny_int8_linear, tiny_int8_linears
from .op import Op, Plan
from .operand import (
    OUT,
    as_packed_weight,
    check_epilogue,
    check_fits,
    check_operand,
    default_out_dtype,
    is_empty,
    operand_of,
    scale_of,
    target_of,
    unpacked,
)
from .pack import PackedWeight
from .quantize import Quantized


def int8_linear(
    x: Array,
    weight: PackedWeight | Quantized | Array | Sequence[PackedWeight | Quantized | Array],
    bias: Array | Sequence[Array | None] | None = None,
    *,
    activation: str | Sequence[str | None] | None = None,
    symmetric: bool = True,
    out_dtype: Any = None,
    out: Array | Sequence[Array] | None = None,
) -> Any:
    """y = activation(x @ weight.T + bias), with x quantized to int8 per row on the fly and exact integer
    sums.

    x: float32, float16, bfloat16 or float64 [..., K]; a copy is made only where its leading dimensions don't
        collapse into one stride. weight: a PackedWeight of shape (N, K) with a scale; a Quantized (symmetric,
        per row) or a float [N, K] is packed on every call, which costs passes over it: pack_weight does that
        once; or a list or tuple of them, see below.
    bias: float [N] of any float dtype. activation: None, "relu", "gelu", "gelu_tanh" or "silu".
    symmetric: False gives each row of x a zero point, so that a row that is not centered on 0 (what follows a
        GELU, an outlier of one sign) loses fewer of its 256 steps: more accurate, a little slower, and
        K <= 65,793.
    out_dtype: "float32", "float16" or "bfloat16" (or NumPy's or torch's name for it; "int32": the sums
        themselves); x's own by default, float32 for float64. A row's result depends on nothing but that row.
    out: [..., N] of that dtype to fill; one whose rows are not contiguous or don't collapse costs a
        temporary.

    Layers that share their input (q, k and v; gate and up) can share its quantization: with a list of weights
    [N_i, K], of one K, x is read and quantized once, and the result is a list of arrays [..., N_i], each with
    the bits of a call of its own. bias and out are then None or a list with one for each weight (a bias may
    be None); activation is one for all or such a list; out_dtype is one for all. ValueError for an empty
    list, or for lists of other lengths.
    """
    outs = None if out is None else [("out", out)]
    is_short = type(weight) is PackedWeight and backends.native
    if is_short and (type(x) is np.ndarray or not needs_dispatcher(x, bias)):
        one: Any = activation
        found = tiny_int8_linear(x, weight, None, bias, one, out_dtype, symmetric, outs)  # a call earlier
        if found is not None:
            return found
    name = None if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", OUT)
    if isinstance(weight, (list, tuple)) and not isinstance(weight, Quantized):
        return _shared(x, weight, bias, activation, name, symmetric, out)
    if type(weight) is not PackedWeight:
        weight = as_packed_weight(weight)
    return INT8_LINEAR(x, weight, None, bias, activation, name, symmetric, out=outs)


def _shared(
    x: Array, weight: Sequence[Any], bias: Any, activation: Any, out_dtype: Any, symmetric: bool, out: Any
) -> list[Array]:
    """int8_linear with a list of weights."""
    count = len(weight)
    if not count:
        raise ValueError("weight: expected a weight or a list of one or more, got an empty list")
    weights = [
        w if type(w) is PackedWeight else as_packed_weight(w, f"weight[{i}]") for i, w in enumerate(weight)
    ]
    one = activation is None or isinstance(activation, str)
    biases = _one_for_each(bias, "bias", count)
    activations = [activation] * count if one else _one_for_each(activation, "activation", count)
    outs = None if out is None else [(f"out[{i}]", o) for i, o in enumerate(_one_for_each(out, "out", count))]
    if type(x) is not np.ndarray and is_jit_traced():  # which has no lists of strings
        more = out_dtype, symmetric
        return [
            INT8_LINEAR(x, w, None, b, a, *more, out=None if outs is None else [outs[i]])
            for i, (w, b, a) in enumerate(zip(weights, biases, activations, strict=True))
        ]
    found: list[Array] = INT8_LINEARS(
        x, weights, [None] * count, biases, activations, out_dtype, symmetric, out=outs
    )
    return found


def _one_for_each(value: Any, name: str, count: int) -> list[Any]:
    if value is None:
        return [None] * count
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"{name}: expected a list with one for each of {count} weights, got {type(value).__name__}"
        )
    if len(value) != count:
        raise ValueError(f"{name}: expected one for each of {count} weights, got {len(value)}")
    return list(value)


def _plan(
    x: Array,
    weight: PackedWeight | Array,
    weight_scale: Array | None,
    bias: Array | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
    symmetric: bool = True,
) -> Plan:
    return _plan_linears(x, [weight], [weight_scale], [bias], [activation], out_dtype, symmetric, names=("",))


def _plan_linears(
    x: Array,
    weights: Sequence[PackedWeight | Array],
    weight_scales: Sequence[Array | None],
    biases: Sequence[Array | None],
    activations: Sequence[str | None],
    out_dtype: Any = None,
    symmetric: bool = True,
    *,
    names: Sequence[str] | None = None,
) -> Plan:
    """names: what errors append to an argument. An empty bias is none, and so is the activation ""."""
    names = [f"[{i}]" for i in range(len(weights))] if names is None else names
    kind_of(x=x)
    each = list(zip(names, weights, weight_scales, strict=True))
    operands = [operand_of(weight, scale, x, at) for at, weight, scale in each]
    biases = given_biases(biases, [operand.n for operand in operands])
    inputs = {"x": x}
    for at, operand, bias in zip(names, operands, biases, strict=True):
        inputs["weight" + at], inputs["bias" + at] = operand.weight, bias
        inputs["weight_scale" + at] = operand.scale
        _check_one_k(operand.n, operand.k, operands[0].k, at)
    kind_of(**inputs)
    float_code(x, "x")
    lead = tuple(x.shape[:-1])
    for operand in operands[:1]:
        check_fits(x, operand.n, operand.k)
        check_k(operand.k, "x", symmetric)
    name = default_out_dtype(x) if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", OUT)
    activations = [activation or None for activation in activations]
    for at, operand, bias, activation in zip(names, operands, biases, activations, strict=True):
        check_epilogue(operand.n, operand.scale, bias, activation, name, at)

    def check() -> None:
        for at, operand in zip(names, operands, strict=True):
            check_operand(operand, x, at=at)

    def native(engine: Engine, *results: Array) -> None:
        kernels, where = engine
        view, _base = float_rows(kernels, x)
        made = [
            target_of(kernels, operand, bias, activation, result, not symmetric)
            for operand, bias, activation, result in zip(operands, biases, activations, results, strict=True)
        ]
        targets = [target for target, _ in made]
        kernels.int8_linears(view, targets=targets, symmetric=symmetric, where=where)

    def reference(module: Any) -> list[Array]:
        return [
            module.int8_linear(x, unpacked(operand), operand.scale, bias, activation, name, symmetric)
            for operand, bias, activation in zip(operands, biases, activations, strict=True)
        ]

    results = [((*lead, operand.n), name, "rows") for operand in operands]
    return Plan(x, inputs, results, native, reference, check)


def _check_one_k(n: int, k: int, first: int, at: str) -> None:
    if k != first:
        raise ValueError(f"weight{at}: expected shape (N, {first}) like weight[0], got {(n, k)}")


def given_biases(biases: Sequence[Array | None], ns: Sequence[int]) -> list[Array | None]:
    """The biases, None for an empty one that stands for none, as it does unless N is 0."""
    return [None if n and is_empty(bias) else bias for bias, n in zip(biases, ns, strict=True)]


def _lower(x: Array, weight: PackedWeight | Array, weight_scale: Array | None, *more: Any) -> tuple[Any, ...]:
    """The arguments as the schema has them; a packed weight's shape is known here, and not there."""
    if isinstance(weight, PackedWeight):
        check_fits(x, *weight.shape)
        return x, weight.buffer, scale_of(weight), *more
    return x, weight, weight_scale, *more


def _lower_shared(
    x: Array,
    weights: Sequence[PackedWeight],
    weight_scales: Sequence[Array | None],
    biases: Sequence[Array | None],
    activations: Sequence[str | None],
    *more: Any,
) -> tuple[Any, ...]:
    """_lower with a list of weights."""
    for i, weight in enumerate(weights):
        _check_one_k(*weight.shape, weights[0].shape[1], f"[{i}]")
    check_fits(x, *weights[0].shape)
    return (
        x,
        [weight.buffer for weight in weights],
        [scale_of(weight, f"[{i}]") for i, weight in enumerate(weights)],
        [x.new_empty(0) if bias is None else bias for bias in biases],
        [activation or "" for activation in activations],
        *more,
    )


INT8_LINEAR = Op(
    "int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, str? activation=None, "
    "ScalarType? out_dtype=None, bool symmetric=True) -> Tensor",
    _plan,
    "linear",
    tiny=tiny_int8_linear,
    lower=_lower,
)

# An empty bias is no bias, and "" no activation: autograd does not see into a list with None, and a schema
# has no such list of strings.
INT8_LINEARS = Op(
    "int8_linears(Tensor x, Tensor[] weights, Tensor[] weight_scales, Tensor[] biases, str[] activations, "
    "*, ScalarType? out_dtype=None, bool symmetric=True) -> Tensor[]",
    _plan_linears,
    "linear",
    tiny=tiny_int8_linears,
    lower=_lower_shared,
)
