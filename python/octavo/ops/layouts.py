"""What the bytes of a packed weight mean: its header, where its parts lie, and whether they are sound."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..runtime.arrays import (
    Array,
    address_of,
    check_dtype,
    check_shape,
    contiguous,
    empty,
    on_cuda,
    to_host,
)

MAX_K = 131_071  # 128 * 128 * K fits int32
MAX_K_UNSIGNED = 65_793  # 255 * 128 * K fits int32: uint8 activations, or zero points

LAYOUTS = ("dense", "bitmask", "block")  # by their codes in a header

_MAGIC, _VERSION, _HEADER_NBYTES = 0x5654434F, 1, 64
_ISAS = ("any CPU", "CUDA")  # by their codes in a header
_ALIGNMENT = 64
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)  # for NumPy 1, which counts no bits


class Header(NamedTuple):
    """What a packed buffer says of itself. layout: "rows" is CUDA's; stored: kept weights of "bitmask", tiles
    of "block", else 0."""

    n: int
    k: int
    layout: str
    stored: int


def _parts(n: int, k: int, layout: str, count: int) -> tuple[int, int, int, int]:
    """Where the offsets, the index, the weights and the end of a packed weight are; see csrc/layouts.h."""
    rows, cols = padded(n, k)
    offsets = _HEADER_NBYTES + 4 * rows
    if layout == "rows":
        offsets += -offsets % 256 + 256
    if layout == "bitmask":
        index = offsets + _round_up(8 * (pairs(rows) + 1))
        weights = index + pairs(rows) * 4 * cols
        return offsets, index, weights, weights + _round_up(count) + 64
    if layout == "block":
        index = offsets + _round_up(8 * (rows // 4 + 1))
        weights = index + _round_up(2 * count)
        return offsets, index, weights, weights + 64 * count
    return offsets, offsets, offsets, offsets + rows * cols


def padded(n: int, k: int) -> tuple[int, int]:
    """N and K with the zeros that complete panels."""
    return -(-n // 16) * 16, -(-k // 64) * 64


def pairs(rows: int) -> int:
    """The pairs of panels, of which the last may be half empty."""
    return (rows // 16 + 1) // 2


def _round_up(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def packed_nbytes(n: int, k: int, layout: str = "dense", count: int = 0) -> int:
    return _parts(n, k, layout, count)[3]


def read_header(buffer: Array) -> Header:
    """What a packed buffer holds. ValueError if it is not one that this version reads."""
    check_dtype(buffer, "buffer", "uint8")
    if buffer.ndim != 1 or buffer.shape[0] < _HEADER_NBYTES:
        raise ValueError(
            f"buffer: expected one dimension of {_HEADER_NBYTES} or more bytes, got {tuple(buffer.shape)}"
        )
    head = np.array(to_host(buffer[:40]))
    magic, version, layout, isa = (int(v) for v in head[:16].view("<u4"))
    n, k, count = (int(v) for v in head[16:].view("<i8"))
    for name, want, got in (
        ("magic", _MAGIC, magic),
        ("version", _VERSION, version),
        ("layout", min(layout, len(LAYOUTS) - 1), layout),
        ("ISA", min(isa, len(_ISAS) - 1), isa),
    ):
        if got != want:
            raise ValueError(f"buffer: expected a packed weight with {name} {want:#x}, got {got:#x}")
    header = Header(n, k, "rows" if isa else LAYOUTS[layout], count)
    sane = n >= 0 and 0 <= k <= MAX_K and 0 <= count <= buffer.shape[0] and (count == 0 or layout > 0)
    if not sane or packed_nbytes(*header) != buffer.shape[0]:
        raise ValueError(f"buffer: expected as many bytes as {header} has, got {buffer.shape[0]}")
    return header


def check_parts(buffer: Array, header: Header) -> None:
    """ValueError where the offsets, masks or indices of a sparse layout would lead out of the buffer, or to
    weights beyond K."""
    n, k, layout, count = header
    if layout in ("dense", "rows"):
        return
    start, index, weights, _ = _parts(*header)
    rows, cols = padded(n, k)
    units = pairs(rows) if layout == "bitmask" else rows // 4
    parts = _bytes(buffer[start:weights])
    counts = np.diff(parts[: 8 * (units + 1)].view("<i8"), prepend=0, append=count)
    good = counts[0] == 0 == counts[-1] and counts.min() >= 0 and counts.max() <= count  # differences wrap
    table = parts[index - start :]
    rest = k % (4 if layout == "bitmask" else 16)  # terms of the last group or tile
    if good and layout == "bitmask":
        counted = np.bitwise_count(table.view("<u8")) if hasattr(np, "bitwise_count") else _ONES[table]
        ones = counted.reshape(units, counted.size // max(units, 1)).sum(1, dtype=np.int64)
        masks = table.reshape(units, cols // 4, 16)
        beyond = masks[:, k // 4 : k // 4 + (rest > 0)] & (0xF << rest & 0xF) * 0x11
        good = np.array_equal(ones, counts[1:-1]) and not (beyond.any() or masks[:, -(-k // 4) :].any())
    elif good:
        blocks = table[: 2 * count].view("<u2").astype(np.int64)
        rising = np.diff(blocks + np.repeat(np.arange(units), counts[1:-1]) * (cols // 16 + 1))
        good = bool((blocks < -(-k // 16)).all() and (rising > 0).all())
        if good and rest:
            tiles = _bytes(buffer[weights : weights + 64 * count]).reshape(count, 4, 16)
            good = not tiles[blocks == k // 16, :, rest:].any()
    if not good:
        raise ValueError(f"buffer: expected the parts of a {layout} layout, got damaged offsets or indices")


def _bytes(part: Array) -> Any:
    return np.ascontiguousarray(to_host(part))


def is_at_home(buffer: Array, header: Header) -> bool:
    return (header.layout == "rows") == on_cuda(buffer)


def check_home(buffer: Array, header: Header) -> None:
    """ValueError where a buffer for the CPU is on a device, or the reverse."""
    if not is_at_home(buffer, header):
        here = on_cuda(buffer)
        raise ValueError(
            f"buffer: expected one packed for ISA {here:d} ({_ISAS[here]}), where it is, got one for ISA "
            f"{not here:d} ({_ISAS[not here]}); unpack a weight where it was packed, and pack it anew"
        )


def check_k(k: int, name: str, symmetric: bool = True) -> None:
    """ValueError where sums of K products may not fit int32; symmetric: activations have no zero points."""
    limit, why = (MAX_K, "") if symmetric else (MAX_K_UNSIGNED, " with zero points")
    if k > limit:
        raise ValueError(f"{name}: expected K <= {limit}{why}, for exact int32 sums, got {k}")


def check_scale(scale: Array | None, name: str, n: int) -> None:
    """A weight's scale is float32 [N] or [N, 1]."""
    if scale is None:
        return
    check_dtype(scale, name, "float32")
    if scale.shape != (n,):
        check_shape(scale, name, (n,), (n, 1))


def aligned(buffer: Array) -> Array:
    """The buffer, or a copy of it where it is not contiguous and 64-byte aligned as the kernels want it."""
    buffer = contiguous(buffer)
    if not address_of(buffer) % _ALIGNMENT:
        return buffer
    copy = aligned_empty(buffer.shape[0], buffer)
    copy[:] = buffer
    return copy


def aligned_empty(nbytes: int, like: Array) -> Array:
    if not isinstance(like, np.ndarray):
        return empty((nbytes,), "uint8", like)  # torch aligns to 64 bytes, on a device it and CuPy to 512
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    offset = -address_of(raw) % _ALIGNMENT
    return raw[offset : offset + nbytes]
