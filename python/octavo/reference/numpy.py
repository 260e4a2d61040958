"""What every octavo op computes, in NumPy. Every backend equals these functions to the bit; only activations
may differ, by 4 float32 ulp.

`octavo.ops` has validated the arguments; dtype arguments are names ("float32", "bfloat16", ...). An operation
on float32 arrays is one IEEE-754 binary32 operation, rounded to nearest even.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_F32_TINY = np.finfo(np.float32).tiny
_NAN_KEY = np.uint32(0x7F800001)  # one key above Inf for every NaN

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _quiet() -> np.errstate:
    return np.errstate(all="ignore")  # NaN, Inf, overflow and underflow are data here, not accidents


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes  # NumPy has no bfloat16 of its own

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _f32(x: Array) -> Array:
    """f16 and bf16 widen exactly, f64 rounds once."""
    with _quiet():
        return np.asarray(x).astype(np.float32)


# ---- quantize ----


def quantize(
    x: Array,
    granularity: str = "row",
    group_size: int | None = None,
    symmetric: bool = True,
    scale: Array | None = None,
    zero_point: Array | None = None,
    rounding: str = "nearest",
    seed: int | None = None,
) -> tuple[Array, Array, Array | None]:
    """(data, scale, zero_point); zero_point is None when symmetric. A given scale and zero_point are kept."""
    with _quiet():
        lead, k = x.shape[:-1], x.shape[-1] if x.ndim else 1
        if granularity == "tensor":
            scale_shape: tuple[int, ...] = ()
            v = _f32(x).reshape(x.size)
        elif granularity == "row":
            scale_shape = lead
            v = _f32(x).reshape(*lead, k)
        else:
            assert group_size is not None
            scale_shape = (*lead, k // group_size)
            v = _f32(x).reshape(*scale_shape, group_size)

        finite = np.isfinite(v)
        if scale is not None:
            scale = np.asarray(scale, np.float32).reshape(scale_shape)
            inv = np.float32(1) / scale
        else:
            known = np.where(finite, v, np.float32(0))
            if symmetric:
                span, steps = np.abs(known).max(axis=-1, initial=0), np.float32(127)
            else:
                lo, hi = known.min(axis=-1, initial=0), known.max(axis=-1, initial=0)
                span, steps = hi - lo, np.float32(255)
            scale, inv = span / steps, steps / span
            # Also true for span == 0 and for span == Inf (inv 0): such a row is stored as zeros.
            degenerate = ~((scale >= _F32_TINY) & np.isfinite(scale) & np.isfinite(inv))
            scale, inv = np.where(degenerate, np.float32(1), scale), np.where(degenerate, np.float32(1), inv)
            v = np.where(degenerate[..., None] & finite, np.float32(0), v)
            if not symmetric:
                zero_point = np.where(degenerate, 0, np.clip(np.rint(np.float32(-128) - lo * inv), -128, 127))

        q = v * inv[..., None]
        if rounding == "stochastic":
            assert seed is not None
            q = np.floor(q + _uniform(seed, x.size).reshape(q.shape))
        else:
            q = np.rint(q)
        q = np.where(np.isnan(q), np.float32(0), q)
        if symmetric:
            return np.clip(q, -127, 127).astype(np.int8).reshape(x.shape), scale, None
        zero_point = np.asarray(zero_point).astype(np.int32).reshape(scale_shape)
        q = q + zero_point.astype(np.float32)[..., None]
        return np.clip(q, -128, 127).astype(np.int8).reshape(x.shape), scale, zero_point


def _uniform(seed: int, n: int) -> Array:
    """n f32 numbers in [0, 1): the top 24 bits of word i % 4 of Philox4x32-10(counter i // 4, key seed)."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    count = np.arange((n + 3) // 4, dtype=np.uint64)
    c0, c1, c2, c3 = count & low, count >> high, np.zeros_like(count), np.zeros_like(count)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> high) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> high) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    words = np.stack([c0, c1, c2, c3], axis=-1).reshape(-1)[:n]
    u: Array = (words >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)
    return u


def dequantize(data: Array, scale: Array, zero_point: Array | None = None, dtype: str = "float32") -> Array:
    """(float(q - zero_point)) * scale; the granularity follows from scale's shape."""
    with _quiet():
        q = data.astype(np.int32)
        if zero_point is not None:
            q = q - _per_element(np.asarray(zero_point, np.int32), data)
        x = q.astype(np.float32) * _per_element(np.asarray(scale, np.float32), data)
        return np.asarray(x).astype(_dtype(dtype))


def _per_element(p: Array, data: Array) -> Array:
    if p.ndim == 0:
        return p
    if p.shape == data.shape[:-1]:
        return p[..., None]
    return np.repeat(p, data.shape[-1] // max(p.shape[-1], 1), axis=-1)


# ---- normalization ----

_SUM_LANES = 1024


def norm_quantize(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    eps: float = 1e-6,
    centered: bool = False,
    symmetric: bool = True,
    normed: bool = False,
) -> tuple[Array, Array, Array | None, Array | None, Array | None]:
    """(data, scale, zero_point, sum, normed): the normalized rows of x, or of sum = x + residual, quantized,
    and if wanted in x's dtype."""
    with _quiet():
        total = None if residual is None else (_f32(x) + _f32(residual)).astype(x.dtype)
        h = _f32(x if total is None else total)
        k = np.float32(x.shape[-1])
        if centered:
            h = h - (_row_sum(h) / k)[..., None]
        r = np.float32(1) / np.sqrt(_row_sum(h * h) / k + np.float32(eps))
        y = h * r[..., None]
        if weight is not None:
            y = y * _f32(weight)
        if bias is not None:
            y = y + _f32(bias)
        return *quantize(y, symmetric=symmetric), total, y.astype(x.dtype) if normed else None


def _row_sum(v: Array) -> Array:
    """Element i is added to lane i % 1024, in order; then neighbours are added until one is left."""
    padded = np.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, -v.shape[-1] % _SUM_LANES)])
    lanes = np.zeros((*v.shape[:-1], _SUM_LANES), np.float32)
    for start in range(0, padded.shape[-1], _SUM_LANES):
        lanes = lanes + padded[..., start : start + _SUM_LANES]
    while lanes.shape[-1] > 1:
        lanes = lanes[..., 0::2] + lanes[..., 1::2]
    return lanes[..., 0]


# ---- integer products ----


def int_mm(a: Array, b: Array) -> Array:
    """a s8|u8 [..., K] times b s8 [K, N] -> int32. f64 is exact here: every partial sum is below 2^53."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)


def scaled_int_mm(
    a: Array,
    a_scale: Array | None,
    weight: Array,
    weight_scale: Array | None,
    bias: Array | None = None,
    a_zero_point: Array | None = None,
    activation: str | None = None,
    out_dtype: str = "float32",
) -> Array:
    """activation(((float(acc) * weight_scale) * a_scale) + bias); weight int8 [N, K]; "int32": acc."""
    with _quiet():
        acc = int_mm(a, weight.T)
        if a_zero_point is not None:
            zero_point = np.broadcast_to(np.asarray(a_zero_point, np.int32), a.shape[:-1])
            acc = acc - zero_point[..., None] * weight.sum(axis=1, dtype=np.int32)
        if out_dtype == "int32":
            return acc
        row_scale = np.broadcast_to(np.asarray(a_scale, np.float32), a.shape[:-1])
        y = acc.astype(np.float32) * np.asarray(weight_scale, np.float32).reshape(-1) * row_scale[..., None]
        if bias is not None:
            y = y + _f32(bias)
        return _activate(y, activation).astype(_dtype(out_dtype))


def int8_linear(
    x: Array,
    weight: Array,
    weight_scale: Array,
    bias: Array | None = None,
    activation: str | None = None,
    out_dtype: str = "float32",
    symmetric: bool = True,
) -> Array:
    """x [..., K] is quantized per row; weight int8 [N, K]."""
    data, scale, zero_point = quantize(x, symmetric=symmetric)
    return scaled_int_mm(data, scale, weight, weight_scale, bias, zero_point, activation, out_dtype)


def int8_conv2d(
    x: Array,
    weight: Array,
    weight_scale: Array,
    bias: Array | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str | None = None,
    out_dtype: str = "float32",
) -> Array:
    """x [B, C, H, W] is quantized per sample, symmetrically; weight int8 [N, C / groups, kh, kw].

    padding: top, bottom, left, right.
    """
    batch, c, height, width = x.shape
    n, _, kh, kw = weight.shape
    top, bottom, left, right = padding
    q, scale, _ = quantize(x.reshape(batch, c * height * width))
    q = np.pad(q.reshape(x.shape), ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows = (q.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    cols = (q.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    windows = np.zeros((batch, rows, cols, c, kh, kw), np.int8)
    for i in range(kh):
        for j in range(kw):
            seen = q[:, :, i * dilation[0] :: stride[0], j * dilation[1] :: stride[1]]
            windows[..., i, j] = seen[:, :, :rows, :cols].transpose(0, 2, 3, 1)
    a = windows.reshape(batch, rows, cols, groups, c // groups * kh * kw)
    w = weight.reshape(groups, n // groups, c // groups * kh * kw)
    y: Array = np.empty((batch, rows, cols, groups, n // groups), _dtype(out_dtype))
    for group in range(groups):
        out = slice(group * (n // groups), (group + 1) * (n // groups))
        y[..., group, :] = scaled_int_mm(
            a[..., group, :],
            scale[:, None, None],
            w[group],
            weight_scale[out],
            None if bias is None else bias[out],
            None,
            activation,
            out_dtype,
        )
    result: Array = y.reshape(batch, rows, cols, n).transpose(0, 3, 1, 2)
    return result


def weight_only_linear(
    x: Array,
    weight: Array,
    weight_scale: Array,
    bias: Array | None = None,
    activation: str | None = None,
    out_dtype: str = "float32",
) -> Array:
    """x [..., K] stays float; weight int8 [N, K], weight_scale [N, G]. Terms, then groups, in order."""
    with _quiet():
        n, k = weight.shape
        groups = weight_scale.shape[1]
        rows, w = _f32(x), weight.astype(np.float32)
        y = np.zeros((*x.shape[:-1], n), np.float32)
        for g in range(groups):
            total = np.zeros_like(y)
            for i in range(g * (k // groups), (g + 1) * (k // groups)):
                total = total + rows[..., i, None] * w[:, i]
            y = y + total * weight_scale[:, g]
        if bias is not None:
            y = y + _f32(bias)
        return _activate(y, activation).astype(_dtype(out_dtype))


def _activate(y: Array, activation: str | None) -> Array:
    """f64 from the f32 pre-activation, rounded once to f32."""
    if activation is None:
        return y
    if activation == "relu":
        return np.where(y < 0, np.float32(0), y)  # NaN and -0.0 stay
    with _quiet():
        x = np.maximum(np.asarray(y, np.float64), -200)  # from there on all are -0.0 in f32, -Inf included
        if activation == "gelu":
            z: Array = 0.5 * x * _erfc(-x / math.sqrt(2))
        elif activation == "gelu_tanh":
            # 0.5 * (1 + tanh(u)) == 1 / (1 + exp(-2u)), without the cancellation
            z = x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        else:
            z = x / (1 + np.exp(-x))  # silu
        return z.astype(np.float32)


# ---- packed weights ----

_HEADER_NBYTES = 64
_MAGIC, _VERSION, _ANY_ISA = 0x5654434F, 1, 0
_LAYOUTS = ("dense", "bitmask", "block")


def pack_weight(weight: Array, layout: str = "dense") -> Array:
    """int8 [N, K] -> uint8: header, int32 column sums [Np], parts; zero padded to N % 16 = 0 and K % 64 = 0.

    Each part is padded with zeros to 64 bytes.
    "dense": panels [Np/16][Kp/4][16][4], lines of 64 bytes.
    "bitmask": int64 offsets of the kept bytes of each pair of panels, a mask of each of their lines uint64
        [pairs][Kp/4][2], the bytes of these lines that are not zero, 64 zeros; zero panels complete a pair.
    "block": int64 offsets of the tile rows' tiles [Np/4 + 1], of each tile its number uint16 in the row, the
        tiles [4][16] that are not zero.
    """
    n, k = weight.shape
    padded = np.zeros((-(-n // 16) * 16, -(-k // 64) * 64), np.int8)
    padded[:n, :k] = weight
    colsum = padded.sum(axis=1, dtype=np.int32)
    parts: list[Array]
    if layout == "block":
        tiles = padded.reshape(padded.shape[0] // 4, 4, padded.shape[1] // 16, 16).transpose(0, 2, 1, 3)
        kept = tiles.any(axis=(2, 3))
        index = np.nonzero(kept)[1].astype("<u2")
        count, parts = index.size, [_offsets(kept), index, tiles[kept]]
    else:
        panels = padded.reshape(padded.shape[0] // 16, 16, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3)
        lines = panels.reshape(*panels.shape[:2], 64)
        count, parts = 0, [lines]
        if layout == "bitmask":
            lines = np.pad(lines, ((0, len(lines) % 2), (0, 0), (0, 0)))
            lines = lines.reshape(len(lines) // 2, 2, lines.shape[1], 64).transpose(0, 2, 1, 3)
            kept = lines != 0
            masks = np.packbits(kept, axis=-1, bitorder="little")
            count = int(kept.sum())
            parts = [_offsets(kept), masks, lines[kept], np.zeros(64, np.int8)]
    header = np.zeros(_HEADER_NBYTES, np.uint8)
    header[:16] = np.array([_MAGIC, _VERSION, _LAYOUTS.index(layout), _ANY_ISA], "<u4").view(np.uint8)
    header[16:40] = np.array([n, k, count], "<i8").view(np.uint8)
    return np.concatenate([header, *(_padded_bytes(part) for part in (colsum, *parts))])


def _offsets(kept: Array) -> Array:
    counts = kept.sum(axis=tuple(range(1, kept.ndim)), dtype=np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]).astype("<i8")


def _padded_bytes(part: Array) -> Array:
    raw = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    return np.pad(raw, (0, -raw.size % 64))


def unpack_weight(buffer: Array, n: int, k: int, layout: str) -> Array:
    count = int(buffer[32:40].view("<i8")[0])
    rows, cols = -(-n // 16) * 16, -(-k // 64) * 64
    at = _HEADER_NBYTES + 4 * rows

    def part(nbytes: int) -> Array:
        nonlocal at
        start, at = at, at + -(-nbytes // 64) * 64
        return buffer[start : start + nbytes]

    if layout == "block":
        offsets = part(8 * (rows // 4 + 1)).view("<i8")
        index = part(2 * count).view("<u2")
        tiles = np.zeros((rows // 4, cols // 16, 4, 16), np.int8)
        row = np.repeat(np.arange(rows // 4), np.diff(offsets))
        tiles[row, index] = part(64 * count).view(np.int8).reshape(count, 4, 16)
        padded = tiles.transpose(0, 2, 1, 3)
    else:
        if layout == "bitmask":
            pairs = (rows // 16 + 1) // 2
            lines = np.zeros((pairs, cols // 4, 2, 64), np.int8)
            part(8 * (pairs + 1))
            masks = part(lines.size // 8).reshape(*lines.shape[:3], 8)
            kept = np.unpackbits(masks, axis=-1, bitorder="little").view(np.bool_)
            lines[kept] = part(count).view(np.int8)
            lines = lines.transpose(0, 2, 1, 3).reshape(2 * pairs, cols // 4, 64)[: rows // 16]
        else:
            lines = part(rows * cols).view(np.int8)
        padded = lines.reshape(rows // 16, cols // 4, 16, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(padded.reshape(rows, cols)[:n, :k])


# ---- embeddings ----


def int8_embedding(indices: Array, weight: Array, weight_scale: Array, out_dtype: str = "float32") -> Array:
    """float(q) * scale of the rows of weight int8 [V, D] with weight_scale [V]."""
    return dequantize(weight[indices], weight_scale[indices], None, out_dtype)


def int8_embedding_bag(
    indices: Array,
    ends: Array,
    weight: Array,
    weight_scale: Array,
    per_sample_weights: Array | None = None,
    padding_idx: int = -1,
    mode: str = "sum",
    out_dtype: str = "float32",
) -> Array:
    """Sums, means or maxima; bag b is the rows of indices[ends[b - 1] : ends[b]] but for padding_idx."""
    with _quiet():
        y = np.zeros((len(ends), weight.shape[1]), np.float32)
        begin = 0
        for b, end in enumerate(ends):
            at = begin + np.flatnonzero(indices[begin:end] != padding_idx)
            begin = end
            if not at.size:
                continue
            if mode == "max":
                y[b] = -np.inf
            for i in at:
                v = int8_embedding(indices[i], weight, weight_scale)
                if mode == "max":
                    y[b] = np.where(v > y[b], v, y[b])
                else:
                    y[b] = y[b] + (v if per_sample_weights is None else v * per_sample_weights[i])
            if mode == "mean":
                y[b] = y[b] / np.float32(at.size)
        return y.astype(_dtype(out_dtype))


# ---- pruning ----


def magnitude_threshold(ws: Sequence[Array], sparsity: float) -> float:
    """The k-th smallest f32 magnitude of all tensors together, k = round(sparsity * n); 0.0 for k = 0."""
    keys = np.concatenate([_keys(w) for w in ws]) if ws else np.zeros(0, np.uint32)
    k = round(sparsity * keys.size)  # Python rounds half to even
    return float(np.partition(keys, k - 1)[k - 1 : k].view(np.float32)[0]) if k else 0.0


def prune_masks(
    ws: Sequence[Array],
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
) -> list[Array]:
    """One mask (True = kept) per tensor; threshold, ratio and sparsity act on all tensors together."""
    with _quiet():
        if ":" in pattern:
            n, m = (int(v) for v in pattern.split(":"))
            return [_mask_nm(w, n, m) for w in ws]
        if pattern == "unstructured":
            mags = [np.abs(_f32(w)).reshape(-1) for w in ws]
        else:
            mags = [_unit_scores(w, *unit_shape(w.shape, pattern)) for w in ws]
        scores = np.concatenate(mags) if mags else np.zeros(0, np.float32)

        if sparsity is not None:
            # A stable sort puts the lowest index first among equals, and NaN above Inf.
            keep = np.ones(scores.size, np.bool_)
            keep[np.argsort(scores, kind="stable")[: round(sparsity * scores.size)]] = False
        else:
            number = scores.dtype.type  # f32 magnitudes, f64 unit scores
            if ratio is not None:
                limit = number(ratio) * scores.max(initial=0, where=np.isfinite(scores))
            else:
                assert threshold is not None
                limit = (
                    number(threshold) if threshold >= 0 else number(-1)
                )  # a tiny negative must not round to 0
            keep = (scores > limit) | np.isnan(scores)

        masks = np.split(keep, np.cumsum([s.size for s in mags])[:-1]) if mags else []
        if pattern == "unstructured":
            return [mask.reshape(w.shape) for mask, w in zip(masks, ws, strict=True)]
        return [
            _spread(mask, w.shape, *unit_shape(w.shape, pattern)) for mask, w in zip(masks, ws, strict=True)
        ]


def apply_mask(w: Array, mask: Array) -> Array:
    return np.where(mask, w, np.zeros((), w.dtype))


def pack_mask(mask: Array) -> Array:
    """bool [..., K] -> uint8 [..., ceil(K / 8)], the first element in the lowest bit."""
    return np.packbits(mask, axis=-1, bitorder="little")


def unpack_mask(bits: Array, shape: tuple[int, ...]) -> Array:
    return np.unpackbits(bits, axis=-1, count=shape[-1], bitorder="little").view(np.bool_)


def unit_shape(shape: tuple[int, ...], pattern: str) -> tuple[int, int]:
    """Rows and columns of one unit ("row", "column", "block4x16") in the 2-D view of a tensor."""
    rows, cols = _shape_2d(shape)
    if pattern == "row":
        return 1, cols
    if pattern == "column":
        return rows, 1
    r, c = pattern.removeprefix("block").split("x")
    return int(r), int(c)


def _shape_2d(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def _keys(w: Array) -> Array:
    """Integers that sort as the f32 magnitudes do; every NaN is the same, above Inf."""
    bits: Array = np.abs(_f32(w)).reshape(-1).view(np.uint32)
    return np.asarray(np.minimum(bits, _NAN_KEY))


def _mask_nm(w: Array, n: int, m: int) -> Array:
    """The n largest of each m stay; a stable sort keeps the lowest index first among equals."""
    keys = _keys(w).astype(np.int64).reshape(-1, m)
    mask = np.zeros(keys.shape, np.bool_)
    np.put_along_axis(mask, np.argsort(-keys, axis=1, kind="stable")[:, :n], True, axis=1)
    return mask.reshape(w.shape)


def _unit_scores(w: Array, r: int, c: int) -> Array:
    """Sum of |w| in f64 per unit: eight partial sums by index mod 8, in index order, then a fixed tree."""
    rows, cols = _shape_2d(w.shape)
    grid = (rows // max(r, 1), cols // max(c, 1))
    units = np.abs(_f32(w)).astype(np.float64).reshape(grid[0], r, grid[1], c).transpose(0, 2, 1, 3)
    units = units.reshape(grid[0] * grid[1], r * c)
    s = np.zeros((units.shape[0], 8))
    for i in range(0, units.shape[1], 8):
        part = units[:, i : i + 8]
        s[:, : part.shape[1]] += part
    s = s.T
    return np.asarray(((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])))


def _spread(mask: Array, shape: tuple[int, ...], r: int, c: int) -> Array:
    rows, cols = _shape_2d(shape)
    grid = mask.reshape(rows // max(r, 1), cols // max(c, 1))
    return np.repeat(np.repeat(grid, r, axis=0), c, axis=1).reshape(shape)
