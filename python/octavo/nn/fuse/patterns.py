"""What of a torch.fx graph octavo's fused kernels can do, and the rewriting.

One matcher serves graphs of torch.export (aten operators) and of dynamo (torch's functions and methods): a
table maps every spelling of an operation to one name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ...ops.norm import NORM_RESULTS
from ..layers.linear import Int8Linear
from .graph import (
    argument_of,
    drop_identities,
    has_effects,
    is_still,
    layer_of,
    number_of,
    operation_of,
    ordered,
    raise_parameters,
    same_shape,
    value_of,
)
from .weights import use_int8_weights

__all__ = ["Fusion", "fuse_graph"]


@dataclass(frozen=True)
class Fusion:
    """One rewriting: its kind ("activation", "shared input", "norm" or "mask"), the layers that it took, and
    what became of them."""

    kind: str
    layers: tuple[str, ...]
    note: str


_aten, _octavo = torch.ops.aten, torch.ops.octavo


def fuse_graph(graph: Graph, layers: Mapping[Node, tuple[str, Int8Linear]] | None = None) -> list[Fusion]:
    """Rewrites the graph in place. Nodes need values (FakeTensors) in their meta; gradients are lost.

    layers: by the graph's inputs that int8 layers store weights in, their names and themselves.
    """
    drop_identities(graph)
    use_int8_weights(graph, layers or {})
    found = [*_fuse_activations(graph), *_fuse_norms(graph), *_fuse_shared_inputs(graph)]
    if found:
        found += _convert_masks(graph)
    graph.eliminate_dead_code(has_effects)
    graph.lint()
    return found


# ---- (a) a linear layer and its activation ----


def _fuse_activations(graph: Graph) -> Iterator[Fusion]:
    for node in list(graph.nodes):
        activation = _activation(node)
        linear: Any = node.args[0] if activation and node.args else None
        if operation_of(linear) != "int8_linear" or linear.kwargs.get("activation") or len(linear.users) > 1:
            continue
        before, after = value_of(linear), value_of(node)
        if before is None or after is None or before.dtype != after.dtype:
            continue
        if before.dtype == torch.int32 or not is_still(linear, node, but=node):
            continue
        linear.update_kwarg("activation", activation)
        node.replace_all_uses_with(linear)
        graph.erase_node(node)
        yield Fusion("activation", (layer_of(linear),), f"{activation} in the product's epilogue")


def _activation(node: Node) -> str:
    name = operation_of(node)
    if name == "gelu":
        approximate = argument_of(node, 1, "approximate", "none")
        return {"none": "gelu", "tanh": "gelu_tanh"}[approximate]
    return name if name in ("relu", "silu") else ""


# ---- (b) linear layers on one input ----


def _fuse_shared_inputs(graph: Graph) -> Iterator[Fusion]:
    for x in list(graph.nodes):
        alike: dict[Any, list[Node]] = {}
        for user in x.users:
            if operation_of(user) == "int8_linear" and user.args[0] is x:
                more = {k: v for k, v in user.kwargs.items() if k in ("out_dtype", "symmetric")}
                alike.setdefault(tuple(sorted(more.items())), []).append(user)
        for more, linears in alike.items():
            linears = ordered(graph, linears)
            first, count = linears[0], len(linears)
            if count < 2 or not is_still(first, linears[-1]):
                continue
            if not raise_parameters((p for each in linears for p in _operands(each)), first):
                continue
            with graph.inserting_before(first):
                operands = [_operands(each) for each in linears]
                none = None
                if any(bias is None for *_, bias in operands):
                    none = graph.call_function(_aten.new_empty.default, (x, [0]))
                weights, scales, biases = (list(each) for each in zip(*operands, strict=True))
                arguments = (x, weights, scales, [none if bias is None else bias for bias in biases])
                activations = [each.kwargs.get("activation") or "" for each in linears]
                shared = graph.call_function(
                    _octavo.int8_linears.default, (*arguments, activations), dict(more)
                )
                results = [graph.call_function(operator.getitem, (shared, i)) for i in range(count)]
            for each, result in zip(linears, results, strict=True):
                _put(result, each)
                graph.erase_node(each)
            yield Fusion(
                "shared input", tuple(map(layer_of, linears)), f"one quantization of x for {count} products"
            )


def _operands(linear: Node) -> tuple[Node, Node, Node | None]:
    """weight, weight_scale and bias"""
    return (
        argument_of(linear, 1, "weight"),
        argument_of(linear, 2, "weight_scale"),
        argument_of(linear, 3, "bias"),
    )


def _put(new: Node, old: Node) -> None:
    """new in the place of all uses of old."""
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)


# ---- (c) normalization before linear layers ----


class _Norm(NamedTuple):
    x: Node
    weight: Node | None
    bias: Node | None
    eps: float
    centered: bool


_NORMED = (torch.float32, torch.float16, torch.bfloat16)  # float64 is not added as float64


def _fuse_norms(graph: Graph) -> Iterator[Fusion]:
    for node in list(graph.nodes):
        norm = _match_norm(node)
        if norm is None or not _can_normalize(node, norm):
            continue
        linears = [
            user for user in node.users if operation_of(user) == "int8_linear" and user.args[0] is node
        ]
        symmetric = all(each.kwargs.get("symmetric", True) for each in linears)
        linears = ordered(
            graph, (each for each in linears if each.kwargs.get("symmetric", True) is symmetric)
        )
        if not linears:
            continue
        added = norm.x if _is_plain_sum(norm.x) else None
        first = node if added is None else added
        if not is_still(first, linears[-1]) or not raise_parameters((norm.weight, norm.bias), first):
            continue
        normed = len(linears) < len(node.users)
        if value_of(node).device.type != "cpu" and (normed or not symmetric):
            continue  # kernels for devices have neither
        x, residual = (norm.x, None) if added is None else (added.args[0], added.args[1])
        options: dict[str, Any] = {"symmetric": symmetric, "normed": normed}
        with graph.inserting_before(first):
            arguments = (x, norm.weight, norm.bias, residual, norm.eps, norm.centered)
            results = graph.call_function(_octavo.norm_quantize.default, arguments, options)
            parts = {
                name: graph.call_function(operator.getitem, (results, i))
                for i, name in enumerate(NORM_RESULTS)
            }
        for linear in linears:
            _multiply_quantized(graph, linear, parts, symmetric)
        if normed:
            _put(parts["normed"], node)
        if added is not None:
            _put(parts["sum"], added)
        note = "LayerNorm" if norm.centered else "RMSNorm"
        note += ", after the residual's sum," if added is not None else ""
        note += f" straight to int8{' and to ' + str(value_of(node).dtype) if normed else ''}"
        yield Fusion("norm", (layer_of(node), *map(layer_of, linears)), note)


def _multiply_quantized(graph: Graph, linear: Node, parts: dict[str, Node], symmetric: bool) -> None:
    with graph.inserting_before(linear):
        arguments = (parts["data"], parts["scale"], *_operands(linear))
        new = graph.call_function(
            _octavo.scaled_int_mm.default,
            arguments if symmetric else (*arguments, parts["zero_point"]),
            {"activation": linear.kwargs.get("activation"), "out_dtype": value_of(linear).dtype},
        )
    _put(new, linear)
    graph.erase_node(linear)


def _can_normalize(node: Node, norm: _Norm) -> bool:
    x, y = value_of(norm.x), value_of(node)
    if x is None or y is None or x.dtype not in _NORMED or x.dtype != y.dtype or not same_shape(x, y):
        return False
    for parameter in (norm.weight, norm.bias):
        if parameter is not None:
            value = value_of(parameter)
            if value is None or value.dim() != 1 or value.device != x.device:
                return False
            if not value.dtype.is_floating_point or not statically_known_true(value.shape[0] == x.shape[-1]):
                return False
    return norm.eps == 0 or 2.0**-126 <= norm.eps < math.inf


def _is_plain_sum(node: Node) -> bool:
    """Whether it adds two tensors of one shape and dtype."""
    if operation_of(node) != "add" or len(node.args) != 2 or node.kwargs:
        return False
    total, a, b = value_of(node), value_of(node.args[0]), value_of(node.args[1])
    if total is None or a is None or b is None:
        return False
    alike = a.dtype == b.dtype == total.dtype and a.device == b.device
    return alike and same_shape(a, b)


def _match_norm(node: Node) -> _Norm | None:
    matcher = _NORMS.get(operation_of(node))
    return None if matcher is None else matcher(node)


def _match_layer_norm(node: Node) -> _Norm | None:
    if len(argument_of(node, 1, "normalized_shape")) != 1:
        return None
    weight, bias = argument_of(node, 2, "weight"), argument_of(node, 3, "bias")
    eps = number_of(argument_of(node, 4, "eps", 1e-5))
    return None if eps is None else _Norm(argument_of(node, 0, "input"), weight, bias, eps, True)


def _match_rms_norm(node: Node) -> _Norm | None:
    x, weight, eps = (
        argument_of(node, 0, "input"),
        argument_of(node, 2, "weight"),
        argument_of(node, 3, "eps"),
    )
    value = value_of(x)
    if len(argument_of(node, 1, "normalized_shape")) != 1 or value is None:
        return None
    number = torch.finfo(value.dtype).eps if eps is None else number_of(eps)
    return None if number is None else _Norm(x, weight, None, number, False)


def _match_written_rms_norm(node: Node) -> _Norm | None:
    """weight * (h * rsqrt(mean(h^2) + eps)).to(x.dtype) with h = x.to(float32), as transformers writes it."""
    for weight, rest in _both_orders(node):
        product = _through(rest, "to")
        for h, root in _both_orders(product):
            if operation_of(root) != "rsqrt":
                continue
            for mean, eps in _both_orders(root.args[0], "add"):
                square = mean.args[0] if operation_of(mean) == "mean" else None
                wide, x = value_of(h), _through(h, "to")
                if square is None or not _is_square(square, h) or not _is_over_last(mean):
                    continue
                number = number_of(eps)
                if number is None or wide is None or not isinstance(weight, Node):
                    continue
                if wide.dtype == torch.float32:
                    return _Norm(x, weight, None, number, False)
    return None


def _both_orders(node: object, name: str = "mul") -> Iterator[tuple[Any, Any]]:
    if isinstance(node, Node) and operation_of(node) == name and len(node.args) == 2 and not node.kwargs:
        a, b = node.args
        yield from ((a, b), (b, a))


def _through(node: Any, name: str) -> Any:
    return node.args[0] if operation_of(node) == name else node


def _is_square(node: Any, h: Any) -> bool:
    if operation_of(node) == "pow":
        return node.args[0] is h and argument_of(node, 1, "exponent") == 2
    return (operation_of(node) == "square" and node.args[0] is h) or (
        operation_of(node) == "mul" and node.args == (h, h)
    )


def _is_over_last(mean: Node) -> bool:
    value = value_of(mean.args[0])
    axes = argument_of(mean, 1, "dim")
    last = (-1,) if value is None else (-1, value.dim() - 1)
    axes = axes if isinstance(axes, list | tuple) else [axes]
    return len(axes) == 1 and axes[0] in last and argument_of(mean, 2, "keepdim", False) is True


_NORMS: dict[str, Callable[[Node], _Norm | None]] = {
    "layer_norm": _match_layer_norm,
    "rms_norm": _match_rms_norm,
    "mul": _match_written_rms_norm,
}


# ---- (d) attention ----


def _convert_masks(graph: Graph) -> Iterator[Fusion]:
    """A boolean mask of several attentions becomes what is added to their scores once: each would do that."""
    for mask in list(graph.nodes):
        value = value_of(mask)
        if value is None or value.dtype != torch.bool:
            continue
        alike: dict[torch.dtype, list[Node]] = {}
        for user in mask.users:
            query = value_of(user.args[0]) if operation_of(user) == "attention" and user.args else None
            if query is not None and argument_of(user, 3, "attn_mask") is mask:
                alike.setdefault(query.dtype, []).append(user)
        for dtype, attentions in alike.items():
            attentions = ordered(graph, attentions)
            first, last = attentions[0], attentions[-1]
            if len(attentions) < 2 or not is_still(first, last):
                continue
            with graph.inserting_before(first):
                added = graph.call_function(_aten.where.Scalar, (mask, 0.0, -math.inf))
                added = graph.call_function(_aten.to.dtype, (added, dtype))
            for each in attentions:
                each.replace_input_with(mask, added)
            note = f"one conversion of the mask to {dtype} for {len(attentions)} attentions"
            yield Fusion("mask", tuple(map(layer_of, attentions)), note)
