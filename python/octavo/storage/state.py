"""A model's state, out of it and into it: what all savers and loaders share."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils import _pytree as pytree

from ..nn.convert.belongings import take_over
from ..nn.convert.swap import exchange, leave_fused_paths
from ..nn.layers import INT8_LAYERS
from ..nn.layers.base import PackedModule
from ..nn.layers.conv import Int8Conv2d
from ..nn.layers.linear import PackedLinear

ModelOrFactory: TypeAlias = nn.Module | Callable[[], nn.Module]


def tensors_of(model: nn.Module, leave_out: Iterable[str] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict, less the modules of these names: contiguous tensors on the CPU, none of which shares
    memory with another; and for the names of those that are an earlier one's very memory, the earlier name.

    TypeError for state that is not a strided tensor with values.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    prefixes = tuple(f"{fqn}." for fqn in leave_out)
    for name, value in model.state_dict().items():
        if name.startswith(prefixes):
            continue
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_meta:
            got = f"{type(value).__name__} on {value.device}" if isinstance(value, Tensor) else repr(value)
            raise TypeError(f"model: {name}: expected a strided torch.Tensor with values, got {got}")
        memory = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and memory in seen:
            tied[name] = seen[memory]
            continue
        seen[memory] = name
        tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors, tied


def as_directory(directory: str | os.PathLike[str]) -> Path:
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"directory: expected a directory, got {str(path)!r}")
    return path


def as_model(model_or_factory: ModelOrFactory) -> nn.Module:
    """The model, or the one that the factory makes, its parameters on the meta device if that does."""
    if isinstance(model_or_factory, nn.Module):
        return model_or_factory
    if not callable(model_or_factory):
        got = type(model_or_factory).__name__
        raise TypeError(
            f"model_or_factory: expected a torch.nn.Module or a callable that makes one, got {got}"
        )
    model: object = None
    with _parameters_on_meta(), contextlib.suppress(Exception):  # of one that reads their values
        model = model_or_factory()
    if model is None or (isinstance(model, nn.Module) and _is_unfilled(model)):
        model = model_or_factory()
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise TypeError(f"model_or_factory: expected a callable that makes a torch.nn.Module, got a {got}")
    return model


def _is_unfilled(model: nn.Module) -> bool:
    """Whether a module holds a tensor on the meta device, but for parameters, that no state dict fills: one
    that was made where a parameter is, or from it."""
    for module in model.modules():
        if isinstance(module, tuple(INT8_LAYERS.values())):
            continue  # the file's takes its place
        own = {name: each for name, each in vars(module).items() if name not in _STATE}
        beside = [module._buffers.get(name) for name in module._non_persistent_buffers_set]
        for each in pytree.tree_leaves([own, beside]):
            if isinstance(each, Tensor) and each.is_meta and not isinstance(each, nn.Parameter):
                return True
    return False


_STATE = ("_parameters", "_buffers", "_modules")


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    # not torch.device("meta"): buffers that no state dict has, such as frequencies, must keep their values
    thread = threading.get_ident()

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if type(parameter) is not nn.Parameter or parameter.is_meta or threading.get_ident() != thread:
            return None  # keeps the object, which other modules may have too
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def fill(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    names: Iterable[str],
    tensor_of: Callable[[str], Tensor],
    *,
    shared: Mapping[str, str],
    tied: Mapping[str, str],
) -> nn.Module:
    """Puts modules and tensors into `model` and returns it, or the module for "", which takes its place.

    modules: on the meta device, by fully qualified name; they take the places of the model's own.
    names: every name in the state dict of the result, less those of `shared` and `tied`.
    tensor_of(name): the tensor; asked for module by module, so that few copies are alive at a time.
    shared: names of modules that are another's object; tied: names of tensors that are another's.
    Tensors are taken as they are, on the CPU without a copy. ValueError, and an unchanged model, where names,
    shapes or dtypes are not the model's.
    """
    places = dict(modules) | {name: modules[first] for name, first in shared.items()}
    inside = tuple(fqn + "." if fqn else "" for fqn in places)
    names = list(names)
    state = {name: tensor_of(name) for name in names if not name.startswith(inside)}
    ties = {name: first for name, first in tied.items() if not name.startswith(inside)}
    state |= {name: tensor_of(first) for name, first in ties.items()}
    _check_state(model, state, inside)
    for fqn, module in modules.items():
        prefix, held = fqn + "." if fqn else "", module.state_dict()
        own = {name: name for name in names if name.startswith(prefix)}
        own |= {n: first for n, first in tied.items() if n.startswith(prefix) and n[len(prefix) :] in held}
        _fill_module(model, fqn, module, {n[len(prefix) :]: tensor_of(first) for n, first in own.items()})
        take_over(model.get_submodule(fqn), module)
    replaced = {id(model.get_submodule(fqn)): module for fqn, module in places.items()}
    holders = list(model.modules())
    before = [(m, dict(m._parameters), dict(m._buffers), dict(m._modules)) for m in model.modules()]
    try:
        for fqn, module in places.items():
            if fqn:
                parent, _, name = fqn.rpartition(".")
                model.get_submodule(parent)._modules[name] = module
        root = places.get("", model)
        if root is model:
            model.load_state_dict(state, strict=False, assign=True)  # names were checked: modules are filled
        for name, first in tied.items():
            _tie(root, name, first)
    except BaseException:
        for each, parameters, buffers, children in before:
            each._parameters, each._buffers, each._modules = parameters, buffers, children
        raise
    exchange(holders, replaced)  # where else the model has them
    leave_fused_paths(root, tuple(INT8_LAYERS.values()))
    return root


def _check_state(model: nn.Module, state: dict[str, Tensor], inside: tuple[str, ...]) -> None:
    """ValueError where `state` is not for the model's modules that stay; brings it to their devices."""
    held = {name: value for name, value in model.state_dict().items() if not name.startswith(inside)}
    lacks, besides = sorted(state.keys() - held.keys()), sorted(held.keys() - state.keys())
    if lacks or besides:
        masks = any(".parametrizations." in f".{name}" for name in lacks)
        raise ValueError(
            f"model: expected the names of the file's state dict, got a model that lacks {lacks} and has "
            f"{besides} besides" + ("; octavo.prune_model_(keep_masks=True) makes parametrizations" * masks)
        )
    for name, tensor in state.items():
        want, old = tuple(tensor.shape), held[name]
        if not isinstance(old, Tensor):
            continue  # a module's own way to keep its state
        if tuple(old.shape) != want:
            raise ValueError(f"model: {name}: expected shape {want} as in the file, got {tuple(old.shape)}")
        _check_dtype(name, tensor, old)
        state[name] = _to_device_of(old, tensor)
    tensors = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    left = [n for n, t in tensors if t.is_meta and n not in state and not n.startswith(inside)]
    if left:
        raise ValueError(
            f"model: expected values for what no state dict has, got {left} on the meta device; "
            "hand over a factory instead of a model made there"
        )


def _fill_module(model: nn.Module, fqn: str, module: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        old = model.get_submodule(fqn)
    except AttributeError:
        raise ValueError(f"model: expected a module {fqn!r} as in the file, got none") from None
    want, got = _weight_shape(module), _weight_shape(old)
    if want and got not in (want, want[::-1]):  # transformers' Conv1D has [in, out]
        raise ValueError(f"model: layer {fqn!r}: expected a weight of shape {want} as in the file, got {got}")
    tensors = dict(chain(old.named_parameters(), old.named_buffers()))
    for name, tensor in state.items():
        if name in tensors and tensor.dtype != torch.int8:
            _check_dtype(f"{fqn}.{name}" if fqn else name, tensor, tensors[name])
    held = next(iter(tensors.values()), None)
    try:
        module.load_state_dict({n: _to_device_of(held, t) for n, t in state.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"layer {fqn!r}: {error}") from error
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta and not buffer.numel():  # beside the state dict
                part._buffers[name] = torch.empty_like(
                    buffer, device="cpu" if held is None or held.is_meta else held.device
                )
    if not any(name.endswith("weight_int8") for name in state):
        # octavo 0.1 and others do not tell the dtype of a layer without a bias
        dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None)
        for part in module.modules():
            if isinstance(part, PackedLinear | Int8Conv2d):
                part._set_dtype(dtype or part.dtype)
    module.train(old.training)


def _check_dtype(name: str, tensor: Tensor, old: Tensor) -> None:
    # not cast: what no state dict has, such as frequencies, would stay in the model's dtype
    if old.dtype != tensor.dtype:
        raise ValueError(
            f"model: {name}: expected {tensor.dtype} as in the file, got {old.dtype}; model.to(dtype) before "
            "loading, or in the factory, changes it"
        )


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) else ()


def _to_device_of(held: Tensor | None, tensor: Tensor) -> Tensor:
    return tensor if held is None or held.is_meta else tensor.to(held.device)


def _tie(model: nn.Module, name: str, first: str) -> None:
    """Makes the parameter or buffer `name` the one that is called `first`."""
    (path, _, attribute), (source_path, _, original) = name.rpartition("."), first.rpartition(".")
    module, source = model.get_submodule(path), model.get_submodule(source_path)
    if isinstance(module, PackedModule) and isinstance(source, PackedModule) and "weight" in attribute:
        module._tied = source._tied = True
        if module._stored.shape == source._stored.shape:
            module._stored = source._stored
    elif attribute in module._parameters and original in source._parameters:
        module._parameters[attribute] = source._parameters[original]
    elif attribute in module._buffers and original in source._buffers:
        module._buffers[attribute] = source._buffers[original]
