"""PackedWeight: an int8 weight in the order that the matrix kernels read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import backends
from .arrays import (
    Array,
    check_dtype,
    check_shape,
    contiguous,
    copy_contiguous,
    empty,
    kind_of,
    needs_dispatcher,
    pointer,
)
from .backends import _core
from .quantization import reference_for, runs_native

MAX_K = 131_071  # 128 * 128 * K fits int32
MAX_K_UNSIGNED = 65_793  # 255 * 128 * K fits int32: uint8 activations, or zero points

_MAGIC, _VERSION, _DENSE, _ANY_ISA, _HEADER_NBYTES = 0x5654434F, 1, 0, 0, 64
_ALIGNMENT = 64


class PackedWeight:
    """An int8 weight [N, K], packed once for int_mm, int8_linear and scaled_int_mm; made by pack_weight.

    shape: (N, K). layout: "dense". buffer: uint8, one-dimensional, 64-byte aligned, the same on every ISA.
    scale: a float32 [N], or None if the weight is for int_mm only. Treat it as immutable. It pickles; loading
        checks the header.
    """

    __slots__ = ("_density", "buffer", "layout", "operands", "scale", "shape")

    shape: tuple[int, int]
    layout: str
    buffer: Array
    scale: Array | None
    operands: tuple[int, int, Array, Array | None]  # N, K, buffer, scale: one look-up in a tiny call
    _density: float | None

    def __init__(self, buffer: Array, scale: Array | None = None) -> None:
        kind_of(buffer=buffer, scale=scale)
        shape = read_header(buffer)
        if not isinstance(buffer, np.ndarray):
            buffer, scale = buffer.detach(), None if scale is None else scale.detach()
        buffer = aligned(buffer)
        scale = check_scale(scale, "scale", shape[0])
        self._fill(buffer, None if scale is None else scale.reshape(shape[0]), shape)

    @classmethod
    def from_buffer(cls, buffer: Array, scale: Array | None = None) -> PackedWeight:
        """The weight that a packed buffer (uint8) holds, with its float32 scale [N] or [N, 1] if it has one.

        ValueError for a buffer that is not one, or of another version, layout or ISA. The buffer is used as
        it is, and copied only where it is not contiguous and 64-byte aligned.
        """
        return cls(buffer, scale)

    @classmethod
    def trusted(cls, buffer: Array, scale: Array | None, shape: tuple[int, int]) -> PackedWeight:
        """From arrays that pack_weight has just made: nothing is checked."""
        self = object.__new__(cls)
        self._fill(buffer, scale, shape)
        return self

    def _fill(self, buffer: Array, scale: Array | None, shape: tuple[int, int]) -> None:
        self.shape, self.layout, self.buffer, self.scale, self._density = shape, "dense", buffer, scale, None
        self.operands = (*shape, buffer, scale)

    @property
    def nbytes(self) -> int:
        """The bytes that buffer and scale hold."""
        return int(self.buffer.nbytes) + (0 if self.scale is None else int(self.scale.nbytes))

    @property
    def density(self) -> float:
        """The share of weights that are not zero (1.0 for an empty weight); counted once, by unpacking."""
        if self._density is None:
            self._density = density(self.unpack()[0])
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
    if not _address(buffer) % _ALIGNMENT or not (isinstance(buffer, np.ndarray) or buffer.is_cpu):
        return buffer
    copy = _aligned_empty(buffer.shape[0], buffer)
    copy[:] = buffer
    return copy


def packed_nbytes(n: int, k: int) -> int:
    padded_n = -(-n // 16) * 16
    return _HEADER_NBYTES + 4 * padded_n + padded_n * (-(-k // 64) * 64)


def read_header(buffer: Array) -> tuple[int, int]:
    """(N, K) of a packed buffer. ValueError if it is not one that this version reads."""
    check_dtype(buffer, "buffer", "uint8")
    if buffer.ndim != 1 or buffer.shape[0] < _HEADER_NBYTES:
        raise ValueError(
            f"buffer: expected one dimension of {_HEADER_NBYTES} or more bytes, got {tuple(buffer.shape)}"
        )
    head = buffer[:32]
    head = np.array(head if isinstance(head, np.ndarray) else head.detach().cpu().numpy())
    words, (n, k) = head[:16].view("<u4"), head[16:].view("<i8")
    expected = (_MAGIC, _VERSION, _DENSE, _ANY_ISA)
    for name, want, got in zip(("magic", "version", "layout", "ISA"), expected, words, strict=True):
        if got != want:
            raise ValueError(f"buffer: expected a packed weight with {name} {want:#x}, got {int(got):#x}")
    n, k = int(n), int(k)
    if n < 0 or not 0 <= k <= MAX_K or packed_nbytes(n, k) != buffer.shape[0]:
        raise ValueError(
            f"buffer: expected the {packed_nbytes(max(n, 0), max(k, 0))} bytes of a packed [{n}, {k}], "
            f"got {buffer.shape[0]}"
        )
    return n, k


def check_scale(scale: Array | None, name: str, n: int) -> Array | None:
    """A weight's scale as a contiguous float32 [N] or [N, 1]."""
    if scale is None:
        return None
    check_dtype(scale, name, "float32")
    if scale.shape != (n,):
        check_shape(scale, name, (n,), (n, 1))
    return contiguous(scale)


def pack_buffer(weight: Array) -> Array:
    """int8 [N, K], any strides -> packed uint8 buffer."""
    kind_of(weight=weight)
    check_dtype(weight, "weight", "int8")
    if weight.ndim != 2:
        raise ValueError(f"weight: expected two dimensions [N, K], got shape {tuple(weight.shape)}")
    n, k = weight.shape
    if k > MAX_K:
        raise ValueError(f"weight: expected K <= {MAX_K}, for exact int32 sums, got {k}")
    if not runs_native(weight):
        buffer: Array = reference_for(weight).pack_weight(weight)
        return buffer
    if not isinstance(weight, np.ndarray):
        weight = weight.resolve_neg()
    strides = weight.strides if isinstance(weight, np.ndarray) else weight.stride()
    buffer = _aligned_empty(packed_nbytes(n, k), weight)
    _core.pack_weight(
        pointer(weight), n, k, strides[0], strides[1], pointer(buffer), backends.get_num_threads()
    )
    return buffer


def unpack_buffer(buffer: Array, n: int, k: int) -> Array:
    """Packed uint8 buffer -> int8 [N, K]; the header must say N and K."""
    kind_of(buffer=buffer)
    if read_header(buffer) != (n, k):
        raise ValueError(f"buffer: expected a packed [{n}, {k}], got {list(read_header(buffer))}")
    if not runs_native(buffer):
        size = () if isinstance(buffer, np.ndarray) else (n, k)  # a tensor's header may lie on a device
        plain: Array = reference_for(buffer).unpack_weight(buffer, *size)
        return plain
    buffer = contiguous(buffer)
    weight = empty((n, k), "int8", buffer)
    _core.unpack_weight(pointer(buffer), buffer.shape[0], pointer(weight), backends.get_num_threads())
    return weight


def density(weight: Array) -> float:
    """The share of elements that are not zero; 1.0 for an empty array."""
    size = int(np.prod(weight.shape))
    if not size:
        return 1.0
    if isinstance(weight, np.ndarray):
        return float(np.count_nonzero(weight)) / size
    return int(weight.detach().count_nonzero()) / size


def _address(x: Array) -> int:
    return x.ctypes.data if isinstance(x, np.ndarray) else int(x.data_ptr())


def _aligned_empty(nbytes: int, like: Array) -> Array:
    if not isinstance(like, np.ndarray):
        return empty((nbytes,), "uint8", like)  # torch aligns to 64 bytes
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    offset = -_address(raw) % _ALIGNMENT
    return raw[offset : offset + nbytes]
