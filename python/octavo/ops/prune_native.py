"""What prunes natively: the elements, groups or units that are kept, and masks and weights after them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.arrays import Array, empty, float_code, on_cuda, pointer
from ..runtime.routing import Engine
from .selection import Selection, f32_bits, from_bits, shape_2d, unit_shape

FAMILIES = ("select", "prune")  # the CUDA kernels that all of this needs
_NONE_EQUAL = 2**62  # as keep_equal_from: of the elements equal to the threshold none stays


def write(
    engine: Engine,
    ws: Sequence[Array],
    masks: Sequence[Array] | None,
    pruned: Sequence[Array] | None,
    chosen: Selection,
) -> None:
    """Fills masks, pruned (which may be ws) or both; all arrays C-contiguous."""
    kernels, where = engine
    segments = segments_of(kernels, ws, masks, pruned)
    if ":" in chosen.pattern:
        n, m = chosen.units
        for segment in segments:
            kernels.prune_nm(segment, n=n, m=m, where=where)
    elif chosen.pattern != "unstructured":
        _write_units(engine, ws, segments, chosen)
    else:
        selected, _alive = select(engine, ws, chosen)
        kernels.prune(segments, selection=selected, where=where)


def segments_of(
    kernels: Any,
    ws: Sequence[Array],
    masks: Sequence[Array] | None = None,
    pruned: Sequence[Array] | None = None,
) -> list[Any]:
    """The records of arrays that are treated as one, and of what is written for each."""
    return [
        kernels.Segment(
            pointer(w),
            dtype=float_code(w, "w"),
            n=size_of(w),
            mask=0 if masks is None else pointer(masks[i]),
            pruned=0 if pruned is None else pointer(pruned[i]),
        )
        for i, w in enumerate(ws)
    ]


def size_of(w: Array) -> int:
    return math.prod(w.shape)


def select(engine: Engine, ws: Sequence[Array], chosen: Selection) -> tuple[Any, Array | None]:
    """What is kept, as the kernels take it, and the array that holds it on a device: larger keys, and equal
    ones from an index of the whole list on. On a device it stays there: nothing waits."""
    kernels, where = engine
    if chosen.threshold is not None:
        return _by_value(kernels, chosen.threshold), None
    k = 0 if chosen.sparsity is None else round(chosen.sparsity * sum(size_of(w) for w in ws))
    if chosen.sparsity is not None and not k:
        return _by_value(kernels, -1.0), None
    segments = segments_of(kernels, ws)
    if on_cuda(ws[0]):
        held = empty((kernels.SELECTION_NBYTES,), "uint8", ws[0])
        at = pointer(held)
        if chosen.ratio is None:
            kernels.magnitude_select_to(segments, k=k, selection=at, where=where)
        else:
            bits = f32_bits(chosen.ratio)
            kernels.ratio_select_to(segments, ratio_bits=bits, selection=at, where=where)
        return kernels.selection_at(at), held
    if chosen.ratio is None:
        key, keep_equal_from = kernels.magnitude_select(segments, k=k, where=where)
        return kernels.Selection(key, keep_equal_from=keep_equal_from), None
    # exact in float64 and rounded once, as one float32 product is
    limit = from_bits(f32_bits(chosen.ratio)) * from_bits(kernels.max_key(segments, where=where))
    return _by_value(kernels, limit), None


def _by_value(kernels: Any, limit: float) -> Any:
    """The selection that keeps |w| > limit. A negative limit keeps everything, even one that would round to 0
    and prune the zeros."""
    key, keep_equal_from = (0, 0) if limit < 0 else (f32_bits(limit), _NONE_EQUAL)
    return kernels.Selection(key, keep_equal_from=keep_equal_from)


def _write_units(engine: Engine, ws: Sequence[Array], segments: Sequence[Any], chosen: Selection) -> None:
    kernels, where = engine
    grids = []
    for w in ws:
        (rows, cols), (r, c) = shape_2d(w), unit_shape(w, chosen)
        units = rows // r * (cols // c) if r and c else 0
        grid = kernels.UnitGrid(rows=rows, cols=cols, unit_rows=r, unit_cols=c) if units else None
        grids.append((grid, units))
    count = sum(units for _, units in grids)
    if not count:
        return
    device = on_cuda(ws[0])
    scores = empty((count,), "float64", ws[0]) if device else np.empty(count, np.float64)
    at = pointer(scores)
    for segment, (grid, units) in zip(segments, grids, strict=True):
        if units:
            kernels.unit_scores(segment, grid=grid, scores=at, where=where)
        at += units * scores.itemsize
    keep = _keep_units_there(engine, scores, chosen) if device else _keep_units(scores, chosen)
    at = pointer(keep)
    for segment, (grid, units) in zip(segments, grids, strict=True):
        if units:
            kernels.prune_units(segment, grid=grid, keep=at, where=where)
        at += units


def _keep_units_there(engine: Engine, scores: Array, chosen: Selection) -> Array:
    """_keep_units, on the device."""
    kernels, where = engine
    keep = empty(scores.shape, "bool", scores)
    count, at = scores.shape[0], pointer(keep)
    if chosen.sparsity is not None:
        k = round(chosen.sparsity * count)
        kernels.unit_select(pointer(scores), count=count, k=k, keep=at, where=where)
    else:
        is_ratio = chosen.ratio is not None
        limit = chosen.ratio if is_ratio else chosen.threshold
        kernels.unit_threshold(
            pointer(scores), count=count, limit=limit, is_ratio=is_ratio, keep=at, where=where
        )
    return keep


def _keep_units(scores: NDArray[np.float64], chosen: Selection) -> NDArray[np.bool_]:
    if chosen.sparsity is None:
        limit: Any = chosen.threshold
        if chosen.ratio is not None:
            limit = chosen.ratio * scores.max(initial=0.0, where=np.isfinite(scores))
        with np.errstate(invalid="ignore"):
            kept: NDArray[np.bool_] = ~(scores <= limit)  # NaN is kept
        return kept
    k = round(chosen.sparsity * scores.size)
    if not k:
        return np.ones(scores.shape, np.bool_)
    last = np.partition(scores, k - 1)[k - 1]  # NaN sorts last
    tie = np.isnan(scores) if math.isnan(last) else scores == last
    keep = ~(~tie if math.isnan(last) else scores < last)
    keep[np.flatnonzero(tie)[: k - int(np.count_nonzero(~keep))]] = False
    return keep
