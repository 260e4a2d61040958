"""Other modules in the places of a model's, and what a model has to leave for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from .belongings import take_over
from .replaceable import int8_kinds

Filter = Callable[[nn.Module, str], bool]


def check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def replace(model: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
    """Puts new[id(module)], with its hooks and attributes, in the place of each module; returns the model."""
    for module in model.modules():
        if id(module) in new:
            take_over(module, new[id(module)])
    model = _swap(model, new)
    leave_fused_paths(model, int8_kinds())
    return model


def leave_fused_paths(model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> None:
    # in eval mode these two hand the weights of their linears to a fused float kernel and call no linear
    for module in model.modules():
        if not any(isinstance(child, kinds) for child in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _swap(model: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
    """Puts modules into the places of others, which are given by id; returns the model."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and id(child) in new:
                module._modules[name] = new[id(child)]
    return new.get(id(model), model)


@contextmanager
def swapped(model: nn.Module, new: Mapping[int, nn.Module]) -> Iterator[nn.Module]:
    old = {id(new[id(module)]): module for module in model.modules() if id(module) in new}
    try:
        yield _swap(model, new)
    finally:
        _swap(model, old)
