"""What other code finds on a layer beside its weight: what keeps a layer float, and what goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

# where quantize_ notes on a layer why it left it float
REASON = "_octavo_float"
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# of a class: what Python puts there, and what int8 layers have too
_ANY_CLASS = {
    "__annotate__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__conditional_annotations__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__init__",
    "__module__",
    "__repr__",
    "__static_attributes__",
    "__weakref__",
    "_get_name",
    "dtype",
    "extra_repr",
}
# of a layer: what is about its class or this module alone
_ITS_OWN = {REASON, "qat_config", "_compiled_call_impl", "parametrizations"}


def why_members(layer: nn.Module, base: type[nn.Module]) -> str:
    """Why no int8 layer can take this one's place, for what its class has beside `base`; "" if it can."""
    known = _ANY_CLASS.union(*map(vars, base.__mro__[: base.__mro__.index(nn.Module)]))
    kinds = type(layer).__mro__[parametrize.is_parametrized(layer) :]  # torch derives a class for these
    own = {name for kind in kinds if kind not in base.__mro__ for name in vars(kind)} - known
    if own:
        return f"float: {kinds[0].__name__} has {_listed(own)} of its own, which an int8 layer lacks"
    return ""


def why_held(layer: nn.Module, base: type[nn.Module]) -> str:
    """The same for what it holds beside the parameters of a `base` layer, and its state dict."""
    held = {*layer._parameters, *layer._buffers, *layer._modules, *getattr(layer, "parametrizations", ())}
    extra = held - _plain_names(base) - _ITS_OWN  # type: ignore[arg-type]
    if extra:
        return f"float: it holds {_listed(extra)} beside its weight, which an int8 layer would lose"
    hooks = (hook for name in _STATE_HOOKS for hook in getattr(layer, name).values())
    # torch's weight_norm has one that reads older state dicts
    if any(not (getattr(hook, "__module__", None) or "").startswith("torch.") for hook in hooks):
        return "float: a hook on its state dict expects a float weight"
    return ""


def why_clash(old: nn.Module, new: nn.Module, base: type[nn.Module]) -> str:
    """Why an attribute that was set on a `base` layer cannot go on to its int8 form; "" if all can."""
    plain = _plain_names(base)  # type: ignore[arg-type]
    for name, value in vars(old).items():
        if name in plain or name in _ITS_OWN:
            continue
        if hasattr(new, name):
            return f"float: its attribute {name!r} would be another one on an int8 layer"
        if getattr(value, "__self__", None) is old:
            return f"float: its attribute {name!r} is a method of the float layer"
    return ""


def take_over(old: nn.Module, new: nn.Module) -> None:
    """Gives an int8 layer the hooks and the attributes of the one whose place it takes."""
    for name in _HOOKS:  # the same dictionaries: handles to remove a hook stay valid
        setattr(new, name, getattr(old, name))
    _take_attributes(old, new)


def _take_attributes(old: nn.Module, new: nn.Module) -> None:
    for name, value in vars(old).items():
        if name not in _ITS_OWN and not hasattr(new, name):
            vars(new)[name] = value  # not setattr, which would register modules and parameters
    if isinstance(old, nn.MultiheadAttention):
        _take_attributes(old.out_proj, new.out_proj)  # type: ignore[arg-type]


@contextmanager
def weights_of_eval(model: nn.Module) -> Iterator[None]:
    """Parametrizations in eval mode: in train mode, to read a weight may change or randomize it."""
    lists = [each for each in model.modules() if isinstance(each, parametrize.ParametrizationList)]
    training = [each for one in lists for each in one.modules() if each.training]
    try:
        for each in training:
            each.training = False
        yield
    finally:
        for each in training:
            each.training = True


@cache
def _plain_names(base: Any) -> frozenset[str]:
    """Of what a layer of this class holds when it is new."""
    with torch.device("meta"):
        new = base(*(1,) * (3 if issubclass(base, nn.Conv2d) else 2))
    return frozenset({*vars(new), *new._parameters, *new._buffers, *new._modules})


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
