"""Which layers have an int8 form, with which config, and why the others stay float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from ...runtime.arrays import FLOATS
from ..configs import Int8Dynamic, Int8Static, Int8WeightOnly
from ..kinds import has_transposed_weight, is_conv1d
from ..layers.attention import why_float as why_float_attention
from ..layers.base import why_changed
from ..layers.conv import Int8Conv2d
from ..layers.embedding import Int8Embedding, Int8EmbeddingBag
from ..layers.embedding import why_float as why_float_embedding
from ..layers.linear import Int8Linear, Int8WeightOnlyLinear
from ..layers.static import Int8StaticLinear
from .belongings import REASON, why_held, why_members

# the float layer -> the config -> the int8 layer, which has from_float(layer, config)
FORMS: dict[type[nn.Module], dict[type, Any]] = {
    nn.Linear: {
        Int8Dynamic: Int8Linear,
        Int8WeightOnly: Int8WeightOnlyLinear,
        Int8Static: Int8StaticLinear,
    },
    nn.Conv2d: {Int8Dynamic: Int8Conv2d},
    nn.Embedding: dict.fromkeys((Int8Dynamic, Int8WeightOnly, Int8Static), Int8Embedding),
    nn.EmbeddingBag: dict.fromkeys((Int8Dynamic, Int8WeightOnly, Int8Static), Int8EmbeddingBag),
}
FORMS[nn.MultiheadAttention] = FORMS[nn.Linear]  # of its projections: attention.py
# what else keeps layers of a kind float: a reason, or ""
_WHY_FLOAT: dict[type[nn.Module], Callable[[Any], str]] = {
    nn.Linear: lambda linear: (
        "float: torch.nn.MultiheadAttention reads this weight without calling the layer"
        if isinstance(linear, NonDynamicallyQuantizableLinear)
        else ""
    ),
    nn.Conv2d: lambda conv: (
        f"float: {type(conv).__name__} has a _conv_forward of its own, which int8 would not run"
        if type(conv)._conv_forward is not nn.Conv2d._conv_forward
        else ""
    ),
    nn.Embedding: why_float_embedding,
    nn.EmbeddingBag: why_float_embedding,
    nn.MultiheadAttention: why_float_attention,
}


def forms_of(layer: nn.Module) -> dict[type, Any]:
    """The int8 forms of a layer, by config."""
    base = base_of(layer)
    if base is None:
        return {}
    return FORMS[nn.Linear if is_conv1d(base) else base]


def int8_kinds() -> tuple[type[nn.Module], ...]:
    """The classes of int8 layers."""
    return tuple(form for forms in FORMS.values() for form in forms.values())


def why_left(model: nn.Module) -> dict[str, str]:
    """Why layers of a model stay what they are, by name: all that could be expected to become int8."""
    found = {}
    for fqn, module in model.named_modules():
        if isinstance(module, int8_kinds()):
            found[fqn] = "int8 already"
        elif not isinstance(module, ParametrizationList) and (base_of(module) or _has_weights(module)):
            found[fqn] = why_noted(module)
    return found


def why_noted(layer: nn.Module) -> str:
    """Why a layer that is not int8 is float."""
    why: str = why_float(layer) or vars(layer).get(REASON, "float: octavo.quantize_ was not called")
    return why


def _has_weights(module: nn.Module) -> bool:
    others = [each for name, each in module._buffers.items() if "weight" in name]  # of other quantizers
    tensors = [each for each in (*module._parameters.values(), *others) if each is not None]
    return any(is_lazy(each) or each.dim() > 1 for each in tensors)


def why_float(layer: nn.Module) -> str:
    """Why quantize_ cannot replace this layer, whatever it is told; "" if it can."""
    if hasattr(layer, "qat_config"):
        return "float: fake-quantized; octavo.convert_qat_ makes it int8"
    base = base_of(layer)
    if base is None:
        return f"float: octavo has no int8 form of {type(layer).__name__}"
    if any(each is not None and is_lazy(each) for each in layer._parameters.values()):
        return "float: its weight is not initialized: run the model once"
    why = why_changed(layer, base)
    if not why and base in _WHY_FLOAT:
        why = _WHY_FLOAT[base](layer)
    why = why or _why_weight(layer) or why_members(layer, base) or why_held(layer, base)
    if not why and isinstance(layer, nn.MultiheadAttention):
        why = why_members(layer.out_proj, nn.Linear) or why_held(layer.out_proj, nn.Linear)
    return why


def as_linear(layer: nn.Module) -> nn.Module:
    """transformers' Conv1D, y = x @ weight [K, N] + bias, as a linear layer; others as they are."""
    if not has_transposed_weight(layer):
        return layer
    assert isinstance(layer.weight, torch.Tensor)
    assert isinstance(layer.bias, torch.Tensor)
    k, n = layer.weight.shape
    linear = nn.Linear(k, n, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t(), requires_grad=False)
    linear.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return linear.train(layer.training)


def base_of(layer: nn.Module) -> type[nn.Module] | None:
    """The class that a layer is of, among those that have int8 forms."""
    # a parametrized layer is of a class that torch derives
    for base in type(layer).__mro__:
        if base in FORMS or is_conv1d(base):
            return base
    return None


def _why_weight(layer: nn.Module) -> str:
    for name, weight in layer._parameters.items():
        if weight is None or "weight" not in name:
            continue
        kinds = type(weight).__mro__
        if str(weight.dtype).removeprefix("torch.") not in FLOATS:
            return f"float: {name} is {weight.dtype}, which octavo does not quantize"
        if kinds[0] is not torch.Tensor and nn.Parameter not in kinds and FakeTensor not in kinds:
            return f"float: {name} is a {kinds[0].__name__}, which says itself what it computes"
    return ""
