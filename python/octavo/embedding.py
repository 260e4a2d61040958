"""int8_embedding and int8_embedding_bag: what they check, allocate and call."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from .arrays import (
    DTYPE_CODES,
    FLOATS,
    Array,
    as_dtype_name,
    check_dtype,
    check_out,
    check_shape,
    contiguous,
    empty,
    float_code,
    kind_of,
    needs_dispatcher,
    on_cuda,
    pointer,
    store,
    to_host,
    writable,
)
from .engines import native_for, reference_for
from .norm import _as_float32
from .packed import check_scale

MODES = ("sum", "mean", "max")  # by their codes


def int8_embedding(
    indices: Array,
    weight: Array,
    weight_scale: Array,
    *,
    out_dtype: Any = "float32",
    out: Array | None = None,
) -> Array:
    """Rows of an int8 table as floats: y[..., :] = weight[indices] * weight_scale[indices], rounded once.

    indices: int32 or int64, any shape. IndexError for one outside [0, V), before anything is written; on a
        device, where looking at values would wait for it, PyTorch's own assertion there.
    weight: int8 [V, D]; copied on every call where it is not contiguous. weight_scale: float32 [V] or [V, 1].
    out_dtype: "float32", "float16", "bfloat16" or "float64", or a NumPy or torch dtype.
    out: indices.shape + (D,) of that dtype to fill; one that is not C-contiguous costs a temporary.
    """
    if type(weight) is not np.ndarray and needs_dispatcher(indices, weight, weight_scale):
        from . import torch_ops

        return torch_ops.int8_embedding(indices, weight, weight_scale, out_dtype, out)
    return _int8_embedding(indices, weight, weight_scale, out_dtype, out)


def _int8_embedding(
    indices: Array, weight: Array, weight_scale: Array, out_dtype: Any = "float32", out: Array | None = None
) -> Array:
    """int8_embedding, without torch's dispatcher."""
    inputs = {"indices": indices, "weight": weight, "weight_scale": weight_scale}
    entries, dim = _check_table(inputs)
    name = as_dtype_name(out_dtype, "out_dtype", FLOATS)
    shape = (*indices.shape, dim)
    check_scale(weight_scale, "weight_scale", entries)
    scale = contiguous(weight_scale).reshape(entries)
    if out is not None:
        check_out(out, "out", weight, shape, name, inputs)
    engine = native_for(weight, "embedding")
    if engine is None:
        _check_values(indices, entries)
        result = reference_for(weight, "embedding").int8_embedding(indices, weight, scale, name)
        return result if out is None else store(out, result)
    plain, weight = contiguous(indices), contiguous(weight)
    result = empty(shape, name, weight) if out is None else writable(out, name)
    kernels, where = engine
    outside = kernels.embedding(
        kernels.Table(pointer(weight), scale=pointer(scale), entries=entries, dim=dim),
        indices=kernels.Integers(pointer(plain), wide=plain.itemsize == 8, count=_count(plain)),
        out=pointer(result),
        out_dtype=DTYPE_CODES[name],
        where=where,
    )
    if outside >= 0:
        _raise_outside(indices, outside, entries)
    return result if out is None else store(out, result)


def int8_embedding_bag(
    indices: Array,
    weight: Array,
    weight_scale: Array,
    offsets: Array | None = None,
    *,
    mode: str = "mean",
    per_sample_weights: Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    out_dtype: Any = "float32",
    out: Array | None = None,
) -> Array:
    """torch.nn.functional.embedding_bag of an int8 table: sums, means or maxima over bags of rows.

    indices: int32 or int64: [B, N], B bags of N, or [T] with offsets int32 or int64, where each bag begins:
        [B], or with include_last_offset [B + 1], whose last one is where the last bag ends. The first must be
        0, and none may be smaller than the one before. weight, weight_scale, out_dtype and errors are those
        of int8_embedding.
    mode: "sum", "mean" or "max". A bag without rows is 0.
    per_sample_weights: floats like indices, taken as float32, that rows are multiplied by; "sum" only.
    padding_idx: an index, negative ones counting from V, that counts as absent.
    out: [B, D] to fill; one that is not C-contiguous costs a temporary.

    Sums are float32, in the order of the indices.
    """
    if type(weight) is not np.ndarray and needs_dispatcher(
        indices, weight, weight_scale, offsets, per_sample_weights
    ):
        from . import torch_ops

        run: Any = torch_ops.int8_embedding_bag
    else:
        run = _int8_embedding_bag
    return run(
        indices,
        weight,
        weight_scale,
        offsets,
        mode,
        per_sample_weights,
        include_last_offset,
        padding_idx,
        out_dtype,
        out,
    )


def _int8_embedding_bag(
    indices: Array,
    weight: Array,
    weight_scale: Array,
    offsets: Array | None = None,
    mode: str = "mean",
    per_sample_weights: Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    out_dtype: Any = "float32",
    out: Array | None = None,
) -> Array:
    """int8_embedding_bag, without torch's dispatcher."""
    inputs = {
        "indices": indices,
        "weight": weight,
        "weight_scale": weight_scale,
        "offsets": offsets,
        "per_sample_weights": per_sample_weights,
    }
    entries, dim = _check_table(inputs)
    bags, padding = check_bags(
        indices, weight, offsets, mode, per_sample_weights, include_last_offset, padding_idx
    )
    name = as_dtype_name(out_dtype, "out_dtype", FLOATS)
    check_scale(weight_scale, "weight_scale", entries)
    scale = contiguous(weight_scale).reshape(entries)
    if out is not None:
        check_out(out, "out", weight, (bags, dim), name, inputs)
    ends = bag_ends(indices, offsets, bags, include_last_offset)
    engine = native_for(weight, "embedding")
    if not on_cuda(weight):
        _check_offsets(offsets, ends, _count(indices))
    weights = None if per_sample_weights is None else _as_float32(per_sample_weights)
    if engine is None:
        _check_values(indices, entries)
        if weights is not None:
            weights = weights.reshape(-1)
        flat = indices.reshape(-1)
        result = reference_for(weight, "embedding").int8_embedding_bag(
            flat, ends, weight, scale, weights, padding, mode, name
        )
        return result if out is None else store(out, result)
    plain, weight = contiguous(indices), contiguous(weight)
    result = empty((bags, dim), name, weight) if out is None else writable(out, name)
    kernels, where = engine
    outside = kernels.embedding_bag(
        kernels.Table(pointer(weight), scale=pointer(scale), entries=entries, dim=dim),
        indices=kernels.Integers(pointer(plain), wide=plain.itemsize == 8, count=_count(plain)),
        ends=pointer(ends),
        bags=bags,
        weights=0 if weights is None else pointer(weights),
        padding=padding,
        mode=MODES.index(mode),
        out=pointer(result),
        out_dtype=DTYPE_CODES[name],
        where=where,
    )
    if outside >= 0:
        _raise_outside(indices, outside, entries)
    return result if out is None else store(out, result)


def _check_table(inputs: dict[str, Any]) -> tuple[int, int]:
    """(V, D), after checks of what indices, weight and weight_scale are."""
    kind_of(weight=inputs["weight"])
    kind_of(**inputs)
    weight = inputs["weight"]
    check_dtype(inputs["indices"], "indices", "int32", "int64")
    check_dtype(weight, "weight", "int8")
    if weight.ndim != 2:
        raise ValueError(f"weight: expected two dimensions [V, D], got shape {tuple(weight.shape)}")
    if inputs["weight_scale"] is None:
        raise TypeError("weight_scale: expected a float32 array, got None")
    entries, dim = weight.shape
    return entries, dim


def check_bags(
    indices: Array,
    weight: Array,
    offsets: Array | None,
    mode: str,
    per_sample_weights: Array | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> tuple[int, int]:
    """(bags, the index that is left out or -1), after checks that look at no element."""
    if mode not in MODES:
        raise ValueError(f"mode: expected 'sum', 'mean' or 'max', got {mode!r}")
    if indices.ndim == 2:
        if offsets is not None:
            raise ValueError("offsets: expected None with indices of two dimensions, got offsets")
        bags = indices.shape[0]
    elif indices.ndim != 1:
        raise ValueError(
            f"indices: expected one or two dimensions, [T] or [B, N], got shape {tuple(indices.shape)}"
        )
    elif offsets is None:
        raise ValueError("offsets: expected where each bag begins, with indices of one dimension, got None")
    else:
        check_dtype(offsets, "offsets", "int32", "int64")
        if offsets.ndim != 1 or (include_last_offset and not offsets.shape[0]):
            expected = "[B + 1]" if include_last_offset else "[B]"
            raise ValueError(f"offsets: expected shape {expected}, got {tuple(offsets.shape)}")
        bags = offsets.shape[0] - int(include_last_offset)
    if per_sample_weights is not None:
        if mode != "sum":
            raise ValueError(f"per_sample_weights: expected None with mode={mode!r}, got weights")
        float_code(per_sample_weights, "per_sample_weights")
        check_shape(per_sample_weights, "per_sample_weights", tuple(indices.shape))
    if padding_idx is None:
        return bags, -1
    entries = weight.shape[0]
    padding = operator.index(padding_idx)
    if not -entries <= padding < entries:
        raise ValueError(f"padding_idx: expected None or an int in [{-entries}, {entries}), got {padding}")
    return bags, padding % entries


def bag_ends(indices: Array, offsets: Array | None, bags: int, include_last_offset: bool) -> Array:
    """int64 [bags]: where each bag ends among the indices, of which the next one is the first of the next."""
    ends = empty((bags,), "int64", indices)
    if offsets is None:
        ends[...] = indices.shape[1]
        return ends.cumsum(0)
    if include_last_offset:
        ends[...] = offsets[1:]
    elif bags:
        ends[:-1] = offsets[1:]
        ends[-1] = indices.shape[0]
    return ends


def _check_offsets(offsets: Array | None, ends: Array, count: int) -> None:
    if offsets is None or not offsets.shape[0]:
        return
    last = int(ends[-1]) if ends.shape[0] else 0
    if int(offsets[0]) or last > count or bool((offsets[1:] < offsets[:-1]).any()) or int(offsets[-1]) > last:
        raise ValueError(
            f"offsets: expected 0 first, ascending, at most {count}, got {to_host(offsets)[:8].tolist()}"
            f"{' ...' if offsets.shape[0] > 8 else ''}"
        )


def _check_values(indices: Array, entries: int) -> None:
    """What the native kernels check themselves."""
    if on_cuda(indices):
        return
    outside = np.flatnonzero(to_host((indices < 0) | (indices >= entries)))
    if len(outside):
        _raise_outside(indices, int(outside[0]), entries)


def _raise_outside(indices: Array, at: int, entries: int) -> None:
    found = int(indices.reshape(-1)[at])
    where = tuple(int(i) for i in np.unravel_index(at, tuple(indices.shape)))
    raise IndexError(f"indices: expected values in [0, {entries}), got {found} at {where}")


def _count(x: Array) -> int:
    return math.prod(x.shape)
