"""A forward as a graph: torch.export's, of a function of tensors that returns tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._dynamo.source import LocalSource
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx.experimental import _config as shapes_config
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from ..layers.linear import Int8Linear
from .graph import ROOT
from .guards import INNER, MISSING, Guards, Snapshot, recorded_reads
from .results import Structure

# an attribute: the module, the dictionary among the module's own that has it, or "" for its own, and the name
Place = tuple[nn.Module, str, str]


class Capture:
    """The graph of model.forward for inputs like `given`: positional ones and a dictionary, flat as pytree
    has them. ValueError where there is none; the model is as it was.

    The graph's inputs are held(), the tensors of the call, and the values of `states`, attributes which the
    forward reads and sets, such as a count of calls; of what it returns `structure` makes the result, and the
    values of `written`, attributes which the forward sets. It is for calls for which the `guards` hold and
    `sizes_fit`.
    """

    def __init__(self, model: nn.Module, given: Sequence[Any], spec: Any) -> None:
        self.model, self.given, self.spec = model, given, spec
        self.states: list[Place] = []
        before = Snapshot(model)
        try:
            program = self._settled()
        except Exception:
            before.restore()
            raise
        changed = [
            str(spec.target)
            for spec in program.graph_signature.output_specs
            if spec.kind != OutputKind.USER_OUTPUT
        ]
        if changed:
            raise ValueError(
                f"model: expected a forward that only computes its result, got one that changes {changed}"
            )
        self.program = program
        self._check()
        for module, _, name in self.states:
            self.reads[id(module)].discard(name)
        self.guards = Guards(model, self.reads)
        self.sizes_fit = _size_check(program)

    def _settled(self) -> ExportedProgram:
        program = self._export()
        if self.unsettled:
            self.states = self._numbers()
            self._run_once(
                self._forward
            )  # what only a first call finds empty, such as a cache of its own, is filled
            program = self._export()
        if self._numbers():
            self.states += self._numbers()
            program = self._export()
        if self.unsettled:
            raise ValueError(
                "model: expected a forward that leaves alone what it reads of its modules, or sets numbers "
                f"and tensors, got one that changes {', '.join(self.unsettled)}"
            )
        return program

    def _export(self) -> ExportedProgram:
        inputs = [each for each in self.given if isinstance(each, Tensor)] + [*map(value_at, self.states)]
        every = [
            dict.fromkeys(range(each.dim()), Dim.AUTO) if isinstance(each, Tensor) else Dim.AUTO
            for each in inputs
        ]
        self.error: ValueError | None = None
        first: Exception | None = None
        for shapes in (tuple(every), (None,) * len(inputs)):
            self.is_static = first is not None
            try:
                # oblivious: what the code asks of a size of 1 becomes a condition; it is not taken to be
                # another. Without duck shapes sizes that are equal in the example need not be.
                with (
                    torch.inference_mode(False),
                    torch.no_grad(),
                    _frozen_inference_tensors(self.model),
                    shapes_config.patch(  # type: ignore[attr-defined]
                        backed_size_oblivious=True, use_duck_shape=False
                    ),
                ):
                    return export(_Root(self), tuple(inputs), dynamic_shapes={"inputs": shapes})
            except Exception as error:
                if self.error is not None:
                    raise self.error from None
                first = first or error
        raise ValueError(
            "model: expected one that torch.export can capture; for "
            f"{type(self.model).__name__} it says: {first}"
        ) from first

    def trace(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The forward, while torch.export watches; it leaves modules and their objects as they are."""
        model, left = self.model, iter(inputs)
        given = [next(left) if isinstance(each, Tensor) else each for each in self.given]
        args, kwargs = pytree.tree_unflatten(given, self.spec)
        own = [*map(value_at, self.states)]
        for place, value in zip(self.states, left, strict=True):
            set_at(place, value)
        before = Snapshot(model)
        self._known = before.known()
        try:
            with recorded_reads(model.modules()) as self.reads:
                result = type(model).forward(model, *args, **kwargs)
            try:
                after, spec = pytree.tree_flatten((args, kwargs))
                if spec != self.spec or [*map(id, after)] != [*map(id, given)]:
                    raise ValueError(
                        "model: expected a forward that leaves its arguments alone, got one that changes them"
                    )
                self.structure = Structure([result, self._changes(before)], self._known)
            except ValueError as error:
                self.error = error
                raise
        finally:
            before.restore()
            for place, value in zip(self.states, own, strict=True):
                set_at(place, value)
        leaves = tuple(self.structure.leaves)
        self.structure.leaves.clear()
        return leaves

    def _changes(self, before: Snapshot) -> list[Any]:
        """The values of what the forward has set; `written` becomes the places, and `unsettled` what a graph
        cannot do, by name, with its place if it has one."""
        places = {id(vars(module)): (module, "") for module in self.model.modules()}
        places |= {id(module._buffers): (module, "_buffers") for module in self.model.modules()}
        self.written: list[Place] = []
        self.unsettled: dict[str, Place | None] = {}
        for container, key, name in before.changes():
            module, part = places.get(id(container), (None, ""))
            if module is None or key not in container or (not part and key in INNER):
                self.unsettled[name] = None
                continue
            place = (module, part, key)
            self.written.append(place)
            is_input = place in self.states or (part and isinstance(container[key], Tensor))
            if key in self.reads[id(module)] and not is_input:
                self.unsettled[name] = place
        return [*map(value_at, self.written)]

    def _forward(self, given: list[Any]) -> Any:
        args, kwargs = pytree.tree_unflatten(given, self.spec)
        return type(self.model).forward(self.model, *args, **kwargs)

    def _run_once(self, run: Callable[[list[Any]], Any]) -> Any:
        """run(what is given). What this sets is as before after it, but for what it has found unset."""
        kept = [place for place in self.unsettled.values() if place not in self.states]
        written = [place for place in self.written if place not in kept]
        places = [(place, holder_of(place).get(place[2], MISSING)) for place in written]
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        random = torch.get_rng_state()
        with torch.no_grad():
            try:
                return run([each.clone() if isinstance(each, Tensor) else each for each in self.given])
            finally:
                torch.set_rng_state(random)
                for place, value in places:
                    set_at(place, value)
                    if value is MISSING:
                        del holder_of(place)[place[2]]
                for buffer, value in buffers:
                    buffer.copy_(value)

    def _check(self) -> None:
        """ValueError where the graph does not compute what the model does: code may ask whether it is being
        captured, and take another way then."""

        def run_graph(given: list[Any]) -> Any:
            held = [holder[name] for holder, name in self.held()]
            inputs = [each for each in given if isinstance(each, Tensor)] + [*map(value_at, self.states)]
            return self.structure.build(self.program.graph_module(*held, *inputs))[0]

        wanted, found = (self._first_floats(self._run_once(run)) for run in (self._forward, run_graph))
        if wanted is None or found is None:
            return
        if found.shape == wanted.shape:
            if not wanted.numel():
                return
            a, b = (each.reshape(-1, each.shape[-1] if each.dim() else 1) for each in (found, wanted))
            # of most rows: where the largest are chosen, a last place of one may change all of another
            if ((a - b).norm(dim=-1) <= 0.1 * b.norm(dim=-1)).double().mean() >= 0.5:
                return
        raise ValueError(
            "model: expected a forward that computes the same while it is captured, got another result for "
            "the example; its code may ask torch.compiler.is_compiling(), or for a size's digits"
        )

    def _first_floats(self, result: Any) -> Tensor | None:
        """The first tensor of floats in a result, without what is not finite."""
        for each in Structure(result, self._known).leaves:
            if isinstance(each, Tensor) and each.is_floating_point():
                return each.detach().to(torch.float64).nan_to_num(posinf=0.0, neginf=0.0)
        return None

    def _numbers(self) -> list[Place]:
        """What is unsettled, but may be an input."""
        places = [place for place in self.unsettled.values() if place is not None]
        return [
            p
            for p in places
            if isinstance(holder_of(p).get(p[2]), Tensor) or type(holder_of(p).get(p[2])) is int
        ]

    def held(self) -> list[tuple[dict[str, Any], str]]:
        """The dictionaries that hold the graph's parameters, buffers and constants, and their names there."""
        return [
            self._holder(spec.kind, str(spec.target))
            for spec in self.program.graph_signature.input_specs
            if spec.kind != InputKind.USER_INPUT
        ]

    def int8_layers(self) -> dict[Node, tuple[str, Int8Linear]]:
        """By the graph's inputs that they store their weights in: names of layers, and these."""
        nodes = {node.name: node for node in self.program.graph.find_nodes(op="placeholder")}
        found = {}
        for spec in self.program.graph_signature.input_specs:
            name, _, what = str(spec.target).removeprefix(ROOT).rpartition(".")
            layer = self.model.get_submodule(name) if what == "_stored" else None
            if isinstance(layer, Int8Linear):
                found[nodes[spec.arg.name]] = name, layer
        return found

    def _holder(self, kind: InputKind, name: str) -> tuple[dict[str, Any], str]:
        if kind == InputKind.CONSTANT_TENSOR:
            return {name: self.program.constants[name]}, name
        module, _, name = name.removeprefix(ROOT).rpartition(".")
        owner = self.model.get_submodule(module)
        return (owner._parameters if name in owner._parameters else owner._buffers), name


class _Root(nn.Module):
    """What torch.export gets: the model without its own hooks, which run outside of its forward."""

    def __init__(self, call: Capture) -> None:
        super().__init__()
        self.add_module(ROOT.rstrip("."), call.model)
        self._trace = call.trace
        self.training = False

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        return self._trace(inputs)


@contextmanager
def _frozen_inference_tensors(model: nn.Module) -> Iterator[None]:
    """Without it torch.export fails to say of its own tensors that they want gradients, as these do."""
    frozen = [each for each in model.parameters() if each.requires_grad and each.is_inference()]
    with torch.inference_mode():
        for each in frozen:
            each.requires_grad_(False)
    try:
        yield
    finally:
        with torch.inference_mode():
            for each in frozen:
                each.requires_grad_(True)


def holder_of(place: Place) -> dict[str, Any]:
    module, part, _ = place
    own = vars(module)
    return own[part] if part else own


def value_at(place: Place) -> Any:
    return holder_of(place)[place[2]]


def set_at(place: Place, value: Any) -> None:
    holder_of(place)[place[2]] = value


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
        if node.name not in users:
            continue
        for size in value.shape if isinstance(value, Tensor) else (value,):
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
