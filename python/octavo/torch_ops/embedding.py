"""torch.ops.octavo.int8_embedding and int8_embedding_bag."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.embedding import bag_ends, check_bags
from ..runtime.arrays import FLOATS
from .define import _check_kinds, _define, _dtype, _fill


def _embedding_fake(
    indices: Tensor, weight: Tensor, weight_scale: Tensor, *, out_dtype: torch.dtype = torch.float32
) -> Tensor:
    return weight.new_empty((*indices.shape, weight.shape[1]), dtype=out_dtype)


def _embedding(
    indices: Tensor, weight: Tensor, weight_scale: Tensor, *, out_dtype: torch.dtype = torch.float32
) -> Tensor:
    result: Tensor = ops._int8_embedding(indices, weight, weight_scale, out_dtype)
    return result


def _embedding_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of the scales, which is exact; integers have none."""
    indices, weight, weight_scale = ctx.saved_tensors
    return None, None, _grad_scale(weight_scale, indices, _dots(grad, indices, weight))


def _dots(grad: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    return (grad.to(torch.float32) * weight[indices].to(torch.float32)).sum(-1)


def _grad_scale(weight_scale: Tensor, indices: Tensor, grad: Tensor) -> Tensor:
    flat = torch.zeros(weight_scale.numel(), device=grad.device)
    return flat.index_add(0, indices.reshape(-1), grad.reshape(-1)).reshape(weight_scale.shape)


int8_embedding_op = _define(
    "int8_embedding(Tensor indices, Tensor weight, Tensor weight_scale, *, ScalarType out_dtype=float) "
    "-> Tensor",
    _embedding_fake,
    _embedding,
    lambda ctx, inputs, keyword_only_inputs, output: ctx.save_for_backward(*inputs),
    _embedding_backward,
)


def int8_embedding(
    indices: Tensor, weight: Tensor, weight_scale: Tensor, out_dtype: Any, out: Tensor | None
) -> Tensor:
    inputs = {"indices": indices, "weight": weight, "weight_scale": weight_scale}
    _check_kinds(**inputs)
    result: Tensor = int8_embedding_op(*inputs.values(), out_dtype=_dtype(out_dtype, "out_dtype", FLOATS))
    return result if out is None else _fill(out, "out", result, **inputs)


def _bag_fake(
    indices: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor | None = None,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    bags, _ = check_bags(indices, weight, offsets, mode, per_sample_weights, include_last_offset, padding_idx)
    return weight.new_empty((bags, weight.shape[1]), dtype=out_dtype)


def _bag(
    indices: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor | None = None,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    result: Tensor = ops._int8_embedding_bag(
        indices,
        weight,
        weight_scale,
        offsets,
        mode,
        per_sample_weights,
        include_last_offset,
        padding_idx,
        out_dtype,
    )
    return result


def _bag_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    indices, weight, weight_scale, offsets, mode, per_sample_weights, include_last_offset, padding_idx = (
        inputs
    )
    if mode == "max":
        ctx.mark_non_differentiable(output)
    ctx.save_for_backward(indices, weight, weight_scale, offsets, per_sample_weights)
    ctx.arguments = mode, include_last_offset, padding_idx


def _bag_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of scales and per_sample_weights, which are exact; "max" has none."""
    indices, weight, weight_scale, offsets, samples = ctx.saved_tensors
    mode, include_last_offset, padding_idx = ctx.arguments
    if mode == "max":
        return (None,) * 8
    bags, padding = check_bags(indices, weight, offsets, mode, samples, include_last_offset, padding_idx)
    ends = bag_ends(indices, offsets, bags, include_last_offset)
    flat = indices.reshape(-1)
    bag = torch.searchsorted(ends, torch.arange(flat.shape[0], device=flat.device), right=True)
    kept = ((bag < bags) & (flat != padding)).nonzero().squeeze(1)  # what lies behind the last bag is in none
    flat, bag = flat[kept], bag[kept]
    dots = _dots(grad[bag], flat, weight)
    if mode == "mean":
        dots = dots / torch.bincount(bag, minlength=bags)[bag]
    grad_scale = grad_samples = None
    if samples is not None and ctx.needs_input_grad[5]:
        each = torch.zeros(samples.numel(), device=grad.device)
        each[kept] = dots * weight_scale.reshape(-1)[flat]
        grad_samples = each.reshape(samples.shape).to(samples.dtype)
    if ctx.needs_input_grad[2]:
        if samples is not None:
            dots = dots * samples.reshape(-1)[kept].to(torch.float32)
        grad_scale = _grad_scale(weight_scale, flat, dots)
    return None, None, grad_scale, None, None, grad_samples, None, None


int8_embedding_bag_op = _define(
    "int8_embedding_bag(Tensor indices, Tensor weight, Tensor weight_scale, Tensor? offsets=None, "
    'str mode="mean", Tensor? per_sample_weights=None, bool include_last_offset=False, '
    "int? padding_idx=None, *, ScalarType out_dtype=float) -> Tensor",
    _bag_fake,
    _bag,
    _bag_setup,
    _bag_backward,
)


def int8_embedding_bag(
    indices: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor | None,
    mode: str,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
    out_dtype: Any,
    out: Tensor | None,
) -> Tensor:
    inputs = {
        "indices": indices,
        "weight": weight,
        "weight_scale": weight_scale,
        "offsets": offsets,
        "per_sample_weights": per_sample_weights,
    }
    _check_kinds(**inputs)
    result: Tensor = int8_embedding_bag_op(
        indices,
        weight,
        weight_scale,
        offsets,
        mode,
        per_sample_weights,
        include_last_offset,
        padding_idx,
        out_dtype=_dtype(out_dtype, "out_dtype", FLOATS),
    )
    return result if out is None else _fill(out, "out", result, **inputs)
