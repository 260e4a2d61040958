"""Products of a model with the weight of an int8 layer, which it reads: they become the layer's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from ..layers.linear import Int8Linear
from .graph import ROOT, argument_of, operation_of, value_of


def use_int8_weights(graph: Graph, layers: Mapping[Node, tuple[str, Int8Linear]]) -> None:
    """F.linear(x, layer.weight, bias) and x @ layer.weight.T become int8_linear on what the layer stores.

    layers: by the graph's input that a layer stores its weight in, its name and itself. In a capture
    `weight` is the dequantized tensor: what else reads it keeps that, and what reads its dtype nothing.
    """
    for node in list(graph.nodes):
        name = operation_of(node)
        if name not in ("linear", "matmul"):
            continue
        x, weight = argument_of(node, 0, "input"), argument_of(node, 1, "weight")
        if name == "matmul":
            weight = weight.args[0] if _is_turned(weight) else None
        found = _stored(weight, layers)
        values = value_of(x), value_of(node)
        if found is None or any(value is None or value.dim() == 0 for value in values):
            continue
        stored, scale = found
        layer_name, layer = layers[stored]
        bias = argument_of(node, 2, "bias") if name == "linear" else None
        with graph.inserting_before(node):
            arguments = (x, stored, scale) if bias is None else (x, stored, scale, bias)
            new = graph.call_function(
                torch.ops.octavo.int8_linear.default,
                arguments,
                {} if layer.symmetric else {"symmetric": False},
            )
        new.meta = {**node.meta, "nn_module_stack": {"": (ROOT + layer_name, Int8Linear)}}
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _stored(weight: Any, layers: Mapping[Node, tuple[str, Int8Linear]]) -> tuple[Node, Node] | None:
    """The stored weight and the scale that this is dequantized from, if they are a layer's."""
    if operation_of(weight) != "dequantize" or argument_of(weight, 2, "zero_point") is not None:
        return None
    stored, scale = weight.args[0], weight.args[1]
    if operation_of(stored) == "unpack":
        stored = stored.args[0]
    return (stored, scale) if stored in layers else None


def _is_turned(weight: Any) -> bool:
    name = operation_of(weight)
    if name == "transpose":
        return {axis % 2 for axis in weight.args[1:]} == {0, 1}
    return name == "t" or (name == "permute" and [axis % 2 for axis in weight.args[1]] == [1, 0])
