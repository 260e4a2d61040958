"""What of a torch.fx graph octavo's fused kernels can do, and the rewriting.

One matcher serves graphs of torch.export (aten operators) and of dynamo (torch's functions and methods): a
table maps every spelling of an operation to one name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ...ops.norm import NORM_RESULTS
from ...torch_ops.linear import int8_linear_op

__all__ = ["Fusion", "fuse_graph"]


@dataclass(frozen=True)
class Fusion:
    """One rewriting: its kind ("activation", "shared input", "norm" or "mask"), the layers that it took, and
    what became of them."""

    kind: str
    layers: tuple[str, ...]
    note: str


def fuse_graph(graph: Graph) -> list[Fusion]:
    """Rewrites the graph in place. Nodes need values (FakeTensors) in their meta; gradients are lost."""
    _drop_identities(graph)
    found = [*_fuse_activations(graph), *_fuse_norms(graph), *_fuse_shared_inputs(graph)]
    if found:
        found += _convert_masks(graph)
    # torch.fx takes methods for pure
    graph.eliminate_dead_code(lambda node: node.is_impure() or _mutates(node))
    graph.lint()
    return found


# ---- spellings ----

_aten, _octavo = torch.ops.aten, torch.ops.octavo

_SPELLINGS: dict[str, tuple[Any, ...]] = {
    "add": (operator.add, torch.add, "add", _aten.add.Tensor),
    "mul": (operator.mul, torch.mul, "mul", _aten.mul.Tensor),
    "pow": (operator.pow, torch.pow, "pow", _aten.pow.Tensor_Scalar),
    "square": (torch.square, "square", _aten.square.default),
    "mean": (torch.mean, "mean", _aten.mean.dim),
    "rsqrt": (torch.rsqrt, "rsqrt", _aten.rsqrt.default),
    "to": ("to", "float", _aten.to.dtype, _aten.to.device, _aten.to.dtype_layout, _aten._to_copy.default),
    "dropout": (F.dropout, torch.dropout, _aten.dropout.default),
    "relu": (F.relu, torch.relu, "relu", _aten.relu.default, _aten.relu_.default),
    "gelu": (F.gelu, _aten.gelu.default),
    "silu": (F.silu, _aten.silu.default, _aten.silu_.default),
    "layer_norm": (F.layer_norm, torch.layer_norm, _aten.layer_norm.default),
    "rms_norm": (F.rms_norm, torch.rms_norm, _aten.rms_norm.default),
    "int8_linear": (int8_linear_op, _octavo.int8_linear),
    "attention": (F.scaled_dot_product_attention, _aten.scaled_dot_product_attention.default),
    "slice": (_aten.slice.Tensor,),
    "check": (_aten._assert_tensor_metadata.default,),
}
_NAMES = {target: name for name, targets in _SPELLINGS.items() for target in targets}


def _name(node: object) -> str:
    """The operation's name in the table; "" for what is not in it, and for what is no node."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return ""
    return _NAMES.get(node.target, "")


def _argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def _value(node: object) -> Any:
    """The tensor that the node has when traced; None for anything else."""
    if not isinstance(node, Node):
        return None
    value = node.meta.get("val", node.meta.get("example_value"))
    return value if isinstance(value, Tensor) else None


def _number(value: object) -> float | None:
    """The float that a node is, or that stands in its place. One that dynamo has left open is settled: its
    graph will be for this number."""
    if isinstance(value, Node):
        value = value.meta.get("val", value.meta.get("example_value"))
    return float(value) if isinstance(value, float | torch.SymFloat) else None


def _same_shape(a: Tensor, b: Tensor) -> bool:
    return a.dim() == b.dim() and all(
        statically_known_true(m == n) for m, n in zip(a.shape, b.shape, strict=True)
    )


def _layer(node: Node) -> str:
    """The name of the module that made this node, without the name that dynamo gives the model."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = str(stack[-1][0]) if stack else ""
    for prefix in ("L['self'].", "L__self___", "L['self']", "L['fn'].", "L['fn']"):
        name = name.removeprefix(prefix)
    return name or node.name


# ---- what may move ----


def _mutates(node: Node) -> bool:
    if node.op == "call_method":
        target = str(node.target)
        return target in _IN_PLACE_METHODS or (target.endswith("_") and not target.endswith("__"))
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    if isinstance(node.target, torch._ops.OpOverloadPacket):
        overloads = (getattr(node.target, name) for name in node.target.overloads())  # type: ignore[no-untyped-call]
        return any(overload._schema.is_mutable for overload in overloads)
    name = getattr(node.target, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace") is True
    return in_place or "out" in node.kwargs or node.target in _IN_PLACE


_IN_PLACE = (operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.iand,
             operator.ior, operator.ixor, operator.ipow, operator.ifloordiv, operator.imatmul)  # fmt: skip
_IN_PLACE_METHODS = {f"__{each.__name__}__" for each in _IN_PLACE}


def _is_still(first: Node, last: Node, but: Node | None = None) -> bool:
    """Whether nothing from first to last, which come in this order, changes a tensor; `but` may."""
    node = first
    while True:
        if node is not but and _mutates(node):
            return False
        if node is last:
            return True
        node = node.next


def _ordered(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    wanted = set(nodes)
    return [node for node in graph.nodes if node in wanted]


def _raise_parameters(nodes: Iterable[object], to: Node) -> bool:
    """Moves get_attr nodes before `to`; whether all are parameters, which exist there then."""
    given = [node for node in nodes if isinstance(node, Node)]
    if any(node.op not in ("placeholder", "get_attr") for node in given):
        return False
    for node in given:
        if node.op == "get_attr":
            to.prepend(node)
    return True


def _drop_identities(graph: Graph) -> None:
    """Drops what does nothing: dropout in eval mode, casts to the dtype that is there, slices from end to
    end, checks of metadata."""
    for node in list(graph.nodes):
        name = _name(node)
        if name == "check":
            graph.erase_node(node)
        elif name in _IDENTITIES and _IDENTITIES[name](node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_off(dropout: Node) -> bool:
    return _argument(dropout, 2, "training", dropout.kwargs.get("train")) is False


def _keeps_all(node: Node) -> bool:
    before, after = _value(node.args[0]), _value(node)
    if before is None or after is None or node.target is _aten._to_copy.default:
        return False
    copies = True in node.args or node.kwargs.get("copy") or node.kwargs.get("memory_format") is not None
    same = (before.dtype, before.device) == (after.dtype, after.device)
    return same and not copies and len(node.args) < 4


def _is_whole(piece: Node) -> bool:
    start, end, step = (piece.args[i] if len(piece.args) > i else None for i in (2, 3, 4))
    return start in (0, None) and end in (_END, None) and step in (1, None)


_END = 2**63 - 1  # what a slice without an end says
_IDENTITIES = {"dropout": _is_off, "to": _keeps_all, "slice": _is_whole}


# ---- (a) a linear layer and its activation ----


def _fuse_activations(graph: Graph) -> Iterator[Fusion]:
    for node in list(graph.nodes):
        activation = _activation(node)
        linear: Any = node.args[0] if activation and node.args else None
        if _name(linear) != "int8_linear" or linear.kwargs.get("activation") or len(linear.users) > 1:
            continue
        before, after = _value(linear), _value(node)
        if before is None or after is None or before.dtype != after.dtype:
            continue
        if before.dtype == torch.int32 or not _is_still(linear, node, but=node):
            continue
        linear.update_kwarg("activation", activation)
        node.replace_all_uses_with(linear)
        graph.erase_node(node)
        yield Fusion("activation", (_layer(linear),), f"{activation} in the product's epilogue")


def _activation(node: Node) -> str:
    name = _name(node)
    if name == "gelu":
        approximate = _argument(node, 1, "approximate", "none")
        return {"none": "gelu", "tanh": "gelu_tanh"}[approximate]
    return name if name in ("relu", "silu") else ""


# ---- (b) linear layers on one input ----


def _fuse_shared_inputs(graph: Graph) -> Iterator[Fusion]:
    for x in list(graph.nodes):
        alike: dict[Any, list[Node]] = {}
        for user in x.users:
            if _name(user) == "int8_linear" and user.args[0] is x:
                more = {k: v for k, v in user.kwargs.items() if k in ("out_dtype", "symmetric")}
                alike.setdefault(tuple(sorted(more.items())), []).append(user)
        for more, linears in alike.items():
            linears = _ordered(graph, linears)
            first, count = linears[0], len(linears)
            if count < 2 or not _is_still(first, linears[-1]):
                continue
            if not _raise_parameters((p for each in linears for p in _operands(each)), first):
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
                "shared input", tuple(map(_layer, linears)), f"one quantization of x for {count} products"
            )


def _operands(linear: Node) -> tuple[Node, Node, Node | None]:
    """weight, weight_scale and bias"""
    return (
        _argument(linear, 1, "weight"), _argument(linear, 2, "weight_scale"), _argument(linear, 3, "bias")
    )  # fmt: skip


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
        linears = [user for user in node.users if _name(user) == "int8_linear" and user.args[0] is node]
        symmetric = all(each.kwargs.get("symmetric", True) for each in linears)
        linears = _ordered(
            graph, (each for each in linears if each.kwargs.get("symmetric", True) is symmetric)
        )
        if not linears:
            continue
        added = norm.x if _is_plain_sum(norm.x) else None
        first = node if added is None else added
        if not _is_still(first, linears[-1]) or not _raise_parameters((norm.weight, norm.bias), first):
            continue
        normed = len(linears) < len(node.users)
        if _value(node).device.type != "cpu" and (normed or not symmetric):
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
        note += f" straight to int8{' and to ' + str(_value(node).dtype) if normed else ''}"
        yield Fusion("norm", (_layer(node), *map(_layer, linears)), note)


def _multiply_quantized(graph: Graph, linear: Node, parts: dict[str, Node], symmetric: bool) -> None:
    with graph.inserting_before(linear):
        arguments = (parts["data"], parts["scale"], *_operands(linear))
        new = graph.call_function(
            _octavo.scaled_int_mm.default,
            arguments if symmetric else (*arguments, parts["zero_point"]),
            {"activation": linear.kwargs.get("activation"), "out_dtype": _value(linear).dtype},
        )
    _put(new, linear)
    graph.erase_node(linear)


def _can_normalize(node: Node, norm: _Norm) -> bool:
    x, y = _value(norm.x), _value(node)
    if x is None or y is None or x.dtype not in _NORMED or x.dtype != y.dtype or not _same_shape(x, y):
        return False
    for parameter in (norm.weight, norm.bias):
        if parameter is not None:
            value = _value(parameter)
            if value is None or value.dim() != 1 or value.device != x.device:
                return False
            if not value.dtype.is_floating_point or not statically_known_true(value.shape[0] == x.shape[-1]):
                return False
    return norm.eps == 0 or 2.0**-126 <= norm.eps < math.inf


def _is_plain_sum(node: Node) -> bool:
    """Whether it adds two tensors of one shape and dtype."""
    if _name(node) != "add" or len(node.args) != 2 or node.kwargs:
        return False
    total, a, b = _value(node), _value(node.args[0]), _value(node.args[1])
    if total is None or a is None or b is None:
        return False
    alike = a.dtype == b.dtype == total.dtype and a.device == b.device
    return alike and _same_shape(a, b)


def _match_norm(node: Node) -> _Norm | None:
    matcher = _NORMS.get(_name(node))
    return None if matcher is None else matcher(node)


def _match_layer_norm(node: Node) -> _Norm | None:
    if len(_argument(node, 1, "normalized_shape")) != 1:
        return None
    weight, bias = _argument(node, 2, "weight"), _argument(node, 3, "bias")
    eps = _number(_argument(node, 4, "eps", 1e-5))
    return None if eps is None else _Norm(_argument(node, 0, "input"), weight, bias, eps, True)


def _match_rms_norm(node: Node) -> _Norm | None:
    x, weight, eps = _argument(node, 0, "input"), _argument(node, 2, "weight"), _argument(node, 3, "eps")
    value = _value(x)
    if len(_argument(node, 1, "normalized_shape")) != 1 or value is None:
        return None
    number = torch.finfo(value.dtype).eps if eps is None else _number(eps)
    return None if number is None else _Norm(x, weight, None, number, False)


def _match_written_rms_norm(node: Node) -> _Norm | None:
    """weight * (h * rsqrt(mean(h^2) + eps)).to(x.dtype) with h = x.to(float32), as transformers writes it."""
    for weight, rest in _both_orders(node):
        product = _through(rest, "to")
        for h, root in _both_orders(product):
            if _name(root) != "rsqrt":
                continue
            for mean, eps in _both_orders(root.args[0], "add"):
                square = mean.args[0] if _name(mean) == "mean" else None
                wide, x = _value(h), _through(h, "to")
                if square is None or not _is_square(square, h) or not _is_over_last(mean):
                    continue
                number = _number(eps)
                if number is None or wide is None or not isinstance(weight, Node):
                    continue
                if wide.dtype == torch.float32:
                    return _Norm(x, weight, None, number, False)
    return None


def _both_orders(node: object, name: str = "mul") -> Iterator[tuple[Any, Any]]:
    if isinstance(node, Node) and _name(node) == name and len(node.args) == 2 and not node.kwargs:
        a, b = node.args
        yield from ((a, b), (b, a))


def _through(node: Any, name: str) -> Any:
    return node.args[0] if _name(node) == name else node


def _is_square(node: Any, h: Any) -> bool:
    if _name(node) == "pow":
        return node.args[0] is h and _argument(node, 1, "exponent") == 2
    return (_name(node) == "square" and node.args[0] is h) or (_name(node) == "mul" and node.args == (h, h))


def _is_over_last(mean: Node) -> bool:
    value = _value(mean.args[0])
    axes = _argument(mean, 1, "dim")
    last = (-1,) if value is None else (-1, value.dim() - 1)
    axes = axes if isinstance(axes, list | tuple) else [axes]
    return len(axes) == 1 and axes[0] in last and _argument(mean, 2, "keepdim", False) is True


_NORMS: dict[str, Callable[[Node], _Norm | None]] = {
    "layer_norm": _match_layer_norm,
    "rms_norm": _match_rms_norm,
    "mul": _match_written_rms_norm,
}


# ---- (d) attention ----


def _convert_masks(graph: Graph) -> Iterator[Fusion]:
    """A boolean mask of several attentions becomes what is added to their scores once: each would do that."""
    for mask in list(graph.nodes):
        value = _value(mask)
        if value is None or value.dtype != torch.bool:
            continue
        alike: dict[torch.dtype, list[Node]] = {}
        for user in mask.users:
            query = _value(user.args[0]) if _name(user) == "attention" and user.args else None
            if query is not None and _argument(user, 3, "attn_mask") is mask:
                alike.setdefault(query.dtype, []).append(user)
        for dtype, attentions in alike.items():
            attentions = _ordered(graph, attentions)
            first, last = attentions[0], attentions[-1]
            if len(attentions) < 2 or not _is_still(first, last):
                continue
            with graph.inserting_before(first):
                added = graph.call_function(_aten.where.Scalar, (mask, 0.0, -math.inf))
                added = graph.call_function(_aten.to.dtype, (added, dtype))
            for each in attentions:
                each.replace_input_with(mask, added)
            note = f"one conversion of the mask to {dtype} for {len(attentions)} attentions"
            yield Fusion("mask", tuple(map(_layer, attentions)), note)
