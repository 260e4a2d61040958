"""Other modules in the places of a model's, and what a model has to leave for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

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
        elif isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            module.use_nested_tensor = False
            if type(module).forward is nn.TransformerEncoder.forward:
                module.register_forward_hook(_clear_padding, prepend=True, with_kwargs=True)


def _clear_padding(
    encoder: nn.TransformerEncoder, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
) -> Tensor | None:
    """0 for padding, where torch would have gone the path of nested tensors, which leaves it out."""
    given = dict(zip(("src", "mask", "src_key_padding_mask"), args, strict=False)) | kwargs
    src, padding, first = given["src"], given.get("src_key_padding_mask"), encoder.layers[0]
    if padding is None or given.get("mask") is not None or first.training or src.dim() != 3:
        return None
    if torch.is_grad_enabled() and any(each.requires_grad for each in (src, *first.parameters())):
        return None
    if not torch.backends.mha.get_fastpath_enabled() or torch.is_autocast_enabled():
        return None
    kept = padding.logical_not()
    if getattr(encoder, "mask_check", True):  # padding that is not at the end is computed
        kept = kept | (kept[:, 1:] & ~kept[:, :-1]).any()
    empty = y.new_zeros(1, 1, y.shape[-1])
    if encoder.norm is not None:
        empty = encoder.norm.forward(empty)  # not a call, which hooks would see
    return torch.where(kept.unsqueeze(-1), y, empty)


def _swap(model: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
    """Puts modules into the places of others, which are given by id; returns the model."""
    exchange([*model.modules(), *new.values()], new)
    return new.get(id(model), model)


def exchange(holders: Iterable[nn.Module], new: Mapping[int, nn.Module]) -> None:
    """Puts new[id(module)] wherever one of `holders` has the module: among its children, and in attributes,
    such as a plain list, which a forward may go through instead."""
    seen: set[int] = set()

    def exchanged(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return new.get(id(value), value)
        if type(value) is tuple:
            found = tuple(map(exchanged, value))
            return value if all(map(is_, found, value)) else found
        if not isinstance(value, dict | list) or id(value) in seen:
            return value
        seen.add(id(value))
        for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
            other = exchanged(each)
            if other is not each:
                value[key] = other
        return value

    for holder in holders:
        exchanged(vars(holder))


@contextmanager
def swapped(model: nn.Module, new: Mapping[int, nn.Module]) -> Iterator[nn.Module]:
    old = {id(new[id(module)]): module for module in model.modules() if id(module) in new}
    try:
        yield _swap(model, new)
    finally:
        _swap(model, old)
