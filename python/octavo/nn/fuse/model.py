"""fuse_: a model's graph, captured once and rewritten onto octavo's fused kernels, as the model's forward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._dynamo.source import LocalSource
from torch.export import Dim, ExportedProgram, ShapesCollection, export
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.fx.experimental import _config as shapes_config
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from ...ops.pack import PackedWeight
from ...runtime.arrays import needs_dispatcher
from ..convert.replaceable import int8_kinds, why_left
from ..convert.swap import check_model
from ..kinds import listed
from ..layers.linear import Int8Linear
from .patterns import Fusion, fuse_graph
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
    as it was; so does torch.compile. Parameters and buffers stay the model's own: state dicts, loading and
    `.to()` work as before. A change of layers after fuse_ needs another fuse_, and in the graph no hooks of
    submodules run.

    Equal bits to the unfused octavo operations called one by one, and for relu and a shared input to the
    layers themselves. gelu and silu are computed in float32, before the product is rounded; norms are
    octavo's own (docs/numerics.md), and give int8 without rounding to the model's dtype first: they differ
    from torch's by last places.

    Raises ValueError where the model cannot be captured or nothing can be fused: it says why, and the model
    is unchanged. Fusing submodules, for instance each layer of a decoder, may work then.
    """
    check_model(model)
    if model.training:
        raise ValueError("model: expected one in eval mode, got one in training mode")
    before = model.__dict__.get("forward")
    if before is not None and not isinstance(before, _Fused):
        raise ValueError("model: expected its class's own forward, got one set on the instance")
    args, kwargs = _call_of(example)
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
        program = _capture(model, args, kwargs)
        self.fusions = fuse_graph(program.graph)
        if not self.fusions:
            kinds = {type(each).__name__ for each in model.modules() if isinstance(each, int8_kinds())}
            others = kinds and Int8Linear.__name__ not in kinds
            floats = {fqn: why for fqn, why in why_left(model).items() if why.startswith("float")}
            none = "none" + listed(floats)
            got = f"only {', '.join(sorted(kinds))}, which fuse_ leaves as they are" if others else none
            raise ValueError(f"model: expected layers of octavo.Int8Dynamic that can be fused, got {got}")
        self._model, self._count, self._names = model, len(args), tuple(kwargs)
        given = [*args, *kwargs.values()]
        leaves, self._structure = pytree.tree_flatten(given)
        self._is_nested = list(map(id, leaves)) != list(map(id, given))
        self._wanted = [_kind_of(leaf) for leaf in leaves]
        self._sizes_fit = _size_check(program)
        self._held = [_holder(model, program, spec) for spec in _held_specs(program)]
        self._dtypes = [holder[name].dtype for holder, name in self._held]
        self._result = program.call_spec.out_spec
        self._run, pairs = compile_graph(program.graph_module)
        self._packed: list[Any] = [(*pair, None, None, None) for pair in pairs]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = None if torch.compiler.is_compiling() else self._leaves(args, kwargs)
        held = None if leaves is None else self._values()
        if leaves is None or held is None:
            return type(self._model).forward(self._model, *args, **kwargs)
        return pytree.tree_unflatten(self._run(*held, *leaves), self._result)

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The graph's inputs, or None for a call that is not like the example."""
        if self._model.training or len(args) != self._count or len(kwargs) != len(self._names):
            return None
        try:
            leaves = [*args, *[kwargs[name] for name in self._names]]
        except KeyError:
            return None
        if self._is_nested:
            leaves, structure = pytree.tree_flatten(leaves)
            if structure != self._structure:
                return None
        sizes: list[int] = []
        for leaf, wanted in zip(leaves, self._wanted, strict=True):
            if type(wanted) is not _Kind:
                if type(leaf) is not type(wanted) or leaf != wanted:
                    return None
                continue
            if not isinstance(leaf, Tensor) or leaf.dtype is not wanted.dtype or leaf.device != wanted.device:
                return None
            if leaf.dim() != wanted.dim or not leaf.is_contiguous():
                return None
            sizes += leaf.shape
        if needs_dispatcher(*leaves) or torch._C._is_any_autocast_enabled() or not self._sizes_fit(*sizes):
            return None
        return leaves

    def _values(self) -> list[Any] | None:
        """Parameters, buffers and constants as they are now, or None where the graph is not for them."""
        held = [holder[name] for holder, name in self._held]
        if [each.dtype for each in held] != self._dtypes:
            return None
        if torch.is_grad_enabled() and any(each.requires_grad for each in held):
            return None
        for i, (at, scale_at, stored, scale, packed) in enumerate(self._packed):
            if held[at] is not stored or held[scale_at] is not scale:
                stored, scale = held[at], held[scale_at]
                packed = PackedWeight(stored, scale)
                self._packed[i] = (at, scale_at, stored, scale, packed)
            held[at] = packed
        return held

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
        new._held = [(copy.deepcopy(holder, memo), name) for holder, name in self._held]
        new._packed = [(*each[:2], None, None, None) for each in self._packed]
        return new


class _Kind(NamedTuple):
    """What a tensor of a call must have in common with the example's."""

    dtype: torch.dtype
    device: torch.device
    dim: int


def _kind_of(leaf: Any) -> Any:
    return _Kind(leaf.dtype, leaf.device, leaf.dim()) if isinstance(leaf, Tensor) else leaf


def _capture(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            shapes[leaf] = dict.fromkeys(range(leaf.dim()), Dim.AUTO)
    try:
        # oblivious: what the code asks of a size of 1 becomes a condition; it is not taken to be another one
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            shapes_config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        ):
            dynamic = shapes.dynamic_shapes(model, args, kwargs)  # type: ignore[no-untyped-call]
            program = export(model, args, kwargs, dynamic_shapes=dynamic)
    except Exception as error:
        raise ValueError(
            f"model: expected one that torch.export can capture; for {type(model).__name__} it says: {error}"
        ) from error
    changed = [
        str(spec.target)
        for spec in program.graph_signature.output_specs
        if spec.kind != OutputKind.USER_OUTPUT
    ]
    if changed:
        raise ValueError(
            f"model: expected a forward that only computes its result, got one that changes {changed}"
        )
    return program


def _held_specs(program: ExportedProgram) -> list[InputSpec]:
    return [spec for spec in program.graph_signature.input_specs if spec.kind != InputKind.USER_INPUT]


def _holder(model: nn.Module, program: ExportedProgram, spec: InputSpec) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a parameter, buffer or constant, and its name there."""
    name = str(spec.target)
    if spec.kind == InputKind.CONSTANT_TENSOR:
        return {name: program.constants[name]}, name
    module, _, name = name.rpartition(".")
    owner = model.get_submodule(module)
    return (owner._parameters if name in owner._parameters else owner._buffers), name


def _size_check(program: ExportedProgram) -> Callable[..., bool]:
    """f(every size of every tensor in a call): whether the graph holds for them."""
    names: list[str] = []
    conditions: list[str] = []
    symbols: dict[str, torch.SymInt] = {}
    users = {
        spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT
    }
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name not in users or not isinstance(value, Tensor):
            continue
        for size in value.shape:
            name = f"s{len(names)}"
            names.append(name)
            if isinstance(size, torch.SymInt):
                symbols[name] = size
            else:
                conditions.append(f"{name} == {size}")
    if symbols:
        environment = next(iter(symbols.values())).node.shape_env
        sources = [LocalSource(name) for name in symbols]
        for each in environment.produce_guards([*symbols.values()], sources, ignore_static=False):
            conditions.append(f"({each})")
    known = ", ".join(f"{name!r}: {name}" for name in symbols)
    text = f"lambda {', '.join(names)}: (lambda L: {' and '.join(conditions) or 'True'})({{{known}}})"
    return eval(text, dict(SYMPY_INTERP))  # type: ignore[no-any-return]
