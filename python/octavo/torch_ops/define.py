"""How an operation becomes torch.ops.octavo.*."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ..ops.op import Op, Plan
from ..ops.quantize import Quantized
from .gradient import autograd_kernel

with contextlib.suppress(AttributeError):  # the one way to say how torch.export.save writes a NamedTuple
    _pytree._register_namedtuple(Quantized, serialized_type_name="octavo.Quantized")

REGISTERED: set[str] = set()


_library = torch.library.Library("octavo", "DEF")  # type: ignore[no-untyped-call]


def define(
    schema: str,
    fake: Callable[..., Any],
    kernel: Callable[..., Any],
    setup: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Registers `kernel` on the CPU and on CUDA, `fake` as what tracing sees of it, and the gradient."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for key in ("CPU", "CUDA"):
        _library.impl(name, kernel, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"octavo::{name}", fake, lib=_library)
    op = getattr(torch.ops.octavo, name).default
    if setup is not None:  # the others take integers alone
        run = autograd_kernel(op, setup, backward)
        _library.impl(name, run, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
    return op


def register(
    op: Op, setup: Callable[..., Any] | None = None, backward: Callable[..., Any] | None = None
) -> Any:
    """Registers an operation by its plan; results that a call does not have are empty tensors."""

    def kernel(*arguments: Any, **keywords: Any) -> Any:
        if op.returns_one or op.returns_list:
            return op.run(*arguments, **keywords)
        plan = op.plan(*arguments, **keywords)
        return _returned(op, plan, op.compute(plan))

    REGISTERED.add(op.name)
    return define(op.schema, fake(op), kernel, setup, backward)


def fake(op: Op) -> Callable[..., Any]:
    """What tracing sees of an operation."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        plan = op.plan(*arguments, **keywords)
        found = [
            None if shape is None else _empty(shape, dtype, layout, plan.like)
            for shape, dtype, layout in plan.results
        ]
        return _returned(op, plan, found)

    return run


def _returned(op: Op, plan: Plan, found: list[Tensor | None]) -> Any:
    every = [
        _empty((0,), dtype, "", plan.like) if each is None else each
        for each, (_, dtype, _) in zip(found, plan.results, strict=True)
    ]
    return every[0] if op.returns_one else every if op.returns_list else tuple(every)


def _empty(shape: tuple[int, ...], dtype: str, layout: str, like: Tensor) -> Tensor:
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device, memory_format=memory)


def no_gradient(ctx: Any, **call: Any) -> None:
    """The setup of an operation that takes floats and whose results have no gradient."""
