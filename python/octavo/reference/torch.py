"""Every op in PyTorch, on any device: what CUDA tensors run where there are no kernels for them.

Same names, arguments and bits as `octavo.reference` (NumPy), which is the page to read first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

_NAN_KEY = 0x7F800001  # one key above Inf for every NaN
_NAN_KEY_F64 = 0x7FF0000000000001
_WORD = 0xFFFFFFFF
_SUM_LANES = 1024


def quantize(
    x: Tensor,
    granularity: str = "row",
    group_size: int | None = None,
    symmetric: bool = True,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    rounding: str = "nearest",
    seed: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    rows, cols = _rows_cols(x)
    x = x.contiguous()
    if granularity == "tensor":
        scale_shape: tuple[int, ...] = ()
        grouped = x.reshape(1, rows * cols)
    elif granularity == "row":
        scale_shape = tuple(x.shape[:-1])
        grouped = x.reshape(rows, cols)
    else:
        assert group_size is not None
        scale_shape = (*x.shape[:-1], cols // group_size)
        grouped = x.reshape(math.prod(scale_shape), group_size)
    v = grouped.to(torch.float32)
    finite = torch.isfinite(v)
    v = torch.where(torch.isnan(v), 0.0, v)
    if scale is not None:
        scale = scale.to(torch.float32).reshape(-1, 1)
        inv = torch.ones_like(scale) / scale
        offset = None if symmetric or zero_point is None else zero_point.reshape(-1, 1)
    elif symmetric:
        scale, inv, degenerate = _scale_of(_amax(torch.where(finite, v.abs(), 0.0)), 127.0)
        v = torch.where(degenerate & finite, 0.0, v)
        offset = None
    else:
        lo = -_amax(torch.where(finite, -v, 0.0).clamp(min=0.0))
        hi = _amax(torch.where(finite, v, 0.0).clamp(min=0.0))
        scale, inv, degenerate = _scale_of(hi - lo, 255.0)
        offset = torch.where(degenerate, 0.0, (-128.0 - lo * inv).round()).clamp(-128, 127).to(torch.int32)
        v = torch.where(degenerate & finite, 0.0, v)
    q = v * inv
    if rounding == "stochastic":
        assert seed is not None
        q = (q + _uniform(q.numel(), seed, q.device).reshape(q.shape)).floor()
    else:
        q = q.round()
    if offset is not None:
        q = q + offset.to(torch.float32)
    data = q.clamp(-127 if symmetric else -128, 127).to(torch.int8).reshape(x.shape)
    return data, scale.reshape(scale_shape), None if offset is None else offset.reshape(scale_shape)


def _amax(nonnegative: Tensor) -> Tensor:
    if nonnegative.shape[-1] == 0:
        return nonnegative.new_zeros(nonnegative.shape[0], 1)
    return nonnegative.amax(dim=-1, keepdim=True)


def _scale_of(extent: Tensor, levels: float) -> tuple[Tensor, Tensor, Tensor]:
    """(scale, inv, degenerate) of rows whose values span `extent`; degenerate rows are stored as zeros."""
    # torch turns division by a Python number into a multiplication by its reciprocal on CUDA
    divisor = torch.full_like(extent, levels)
    scale, inv = extent / divisor, divisor / extent
    normal = (scale >= torch.finfo(torch.float32).tiny) & torch.isfinite(scale) & torch.isfinite(inv)
    degenerate = ~normal
    return torch.where(degenerate, 1.0, scale), torch.where(degenerate, 1.0, inv), degenerate


def _uniform(n: int, seed: int, device: torch.device) -> Tensor:
    """float32 in [0, 1) for the linear indices 0..n-1: Philox4x32-10, counter index // 4, word index % 4."""
    block = torch.arange((n + 3) // 4, dtype=torch.int64, device=device)
    c = [block & _WORD, block >> 32, torch.zeros_like(block), torch.zeros_like(block)]
    key = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(10):
        # the 64-bit products wrap in int64; both halves are taken back as unsigned words
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [
            ((p1 >> 32) & _WORD) ^ c[1] ^ key[0],
            p1 & _WORD,
            ((p0 >> 32) & _WORD) ^ c[3] ^ key[1],
            p0 & _WORD,
        ]
        key = [(key[0] + 0x9E3779B9) & _WORD, (key[1] + 0xBB67AE85) & _WORD]
    words = torch.stack(c, dim=1).reshape(-1)[:n]
    return (words >> 8).to(torch.float32) * 2.0**-24


def dequantize(
    data: Tensor, scale: Tensor, zero_point: Tensor | None = None, dtype: str = "float32"
) -> Tensor:
    q = data.to(torch.int32).contiguous()
    if scale.ndim and scale.shape != data.shape[:-1]:
        groups = scale.shape[-1]
        q = q.reshape(*scale.shape, data.shape[-1] // groups if groups else 0)
    if scale.ndim:
        scale = scale.unsqueeze(-1)
        zero_point = None if zero_point is None else zero_point.unsqueeze(-1)
    if zero_point is not None:
        q = q - zero_point
    return (q.to(torch.float32) * scale).to(_dtype(dtype)).reshape(data.shape)


def norm_quantize(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    centered: bool = False,
    symmetric: bool = True,
    normed: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    h, total = x.contiguous().to(torch.float32), None
    if residual is not None:
        total = (h + residual.contiguous().to(torch.float32)).to(x.dtype)
        h = total.to(torch.float32)
    if centered:
        h = h - _row_mean(h)
    mean = _row_mean(h * h)
    # torch's float32 sqrt may be an ulp off on the CPU; by way of float64 it is the correctly rounded one
    root = torch.sqrt((mean + torch.full_like(mean, eps)).to(torch.float64)).to(torch.float32)
    y = h * (torch.ones_like(root) / root)
    if weight is not None:
        y = y * weight.to(torch.float32)
    if bias is not None:
        y = y + bias.to(torch.float32)
    return *quantize(y, symmetric=symmetric), total, y.to(x.dtype) if normed else None


def _row_mean(v: Tensor) -> Tensor:
    """Element i is added to lane i % 1024, in order; then neighbours are added until one is left."""
    padded = torch.nn.functional.pad(v, (0, -v.shape[-1] % _SUM_LANES))
    lanes = v.new_zeros((*v.shape[:-1], _SUM_LANES))
    for start in range(0, v.shape[-1], _SUM_LANES):
        lanes = lanes + padded[..., start : start + _SUM_LANES]
    while lanes.shape[-1] > 1:
        lanes = lanes[..., 0::2] + lanes[..., 1::2]
    # a tensor: torch turns division by a Python number into a multiplication by its reciprocal on CUDA
    return lanes / torch.full_like(lanes, v.shape[-1])


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    # float64 holds the sums exactly (below 2**53) and every device has the product
    return torch.matmul(a.to(torch.float64), b.to(torch.float64)).to(torch.int32)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    out_dtype: str = "float32",
    symmetric: bool = True,
) -> Tensor:
    data, scale, zero_point = quantize(x, symmetric=symmetric)
    return scaled_int_mm(data, scale, weight, weight_scale, bias, zero_point, activation, out_dtype)


def scaled_int_mm(
    a: Tensor,
    a_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None = None,
    a_zero_point: Tensor | None = None,
    activation: str | None = None,
    out_dtype: str = "float32",
) -> Tensor:
    acc = int_mm(a, weight.t())
    if a_zero_point is not None:
        colsum = weight.sum(dim=1, dtype=torch.int32)
        acc = acc - a_zero_point.to(torch.int32).broadcast_to(a.shape[:-1]).unsqueeze(-1) * colsum
    if out_dtype == "int32":
        return acc
    assert a_scale is not None
    assert weight_scale is not None
    y = acc.to(torch.float32) * weight_scale.reshape(-1) * a_scale.broadcast_to(a.shape[:-1]).unsqueeze(-1)
    if bias is not None:
        y = y + bias.to(torch.float32)
    return _activate(y, activation).to(_dtype(out_dtype))


def windows(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """What a convolution sees of x [B, C, H, W], in zeros: [groups, B, H', W', C / groups * kh * kw]."""
    top, bottom, left, right = padding
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    rows = (x.shape[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    cols = (x.shape[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    seen = [
        x[:, :, i * dilation[0] :: stride[0], j * dilation[1] :: stride[1]][:, :, :rows, :cols]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    taps = torch.stack(seen, -1)
    taps = taps.reshape(x.shape[0], groups, x.shape[1] // groups, rows, cols, len(seen))
    taps = taps.permute(1, 0, 3, 4, 2, 5)
    return taps.reshape(*taps.shape[:4], taps.shape[4] * taps.shape[5])


def weight_only_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    out_dtype: str = "float32",
) -> Tensor:
    n, k = weight.shape
    groups = weight_scale.shape[1]
    rows, w = x.to(torch.float32), weight.to(torch.float32)
    y = torch.zeros(*x.shape[:-1], n, dtype=torch.float32, device=x.device)
    for g in range(groups):
        total = torch.zeros_like(y)
        for i in range(g * (k // groups), (g + 1) * (k // groups)):
            total = total + rows[..., i, None] * w[:, i]
        y = y + total * weight_scale[:, g]
    if bias is not None:
        y = y + bias.to(torch.float32)
    return _activate(y, activation).to(_dtype(out_dtype))


def int8_embedding(
    indices: Tensor, weight: Tensor, weight_scale: Tensor, out_dtype: str = "float32"
) -> Tensor:
    return dequantize(weight[indices], weight_scale[indices], None, out_dtype)


def int8_embedding_bag(
    indices: Tensor,
    ends: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    per_sample_weights: Tensor | None = None,
    padding_idx: int = -1,
    mode: str = "sum",
    out_dtype: str = "float32",
) -> Tensor:
    """All bags at once, one position in them after the other."""
    begins = torch.nn.functional.pad(ends, (1, 0))[:-1]
    start = -math.inf if mode == "max" else 0.0
    y = torch.full((ends.shape[0], weight.shape[1]), start, dtype=torch.float32, device=weight.device)
    counts = torch.zeros_like(y[:, :1])
    for step in range(int((ends - begins).max()) if len(ends) else 0):
        at = (begins + step).clamp(max=len(indices) - 1)
        row = indices[at]
        keep = ((begins + step < ends) & (row != padding_idx)).unsqueeze(1)
        v = int8_embedding(row, weight, weight_scale)
        if mode == "max":
            new = torch.where(v > y, v, y)
        else:
            new = y + (v if per_sample_weights is None else v * per_sample_weights[at].unsqueeze(1))
        y = torch.where(keep, new, y)
        counts = counts + keep
    if mode == "mean":
        y = y / counts.clamp(min=1)
    return torch.where(counts > 0, y, 0.0).to(_dtype(out_dtype))


def _activate(y: Tensor, activation: str | None) -> Tensor:
    """float64 from the float32 pre-activation, rounded once to float32."""
    if activation is None:
        return y
    if activation == "relu":
        return torch.where(y < 0, 0.0, y)  # NaN and -0.0 stay
    x = y.to(torch.float64).clamp(min=-200)  # from there on all are -0.0 in float32, -Inf included
    if activation == "gelu":
        z: Tensor = 0.5 * x * torch.special.erfc(-x / math.sqrt(2))
    elif activation == "gelu_tanh":
        # 0.5 * (1 + tanh(u)) == 1 / (1 + exp(-2u)), without the cancellation
        z = x / (1 + torch.exp(-2.0 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        z = x / (1 + torch.exp(-x))  # silu
    return z.to(torch.float32)


def magnitude_threshold(ws: Sequence[Tensor], sparsity: float) -> float:
    keys = torch.cat([_keys(w) for w in ws])
    k = round(sparsity * keys.numel())  # Python rounds half to even
    if k == 0:
        return 0.0
    return float(torch.sort(keys).values[k - 1].view(torch.float32))


def prune_masks(
    ws: Sequence[Tensor],
    threshold: float | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
) -> list[Tensor]:
    """Masks (True = kept) of the tensors in `ws`, selected over all of them together."""
    if ":" in pattern:
        n, m = map(int, pattern.split(":"))
        return [_mask_nm(w, n, m) for w in ws]
    if pattern == "unstructured":
        units = [w.reshape(-1).to(torch.float32).abs() for w in ws]
    else:
        units = [_unit_scores(w, *_unit_shape(w, pattern)) for w in ws]
    scores = torch.cat(units)
    if sparsity is not None:
        keep = torch.ones_like(scores, dtype=torch.bool)
        # a stable sort puts the lowest index first among equals
        keep[torch.sort(_order(scores), stable=True).indices[: round(sparsity * keep.numel())]] = False
    else:
        if threshold is not None:
            # a tiny negative threshold must not round to 0
            limit = torch.full_like(scores[:1], threshold if threshold >= 0 else -1.0)
        else:
            assert ratio is not None
            limit = _amax(torch.where(torch.isfinite(scores), scores, 0.0).reshape(1, -1)).reshape(1)
            limit = torch.full_like(limit, ratio) * limit
        keep = (scores > limit) | torch.isnan(scores)
    # copies: an operator must not return views of one another
    parts = [part.clone() for part in torch.split(keep, [u.numel() for u in units])]
    if pattern == "unstructured":
        return [part.reshape(w.shape) for part, w in zip(parts, ws, strict=True)]
    return [_expand(part, w, *_unit_shape(w, pattern)) for part, w in zip(parts, ws, strict=True)]


def _keys(w: Tensor) -> Tensor:
    return _order(w.reshape(-1).to(torch.float32).abs())


def _order(magnitudes: Tensor) -> Tensor:
    """Integers that sort as the magnitudes do; every NaN is the same, above Inf."""
    if magnitudes.dtype == torch.float32:
        return torch.where(torch.isnan(magnitudes), _NAN_KEY, magnitudes.view(torch.int32))
    return torch.where(torch.isnan(magnitudes), _NAN_KEY_F64, magnitudes.view(torch.int64))


def _mask_nm(w: Tensor, n: int, m: int) -> Tensor:
    keys = _keys(w).reshape(-1, m)
    order = torch.sort(-keys, dim=-1, stable=True).indices
    keep = torch.zeros(keys.shape, dtype=torch.bool, device=w.device)
    return keep.scatter_(1, order[:, :n], True).reshape(w.shape)


def _rows_cols(w: Tensor) -> tuple[int, int]:
    return math.prod(w.shape[:-1]), w.shape[-1] if w.ndim else 1


def _unit_shape(w: Tensor, pattern: str) -> tuple[int, int]:
    rows, cols = _rows_cols(w)
    if pattern == "row":
        return 1, cols
    if pattern == "column":
        return rows, 1
    match = re.fullmatch(r"block(\d+)x(\d+)", pattern)
    assert match is not None, pattern
    return int(match[1]), int(match[2])


def _unit_scores(w: Tensor, unit_rows: int, unit_cols: int) -> Tensor:
    """float64 sum of |w| over each unit, in the one order of additions that every backend follows."""
    rows, cols = _rows_cols(w)
    if w.numel() == 0:
        return torch.zeros(0, dtype=torch.float64, device=w.device)
    blocks = w.reshape(rows // unit_rows, unit_rows, cols // unit_cols, unit_cols).transpose(1, 2)
    units = blocks.reshape(-1, unit_rows * unit_cols).to(torch.float32).abs().to(torch.float64)
    units = torch.nn.functional.pad(units, (0, -units.shape[1] % 8)).reshape(units.shape[0], -1, 8)
    s = torch.zeros_like(units[:, 0])
    for step in range(units.shape[1]):
        s = s + units[:, step]
    s = s[:, :4] + s[:, 4:]
    s = s[:, :2] + s[:, 2:]
    return s[:, 0] + s[:, 1]


def _expand(keep: Tensor, w: Tensor, unit_rows: int, unit_cols: int) -> Tensor:
    if w.numel() == 0:
        return torch.ones(w.shape, dtype=torch.bool, device=w.device)
    rows, cols = _rows_cols(w)
    units = keep.reshape(rows // unit_rows, 1, cols // unit_cols, 1)
    return units.expand(-1, unit_rows, -1, unit_cols).reshape(w.shape).contiguous()


def pack_weight(weight: Tensor, layout: str = "dense") -> Tensor:
    """int8 [N, K] -> uint8, the bytes of `octavo.reference.pack_weight`, or with "rows" those for CUDA."""
    n, k = weight.shape
    device = weight.device
    padded = _padded(weight, n + -n % 16, k + -k % 64)
    rows, cols = padded.shape
    colsum = padded.sum(dim=1, dtype=torch.int32)
    count, parts = 0, [colsum]
    if layout == "rows":
        gap = torch.zeros(_gap(rows), dtype=torch.int8, device=device)
        parts += [gap, padded]
    elif layout == "block":
        tiles = padded.reshape(rows // 4, 4, cols // 16, 16).transpose(1, 2)
        kept = (tiles != 0).any(-1).any(-1)
        index = kept.nonzero()[:, 1].to(torch.int16)
        count = index.numel()
        parts += [_offsets(kept), index, tiles[kept]]
    else:
        lines = (
            padded.reshape(rows // 16, 16, cols // 4, 4).transpose(1, 2).reshape(rows // 16, cols // 4, 64)
        )
        if layout == "bitmask":
            pairs = (rows // 16 + 1) // 2
            lines = _padded(lines, 2 * pairs, cols // 4, 64)
            lines = lines.reshape(pairs, 2, cols // 4, 64).transpose(1, 2)
            kept = lines != 0
            powers = 1 << torch.arange(8, dtype=torch.uint8, device=device)
            masks = (kept.reshape(pairs, cols // 4, 2, 8, 8) * powers).sum(-1, dtype=torch.uint8)
            count = int(kept.sum())
            parts += [_offsets(kept), masks, lines[kept], torch.zeros(64, dtype=torch.int8, device=device)]
        else:
            parts.append(lines)
    code, isa = (0, 1) if layout == "rows" else (("dense", "bitmask", "block").index(layout), 0)
    words = [0x5654434F, 1, code, isa, n, 0, k, 0, count % 2**32, count // 2**32, *[0] * 6]
    header = torch.tensor(words, dtype=torch.int64, device=device).to(torch.int32)
    return torch.cat([_padded_bytes(part) for part in (header, *parts)])


def _gap(rows: int) -> int:
    """The zeros between the sums and the rows for CUDA, which begin at a multiple of 256 bytes."""
    return -(64 + 4 * rows) % 256 + 256


def _offsets(kept: Tensor) -> Tensor:
    counts = kept.reshape(kept.shape[0], kept[:1].numel()).sum(1)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _padded_bytes(part: Tensor) -> Tensor:
    raw = part.reshape(-1).view(torch.uint8)
    return _padded(raw, raw.numel() + -raw.numel() % 64)


def _padded(x: Tensor, *shape: int) -> Tensor:
    """x with zeros after it on every axis; torch 2.8 does not pad to an empty tensor."""
    padded = x.new_zeros(shape)
    padded[tuple(slice(size) for size in x.shape)] = x
    return padded


def unpack_weight(packed: Tensor, n: int, k: int, layout: str) -> Tensor:
    rows, cols = n + -n % 16, k + -k % 64
    at = 64 + 4 * rows

    def part(nbytes: int, dtype: torch.dtype) -> Tensor:
        nonlocal at
        start, at = at, at + nbytes + -nbytes % 64
        return packed[start : start + nbytes].view(dtype)

    if layout == "rows":
        part(_gap(rows), torch.int8)
        weight = part(rows * cols, torch.int8).reshape(rows, cols)[:n, :k]
        return weight.clone(memory_format=torch.contiguous_format)
    count = int(packed[32:40].view(torch.int64))
    if layout == "block":
        offsets = part(8 * (rows // 4 + 1), torch.int64)
        index = part(2 * count, torch.int16).to(torch.int64) & 0xFFFF
        row = torch.arange(rows // 4, device=packed.device).repeat_interleave(offsets.diff())
        tiles = packed.new_zeros((rows // 4, cols // 16, 4, 16), dtype=torch.int8)
        tiles[row, index] = part(64 * count, torch.int8).reshape(count, 4, 16)
        padded = tiles.transpose(1, 2)
    else:
        if layout == "bitmask":
            pairs = (rows // 16 + 1) // 2
            lines = packed.new_zeros((pairs, cols // 4, 2, 64), dtype=torch.int8)
            part(8 * (pairs + 1), torch.int64)
            masks = part(lines.numel() // 8, torch.uint8).unsqueeze(-1)
            bits = masks >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
            lines[bits.reshape(lines.shape) != 0] = part(count, torch.int8)
            lines = lines.transpose(1, 2).reshape(2 * pairs, cols // 4, 64)[: rows // 16]
        else:
            lines = part(rows * cols, torch.int8)
        padded = lines.reshape(rows // 16, cols // 4, 16, 4).transpose(1, 2)
    weight = padded.reshape(rows, cols)[:n, :k]
    return weight.clone(memory_format=torch.contiguous_format)  # no view of packed, even if empty


def apply_mask(w: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, w, torch.zeros((), dtype=w.dtype, device=w.device)).contiguous()


def pack_mask(mask: Tensor) -> Tensor:
    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    bits = bits.reshape(*mask.shape[:-1], bits.shape[-1] // 8, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(-1, dtype=torch.uint8)


def unpack_mask(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    each = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return each.reshape(*shape[:-1], 8 * bits.shape[-1])[..., : shape[-1]].to(torch.bool)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
