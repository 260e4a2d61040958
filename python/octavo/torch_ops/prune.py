"""torch.ops.octavo: masks and pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.masks import check_mask_shape
from ..ops.quantize import Quantized
from ..ops.selection import _check_units, _number, _selection
from ..reference.torch import apply_mask
from .define import _check_kinds, _define, _fill, _fill_quantized, _no_gradient, _none, _quantize_fake

# ---- masks ----

_SELECTION = (
    "float? threshold=None, float? ratio=None, float? sparsity=None, "
    'str pattern="unstructured", str nonfinite="keep"'
)


def _prune_mask_fake(w: Tensor, **selection: Any) -> Tensor:
    _check_selection([w], **selection)
    return w.new_empty(w.shape, dtype=torch.bool)


def _prune_masks_fake(ws: Sequence[Tensor], **selection: Any) -> list[Tensor]:
    _check_selection(ws, **selection)
    return [w.new_empty(w.shape, dtype=torch.bool) for w in ws]


def _check_selection(
    ws: Sequence[Tensor],
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
) -> None:
    chosen = _selection(threshold, ratio, sparsity, pattern, nonfinite)
    for w in ws:
        _check_units(w, "w", chosen)


prune_mask_op = _define(
    f"prune_mask(Tensor w, *, {_SELECTION}) -> Tensor",
    _prune_mask_fake,
    lambda w, **selection: ops._prune_mask(w, **selection),
)

prune_masks_op = _define(
    f"prune_masks(Tensor[] ws, *, {_SELECTION}) -> Tensor[]",
    _prune_masks_fake,
    lambda ws, **selection: ops._prune_masks(ws, **selection),
)


def prune_mask(w: Tensor, *, out: Tensor | None = None, **selection: Any) -> Tensor:
    mask: Tensor = prune_mask_op(w, **_numbers(selection))
    return mask if out is None else _fill(out, "out", mask, w=w)


def prune_masks(
    ws: Sequence[Tensor], *, out: Sequence[Tensor] | None = None, **selection: Any
) -> list[Tensor]:
    _check_kinds(**{f"w[{i}]": w for i, w in enumerate(ws)})
    masks: list[Tensor] = prune_masks_op(list(ws), **_numbers(selection))
    if out is None:
        return masks
    if not isinstance(out, (list, tuple)) or len(out) != len(ws):
        raise TypeError(f"out: expected a sequence of {len(ws)} arrays, got {type(out).__name__}")
    return [
        _fill(each, f"out[{i}]", mask, w=w)
        for i, (each, mask, w) in enumerate(zip(out, masks, ws, strict=True))
    ]


# ---- pruning ----


def _prune_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.selection = keyword_only_inputs


def _prune_backward(ctx: Any, grad: Tensor) -> Tensor:
    # the mask is made anew: it cannot be read off the result, where weights that are kept may be zero too
    return apply_mask(grad, prune_mask_op(*ctx.saved_tensors, **ctx.selection))


prune_op = _define(
    f"prune(Tensor w, *, {_SELECTION}) -> Tensor",
    lambda w, **selection: w.new_empty(_prune_mask_fake(w, **selection).shape),
    lambda w, **selection: ops._pruned([w], ["w"], None, [], **selection)[0],
    _prune_setup,
    _prune_backward,
)

# w must not want a gradient: what was overwritten is gone
_define(
    f"prune_(Tensor(a!) w, *, {_SELECTION}) -> Tensor",
    _prune_mask_fake,
    lambda w, **selection: ops._pruned_in_place([w], ["w"], None, [], **selection)[0],
)


def prune(ws: Sequence[Tensor], **selection: Any) -> list[Tensor]:
    if len(ws) == 1:
        return [prune_op(ws[0], **_numbers(selection))]
    return [apply_mask(w, mask) for w, mask in zip(ws, prune_masks(ws, **selection), strict=True)]


def _prune_quantize_fake(
    w: Tensor, *, granularity: str = "row", group_size: int | None = None, **selection: Any
) -> tuple[Tensor, Tensor, Tensor]:
    data, scale, _ = _quantize_fake(w, granularity, group_size)
    return data, scale, _prune_mask_fake(w, **selection)


def _prune_quantize(w: Tensor, **arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    found, mask = ops._prune_quantize(w, **arguments)
    return found.data, found.scale, mask


prune_quantize_op = _define(
    f'prune_quantize(Tensor w, *, str granularity="row", int? group_size=None, {_SELECTION}) '
    "-> (Tensor, Tensor, Tensor)",
    _prune_quantize_fake,
    _prune_quantize,
    _no_gradient,
    _none,
)


def prune_quantize(
    w: Tensor, *, out: tuple[Tensor, Tensor, Tensor] | None = None, **arguments: Any
) -> tuple[Quantized, Tensor]:
    data, scale, mask = prune_quantize_op(w, **_numbers(arguments))
    found = Quantized(data, scale)
    if out is None:
        return found, mask
    if not isinstance(out, (list, tuple)) or len(out) != 3:
        raise TypeError("out: expected (data, scale, mask)")
    return _fill_quantized(tuple(out[:2]), found, w=w), _fill(out[2], "out[2]", mask, w=w)


magnitude_threshold_op = _define(
    "magnitude_threshold(Tensor[] ws, float sparsity) -> Tensor",
    lambda ws, sparsity: ws[0].new_empty((), dtype=torch.float32),
    lambda ws, sparsity: ws[0].new_tensor(ops._magnitude_threshold(ws, sparsity), dtype=torch.float32),
    _no_gradient,
    _none,
)


def magnitude_threshold(ws: Sequence[Tensor], sparsity: float) -> float:
    return magnitude_threshold_op(list(ws), _number(sparsity, "sparsity")).item()  # type: ignore[no-any-return]


# ---- masks as bits ----


def _pack_mask_fake(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool or not mask.dim():
        raise ValueError(f"mask: expected bool [..., K], got {mask.dtype} {tuple(mask.shape)}")
    return mask.new_empty((*mask.shape[:-1], -(-mask.shape[-1] // 8)), dtype=torch.uint8)


def _unpack_mask_fake(bits: Tensor, shape: Sequence[int]) -> Tensor:
    check_mask_shape(bits, shape)
    return bits.new_empty(tuple(shape), dtype=torch.bool)


pack_mask = _define("pack_mask(Tensor mask) -> Tensor", _pack_mask_fake, lambda mask: ops._pack_mask(mask))

unpack_mask = _define(
    "unpack_mask(Tensor bits, SymInt[] shape) -> Tensor",
    _unpack_mask_fake,
    lambda bits, shape: ops._unpack_mask(bits, tuple(shape)),
)


# ---- arguments ----


def _numbers(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with threshold, ratio and sparsity as the Python floats that schemas take."""
    names = [name for name in ("threshold", "ratio", "sparsity") if arguments.get(name) is not None]
    return {**arguments, **{name: _number(arguments[name], name) for name in names}}
