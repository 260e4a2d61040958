"""PackedWeight: an int8 weight in the order that the matrix kernels read it; packing and unpacking."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..runtime.arrays import (
    FLOATS,
    Array,
    check_dtype,
    contiguous,
    copy_contiguous,
    detached,
    dtype_name,
    element_strides,
    empty,
    is_torch,
    kind_of,
    needs_dispatcher,
    on_cuda,
    pointer,
)
from ..runtime.backends import _core
from ..runtime.routing import Engine, native_for, reference_for
from .layouts import (
    LAYOUTS,
    aligned,
    aligned_empty,
    check_home,
    check_k,
    check_parts,
    check_scale,
    is_at_home,
    packed_nbytes,
    padded,
    pairs,
    read_header,
)
from .op import Op, Packed, Plan, torch_op
from .quantize import quantize

_SMALL = 1 << 16  # weights; below, calls cost more than what a sparse layout saves


def pack_weight(weight: Array, scale: Array | None = None, *, layout: str = "auto") -> PackedWeight:
    """Packs a weight for int_mm, int8_linear and scaled_int_mm. Do it once: it costs a pass over the weight.

    weight: [N, K], any strides: float (quantized per row here, as quantize does) or int8; K <= 131,071.
    scale: float32 [N] or [N, 1] for an int8 weight (None: for int_mm only); None for a float weight.
    layout: how zeros are stored; results are the same to the bit.
        "dense": as any other weight.
        "bitmask": a bit for each weight, and those that are not zero.
        "block": tiles of 4 rows x 16 columns ("block4x16" of prune_mask); those with zeros only are left out.
        "auto": the smallest of those that are faster than "dense" for the share of zeros here and the
            instruction set in use; else, in traced code and without native kernels, "dense". A weight on a
            device is always "dense": ValueError for the other two.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout: expected 'auto', 'dense', 'bitmask' or 'block', got {layout!r}")
    kind_of(weight=weight, scale=scale)
    if weight.ndim != 2:
        raise ValueError(f"weight: expected two dimensions [N, K], got shape {tuple(weight.shape)}")
    n, k = weight.shape
    weight, scale = detached("pack_weight", weight, scale)
    if dtype_name(weight.dtype) in FLOATS:
        if scale is not None:
            raise ValueError("scale: expected None with a float weight, which is quantized here, got a scale")
        weight, scale, _ = quantize(weight)
    elif dtype_name(weight.dtype) == "int8":
        check_scale(scale, "scale", n)
        scale = None if scale is None else copy_contiguous(scale).reshape(n)
    else:
        raise TypeError(f"weight: expected dtype int8 or a float dtype, got {dtype_name(weight.dtype)}")
    if needs_dispatcher(weight):
        layout = "dense" if layout == "auto" else layout
        return PackedWeight.trusted(torch_op("pack_weight")(weight, layout), scale, (n, k), layout)
    buffer, layout = pack(weight, layout)
    return PackedWeight.trusted(buffer, scale, (n, k), layout)


class PackedWeight(Packed):
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
        buffer, scale = detached("PackedWeight", buffer, scale)
        header = read_header(buffer)
        check_home(buffer, header)
        check_parts(buffer, header)
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
        self.operands, self._native = (*shape, buffer, scale), (0, None)

    def _at(self, address: int) -> Any:
        """The record of a weight on the CPU, whose buffer is here: share_memory_ of torch moves it."""
        if self._native[0] != address:
            n, k, buffer, _ = self.operands
            self._native = address, _core.Weight(address, nbytes=buffer.shape[0], n=n, k=k)
        return self._native[1]

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
        return unpack_matrix(self.buffer, n, k), scale

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, (self.buffer, self.scale)

    def __repr__(self) -> str:
        scaled = "no scale" if self.scale is None else "scale"
        return f"PackedWeight(shape={self.shape}, layout={self.layout!r}, {scaled}, nbytes={self.nbytes})"


def pack_matrix(weight: Array, layout: str) -> Array:
    """int8 [N, K], any strides -> packed uint8 buffer; dense where torch has to see it."""
    return torch_op("pack_weight")(weight) if needs_dispatcher(weight) else pack(weight, layout)[0]


def pack(weight: Array, layout: str) -> tuple[Array, str]:
    """int8 [N, K], any strides -> (packed uint8 buffer, its layout), which "auto" lets the kernels choose."""
    n, k = check_matrix(weight)
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
        kept, tiles = np.empty(pairs(columns), np.int64), np.empty(columns // 4, np.int64)
        kernels.count_weight(rows, kept=pointer(kept), tiles=pointer(tiles), where=where)
        if layout == "auto":
            layout = _fastest_layout(n, k, int(kept.sum()), int(tiles.sum()), *kernels.sparse_pays())
        counts = {"dense": None, "bitmask": kept, "block": tiles}[layout]
    count = 0 if counts is None else int(counts.sum())
    buffer = aligned_empty(packed_nbytes(n, k, layout, count), weight)
    kernels.pack_weight(
        rows,
        layout=LAYOUTS.index(layout),
        counts=0 if counts is None else pointer(counts),
        buffer=pointer(buffer),
        where=where,
    )
    return buffer, layout


def check_matrix(weight: Array) -> tuple[int, int]:
    """N and K of an int8 weight that can be packed."""
    kind_of(weight=weight)
    check_dtype(weight, "weight", "int8")
    if weight.ndim != 2:
        raise ValueError(f"weight: expected two dimensions [N, K], got shape {tuple(weight.shape)}")
    n, k = weight.shape
    check_k(k, "weight")
    return n, k


def _rows_of(kernels: Any, weight: Array) -> Any:
    (n, k), (n_step, k_step) = weight.shape, element_strides(weight)
    return kernels.IntRows(pointer(weight), signed=True, rows=n, cols=k, row_stride=n_step, col_stride=k_step)


def _pack_rows(engine: Engine, weight: Array) -> Array:
    kernels, where = engine
    buffer = empty((packed_nbytes(*check_matrix(weight), "rows"),), "uint8", weight)
    rows = _rows_of(kernels, weight)
    kernels.pack_weight(rows, buffer=pointer(buffer), nbytes=buffer.shape[0], where=where)
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


def _plan_unpack(packed: Array, n: int, k: int) -> Plan:
    kind_of(packed=packed)
    check_dtype(packed, "packed", "uint8")

    def check() -> None:
        header = read_header(packed)
        if header[:2] != (n, k):
            raise ValueError(f"buffer: expected a packed [{n}, {k}], got {list(header[:2])}")
        check_parts(packed, header)
        if not is_torch(packed):
            check_home(packed, header)

    def native(engine: Engine, weight: Array) -> None:
        header = read_header(packed)
        if not is_at_home(packed, header):  # a module that moves
            from ..reference import torch

            weight.copy_(torch.unpack_weight(packed, *header[:3]))
            return
        buffer = contiguous(packed)
        kernels, where = engine
        stored = kernels.Weight(pointer(buffer), nbytes=buffer.shape[0], n=n, k=k)
        kernels.unpack_weight(stored, w=pointer(weight), where=where)

    def reference(module: Any) -> Any:
        return module.unpack_weight(packed, *read_header(packed)[:3])

    return Plan(packed, {"packed": packed}, (((n, k), "int8", ""),), native, reference, check)


UNPACK_WEIGHT = Op("unpack_weight(Tensor packed, SymInt n, SymInt k) -> Tensor", _plan_unpack, "linear")


def unpack_matrix(buffer: Array, n: int, k: int) -> Array:
    """Packed uint8 buffer -> int8 [N, K]; the header must say N and K."""
    return UNPACK_WEIGHT(buffer, n, k)


def density(weight: Array) -> float:
    """The share of elements that are not zero; 1.0 for an empty array."""
    size = int(np.prod(weight.shape))
    if not size:
        return 1.0
    if isinstance(weight, np.ndarray):
        return float(np.count_nonzero(weight)) / size
    return int((weight != 0).sum()) / size
