"""fuse_: a model's graph, captured once and rewritten onto octavo's fused kernels, as the model's forward."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from operator import getitem, is_
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ...ops.pack import PackedWeight
from ...runtime.arrays import needs_dispatcher
from ..convert.replaceable import int8_kinds, why_left
from ..convert.swap import check_model
from ..kinds import listed
from ..layers.linear import Int8Linear
from .capture import Capture, set_at, value_at
from .guards import check_hooks
from .patterns import Fusion, fuse_graph
from .results import is_constant
from .run import compile_graph


def fuse_(model: nn.Module, example: Any) -> nn.Module:
    """Lets a model that quantize_ has converted run on fused kernels, in place, and returns it.

    What is fused around layers of Int8Dynamic, and `fusions(model)` lists:
    - a linear layer and the relu, gelu (both kinds) or silu after it: in the product's epilogue;
    - linear layers on one input (q, k and v; gate and up): it is quantized once;
    - a LayerNorm or RMSNorm, with the sum of a residual before it, and the linear layers after it: the sum,
      the normalized row and its int8 form are made in one pass over memory;
    - in such a model, a boolean mask of several scaled_dot_product_attentions: it is converted once.

    example: the inputs of one call: a tensor, a tuple of positional ones, or a dict of keyword ones. The
        graph is captured from it by torch.export, for any size of every dimension that the model leaves open.

    Calls like the example (the same arguments by position and by name, the same structure, ranks, dtypes,
    device and constants, and sizes for which the model takes the same way through its code) run the graph.
    Every other call, training mode, and calls that want gradients (so use torch.inference_mode) run the model
    as it was; so does torch.compile. So do calls after a change of what the captured code has read:
    attributes of modules and of their configurations, `training` of submodules, children, hooks; global
    variables are not watched. Parameters and buffers stay the model's own: state dicts, loading and `.to()`
    work as before. Results, such as transformers' outputs with caches, are new objects in every call.

    Equal bits to the unfused octavo operations called one by one, and for relu and a shared input to the
    layers themselves. gelu and silu are computed in float32, before the product is rounded; norms are
    octavo's own (docs/numerics.md), and give int8 without rounding to the model's dtype first: they differ
    from torch's by last places.

    Raises ValueError where the model cannot be captured (also for hooks of submodules, and results that hold
    more than attributes and items, such as a file) or nothing can be fused: it says why, and the model is
    unchanged. Fusing submodules, for instance each layer of a decoder, may work then.
    """
    check_model(model)
    if model.training:
        raise ValueError("model: expected one in eval mode, got one in training mode")
    before = model.__dict__.get("forward")
    if before is not None and not isinstance(before, _Fused):
        raise ValueError("model: expected its class's own forward, got one set on the instance")
    args, kwargs = _call_of(example)
    check_hooks(model)
    unfuse_(model)
    try:
        model.forward = _Fused(model, args, kwargs)
    except Exception:
        if before is not None:
            model.forward = before
        raise
    return model


def unfuse_(model: nn.Module) -> nn.Module:
    """Gives a model that fuse_ has changed its own forward back; nothing happens to others."""
    check_model(model)
    if isinstance(model.__dict__.get("forward"), _Fused):
        del model.forward
    return model


def fusions(model: nn.Module) -> list[Fusion]:
    """What fuse_ has fused in a model and in its submodules, in the order of their graphs."""
    check_model(model)
    found = []
    for name, module in model.named_modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, _Fused):
            at = name + "." if name else ""
            for each in forward.fusions:
                found.append(Fusion(each.kind, tuple(at + layer for layer in each.layers), each.note))
    return found


def _call_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise TypeError(
        f"example: expected a tensor, a tuple or a dict of keyword arguments, got {type(example).__name__}"
    )


class _Fused:
    """The forward of a fused model: the graph for calls like the example, the class's forward for others."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        leaves, self._nesting = pytree.tree_flatten(given)
        self._is_nested = list(map(id, leaves)) != list(map(id, given))
        self._wanted = [_kind_of(leaf) for leaf in leaves]
        self._sharing = _sharing([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        found = Capture(model, *pytree.tree_flatten((args, kwargs)))
        self.fusions = fuse_graph(found.program.graph, found.int8_layers())
        if not self.fusions:
            kinds = {type(each).__name__ for each in model.modules() if isinstance(each, int8_kinds())}
            others = kinds and Int8Linear.__name__ not in kinds
            floats = {fqn: why for fqn, why in why_left(model).items() if why.startswith("float")}
            none = "none" + listed(floats)
            got = f"only {', '.join(sorted(kinds))}, which fuse_ leaves as they are" if others else none
            raise ValueError(f"model: expected layers of octavo.Int8Dynamic that can be fused, got {got}")
        if found.is_static:
            self.fusions.append(Fusion("sizes", (), "for inputs of the example's sizes alone"))
        self._model, self._count, self._names = model, len(args), tuple(kwargs)
        self._guards, self._sizes_fit, self._structure = found.guards, found.sizes_fit, found.structure
        self._states, self._written = found.states, found.written
        values = map(value_at, found.states)
        self._wanted += [int if type(each) is int else _kind_of(each) for each in values]
        self._run, self._packed = compile_graph(found.program.graph_module)
        held = found.held()
        self._held = [holder for holder, _ in held], [name for _, name in held]
        tensors = [holder[name] for holder, name in held]
        self._dtypes, self._shapes = [each.dtype for each in tensors], [*map(_shape_of, tensors)]
        self._last: tuple[list[Any], list[Any]] = ([], [])  # what was held, and the graph's inputs for it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = None if torch.compiler.is_compiling() else self._leaves(args, kwargs)
        held = None if leaves is None else self._values()
        if leaves is None or held is None or not self._guards.hold():
            return type(self._model).forward(self._model, *args, **kwargs)
        result, values = self._structure.build(self._run(*held, *leaves))
        for place, value in zip(self._written, values, strict=True):
            set_at(place, value)
        return result

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The graph's inputs, or None for a call that is not like the example."""
        if self._model.training or len(args) != self._count or len(kwargs) != len(self._names):
            return None
        try:
            given = [*args, *[kwargs[name] for name in self._names]]
            if self._is_nested:
                given, nesting = pytree.tree_flatten(given)
                if nesting != self._nesting:
                    return None
            states = [*map(value_at, self._states)]
        except KeyError:
            return None
        leaves: list[Any] = []
        sizes: list[int] = []
        for leaf, wanted in zip([*given, *states], self._wanted, strict=True):
            if type(wanted) is _Kind:
                if (
                    not isinstance(leaf, Tensor)
                    or leaf.dtype is not wanted.dtype
                    or leaf.device != wanted.device
                ):
                    return None
                if leaf.dim() != wanted.dim or not leaf.is_contiguous():
                    return None
                leaves.append(leaf)
                sizes += leaf.shape
            elif wanted is int and type(leaf) is int:  # a number that the forward sets
                leaves.append(leaf)
                sizes.append(leaf)
            elif type(leaf) is not type(wanted) or leaf != wanted:
                return None
        if _sharing(leaves[: len(self._sharing)]) != self._sharing:
            return None
        if needs_dispatcher(*leaves) or torch._C._is_any_autocast_enabled() or not self._sizes_fit(*sizes):
            return None
        return leaves

    def _values(self) -> list[Any] | None:
        """Parameters, buffers and constants as they are now, or None where the graph is not for them."""
        try:
            held = [*map(getitem, *self._held)]
            if [each.dtype for each in held] != self._dtypes:
                return None
        except (KeyError, AttributeError):  # removed, or None
            return None
        if torch.is_grad_enabled() and any(each.requires_grad for each in held):
            return None
        last, inputs = self._last
        if len(last) != len(held) or not all(map(is_, held, last)):
            if [*map(_shape_of, held)] != self._shapes:
                return None
            inputs = held.copy()
            for at, scale_at in self._packed:
                inputs[at] = PackedWeight(held[at], held[scale_at])
            self._last = held, inputs
        return inputs

    def __reduce__(self) -> Any:
        raise TypeError(
            "octavo: a fused model cannot be pickled; octavo.nn.unfuse_(model) first, and octavo.fuse_ again "
            "after loading"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _Fused:
        new = object.__new__(_Fused)
        memo[id(self)] = new
        new.__dict__.update(self.__dict__)
        new._model = copy.deepcopy(self._model, memo)  # in memo: it is the model that is being copied
        new._held = [copy.deepcopy(holder, memo) for holder in self._held[0]], self._held[1]
        for name in ("_guards", "_structure", "_states", "_written"):
            setattr(new, name, copy.deepcopy(getattr(self, name), memo))
        new._last = [], []
        return new


class _Kind(NamedTuple):
    """What a tensor of a call must have in common with the example's."""

    dtype: torch.dtype
    device: torch.device
    dim: int


def _kind_of(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return _Kind(leaf.dtype, leaf.device, leaf.dim())
    if not is_constant(leaf):
        raise ValueError(
            "example: expected tensors, numbers, strings and None, in lists, tuples and dicts, "
            f"got {type(leaf).__name__}"
        )
    return leaf


def _sharing(tensors: list[Any]) -> list[int]:
    """Which of them are one object: code may ask that, as torch.nn.MultiheadAttention does."""
    ids = [*map(id, tensors)]
    return [*map(ids.index, ids)]


def _shape_of(held: Tensor) -> Any:
    """Of a parameter or buffer, on its device; the size of a packed weight depends on its values."""
    return held.device, None if held.dtype == torch.uint8 else held.shape
