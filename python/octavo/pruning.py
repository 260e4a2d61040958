"""Masks and pruning: what they check, allocate and call."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import backends
from .arrays import (
    Array,
    check_dtype,
    check_out,
    check_outs,
    contiguous,
    dtype_name,
    empty,
    float_code,
    kind_of,
    mark_written,
    needs_dispatcher,
    pointer,
    store,
    writable,
)
from .backends import _core
from .quantization import Quantized, _quantize, raise_nonfinite, reference_for, runs_native

_ALL_TIES = 2**62
_PATTERN = re.compile(r"(?:unstructured|row|column|block([1-9]\d*)x([1-9]\d*)|([1-9]\d*):([1-9]\d*))")


class Selection(NamedTuple):
    """What is pruned, checked; units: rows and columns of a block, n and m of "n:m", else (0, 0)."""

    threshold: float | None
    ratio: float | None
    sparsity: float | None
    pattern: str
    units: tuple[int, int]


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
        ("raise").
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
        if isinstance(w, list | tuple):
            return torch_ops.prune_masks(w, **arguments)
        single: Array = w
        return torch_ops.prune_mask(single, **arguments)
    if isinstance(w, list | tuple):
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
    if out is not None and (not isinstance(out, list | tuple) or len(out) != len(ws)):
        raise TypeError(f"out: expected a sequence of {len(ws)} arrays, got {type(out).__name__}")
    names, out_names = [f"w[{i}]" for i in range(len(ws))], [f"out[{i}]" for i in range(len(ws))]
    return _masks(
        ws, names, _selection(threshold, ratio, sparsity, pattern, nonfinite), nonfinite, out, out_names
    )


def _masks(
    ws: Sequence[Array],
    names: list[str],
    chosen: Selection,
    nonfinite: str,
    outs: Sequence[Array] | None,
    out_names: list[str],
) -> list[Array]:
    kind_of(**dict(zip(names, ws, strict=True)))
    for w, name in zip(ws, names, strict=True):
        kind_of(**{name: w})
        float_code(w, name)
        _check_units(w, name, chosen)
        if nonfinite == "raise":
            raise_nonfinite(w, name)
    if outs is not None:
        inputs: dict[str, Array | None] = dict(zip(names, ws, strict=True))
        written = [(out, name, w.shape) for out, name, w in zip(outs, out_names, ws, strict=True)]
        check_outs(written, ws[0], "bool", inputs)
    if not ws:
        return []
    if not runs_native(ws[0]):
        found = reference_for(ws[0]).prune_masks(
            ws, chosen.threshold, chosen.ratio, chosen.sparsity, chosen.pattern
        )
    else:
        masks = (
            [empty(tuple(w.shape), "bool", w) for w in ws]
            if outs is None
            else [writable(o, "bool") for o in outs]
        )
        found = _native_masks([contiguous(w) for w in ws], masks, chosen)
    if outs is None:
        return list(found)
    return [store(out, mask) for out, mask in zip(outs, found, strict=True)]


def _native_masks(ws: list[Array], masks: list[Array], chosen: Selection) -> list[Array]:
    """Fills C-contiguous masks."""
    threads = backends.get_num_threads()
    if ":" in chosen.pattern:
        n, m = chosen.units
        for w, mask in zip(ws, masks, strict=True):
            _core.prune_mask_nm(pointer(w), float_code(w, "w"), _size(w) // m, n, m, pointer(mask), threads)
        return masks
    if chosen.pattern != "unstructured":
        return _native_unit_masks(ws, masks, chosen)
    segments = [(pointer(w), float_code(w, "w"), _size(w)) for w in ws]
    if chosen.sparsity is not None:
        k = round(chosen.sparsity * sum(n for _, _, n in segments))
        key, ties = _core.magnitude_select(segments, k, threads) if k else (0, 0)
    else:
        if chosen.ratio is not None:
            # exact in float64 and rounded once, as one float32 product is
            limit = _from_bits(_f32_bits(chosen.ratio)) * _from_bits(_core.max_key(segments, threads))
        else:
            assert chosen.threshold is not None
            limit = chosen.threshold
        # a negative threshold keeps everything, even one that would round to 0 and prune the zeros
        key, ties = (0, 0) if limit < 0 else (_f32_bits(limit), _ALL_TIES)
    _core.prune_mask(
        [(*segment, pointer(mask)) for segment, mask in zip(segments, masks, strict=True)], key, ties, threads
    )
    return masks


def _native_unit_masks(ws: list[Array], masks: list[Array], chosen: Selection) -> list[Array]:
    grids = []
    for w in ws:
        (rows, cols), (r, c) = _shape_2d(w), _unit_shape(w, chosen)
        scores = np.empty((rows // r if r else 0, cols // c if c else 0), np.float64)
        if scores.size:
            _core.unit_scores(
                pointer(w), float_code(w, "w"), rows, cols, r, c, pointer(scores), backends.get_num_threads()
            )
        grids.append(scores)
    keep = _keep_units(np.concatenate([g.reshape(-1) for g in grids]), chosen)
    start = 0
    for w, mask, grid in zip(ws, masks, grids, strict=True):
        (rows, cols), (r, c) = _shape_2d(w), _unit_shape(w, chosen)
        if grid.size:
            view = mask if isinstance(mask, np.ndarray) else mask.numpy()
            units = keep[start : start + grid.size].reshape(grid.shape)
            view.reshape(grid.shape[0], r, grid.shape[1], c)[...] = units[:, None, :, None]
        start += grid.size
    return masks


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
    Inf. A contiguous copy is made of a w that is not C-contiguous.
    """
    ws = _flat(w)
    names = [f"w[{i}]" for i in range(len(ws))] if isinstance(w, list | tuple) else ["w"]
    kind_of(**dict(zip(names, ws, strict=True)))
    share = _number(sparsity, "sparsity")
    if not 0 <= share <= 1:
        raise ValueError(f"sparsity: expected a number in [0, 1], got {sparsity!r}")
    codes = [float_code(each, name) for each, name in zip(ws, names, strict=True)]
    k = round(share * sum(_size(each) for each in ws))
    if not k:
        return 0.0
    if not runs_native(ws[0]):
        detached = ws if isinstance(ws[0], np.ndarray) else [each.detach() for each in ws]
        return float(reference_for(ws[0]).magnitude_threshold(detached, share))
    ws = [contiguous(each) for each in ws]
    segments = [(pointer(each), code, _size(each)) for each, code in zip(ws, codes, strict=True)]
    key, _ = _core.magnitude_select(segments, k, backends.get_num_threads())
    return _from_bits(key)


# ---- pruning ----


def prune(w: Array | Sequence[Array], **arguments: Any) -> Any:
    """A copy of w (an array, or a list of them) with 0.0 where prune_mask(w, **arguments) is False."""
    _no_out(arguments)
    if isinstance(w, list | tuple):
        return [_masked(each, mask) for each, mask in zip(w, prune_mask(w, **arguments), strict=True)]
    return _masked(w, prune_mask(w, **arguments))


def prune_(w: Array | Sequence[Array], **arguments: Any) -> Any:
    """Writes 0.0 into w, in place, where prune_mask(w, **arguments) is False; returns the mask (or list of
    masks).

    Of torch tensors only the data changes; autograd sees an in-place change but not what it was. ValueError
    for a read-only array, or one whose elements overlap.
    """
    _no_out(arguments)
    detached = [each.detach() if hasattr(each, "detach") else each for each in _flat(w)]
    for i, each in enumerate(detached):
        name = f"w[{i}]" if isinstance(w, list | tuple) else "w"
        if isinstance(each, np.ndarray) or not needs_dispatcher(each):
            kind_of(**{name: each})
            float_code(each, name)
            check_out(each, name, each, each.shape, dtype_name(each.dtype), {})
    masks = prune_mask(detached if isinstance(w, list | tuple) else detached[0], **arguments)
    for each, mask in zip(detached, _flat(masks), strict=True):
        _mask_in_place(each, mask)
    return masks


def _masked(w: Array, mask: Array) -> Array:
    if type(w) is not np.ndarray and needs_dispatcher(w):
        return reference_for(w).apply_mask(w, mask)  # torch's own operation: it has a gradient and traces
    if not runs_native(w):
        return reference_for(w).apply_mask(w, mask)
    out = empty(tuple(w.shape), dtype_name(w.dtype), w)
    w = contiguous(w)
    _core.apply_mask(
        pointer(w), w.itemsize, pointer(mask), _size(w), pointer(out), backends.get_num_threads()
    )
    return out


def _mask_in_place(w: Array, mask: Array) -> None:
    if isinstance(w, np.ndarray):
        if runs_native(w) and contiguous(w) is w:
            _core.apply_mask(
                pointer(w), w.itemsize, pointer(mask), w.size, pointer(w), backends.get_num_threads()
            )
        else:
            w[~mask] = 0
    elif not needs_dispatcher(w) and runs_native(w) and w.is_contiguous():
        _core.apply_mask(
            pointer(w), w.itemsize, pointer(mask), _size(w), pointer(w), backends.get_num_threads()
        )
        mark_written(w)
    else:
        w.masked_fill_(~mask, 0)


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
        if not isinstance(out, list | tuple) or len(out) != 3:
            got = f"{len(out)} arrays" if isinstance(out, list | tuple) else type(out).__name__
            raise TypeError(f"out: expected (data, scale, mask), got {got}")
        quantized_out, mask_out = (out[0], out[1]), out[2]
        kind_of(w=w, data=out[0], scale=out[1], mask=out[2])
        check_out(mask_out, "out[2]", w, w.shape, "bool", {"w": w, "out[0]": out[0], "out[1]": out[1]})
    chosen = _selection(threshold, ratio, sparsity, pattern, nonfinite)
    outs = None if mask_out is None else [mask_out]
    mask = _masks([w], ["w"], chosen, nonfinite, outs, ["out[2]"])[0]
    found = _quantize(w, granularity, group_size, out=quantized_out, mask=contiguous(mask))
    return found, mask


# ---- masks as bits ----


def pack_mask(mask: Array) -> Array:
    """bool [..., K] -> uint8 [..., ceil(K / 8)]: element i of a row is bit i % 8 of byte i // 8."""
    kind = kind_of(mask=mask)
    check_dtype(mask, "mask", "bool")
    if not mask.ndim:
        raise ValueError("mask: expected at least one dimension, got shape ()")
    if kind == "numpy":
        return np.packbits(mask, axis=-1, bitorder="little")
    import torch

    if not needs_dispatcher(mask):
        return torch.from_numpy(np.packbits(mask.numpy(), axis=-1, bitorder="little"))
    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    bits = bits.reshape(*mask.shape[:-1], bits.shape[-1] // 8, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(-1, dtype=torch.uint8)


def unpack_mask(bits: Array, shape: Sequence[int]) -> Array:
    """The bool mask of this shape that pack_mask packed: uint8 [..., ceil(K / 8)] -> bool [..., K]."""
    kind = kind_of(bits=bits)
    check_dtype(bits, "bits", "uint8")
    shape = tuple(int(n) for n in shape)
    if not shape or min(shape) < 0:
        raise ValueError(f"shape: expected at least one dimension, none negative, got {shape}")
    expected = (*shape[:-1], -(-shape[-1] // 8))
    if tuple(bits.shape) != expected:
        raise ValueError(
            f"bits: expected shape {expected} for a mask of shape {shape}, got {tuple(bits.shape)}"
        )
    if kind == "numpy":
        return np.unpackbits(bits, axis=-1, count=shape[-1], bitorder="little").view(np.bool_)
    import torch

    if not needs_dispatcher(bits):
        mask = np.unpackbits(bits.numpy(), axis=-1, count=shape[-1], bitorder="little")
        return torch.from_numpy(mask.view(np.bool_))
    each = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return each.reshape(*shape[:-1], 8 * bits.shape[-1])[..., : shape[-1]].to(torch.bool)


# ---- arguments ----


def _selection(
    threshold: float | None, ratio: float | None, sparsity: float | None, pattern: str, nonfinite: str
) -> Selection:
    if nonfinite not in ("keep", "raise"):
        raise ValueError(f"nonfinite: expected 'keep' or 'raise', got {nonfinite!r}")
    match = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    numbers = [int(v) for v in match.groups() if v] if match else []
    if not match or (":" in pattern and not numbers[0] < numbers[1] <= 32):
        raise ValueError(
            "pattern: expected 'unstructured', 'n:m' with 1 <= n < m <= 32, 'row', 'column' or "
            f"'block{{r}}x{{c}}', got {pattern!r}"
        )
    given = {"threshold": threshold, "ratio": ratio, "sparsity": sparsity}
    names = [name for name, value in given.items() if value is not None]
    if ":" in pattern:
        if names:
            raise ValueError(f"{names[0]}: expected None with pattern={pattern!r}, got {given[names[0]]!r}")
    elif len(names) != 1:
        raise ValueError(
            f"expected exactly one of threshold, ratio and sparsity, got {' and '.join(names) or 'none'}"
        )
    if threshold is not None and math.isnan(threshold := _number(threshold, "threshold")):
        raise ValueError("threshold: expected a number, got nan")
    if ratio is not None and not 0 <= (ratio := _number(ratio, "ratio")) < 2.0**127:
        raise ValueError(f"ratio: expected a finite float32 >= 0, got {ratio!r}")
    if sparsity is not None and not 0 <= (sparsity := _number(sparsity, "sparsity")) <= 1:
        raise ValueError(f"sparsity: expected a number in [0, 1], got {sparsity!r}")
    return Selection(threshold, ratio, sparsity, pattern, (numbers[0], numbers[1]) if numbers else (0, 0))


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    return float(value)


def _check_units(w: Array, name: str, chosen: Selection) -> None:
    rows, cols = _shape_2d(w)
    if ":" in chosen.pattern:
        if not w.ndim or cols % chosen.units[1]:
            raise ValueError(
                f"{name}: expected a last axis divisible by {chosen.units[1]} for "
                f"pattern={chosen.pattern!r}, got shape {tuple(w.shape)}"
            )
    elif chosen.pattern.startswith("block") and (rows % chosen.units[0] or cols % chosen.units[1]):
        raise ValueError(
            f"{name}: expected a 2-D view of whole {chosen.units[0]} x {chosen.units[1]} blocks for "
            f"pattern={chosen.pattern!r}, got {rows} x {cols}"
        )


def _f32_bits(value: float) -> int:
    """The bits of value >= 0 as float32; in integers where that is a denormal, which a caller may flush."""
    if value < 2.0**-126:
        return round(value * 2.0**149)
    with np.errstate(over="ignore"):
        return int(np.float32(value).view(np.uint32))


def _from_bits(bits: int) -> float:
    """The float32 of these bits."""
    return bits * 2.0**-149 if bits < 0x00800000 else float(np.uint32(bits).view(np.float32))


def _shape_2d(w: Array) -> tuple[int, int]:
    return math.prod(w.shape[:-1]), w.shape[-1] if w.ndim else 1


def _unit_shape(w: Array, chosen: Selection) -> tuple[int, int]:
    rows, cols = _shape_2d(w)
    return {"row": (1, cols), "column": (rows, 1)}.get(chosen.pattern, chosen.units)


def _size(w: Array) -> int:
    return math.prod(w.shape)


def _flat(w: Array | Sequence[Array]) -> list[Array]:
    return list(w) if isinstance(w, list | tuple) else [w]


def _no_out(arguments: dict[str, Any]) -> None:
    if "out" in arguments:
        raise TypeError("out: expected no out, which belongs to prune_mask, got one")
