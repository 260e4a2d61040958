"""What a file says of an int8 module, and the module that it names.

The protocol: a module can be saved if its class is one of nn.layers.INT8_LAYERS, and if each constructor
argument but `device` is also an attribute that means the same: a number, a string, None, a dtype, or a tuple
of these. `bias` may be a tensor there: what is saved is whether there is one. `dtype` may be missing where
the tensors of the state dict tell it. Its children, such as the projections of an attention layer, are such
modules too: `parts` describes them. Made from these on the meta device, a module has the state dict that the
saved one has; buffers that are not in it have no elements.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ..nn.layers import INT8_LAYERS
from ..nn.layers.base import PackedModule


def describe(module: nn.Module) -> dict[str, Any] | None:
    """{"kind": ..., "settings": {...}} of an int8 module, with "parts": {name: ...} if it has children; None
    of another. TypeError for a subclass."""
    kind = type(module).__name__
    known = INT8_LAYERS
    if type(module) is not known.get(kind):
        if isinstance(module, tuple(known.values())):
            raise TypeError(f"expected a class of octavo.nn, got the subclass {kind}, which no file names")
        return None
    settings = {}
    for name in inspect.signature(type(module)).parameters:
        told = isinstance(module, PackedModule) or not hasattr(module, name)
        if name == "device" or (name == "dtype" and told):
            continue
        if not hasattr(module, name):
            raise TypeError(f"{name}: expected an attribute, as an argument of {kind} has it, got none")
        value = getattr(module, name)
        settings[name] = _is_there(value) if name == "bias" else _plain(name, value)
    description: dict[str, Any] = {"kind": kind, "settings": settings}
    parts = {name: describe(child) for name, child in module.named_children()}
    for name, part in parts.items():
        if part is None:
            got = type(module.get_submodule(name)).__name__
            raise TypeError(f"{name}: expected an int8 layer of octavo.nn, as a part of {kind}, got {got}")
    return description | {"parts": parts} if parts else description


def _is_there(bias: object) -> bool:
    return bias is not None and bias is not False


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(name, each) for each in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(
            f"{name}: expected a number, a string, None, a dtype or a tuple of these, got {value!r}"
        )
    return value


def rebuild(description: dict[str, Any]) -> nn.Module:
    """The module that `describe` described, on the meta device. ValueError for a kind that is not known here,
    and for settings that its class does not take."""
    kind, known = description["kind"], INT8_LAYERS
    if kind not in known:
        raise ValueError(f"kind: expected one of {tuple(known)}, got {kind!r}")
    settings: dict[str, Any] = dict(description["settings"])
    for name, value in settings.items():
        if isinstance(value, list):
            settings[name] = tuple(value)
        elif name == "dtype":
            settings[name] = getattr(torch, value)
    try:
        module = known[kind](**settings, device="meta")
    except TypeError as error:
        raise ValueError(f"settings: expected those of {kind}, got {settings}: {error}") from error
    for name, part in description.get("parts", {}).items():
        module.add_module(name, rebuild(part))
    return module
