"""Masks and pruning: what they check, allocate and call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import (
    Array,
    byte_range,
    check_out,
    check_outs,
    contiguous,
    dtype_name,
    empty,
    float_code,
    is_plain,
    is_torch,
    kind_of,
    mark_written,
    needs_dispatcher,
    on_cuda,
    on_device_of,
    pointer,
    store,
    writable,
)
from .engines import Engine, native_for, reference_for
from .quantization import Quantized, _quantize, raise_nonfinite
from .selection import (
    Selection,
    _check_units,
    _f32_bits,
    _from_bits,
    _number,
    _selection,
    _shape_2d,
    _unit_shape,
)

_NONE_EQUAL = 2**62  # as keep_equal_from: of the elements equal to the threshold none stays


# ---- masks ----


def prune_mask(
    w: Array | Sequence[Array],
    *,
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
    out: Array | Sequence[Array] | None = None,
) -> Any:
    """Which weights to keep: a bool mask like w, True = kept.

    w: float32, float16, bfloat16 or float64, compared by its float32 magnitude; or a list or tuple of such
        arrays,
        pruned as one: a list of masks. A contiguous copy is made of a w that is not C-contiguous.
    Exactly one of
    threshold: keep |w| > threshold;
    ratio: keep |w| > ratio * max |w| over the finite elements;
    sparsity: in [0, 1]: the k = round(sparsity * n) smallest go, ties lowest index first, exactly k of them;
    or none of them with an "n:m" pattern.
    pattern: "unstructured"; "n:m", such as "2:4" (1 <= n < m <= 32): the n largest of every m along the last
        axis stay; "row", "column" or "block{r}x{c}", such as "block4x16": whole units of the 2-D view
        [prod(shape[:-1]), shape[-1]] go, by the sum of their magnitudes (float64), which threshold and ratio
        compare too.
    nonfinite: NaN is kept and counts as the largest magnitude ("keep"), or NaN and Inf are a ValueError
        ("raise"), for which a call on a device waits for it.
    out: bool array like w to fill, or one per array; one that is not C-contiguous costs a temporary.
    """
    if type(w) is not np.ndarray and needs_dispatcher(*_flat(w)):
        from . import torch_ops

        arguments: dict[str, Any] = {
            "threshold": threshold,
            "ratio": ratio,
            "sparsity": sparsity,
            "pattern": pattern,
            "nonfinite": nonfinite,
        }
        if out is not None:
            arguments["out"] = out
        if isinstance(w, (list, tuple)):
            return torch_ops.prune_masks(w, **arguments)
        single: Array = w
        return torch_ops.prune_mask(single, **arguments)
    if isinstance(w, (list, tuple)):
        return _prune_masks(w, threshold, ratio, sparsity, pattern, nonfinite, out)
    return _prune_mask(w, threshold, ratio, sparsity, pattern, nonfinite, out)


def _prune_mask(
    w: Array,
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
    out: Array | None = None,
) -> Array:
    """prune_mask of one array, without torch's dispatcher."""
    outs = None if out is None else [out]
    return _masks(
        [w], ["w"], _selection(threshold, ratio, sparsity, pattern, nonfinite), nonfinite, outs, ["out"]
    )[0]


def _prune_masks(
    ws: Sequence[Array],
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
    out: Sequence[Array] | None = None,
) -> list[Array]:
    """prune_mask of several arrays as one, without torch's dispatcher."""
    if out is not None:
        _check_out_list(out, ws)
    chosen = _selection(threshold, ratio, sparsity, pattern, nonfinite)
    return _masks(ws, _names("w", ws, True), chosen, nonfinite, out, _names("out", ws, True))


def _masks(
    ws: Sequence[Array],
    names: list[str],
    chosen: Selection,
    nonfinite: str,
    outs: Sequence[Array] | None,
    out_names: list[str],
) -> list[Array]:
    _check_weights(ws, names, chosen, nonfinite)
    if outs is not None:
        _check_outs(outs, out_names, ws, names, ["bool"] * len(ws))
    if not ws:
        return []
    engine = _engine_for(ws[0])
    if engine is None:
        found = _reference_masks(ws, chosen)
    else:
        found = _allocated(ws, outs, ["bool"] * len(ws))
        _native(engine, [contiguous(w) for w in ws], found, None, chosen)
    return found if outs is None else [store(out, mask) for out, mask in zip(outs, found, strict=True)]


def _check_weights(ws: Sequence[Array], names: list[str], chosen: Selection, nonfinite: str) -> None:
    kind_of(**dict(zip(names, ws, strict=True)))
    for w, name in zip(ws, names, strict=True):
        kind_of(**{name: w})
        float_code(w, name)
        _check_units(w, name, chosen)
        if nonfinite == "raise":
            raise_nonfinite(w, name)


def _check_outs(
    outs: Sequence[Array], out_names: list[str], ws: Sequence[Array], names: list[str], dtypes: list[str]
) -> None:
    """Each out like its w, of its dtype, apart from all the others."""
    inputs: dict[str, Array | None] = dict(zip(names, ws, strict=True))
    for dtype in dict.fromkeys(dtypes):
        written = [
            (out, name, w.shape)
            for out, name, w, each in zip(outs, out_names, ws, dtypes, strict=True)
            if each == dtype
        ]
        check_outs(written, ws[0], dtype, inputs)
        inputs.update({name: out for out, name, _ in written})


def _check_out_list(out: object, ws: Sequence[Array]) -> None:
    if not isinstance(out, (list, tuple)):
        raise TypeError(f"out: expected a sequence of {len(ws)} arrays, got {type(out).__name__}")
    if len(out) != len(ws):
        raise TypeError(f"out: expected a sequence of {len(ws)} arrays, got {len(out)}")


def _allocated(ws: Sequence[Array], outs: Sequence[Array] | None, dtypes: list[str]) -> list[Array]:
    """C-contiguous arrays to write: outs where they are, else new ones."""
    if outs is None:
        return [empty(tuple(w.shape), dtype, w) for w, dtype in zip(ws, dtypes, strict=True)]
    return [writable(out, dtype) for out, dtype in zip(outs, dtypes, strict=True)]


_FAMILIES = ("select", "prune")


def _engine_for(w: Array) -> Engine | None:
    return native_for(w, *_FAMILIES)


def _reference_for(w: Array) -> Any:
    return reference_for(w, *_FAMILIES)


def _reference_masks(ws: Sequence[Array], chosen: Selection) -> list[Array]:
    return list(
        _reference_for(ws[0]).prune_masks(ws, chosen.threshold, chosen.ratio, chosen.sparsity, chosen.pattern)
    )


def _native(
    engine: Engine, ws: list[Array], masks: list[Array] | None, pruned: list[Array] | None, chosen: Selection
) -> None:
    """Fills masks, pruned (which may be ws) or both; all arrays C-contiguous."""
    mask_at = [pointer(mask) for mask in masks] if masks is not None else [0] * len(ws)
    pruned_at = [pointer(each) for each in pruned] if pruned is not None else [0] * len(ws)
    kernels, where = engine
    segments = [
        kernels.Segment(pointer(w), dtype=float_code(w, "w"), n=_size(w), mask=mask, pruned=each)
        for w, mask, each in zip(ws, mask_at, pruned_at, strict=True)
    ]
    if ":" in chosen.pattern:
        n, m = chosen.units
        for segment in segments:
            kernels.prune_nm(segment, n=n, m=m, where=where)
    elif chosen.pattern != "unstructured":
        _native_units(engine, ws, segments, chosen)
    else:
        selection, _alive = _select(engine, ws, segments, chosen)
        kernels.prune(segments, selection=selection, where=where)


def _select(engine: Engine, ws: list[Array], segments: list[Any], chosen: Selection) -> tuple[Any, Array]:
    """What is kept, as the kernels take it, and the array that holds it on a device: larger keys, and equal
    ones from an index of the whole list on. On a device it stays there: nothing waits."""
    kernels, where = engine
    if chosen.threshold is not None:
        return _by_value(kernels, chosen.threshold), None
    k = 0 if chosen.sparsity is None else round(chosen.sparsity * sum(_size(w) for w in ws))
    if chosen.sparsity is not None and not k:
        return _by_value(kernels, -1.0), None
    if on_cuda(ws[0]):
        selection = empty((kernels.SELECTION_NBYTES,), "uint8", ws[0])
        at = pointer(selection)
        if chosen.ratio is None:
            kernels.magnitude_select_to(segments, k=k, selection=at, where=where)
        else:
            bits = _f32_bits(chosen.ratio)
            kernels.ratio_select_to(segments, ratio_bits=bits, selection=at, where=where)
        return kernels.selection_at(at), selection
    if chosen.ratio is None:
        key, keep_equal_from = kernels.magnitude_select(segments, k=k, where=where)
        return kernels.Selection(key, keep_equal_from=keep_equal_from), None
    # exact in float64 and rounded once, as one float32 product is
    limit = _from_bits(_f32_bits(chosen.ratio)) * _from_bits(kernels.max_key(segments, where=where))
    return _by_value(kernels, limit), None


def _by_value(kernels: Any, limit: float) -> Any:
    """The selection that keeps |w| > limit. A negative limit keeps everything, even one that would round to 0
    and prune the zeros."""
    key, keep_equal_from = (0, 0) if limit < 0 else (_f32_bits(limit), _NONE_EQUAL)
    return kernels.Selection(key, keep_equal_from=keep_equal_from)


def _native_units(engine: Engine, ws: list[Array], segments: list[Any], chosen: Selection) -> None:
    kernels, where = engine
    grids = []
    for w in ws:
        (rows, cols), (r, c) = _shape_2d(w), _unit_shape(w, chosen)
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
    count = scores.shape[0]
    if chosen.sparsity is not None:
        k = round(chosen.sparsity * count)
        kernels.unit_select(pointer(scores), count=count, k=k, keep=pointer(keep), where=where)
    else:
        is_ratio = chosen.ratio is not None
        limit = chosen.ratio if is_ratio else chosen.threshold
        at = pointer(keep)
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


def magnitude_threshold(w: Array | Sequence[Array], sparsity: float) -> float:
    """The k-th smallest |w| (as float32) with k = round(sparsity * n), half to even; 0.0 for k = 0.

    w: a float array, or a list or tuple of them taken as one; sparsity in [0, 1]. NaN counts as larger than
    Inf. A contiguous copy is made of a w that is not C-contiguous. On a device, the call waits for it.
    """
    if type(w) is not np.ndarray and needs_dispatcher(*_flat(w)):
        from . import torch_ops

        return torch_ops.magnitude_threshold(_flat(w), sparsity)
    return _magnitude_threshold(w, sparsity)


def _magnitude_threshold(w: Array | Sequence[Array], sparsity: float) -> float:
    """magnitude_threshold, without torch's dispatcher."""
    ws = _flat(w)
    names = _names("w", ws, isinstance(w, (list, tuple)))
    kind_of(**dict(zip(names, ws, strict=True)))
    share = _number(sparsity, "sparsity")
    if not 0 <= share <= 1:
        raise ValueError(f"sparsity: expected a number in [0, 1], got {sparsity!r}")
    codes = [float_code(each, name) for each, name in zip(ws, names, strict=True)]
    k = round(share * sum(_size(each) for each in ws))
    if not k:
        return 0.0
    engine = native_for(ws[0], "select")
    if engine is None:
        detached = [each.detach() if is_torch(each) else each for each in ws]
        return float(reference_for(ws[0], "select").magnitude_threshold(detached, share))
    ws = [contiguous(each) for each in ws]
    kernels, where = engine
    segments = [
        kernels.Segment(pointer(each), dtype=code, n=_size(each), mask=0, pruned=0)
        for each, code in zip(ws, codes, strict=True)
    ]
    key, _ = kernels.magnitude_select(segments, k=k, where=where)
    return _from_bits(key)


# ---- pruning ----


def prune(w: Array | Sequence[Array], *, out: Array | Sequence[Array] | None = None, **arguments: Any) -> Any:
    """A copy of w (an array, or a list of them) with 0.0 where prune_mask(w, **arguments) is False.

    out: array like w to fill, or one per array, apart from w; one that is not C-contiguous costs a temporary.
    """
    many = isinstance(w, (list, tuple))
    ws = _flat(w)
    if many and out is not None:
        _check_out_list(out, ws)
    outs: list[Array] | None = None if out is None else list(out) if many else [out]
    if needs_dispatcher(*ws):
        from . import torch_ops

        results = torch_ops.prune(ws, **arguments)
        if outs is not None:
            from .torch_library import _fill

            filled = zip(_names("out", ws, many), outs, results, ws, strict=True)
            results = [_fill(each, name, result, w=like) for name, each, result, like in filled]
    else:
        results = _pruned(ws, _names("w", ws, many), outs, _names("out", ws, many), **arguments)
    return results if many else results[0]


def _pruned(
    ws: list[Array],
    names: list[str],
    outs: list[Array] | None,
    out_names: list[str],
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
) -> list[Array]:
    chosen = _selection(threshold, ratio, sparsity, pattern, nonfinite)
    _check_weights(ws, names, chosen, nonfinite)
    dtypes = [dtype_name(w.dtype) for w in ws]
    if outs is not None:
        _check_outs(outs, out_names, ws, names, dtypes)
    if not ws:
        return []
    engine = _engine_for(ws[0])
    if engine is None:
        apply_mask = _reference_for(ws[0]).apply_mask
        found = [apply_mask(w, mask) for w, mask in zip(ws, _reference_masks(ws, chosen), strict=True)]
    else:
        found = _allocated(ws, outs, dtypes)
        _native(engine, [contiguous(w) for w in ws], None, found, chosen)
    return found if outs is None else [store(out, each) for out, each in zip(outs, found, strict=True)]


def prune_(
    w: Array | Sequence[Array], *, out: Array | Sequence[Array] | None = None, **arguments: Any
) -> Any:
    """Writes 0.0 into w, in place, where prune_mask(w, **arguments) is False; returns the mask (or list of
    masks).

    Of torch tensors only the data changes; autograd sees an in-place change but not what it was. ValueError
    for a read-only array, or one whose elements overlap.
    out: the mask (or list of masks) to fill, as for prune_mask.
    """
    many = isinstance(w, (list, tuple))
    ws = [each.detach() if hasattr(each, "detach") else each for each in _flat(w)]
    names = _names("w", ws, many)
    for each, name in zip(ws, names, strict=True):
        if not needs_dispatcher(each):
            kind_of(**{name: each})
            float_code(each, name)
            check_out(each, name, each, each.shape, dtype_name(each.dtype), {})
    if not needs_dispatcher(*ws):
        if many and out is not None:
            _check_out_list(out, ws)
        outs: list[Array] | None = None if out is None else list(out) if many else [out]
        masks = _pruned_in_place(ws, names, outs, _names("out", ws, many), **arguments)
        return masks if many else masks[0]
    found = prune_mask(ws if many else ws[0], out=out, **arguments)
    for each, mask in zip(ws, _flat(found), strict=True):
        each.masked_fill_(~mask, 0)
    return found


def _pruned_in_place(
    ws: list[Array],
    names: list[str],
    outs: list[Array] | None,
    out_names: list[str],
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
) -> list[Array]:
    chosen = _selection(threshold, ratio, sparsity, pattern, nonfinite)
    engine = _engine_for(ws[0]) if ws else None
    if engine is None or not all(is_plain(w) for w in ws) or _overlap(ws):
        masks = _masks(ws, names, chosen, nonfinite, outs, out_names)
        for w, mask in zip(ws, masks, strict=True):
            if is_torch(w):
                w.masked_fill_(~mask, 0)
            else:
                with on_device_of(w):
                    w[~mask] = 0
        return masks
    _check_weights(ws, names, chosen, nonfinite)
    dtypes = ["bool"] * len(ws)
    if outs is not None:
        _check_outs(outs, out_names, ws, names, dtypes)
    masks = _allocated(ws, outs, dtypes)
    _native(engine, ws, masks, ws, chosen)
    for w in ws:
        mark_written(w)
    return masks if outs is None else [store(out, mask) for out, mask in zip(outs, masks, strict=True)]


def _overlap(ws: list[Array]) -> bool:
    """Whether arrays of a list share memory: then one must not change before all have been read."""
    ranges = sorted(byte_range(w) for w in ws)
    return any(begin < end for (_, end), (begin, _) in itertools.pairwise(ranges))


def prune_quantize(
    w: Array,
    *,
    granularity: str = "row",
    group_size: int | None = None,
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
    out: tuple[Array, Array, Array] | None = None,
) -> tuple[Quantized, Array]:
    """(quantize(prune(w)), mask) to the bit, in one pass over w once the mask is known.

    w, threshold, ratio, sparsity, pattern, nonfinite: as for prune_mask (one array); granularity, group_size:
    as for quantize. A contiguous copy is made of a w that is not C-contiguous.
    out: (data, scale, mask) to fill; an array of them that is not C-contiguous costs a temporary.
    """
    arguments: dict[str, Any] = {
        "granularity": granularity,
        "group_size": group_size,
        "threshold": threshold,
        "ratio": ratio,
        "sparsity": sparsity,
        "pattern": pattern,
        "nonfinite": nonfinite,
    }
    if out is not None:
        arguments["out"] = out
    if type(w) is not np.ndarray and needs_dispatcher(w):
        from . import torch_ops

        return torch_ops.prune_quantize(w, **arguments)
    return _prune_quantize(w, **arguments)


def _prune_quantize(
    w: Array,
    granularity: str = "row",
    group_size: int | None = None,
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
    out: tuple[Array, Array, Array] | None = None,
) -> tuple[Quantized, Array]:
    """prune_quantize, without torch's dispatcher."""
    quantized_out = mask_out = None
    if out is not None:
        if not isinstance(out, (list, tuple)) or len(out) != 3:
            got = f"{len(out)} arrays" if isinstance(out, (list, tuple)) else type(out).__name__
            raise TypeError(f"out: expected (data, scale, mask), got {got}")
        quantized_out, mask_out = (out[0], out[1]), out[2]
        kind_of(w=w, data=out[0], scale=out[1], mask=out[2])
        check_out(mask_out, "out[2]", w, w.shape, "bool", {"w": w, "out[0]": out[0], "out[1]": out[1]})
    chosen = _selection(threshold, ratio, sparsity, pattern, nonfinite)
    kind_of(w=w)
    engine = _engine_for(w)
    if granularity == "row" and group_size is None and pattern == "unstructured" and engine is not None:
        return _prune_quantize_rows(engine, w, chosen, nonfinite, out)
    outs = None if mask_out is None else [mask_out]
    mask = _masks([w], ["w"], chosen, nonfinite, outs, ["out[2]"])[0]
    found = _quantize(w, granularity, group_size, out=quantized_out, mask=contiguous(mask))
    return found, mask


def _prune_quantize_rows(
    engine: Engine, w: Array, chosen: Selection, nonfinite: str, out: tuple[Array, Array, Array] | None
) -> tuple[Quantized, Array]:
    """The case that is worth a kernel: everything about a row is done while it is in the cache."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("int8", tuple(w.shape)),
        ("float32", tuple(w.shape[:-1])),
        ("bool", tuple(w.shape)),
    ]
    _check_weights([w], ["w"], chosen, nonfinite)
    if not w.ndim:
        raise ValueError("w: expected at least one dimension for granularity='row', got shape ()")
    if out is None:
        written = [empty(shape, dtype, w) for dtype, shape in shapes]
    else:
        inputs: dict[str, Array | None] = {"w": w}
        for i, (dtype, shape) in enumerate(shapes):
            check_out(out[i], f"out[{i}]", w, shape, dtype, inputs)
            inputs[f"out[{i}]"] = out[i]
        written = [writable(each, dtype) for each, (dtype, _) in zip(out, shapes, strict=True)]
    data, scale, mask = written
    kernels, where = engine
    base, code = contiguous(w), float_code(w, "w")
    (rows, cols), at = _shape_2d(w), pointer(base)
    segment = kernels.Segment(at, dtype=code, n=_size(w), mask=0, pruned=0)
    selection, _alive = _select(engine, [w], [segment], chosen)
    kernels.prune_quantize(
        kernels.FloatRows(at, dtype=code, rows=rows, cols=cols, row_stride=cols, col_stride=1),
        selection=selection,
        mask=pointer(mask),
        data=pointer(data),
        scale=pointer(scale),
        where=where,
    )
    if out is not None:
        data, scale, mask = (store(each, found) for each, found in zip(out, written, strict=True))
    return Quantized(data, scale, None), mask


def _size(w: Array) -> int:
    return math.prod(w.shape)


def _flat(w: Array | Sequence[Array]) -> list[Array]:
    return list(w) if isinstance(w, (list, tuple)) else [w]


def _names(name: str, ws: Sequence[Array], many: bool) -> list[str]:
    return [f"{name}[{i}]" for i in range(len(ws))] if many else [name]
