"""What fusions ask of a graph: how operations are spelled, which of them say nothing, and what may move."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ...torch_ops.linear import int8_linear_op

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
    "linear": (_aten.linear.default,),
    "matmul": (_aten.matmul.default, _aten.mm.default),
    "t": (_aten.t.default, _aten.numpy_T.default, _aten.mT.default),
    "transpose": (_aten.transpose.int,),
    "permute": (_aten.permute.default,),
    "dequantize": (_octavo.dequantize.default,),
    "unpack": (_octavo.unpack_weight.default,),
    "slice": (_aten.slice.Tensor,),
    "check": (_aten._assert_tensor_metadata.default,),
}
_NAMES = {target: name for name, targets in _SPELLINGS.items() for target in targets}


def operation_of(node: object) -> str:
    """The operation's name in the table; "" for what is not in it, and for what is no node."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return ""
    return _NAMES.get(node.target, "")


def argument_of(node: Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def value_of(node: object) -> Any:
    """The tensor that the node has when traced; None for anything else."""
    if not isinstance(node, Node):
        return None
    value = node.meta.get("val", node.meta.get("example_value"))
    return value if isinstance(value, Tensor) else None


def number_of(value: object) -> float | None:
    """The float that a node is, or that stands in its place. One that dynamo has left open is settled: its
    graph will be for this number."""
    if isinstance(value, Node):
        value = value.meta.get("val", value.meta.get("example_value"))
    return float(value) if isinstance(value, float | torch.SymFloat) else None


def same_shape(a: Tensor, b: Tensor) -> bool:
    return a.dim() == b.dim() and all(
        statically_known_true(m == n) for m, n in zip(a.shape, b.shape, strict=True)
    )


ROOT = "octavo_fused."  # what precedes the names of a captured model's modules


def layer_of(node: Node) -> str:
    """The name of the module that made this node, without the name of the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = str(stack[-1][0]) if stack else ""
    for prefix in (ROOT, "L['self'].", "L__self___", "L['self']", "L['fn'].", "L['fn']"):
        name = name.removeprefix(prefix)
    return name or node.name


# ---- what may move ----


def mutates(node: Node) -> bool:
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


def has_effects(node: Node) -> bool:
    """Whether it has to stay although nobody uses its result; torch.fx takes methods, and where a vmap begins
    and ends, for pure."""
    return node.is_impure() or mutates(node) or "vmap" in getattr(node.target, "__name__", "")


_IN_PLACE = (operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.iand,
             operator.ior, operator.ixor, operator.ipow, operator.ifloordiv, operator.imatmul)  # fmt: skip
_IN_PLACE_METHODS = {f"__{each.__name__}__" for each in _IN_PLACE}


def is_still(first: Node, last: Node, but: Node | None = None) -> bool:
    """Whether nothing from first to last, which come in this order, changes a tensor; `but` may."""
    node = first
    while True:
        if node is not but and mutates(node):
            return False
        if node is last:
            return True
        node = node.next


def ordered(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    wanted = set(nodes)
    return [node for node in graph.nodes if node in wanted]


def raise_parameters(nodes: Iterable[object], to: Node) -> bool:
    """Moves get_attr nodes before `to`; whether all are parameters, which exist there then."""
    given = [node for node in nodes if isinstance(node, Node)]
    if any(node.op not in ("placeholder", "get_attr") for node in given):
        return False
    for node in given:
        if node.op == "get_attr":
            to.prepend(node)
    return True


def drop_identities(graph: Graph) -> None:
    """Drops what does nothing: dropout in eval mode, casts to the dtype that is there, slices from end to
    end, checks of metadata."""
    for node in list(graph.nodes):
        name = operation_of(node)
        if name == "check":
            graph.erase_node(node)
        elif name in _IDENTITIES and _IDENTITIES[name](node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_off(dropout: Node) -> bool:
    return argument_of(dropout, 2, "training", dropout.kwargs.get("train")) is False


def _keeps_all(node: Node) -> bool:
    before, after = value_of(node.args[0]), value_of(node)
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
