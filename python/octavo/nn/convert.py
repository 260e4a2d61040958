"""quantize_: int8 layers in the place of a model's float ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .configs import DEFAULT, Config, check_config
from .linear import Int8Linear, PackedLinear, why_float

Filter = Callable[[nn.Module, str], bool]


def quantize_(model: nn.Module, config: Config = DEFAULT, *, filter_fn: Filter | None = None) -> nn.Module:
    """Replaces the linear layers of `model` by int8 ones, in place, and returns the model.

    filter_fn(module, fqn) chooses among the torch.nn.Linear modules (default: all). A module used in several
    places stays one module; filter_fn sees it under its first name. A model that is a Linear itself comes
    back as a new module. Layers with a forward of their own, and the out_proj that
    torch.nn.MultiheadAttention reads without calling it, stay float. ValueError if there is nothing to
    replace, or for a weight with NaN or Inf; the model is unchanged then.
    """
    check_config(config)
    new: dict[int, nn.Module] = {}
    for fqn, module in model.named_modules():
        if _is_plain_linear(module) and (filter_fn is None or filter_fn(module, fqn)):
            assert isinstance(module, nn.Linear)
            try:
                new[id(module)] = Int8Linear.from_float(module, config)
            except (TypeError, ValueError) as error:
                raise type(error)(f"model: layer {fqn!r}: {error}") from error
    if not new:
        raise ValueError("model: expected at least one torch.nn.Linear that filter_fn accepts, got none")
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and id(child) in new:
                module._modules[name] = new[id(child)]
    for module in model.modules():
        _leave_fused_path(module)
    return new.get(id(model), model)


def _is_plain_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not why_float(module)


def _leave_fused_path(module: nn.Module) -> None:
    # in eval mode these two hand the weights of their linears to a fused float kernel and call no linear
    if not any(isinstance(child, PackedLinear) for child in module.modules()):
        return
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
