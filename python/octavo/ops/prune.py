"""Masks of pruning, and pruned weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..runtime.arrays import (
    Array,
    contiguous,
    detached,
    dtype_name,
    float_code,
    is_plain,
    is_torch,
    kind_of,
    native_dtype,
    needs_dispatcher,
    on_device_of,
    pointer,
)
from ..runtime.outputs import byte_range, check_out, mark_written
from ..runtime.routing import Engine, float_rows, native_for, reference_for
from .op import Op, Out, Plan, outs_of
from .prune_native import FAMILIES, segments_of, select, size_of, write
from .quantize import QUANTIZE, Quantized, raise_nonfinite
from .selection import check_units, from_bits, number, selection

_SELECTION = (
    "float? threshold=None, float? ratio=None, float? sparsity=None, "
    'str pattern="unstructured", str nonfinite="keep"'
)


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
    chosen = threshold, ratio, sparsity, pattern, nonfinite
    outs = _outs(out, w)
    return PRUNE_MASKS(w, *chosen, out=outs) if _is_list(w) else PRUNE_MASK(w, *chosen, out=outs)


def _plan_many(
    ws: Sequence[Array],
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
    *,
    names: Sequence[str] | None = None,
    pruned: bool = False,
) -> Plan:
    """The masks of several weights that are selected as one, or the pruned weights themselves; names: what
    errors call them."""
    chosen = selection(threshold, ratio, sparsity, pattern, nonfinite)
    inputs = dict(zip(_names("w", ws, True) if names is None else names, ws, strict=True))
    kind_of(**inputs)
    for name, w in inputs.items():
        kind_of(**{name: w})
        float_code(w, name)
        check_units(w, name, chosen)

    def check() -> None:
        if nonfinite == "raise":
            for name, w in inputs.items():
                raise_nonfinite(w, name)

    def native(engine: Engine, *found: Array) -> None:
        bases = [contiguous(w) for w in ws]
        write(engine, bases, None if pruned else list(found), list(found) if pruned else None, chosen)

    def reference(module: Any) -> Any:
        masks = list(module.prune_masks(ws, chosen.threshold, chosen.ratio, chosen.sparsity, pattern))
        return [module.apply_mask(w, m) for w, m in zip(ws, masks, strict=True)] if pruned else masks

    results = [(tuple(w.shape), dtype_name(w.dtype) if pruned else "bool", "") for w in ws]
    return Plan(ws[0] if ws else None, inputs, results, native, reference, check)


def _plan_mask(w: Array, *arguments: Any, **more: Any) -> Plan:
    return _plan_many([w], *arguments, **more, names=["w"])


def _lower(w: Array | Sequence[Array], *more: Any) -> tuple[Any, ...]:
    """A schema would take True for a number."""
    *before, threshold, ratio, sparsity, pattern, nonfinite = more
    given = {"threshold": threshold, "ratio": ratio, "sparsity": sparsity}
    numbers = (None if value is None else number(value, name) for name, value in given.items())
    return w, *before, *numbers, pattern, nonfinite


PRUNE_MASK = Op(f"prune_mask(Tensor w, *, {_SELECTION}) -> Tensor", _plan_mask, *FAMILIES, lower=_lower)
PRUNE_MASKS = Op(
    f"prune_masks(Tensor[] ws, *, {_SELECTION}) -> Tensor[]", _plan_many, *FAMILIES, lower=_lower
)


def magnitude_threshold(w: Array | Sequence[Array], sparsity: float) -> float:
    """The k-th smallest |w| (as float32) with k = round(sparsity * n), half to even; 0.0 for k = 0.

    w: a float array, or a list or tuple of them taken as one; sparsity in [0, 1]. NaN counts as larger than
    Inf. A contiguous copy is made of a w that is not C-contiguous. On a device, the call waits for it.
    """
    ws = _flat(w)
    if needs_dispatcher(*ws):
        return float(MAGNITUDE_THRESHOLD.trace((ws, sparsity)).item())
    names = _names("w", ws, _is_list(w))
    return _threshold(ws, _checked_share(ws, names, sparsity))


def _checked_share(ws: Sequence[Array], names: Sequence[str], sparsity: float) -> float:
    kind_of(**dict(zip(names, ws, strict=True)))
    share = number(sparsity, "sparsity")
    if not 0 <= share <= 1:
        raise ValueError(f"sparsity: expected a number in [0, 1], got {sparsity!r}")
    for each, name in zip(ws, names, strict=True):
        float_code(each, name)
    return share


def _threshold(ws: Sequence[Array], share: float) -> float:
    k = round(share * sum(size_of(each) for each in ws))
    if not k:
        return 0.0
    engine = native_for(ws[0], "select")
    if engine is None:
        plain = detached("magnitude_threshold", *ws)
        return float(reference_for(ws[0], "select").magnitude_threshold(plain, share))
    kernels, where = engine
    bases = [contiguous(each) for each in ws]
    key, _ = kernels.magnitude_select(segments_of(kernels, bases), k=k, where=where)
    return from_bits(key)


def _plan_threshold(ws: Sequence[Array], sparsity: float) -> Plan:
    names = _names("w", ws, len(ws) > 1)
    share = _checked_share(ws, names, sparsity)

    def native(engine: Engine, result: Array) -> None:
        result.fill_(_threshold(ws, share))

    def reference(module: Any) -> Any:
        return ws[0].new_tensor(_threshold(ws, share), dtype=native_dtype("float32", ws[0]))

    return Plan(ws[0], dict(zip(names, ws, strict=True)), (((), "float32", ""),), native, reference)


MAGNITUDE_THRESHOLD = Op(
    "magnitude_threshold(Tensor[] ws, float sparsity) -> Tensor", _plan_threshold, "select"
)


# ---- pruning ----


def prune(w: Array | Sequence[Array], *, out: Array | Sequence[Array] | None = None, **arguments: Any) -> Any:
    """A copy of w (an array, or a list of them) with 0.0 where prune_mask(w, **arguments) is False.

    out: array like w to fill, or one per array, apart from w; one that is not C-contiguous costs a temporary.
    """
    many, ws, outs, chosen = _is_list(w), _flat(w), _outs(out, w), _selection_of(**arguments)
    if not needs_dispatcher(*ws):
        plan = _plan_many(ws, *chosen, names=_names("w", ws, many), pruned=True)
        results = PRUNE_MASKS.compute(plan, outs)
    elif len(ws) == 1:
        results = [PRUNE.trace((ws[0], *chosen), outs)]
    else:
        from ..reference.torch import apply_mask

        masks = PRUNE_MASKS.trace((ws, *chosen))
        results = PRUNE_MASKS.filled([apply_mask(w, m) for w, m in zip(ws, masks, strict=True)], outs, {})
    return results if many else results[0]


def _plan_prune(w: Array, *arguments: Any, **more: Any) -> Plan:
    return _plan_many([w], *arguments, **more, names=["w"], pruned=True)


PRUNE = Op(f"prune(Tensor w, *, {_SELECTION}) -> Tensor", _plan_prune, *FAMILIES, lower=_lower)


def prune_(
    w: Array | Sequence[Array], *, out: Array | Sequence[Array] | None = None, **arguments: Any
) -> Any:
    """Writes 0.0 into w, in place, where prune_mask(w, **arguments) is False; returns the mask (or list of
    masks).

    Of torch tensors only the data changes; autograd sees an in-place change but not what it was. ValueError
    for a read-only array, or one whose elements overlap.
    out: the mask (or list of masks) to fill, as for prune_mask.
    """
    many = _is_list(w)
    ws: list[Any] = detached("prune_", *_flat(w))
    names = _names("w", ws, many)
    for each, name in zip(ws, names, strict=True):
        if not needs_dispatcher(each):
            kind_of(**{name: each})
            float_code(each, name)
            check_out(each, name, each, each.shape, dtype_name(each.dtype), {})
    if not needs_dispatcher(*ws):
        masks = prune_in_place(ws, names, _outs(out, w), **arguments)
        return masks if many else masks[0]
    found = prune_mask(ws if many else ws[0], out=out, **arguments)
    for each, mask in zip(ws, _flat(found), strict=True):
        each.masked_fill_(~mask, 0)
    return found


def prune_in_place(
    ws: list[Array], names: Sequence[str], outs: Sequence[Out] | None = None, **arguments: Any
) -> list[Array]:
    """prune_ of checked arrays, without torch's dispatcher."""
    chosen = _selection_of(**arguments)
    plan = _plan_many(ws, *chosen, names=names)
    at_once = all(is_plain(w) for w in ws) and not _overlap(ws)
    if not ws or not at_once or native_for(ws[0], *FAMILIES) is None:
        masks: list[Array] = PRUNE_MASKS.compute(plan, outs)
        for w, mask in zip(ws, masks, strict=True):
            if is_torch(w):
                w.masked_fill_(~mask, 0)
            else:
                with on_device_of(w):
                    w[~mask] = 0
        return masks

    def native(engine: Engine, *found: Array) -> None:
        write(engine, ws, list(found), ws, selection(*chosen))

    masks = PRUNE_MASKS.compute(plan._replace(native=native), outs)
    for w in ws:
        mark_written(w)
    return masks


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
    outs = None if out is None else outs_of(out, ("data", "scale", "mask"))
    chosen = threshold, ratio, sparsity, pattern, nonfinite
    data, scale, mask = PRUNE_QUANTIZE(w, granularity, group_size, *chosen, out=outs)
    return Quantized(data, scale), mask


def _plan_prune_quantize(
    w: Array,
    granularity: str = "row",
    group_size: int | None = None,
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
) -> Plan:
    masks = _plan_mask(w, threshold, ratio, sparsity, pattern, nonfinite)
    if granularity == "row" and not w.ndim:
        raise ValueError("w: expected at least one dimension for granularity='row', got shape ()")
    data, scale, _ = QUANTIZE.plan(w, granularity, group_size).results

    def native(engine: Engine, q: Array, scales: Array, mask: Array) -> None:
        if granularity != "row" or pattern != "unstructured":
            masks.native(engine, mask)
            QUANTIZE.plan(w, granularity, group_size, mask=mask).native(engine, q, scales, None)
            return
        kernels, where = engine
        base = contiguous(w)
        chosen, _alive = select(engine, [base], selection(threshold, ratio, sparsity, pattern, nonfinite))
        view, _ = float_rows(kernels, base)
        kernels.prune_quantize(
            view, selection=chosen, mask=pointer(mask), data=pointer(q), scale=pointer(scales), where=where
        )

    def reference(module: Any) -> Any:
        (mask,) = masks.reference(module)
        q, scales, _ = module.quantize(
            module.apply_mask(w, mask), granularity, group_size, True, None, None, "nearest", None
        )
        return q, scales, mask

    results = (data[0], "int8", ""), scale, *masks.results
    return Plan(w, masks.inputs, results, native, reference, masks.check)


PRUNE_QUANTIZE = Op(
    f'prune_quantize(Tensor w, *, str granularity="row", int? group_size=None, {_SELECTION}) '
    "-> (Tensor, Tensor, Tensor)",
    _plan_prune_quantize,
    *FAMILIES,
    "quantize",
    lower=_lower,
)


# ---- arguments ----


def _selection_of(
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    nonfinite: str = "keep",
) -> tuple[float | None, float | None, float | None, str, str]:
    return threshold, ratio, sparsity, pattern, nonfinite


def _is_list(w: object) -> bool:
    return isinstance(w, (list, tuple))


def _flat(w: Array | Sequence[Array]) -> list[Array]:
    return list(w) if _is_list(w) else [w]


def _names(name: str, ws: Sequence[Array], many: bool) -> list[str]:
    return [f"{name}[{i}]" for i in range(len(ws))] if many else [name]


def _outs(out: Any, w: Array | Sequence[Array]) -> list[Out] | None:
    """`out` for an array, or for a list of them."""
    if out is None:
        return None
    if not _is_list(w):
        return [("out", out)]
    return outs_of(out, ["w"] * len(w), f"a sequence of {len(w)} arrays")
