"""PackedWeight: an int8 weight in the order that the matrix kernels read it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arrays import (
    Array,
    check_dtype,
    check_shape,
    contiguous,
    copy_contiguous,
    element_strides,
    empty,
    is_torch,
    kind_of,
    needs_dispatcher,
    on_cuda,
    pointer,
    to_host,
)
from .engines import Engine, native_for, reference_for

MAX_K = 131_071  # 128 * 128 * K fits int32
MAX_K_UNSIGNED = 65_793  # 255 * 128 * K fits int32: uint8 activations, or zero points

LAYOUTS = ("dense", "bitmask", "block")  # by their codes in a header

_MAGIC, _VERSION, _HEADER_NBYTES = 0x5654434F, 1, 64
_ISAS = ("any CPU", "CUDA")  # by their codes in a header
_ALIGNMENT = 64
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)
_SMALL = 1 << 16  # weights; below, calls cost more than what a sparse layout saves


class Header(NamedTuple):
    """What a packed buffer says of itself. layout: "rows" is CUDA's; stored: kept weights of "bitmask", tiles
    of "block", else 0."""

    n: int
    k: int
    layout: str
    stored: int


class PackedWeight:
    """An int8 weight [N, K], packed once for int_mm, int8_linear and scaled_int_mm; made by pack_weight.

    shape: (N, K). layout: "dense", "bitmask" or "block"; always "dense" on a device. buffer: uint8,
        one-dimensional, 64-byte aligned; on the CPU one that every ISA reads, on a device one for CUDA.
    scale: a float32 [N], or None if the weight is for int_mm only. Treat it as immutable. It pickles; loading
        checks the buffer.
    """

    __slots__ = ("_density", "_native", "buffer", "layout", "operands", "scale", "shape")

    shape: tuple[int, int]
    layout: str
    buffer: Array
    scale: Array | None
    operands: tuple[int, int, Array, Array | None]  # N, K, buffer, scale: one look-up in a tiny call
    _native: tuple[int, Any]  # the address at which the kernels have checked it, and their record of it
    _density: float | None

    def __init__(self, buffer: Array, scale: Array | None = None) -> None:
        kind_of(buffer=buffer, scale=scale)
        header = read_header(buffer)
        check_home(buffer, header)
        check_parts(buffer, header)
        if is_torch(buffer):
            buffer, scale = buffer.detach(), None if scale is None else scale.detach()
        buffer = aligned(buffer)
        check_scale(scale, "scale", header.n)
        layout = "dense" if header.layout == "rows" else header.layout
        self._fill(buffer, None if scale is None else contiguous(scale).reshape(header.n), header[:2], layout)

    @classmethod
    def from_buffer(cls, buffer: Array, scale: Array | None = None) -> PackedWeight:
        """The weight that a packed buffer (uint8) holds, with its float32 scale [N] or [N, 1] if it has one.

        ValueError for a buffer that is not one, is damaged, of another version, or packed for the CPU and now
        on a device, or the reverse. The buffer is used as it is, and copied only where it is not contiguous
        and 64-byte aligned. On a device, the call waits for it.
        """
        return cls(buffer, scale)

    @classmethod
    def trusted(cls, buffer: Array, scale: Array | None, shape: tuple[int, int], layout: str) -> PackedWeight:
        """From arrays that pack_weight has just made: nothing is checked."""
        self = object.__new__(cls)
        self._fill(buffer, scale, shape, layout)
        return self

    def _fill(self, buffer: Array, scale: Array | None, shape: tuple[int, int], layout: str) -> None:
        self.shape, self.layout, self.buffer, self.scale, self._density = shape, layout, buffer, scale, None
        self.operands = (*shape, buffer, scale)
        self._native = (0, None)

    @property
    def nbytes(self) -> int:
        """The bytes that buffer and scale hold."""
        return int(self.buffer.nbytes) + (0 if self.scale is None else int(self.scale.nbytes))

    @property
    def density(self) -> float:
        """The share of weights that are not zero (1.0 for an empty weight); counted once."""
        if self._density is None:
            n, k, _, count = read_header(self.buffer)
            counted = self.layout == "bitmask" and n * k > 0
            self._density = count / (n * k) if counted else density(self.unpack()[0])
        return self._density

    def unpack(self) -> tuple[Array, Array | None]:
        """(int8 [N, K], scale [N] or None): exactly what went in, in new memory."""
        n, k = self.shape
        scale = None if self.scale is None else copy_contiguous(self.scale)
        if needs_dispatcher(self.buffer):
            from . import torch_ops

            return torch_ops.unpack_weight(self.buffer, n, k), scale
        return unpack_buffer(self.buffer, n, k), scale

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, (self.buffer, self.scale)

    def __repr__(self) -> str:
        scaled = "no scale" if self.scale is None else "scale"
        return f"PackedWeight(shape={self.shape}, layout={self.layout!r}, {scaled}, nbytes={self.nbytes})"


def aligned(buffer: Array) -> Array:
    """The buffer, or a copy of it where it is not contiguous and 64-byte aligned as the kernels want it."""
    buffer = contiguous(buffer)
    if not _address(buffer) % _ALIGNMENT:
        return buffer
    copy = _aligned_empty(buffer.shape[0], buffer)
    copy[:] = buffer
    return copy


def _parts(n: int, k: int, layout: str, count: int) -> tuple[int, int, int, int]:
    """Where the offsets, the index, the weights and the end of a packed weight are; see csrc/layouts.h."""
    rows, cols = padded(n, k)
    offsets = _HEADER_NBYTES + 4 * rows
    if layout == "rows":
        offsets += -offsets % 256 + 256
    if layout == "bitmask":
        index = offsets + _round_up(8 * (_pairs(rows) + 1))
        weights = index + _pairs(rows) * 4 * cols
        return offsets, index, weights, weights + _round_up(count) + 64
    if layout == "block":
        index = offsets + _round_up(8 * (rows // 4 + 1))
        weights = index + _round_up(2 * count)
        return offsets, index, weights, weights + 64 * count
    return offsets, offsets, offsets, offsets + rows * cols


def padded(n: int, k: int) -> tuple[int, int]:
    """N and K with the zeros that complete panels."""
    return -(-n // 16) * 16, -(-k // 64) * 64


def _pairs(rows: int) -> int:
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
    units = _pairs(rows) if layout == "bitmask" else rows // 4
    parts = _bytes(buffer[start:weights])
    counts = np.diff(parts[: 8 * (units + 1)].view("<i8"), prepend=0, append=count)
    good = counts[0] == 0 == counts[-1] and counts.min() >= 0 and counts.max() <= count  # differences wrap
    table = parts[index - start :]
    rest = k % (4 if layout == "bitmask" else 16)  # terms of the last group or tile
    if good and layout == "bitmask":
        ones = _ONES[table].reshape(units, 4 * cols).sum(1, dtype=np.int64)
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


def check_scale(scale: Array | None, name: str, n: int) -> None:
    """A weight's scale is float32 [N] or [N, 1]."""
    if scale is None:
        return
    check_dtype(scale, name, "float32")
    if scale.shape != (n,):
        check_shape(scale, name, (n,), (n, 1))


def pack_buffer(weight: Array, layout: str = "dense") -> Array:
    """int8 [N, K], any strides -> packed uint8 buffer."""
    return pack(weight, layout)[0]


def pack(weight: Array, layout: str) -> tuple[Array, str]:
    """int8 [N, K], any strides -> (packed uint8 buffer, its layout), which "auto" lets the kernels choose."""
    kind_of(weight=weight)
    check_dtype(weight, "weight", "int8")
    if weight.ndim != 2:
        raise ValueError(f"weight: expected two dimensions [N, K], got shape {tuple(weight.shape)}")
    n, k = weight.shape
    if k > MAX_K:
        raise ValueError(f"weight: expected K <= {MAX_K}, for exact int32 sums, got {k}")
    if is_torch(weight):
        weight = weight.resolve_neg()
    engine = native_for(weight, "linear")
    if on_cuda(weight):
        if layout not in ("auto", "dense"):
            raise ValueError(f"layout: expected 'auto' or 'dense' on a device, got {layout!r}")
        if engine is None:
            return reference_for(weight, "linear").pack_weight(weight, "rows"), "dense"
        return _pack_rows(engine, weight), "dense"
    if engine is None:
        layout = "dense" if layout == "auto" else layout
        return reference_for(weight).pack_weight(weight, layout), layout
    kernels, where = engine
    rows = _rows_of(kernels, weight)
    counts: Any = None
    if layout == "auto" and n * k < _SMALL:
        layout = "dense"
    if layout != "dense":
        columns = padded(n, k)[0]
        kept, tiles = np.empty(_pairs(columns), np.int64), np.empty(columns // 4, np.int64)
        kernels.count_weight(rows, kept=pointer(kept), tiles=pointer(tiles), where=where)
        if layout == "auto":
            layout = _fastest_layout(n, k, int(kept.sum()), int(tiles.sum()), *kernels.sparse_pays())
        counts = {"dense": None, "bitmask": kept, "block": tiles}[layout]
    count = 0 if counts is None else int(counts.sum())
    buffer = _aligned_empty(packed_nbytes(n, k, layout, count), weight)
    kernels.pack_weight(
        rows,
        layout=LAYOUTS.index(layout),
        counts=0 if counts is None else pointer(counts),
        buffer=pointer(buffer),
        where=where,
    )
    return buffer, layout


def _rows_of(kernels: Any, weight: Array) -> Any:
    (n, k), (n_stride, k_stride) = weight.shape, element_strides(weight)
    return kernels.IntRows(
        pointer(weight), signed=True, rows=n, cols=k, row_stride=n_stride, col_stride=k_stride
    )


def _pack_rows(engine: Engine, weight: Array) -> Array:
    kernels, where = engine
    n, k = weight.shape
    buffer = empty((packed_nbytes(n, k, "rows"),), "uint8", weight)
    kernels.pack_weight(
        _rows_of(kernels, weight), buffer=pointer(buffer), nbytes=buffer.shape[0], where=where
    )
    return buffer


def _fastest_layout(n: int, k: int, kept: int, tiles: int, bitmask_pays: float, block_pays: float) -> str:
    """The layout with the fewest bytes among those that pay: the kernels say below which share of kept
    weights, or tiles, they beat the dense product with many rows and with few."""
    rows, cols = padded(n, k)
    nbytes = {"dense": packed_nbytes(n, k)}
    if kept < bitmask_pays * n * k:
        nbytes["bitmask"] = packed_nbytes(n, k, "bitmask", kept)
    if 64 * tiles < block_pays * rows * cols:
        nbytes["block"] = packed_nbytes(n, k, "block", tiles)
    return min(nbytes, key=lambda layout: nbytes[layout])


def unpack_buffer(buffer: Array, n: int, k: int) -> Array:
    """Packed uint8 buffer -> int8 [N, K]; the header must say N and K."""
    kind_of(buffer=buffer)
    header = read_header(buffer)
    if header[:2] != (n, k):
        raise ValueError(f"buffer: expected a packed [{n}, {k}], got {list(header[:2])}")
    check_parts(buffer, header)
    if is_torch(buffer) and not _is_at_home(buffer, header):  # a module that moves
        from .torch_reference import unpack_weight

        return unpack_weight(buffer, *header[:3])
    check_home(buffer, header)
    engine = native_for(buffer, "linear")
    if engine is None:
        plain: Array = reference_for(buffer, "linear").unpack_weight(buffer, *header[:3])
        return plain
    buffer = contiguous(buffer)
    weight = empty((n, k), "int8", buffer)
    kernels, where = engine
    packed = kernels.Weight(pointer(buffer), nbytes=buffer.shape[0], n=n, k=k)
    kernels.unpack_weight(packed, w=pointer(weight), where=where)
    return weight


def _is_at_home(buffer: Array, header: Header) -> bool:
    return (header.layout == "rows") == on_cuda(buffer)


def check_home(buffer: Array, header: Header) -> None:
    """ValueError where a buffer for the CPU is on a device, or the reverse."""
    if not _is_at_home(buffer, header):
        here = on_cuda(buffer)
        raise ValueError(
            f"buffer: expected one packed for ISA {here:d} ({_ISAS[here]}), where it is, got one for ISA "
            f"{not here:d} ({_ISAS[not here]}); unpack a weight where it was packed, and pack it anew"
        )


def density(weight: Array) -> float:
    """The share of elements that are not zero; 1.0 for an empty array."""
    size = int(np.prod(weight.shape))
    if not size:
        return 1.0
    if isinstance(weight, np.ndarray):
        return float(np.count_nonzero(weight)) / size
    return int((weight != 0).sum()) / size


def _address(x: Array) -> int:
    return x.ctypes.data if isinstance(x, np.ndarray) else pointer(x)


def _aligned_empty(nbytes: int, like: Array) -> Array:
    if not isinstance(like, np.ndarray):
        return empty((nbytes,), "uint8", like)  # torch aligns to 64 bytes, on a device it and CuPy to 512
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    offset = -_address(raw) % _ALIGNMENT
    return raw[offset : offset + nbytes]
