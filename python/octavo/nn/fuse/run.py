"""A fused graph as a Python function that goes the short way: to octavo's functions, not through torch's
dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ...ops.int_mm import SCALED_INT_MM
from ...ops.linear import INT8_LINEAR, INT8_LINEARS
from ...ops.norm import NORM_QUANTIZE
from ...ops.operand import ACTIVATIONS
from ...ops.pack import PackedWeight
from ...runtime import backends
from ...runtime.arrays import float_code, plain_address
from .graph import has_effects

_octavo = torch.ops.octavo


def compile_graph(module: GraphModule) -> tuple[Callable[..., Sequence[Any]], list[tuple[int, int]]]:
    """The graph of an exported program, changed, as f(*placeholders), and the positions (weight, scale) among
    those where f wants a PackedWeight in the weight's place."""
    graph = module.graph
    pairs = _packed_weights([node for node in graph.nodes if node.target in _SHORT])
    for node in list(graph.nodes):
        if node.target in _METHODS and not node.kwargs and isinstance(node.args[0], Node):
            node.op, node.target = "call_method", _METHODS[node.target]
        elif node.target in _SHORT and all(weight in pairs for weight, _ in _weights(node)):
            with graph.inserting_before(node):
                new = graph.call_function(*_SHORT[node.target](node))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.eliminate_dead_code(has_effects)
    module.recompile()
    at = {node: i for i, node in enumerate(graph.find_nodes(op="placeholder"))}
    return module.forward, [(at[weight], at[scale]) for weight, scale in pairs.items()]


def _weights(node: Node) -> Iterator[tuple[Node, Node]]:
    """The (weight, scale)s that it multiplies by."""
    if node.target is _octavo.int8_linears.default:
        yield from zip(node.args[1], node.args[2], strict=True)  # type: ignore[arg-type]
    elif node.target is _octavo.int8_linear.default:
        yield node.args[1], node.args[2]  # type: ignore[misc]
    elif node.target is _octavo.scaled_int_mm.default:
        yield node.args[2], node.args[3]  # type: ignore[misc]


def _packed_weights(nodes: list[Node]) -> dict[Node, Node]:
    """The scales of the weights that are packed, for the CPU, and that only `nodes` use, with one scale; all
    that a node multiplies by, or nothing."""
    scales: dict[Node, set[Node]] = {}
    for node in nodes:
        for weight, scale in _weights(node):
            scales.setdefault(weight, set()).add(scale)
    able = {
        weight
        for weight, found in scales.items()
        if len(found) == 1 and weight.op == "placeholder" and _is_packed(weight.meta["val"])
    }
    short = {node for node in nodes if _goes_short(node)}
    while True:
        short = {node for node in short if all(weight in able for weight, _ in _weights(node))}
        left = {weight for weight in able if set(weight.users) <= short}
        if left == able:
            return {weight: next(iter(scales[weight])) for weight in able}
        able = left


def _is_packed(weight: Tensor) -> bool:
    return weight.dim() == 1 and weight.dtype == torch.uint8 and weight.device.type == "cpu"


def _goes_short(node: Node) -> bool:
    """Whether it asks for nothing but what the functions below take."""
    return node.target is _octavo.scaled_int_mm.default or not set(node.kwargs) - {"activation", "symmetric"}


# ---- the functions, and what they take from a node of the dispatcher's ----


def _linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str | None, symmetric: bool
) -> Tensor:
    result: Tensor = INT8_LINEAR.run(x, weight, None, bias, activation, None, symmetric)
    return result


def _linear_of(node: Node) -> tuple[Any, tuple[Any, ...]]:
    x, weight, _, *bias = node.args
    options = node.kwargs.get("activation"), node.kwargs.get("symmetric", True)
    return _linear, (x, weight, bias[0] if bias else None, *options)


def _linears(
    x: Tensor,
    weights: Sequence[PackedWeight],
    biases: Sequence[Tensor | None],
    activations: Sequence[str | None],
    symmetric: bool,
) -> list[Tensor]:
    scales = [None] * len(weights)
    return INT8_LINEARS.run(  # type: ignore[no-any-return]
        x, weights, scales, biases, activations, None, symmetric
    )


def _linears_of(node: Node) -> tuple[Any, tuple[Any, ...]]:
    x, weights, _, biases, activations = node.args
    given = [bias if bias.op == "placeholder" else None for bias in biases]  # type: ignore[union-attr]
    names = [name or None for name in activations]  # type: ignore[union-attr]
    return _linears, (x, weights, given, names, node.kwargs.get("symmetric", True))


def _product(
    a: Tensor,
    a_scale: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    a_zero_point: Tensor | None,
    activation: str | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """scaled_int_mm of what _norm has made: nothing of it needs a check."""
    n, k, buffer, scale = weight.operands
    bias_address = 0 if bias is None else plain_address(bias, a)
    if not backends.native or (bias is not None and not bias_address):
        more = None, bias, a_zero_point, activation, out_dtype
        return SCALED_INT_MM.run(a, a_scale, weight, *more)  # type: ignore[no-any-return]
    y = a.new_empty((*a.shape[:-1], n), dtype=out_dtype)
    assert scale is not None
    kernels = backends._core
    target = kernels.Target(
        weight._at(buffer.data_ptr()),
        scale=scale.data_ptr(),
        bias=bias_address,
        bias_dtype=0 if bias is None else float_code(bias, "bias"),
        activation=ACTIVATIONS[activation],
        out=y.data_ptr(),
        out_dtype=float_code(y, "out"),
        out_row_stride=n,
    )
    kernels.scaled_int_mm(
        kernels.IntRows(a.data_ptr(), signed=True, rows=a_scale.numel(), cols=k, row_stride=k, col_stride=1),
        a_scale=a_scale.data_ptr(),
        a_zero_point=0 if a_zero_point is None else a_zero_point.data_ptr(),
        target=target,
        where=backends.get_num_threads(),
    )
    return y


def _product_of(node: Node) -> tuple[Any, tuple[Any, ...]]:
    a, a_scale, weight, _, bias, *zero_point = node.args
    options = node.kwargs["activation"], node.kwargs["out_dtype"]
    return _product, (a, a_scale, weight, bias, zero_point[0] if zero_point else None, *options)


def _norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    centered: bool,
    symmetric: bool,
    normed: bool,
) -> tuple[Tensor | None, ...]:
    """norm_quantize, whose dtypes, shapes and eps have been checked when the graph was made."""
    x_address = plain_address(x, x)
    added_address = 0 if residual is None else plain_address(residual, x)
    if not backends.native or not x_address or (residual is not None and not added_address):
        return tuple(NORM_QUANTIZE.run(x, weight, bias, residual, eps, centered, symmetric, normed))
    data, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)
    zero_point = None if symmetric else torch.empty_like(scale, dtype=torch.int32)
    total = None if residual is None else torch.empty_like(x)
    y = torch.empty_like(x) if normed else None
    weight, bias = _float32(weight), _float32(bias)
    code, cols = float_code(x, "x"), x.shape[-1]
    backends._core.norm_quantize(
        backends._core.FloatRows(
            x_address, dtype=code, rows=scale.numel(), cols=cols, row_stride=cols, col_stride=1
        ),
        residual=added_address,
        sum=0 if total is None else total.data_ptr(),
        weight=0 if weight is None else weight.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        eps=eps,
        centered=centered,
        data=data.data_ptr(),
        scale=scale.data_ptr(),
        zero_point=0 if zero_point is None else zero_point.data_ptr(),
        normed=0 if y is None else y.data_ptr(),
        where=backends.get_num_threads(),
    )
    return data, scale, zero_point, total, y


def _float32(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.to(torch.float32).contiguous()


def _norm_of(node: Node) -> tuple[Any, tuple[Any, ...]]:
    return _norm, (*node.args, node.kwargs["symmetric"], node.kwargs["normed"])


_SHORT: dict[Any, Callable[[Node], tuple[Any, tuple[Any, ...]]]] = {
    _octavo.int8_linear.default: _linear_of,
    _octavo.int8_linears.default: _linears_of,
    _octavo.scaled_int_mm.default: _product_of,
    _octavo.norm_quantize.default: _norm_of,
}

# A method of Tensor costs a third of a call of the same operator's overload.
_METHODS = {
    getattr(getattr(torch.ops.aten, name), overload): name
    for name, overload in {
        "add": "Tensor",
        "expand": "default",
        "mul": "Tensor",
        "reshape": "default",
        "transpose": "int",
        "unsqueeze": "default",
        "view": "default",
    }.items()
}
