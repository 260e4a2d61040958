"""torch.ops.octavo.int8_embedding and int8_embedding_bag, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.embedding import INT8_EMBEDDING, INT8_EMBEDDING_BAG, bag_ends, check_bags
from .define import register


def _embedding_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of the scales, which is exact; integers have none."""
    indices, weight, weight_scale = ctx.saved_tensors
    return None, None, _grad_scale(weight_scale, indices, _dots(grad, indices, weight))


def _dots(grad: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    return (grad.to(torch.float32) * weight[indices].to(torch.float32)).sum(-1)


def _grad_scale(weight_scale: Tensor, indices: Tensor, grad: Tensor) -> Tensor:
    flat = torch.zeros(weight_scale.numel(), dtype=torch.float32, device=grad.device)
    return flat.index_add(0, indices.reshape(-1), grad.reshape(-1)).reshape(weight_scale.shape)


int8_embedding_op = register(
    INT8_EMBEDDING,
    lambda ctx, inputs, keyword_only_inputs, output: ctx.save_for_backward(*inputs),
    _embedding_backward,
)


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
    if samples is not None and ctx.needs[5]:
        each = torch.zeros(samples.numel(), dtype=torch.float32, device=grad.device)
        each[kept] = dots * weight_scale.reshape(-1)[flat]
        grad_samples = each.reshape(samples.shape).to(samples.dtype)
    if ctx.needs[2]:
        if samples is not None:
            dots = dots * samples.reshape(-1)[kept].to(torch.float32)
        grad_scale = _grad_scale(weight_scale, flat, dots)
    return None, None, grad_scale, None, None, grad_samples, None, None


int8_embedding_bag_op = register(INT8_EMBEDDING_BAG, _bag_setup, _bag_backward)
