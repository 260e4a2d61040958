"""How an operation becomes torch.ops.octavo.*, and the checks that its callers share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ..ops.quantize import Quantized, _grouping
from ..runtime.arrays import as_dtype_name, check_out, dtype_name, kind_of

with contextlib.suppress(AttributeError):  # the one way to say how torch.export.save writes a NamedTuple
    _pytree._register_namedtuple(Quantized, serialized_type_name="octavo.Quantized")

_library = torch.library.Library("octavo", "DEF")  # type: ignore[no-untyped-call]


def _define(
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
    if backward is not None:
        torch.library.register_autograd(f"octavo::{name}", backward, setup_context=setup, lib=_library)
    return getattr(torch.ops.octavo, name).default


def _no_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any, keyword_only_inputs: Any = None) -> None:
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))
    ctx.arguments = len(inputs)


def _none(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    count: int = ctx.arguments
    return (None,) * count


def _quantize_fake(
    x: Tensor, granularity: str = "row", group_size: int | None = None, symmetric: bool = True, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _grouping(x, granularity, group_size)[0]
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(shape, dtype=torch.float32),
        x.new_empty((0,) if symmetric else shape, dtype=torch.int32),
    )


def _dtype(dtype: Any, name: str, allowed: Sequence[str]) -> torch.dtype:
    known = getattr(torch, as_dtype_name(dtype, name, allowed))
    assert isinstance(known, torch.dtype)
    return known


def _check_kinds(**tensors: Any) -> None:
    if not torch.compiler.is_compiling():
        kind_of(**tensors)


def _fill_quantized(out: Tensor | tuple[Tensor, ...], found: Quantized, **inputs: Any) -> Quantized:
    if isinstance(out, Tensor):
        return Quantized(_fill(out, "out", found.data, **inputs), found.scale, found.zero_point)
    parts = [part for part in found if part is not None]
    if not isinstance(out, (list, tuple)) or len([each for each in out if each is not None]) != len(parts):
        raise TypeError(f"out: expected a tuple of {len(parts)} arrays, got {out!r}")
    filled = [_fill(out[i], f"out[{i}]", part, **inputs) for i, part in enumerate(parts)]
    return Quantized(*filled)


def _fill(out: Tensor, name: str, result: Tensor, **inputs: Any) -> Tensor:
    if isinstance(out, Tensor) and (torch.compiler.is_compiling() or type(out) is not Tensor):
        if out.dtype != result.dtype or out.shape != result.shape:
            raise ValueError(
                f"{name}: expected {result.dtype} {tuple(result.shape)}, got {out.dtype} {tuple(out.shape)}"
            )
    else:
        check_out(out, name, result, tuple(result.shape), dtype_name(result.dtype), inputs)
    if result.requires_grad:
        raise ValueError(f"{name}: expected None where a gradient is wanted, got a tensor")
    return out.copy_(result)
