"""An operation, declared once; and what is the same for all of them.

A declaration is a schema, as torch.library takes it, and a function that plans a call: it checks shapes and
dtypes, and says which results there are and who computes them. Here eager calls run the plan; torch_ops gives
the same plan to torch's dispatcher, which traces by it. So both refuse the same calls in the same words.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..runtime import backends
from ..runtime.arrays import Array, dtype_name, empty, empty_channels_last, kind_of, needs_dispatcher
from ..runtime.outputs import check_out, is_same_memory, store, writable, writable_rows
from ..runtime.routing import native_for, reference_for

# (shape, None where this call has no such result; dtype; layout). Layouts: "" is C-contiguous, "rows" may
# have rows that lie apart where those of `out` do, "channels_last" is torch's memory format.
Result: TypeAlias = "tuple[tuple[int, ...] | None, str, str]"
# (how errors call it, what is to be filled), None for a result that is to be allocated
Out: TypeAlias = "tuple[str, Array] | None"


class Plan(NamedTuple):
    """A checked call, made from shapes and dtypes only: the arrays of a trace have no values.

    like: the array whose library and device a call runs on. inputs: what `out` must not overlap.
    native(engine, *arrays) fills those of the results, None for absent ones; reference(module) returns them.
    check(): the checks of values, which a trace leaves to the call itself.
    """

    like: Array
    inputs: dict[str, Array | None]
    results: Sequence[Result]
    native: Callable[..., object]
    reference: Callable[[Any], Any]
    check: Callable[[], object] | None = None


OPS: dict[str, Op] = {}


def _not_loaded() -> None:
    raise ImportError("torch.ops.octavo: expected octavo to be imported as a whole")


load_torch_ops: Callable[[], None] = _not_loaded  # octavo/__init__.py puts in its place what registers OPS


class Op:
    """An operation: octavo's and torch.ops.octavo's of one name.

    schema: its arguments are those of plan, in the same order. families: the CUDA kernels that it needs.
    tiny: a short way for tiny calls on the CPU: takes run's arguments, returns the result, or None where the
    plan has to see the call. lower: makes the schema's arguments of eager ones, such as packed weights.
    in_place: (index of a result, the input that `out` may give for it).
    """

    def __init__(
        self,
        schema: str,
        plan: Callable[..., Plan],
        *families: str,
        tiny: Callable[..., Any] | None = None,
        lower: Callable[..., tuple[Any, ...]] | None = None,
        in_place: tuple[int, str] | None = None,
    ) -> None:
        self.schema, self.plan, self.families = schema, plan, families
        self.tiny, self.lower, self.in_place = tiny, lower or _lower, in_place
        self.name, arguments = schema.split("(", 1)
        arguments, returns = arguments.rsplit(") ->", 1)
        self.returns_one, self.returns_list = returns == " Tensor", returns == " Tensor[]"
        each = [part.split() for part in re.split(r", (?![^\[\]]*\])", arguments)]
        star = each.index(["*"]) if ["*"] in each else len(each)
        self._positional, self._first = star, each[0]
        self._keywords = [(kind.rstrip("?"), name.partition("=")[0]) for kind, name in each[star + 1 :]]
        self._tensors = [i for i, part in enumerate(each[:star]) if part[0].startswith("Tensor")]
        OPS[self.name] = self

    def __call__(self, *arguments: Any, out: Sequence[Out] | None = None) -> Any:
        """The result, or a list of them; arguments: all those of the schema, by position.

        By torch's dispatcher, where results that this call does not have are empty, if torch has to see the
        call; else by run().
        """
        if type(arguments[0]) is not np.ndarray and needs_dispatcher(*_flat(arguments, self._tensors)):
            return self.trace(arguments, out)
        if self.tiny is not None and backends.native:  # run(), without the 0.3 us of a call
            short = self.tiny(*arguments, out=out)
            if short is not None:
                return short
        found = self.compute(self.plan(*arguments), out)
        return found[0] if self.returns_one else found

    def run(self, *arguments: Any, out: Sequence[Out] | None = None, **keywords: Any) -> Any:
        """The result, or a list of them with None for those that this call does not have."""
        if self.tiny is not None and backends.native:
            short = self.tiny(*arguments, out=out, **keywords)
            if short is not None:
                return short
        found = self.compute(self.plan(*arguments, **keywords), out)
        return found[0] if self.returns_one else found

    def compute(self, plan: Plan, out: Sequence[Out] | None = None) -> list[Array | None]:
        """The results of a planned call."""
        like, _, results, native, reference, check = plan
        if not results:  # of an empty list
            return []
        if out is not None:
            self._check_outs(out, plan)
        if check is not None:
            check()
        engine = native_for(like, *self.families)
        if engine is None:
            found = _as_arrays(reference(reference_for(like, *self.families)), results, like)
        else:
            found = []
            for i, (shape, dtype, layout) in enumerate(results):
                given = None if out is None else out[i]
                if given is not None:
                    each = (writable_rows if layout == "rows" else writable)(given[1], dtype)
                elif shape is None:
                    each = None
                elif layout == "channels_last":
                    each = empty_channels_last(shape, dtype, like)
                else:
                    each = empty(shape, dtype, like)
                found.append(each)
            native(engine, *found)
        if out is not None:
            found = [f if each is None else store(each[1], f) for each, f in zip(out, found, strict=True)]
        return found

    def trace(self, arguments: Sequence[Any], out: Sequence[Out] | None = None) -> Any:
        """The same by torch's dispatcher."""
        torch = sys.modules["torch"]
        compiling = torch.compiler.is_compiling()
        first, name = self._first
        if compiling and first == "Tensor" and not isinstance(arguments[0], torch.Tensor):
            kind_of(**{name: arguments[0]})
        inputs = {} if compiling else self.plan(*arguments).inputs
        arguments = self.lower(*arguments)
        keywords = {
            name: getattr(torch, value) if kind == "ScalarType" and isinstance(value, str) else _plain(value)
            for (kind, name), value in zip(self._keywords, arguments[self._positional :], strict=True)
        }
        found = torch_op(self.name)(*arguments[: self._positional], **keywords)
        if out is None:
            return found
        filled = self.filled([found] if self.returns_one else found, out, inputs)
        return filled[0] if self.returns_one else filled

    def filled(
        self, results: Sequence[Any], out: Sequence[Out] | None, inputs: dict[str, Array | None]
    ) -> list[Any]:
        """Traced results, copied into `out` where it has tensors for them."""
        if out is None:
            return list(results)
        taken, found = self._apart_from(inputs, out), []
        for result, each in zip(results, out, strict=True):
            found.append(result if each is None else _fill(*each, result, taken))
            if each is not None:
                taken[each[0]] = each[1]
        return found

    def _check_outs(self, out: Sequence[Out], plan: Plan) -> None:
        taken = self._apart_from(plan.inputs, out)
        for each, (shape, dtype, _) in zip(out, plan.results, strict=True):
            if each is not None:
                assert shape is not None
                check_out(each[1], each[0], plan.like, shape, dtype, taken)
                taken[each[0]] = each[1]

    def _apart_from(self, inputs: dict[str, Array | None], out: Sequence[Out]) -> dict[str, Array | None]:
        """What `out` must not overlap: the inputs, but for one that is filled in place."""
        taken = dict(inputs)
        if self.in_place is not None:
            i, name = self.in_place
            each = out[i]
            if each is not None and is_same_memory(each[1], taken.get(name)):
                del taken[name]
        return taken


def torch_op(name: str) -> Any:
    """torch.ops.octavo.<name>."""
    load_torch_ops()
    return getattr(sys.modules["torch"].ops.octavo, name).default


class Packed:
    """A weight in the form that kernels read, with its scale: an eager argument in place of both."""

    __slots__ = ()

    buffer: Array
    scale: Any


def _lower(*arguments: Any) -> tuple[Any, ...]:
    """A packed weight as its buffer; its scale in the place of the None behind it."""
    found = list(arguments)
    for i, each in enumerate(arguments):
        if isinstance(each, Packed):
            found[i] = each.buffer
            if found[i + 1] is None:
                found[i + 1] = each.scale
    return tuple(found)


def _flat(arguments: Sequence[Any], where: Sequence[int]) -> list[Any]:
    found: list[Any] = []
    for i in where:
        each = arguments[i]
        if isinstance(each, (list, tuple)):
            found += each
        elif each is not None:
            found.append(each)
    return found


def _plain(value: Any) -> Any:
    """A NumPy number as Python's, which schemas take."""
    return value.item() if isinstance(value, np.generic) else value


def _as_arrays(found: Any, results: Sequence[Result], like: Array) -> list[Array | None]:
    """What a reference returned, None for results that are not wanted."""
    every = found if isinstance(found, (tuple, list)) else [found]
    kept = [None if shape is None else each for (shape, _, _), each in zip(results, every, strict=True)]
    if isinstance(like, np.ndarray):  # NumPy makes numbers of what has no dimensions
        kept = [None if each is None else np.asarray(each) for each in kept]
    return kept


def _fill(name: str, out: Any, result: Any, inputs: dict[str, Any]) -> Any:
    torch = sys.modules["torch"]
    if isinstance(out, torch.Tensor) and (torch.compiler.is_compiling() or type(out) is not torch.Tensor):
        if out.dtype != result.dtype or out.shape != result.shape:
            raise ValueError(
                f"{name}: expected {result.dtype} {tuple(result.shape)}, got {out.dtype} {tuple(out.shape)}"
            )
    else:
        check_out(out, name, result, tuple(result.shape), dtype_name(result.dtype), inputs)
    if result.requires_grad:
        raise ValueError(f"{name}: expected None where a gradient is wanted, got a tensor")
    return out.copy_(result)


def outs_of(out: Any, names: Sequence[str], expected: str = "") -> list[Out]:
    """`out`, a tuple with an array for each result that has a name here, as Op takes it; else a TypeError."""
    wanted = [name for name in names if name]
    if not isinstance(out, (tuple, list)) or len(out) != len(wanted):
        got = f"{len(out)} arrays" if isinstance(out, (tuple, list)) else type(out).__name__
        raise TypeError(f"out: expected {expected or '(' + ', '.join(wanted) + ')'}, got {got}")
    given = iter(enumerate(out))
    found: list[Out] = []
    for name in names:
        i, each = next(given) if name else (0, None)
        found.append((f"out[{i}]", each) if name else None)
    return found
