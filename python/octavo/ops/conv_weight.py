"""PackedConvWeight: an int8 weight of a convolution in the form that its kernels read."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runtime.arrays import (
    FLOATS,
    Array,
    check_dtype,
    check_shape,
    contiguous,
    copy_contiguous,
    detached,
    dtype_name,
    empty,
    kind_of,
    needs_dispatcher,
    on_cuda,
    pointer,
    to_host,
)
from ..runtime.routing import Engine, native_for
from .layouts import MAX_K, aligned, check_home, check_parts, check_scale, read_header
from .op import Packed
from .pack import pack_matrix, unpack_matrix
from .quantize import quantize

_PANEL = 16  # kPanelN of csrc/layouts.h
MAX_TAPS = 1024  # kMaxTaps of csrc/octavo.h: what the depthwise kernels sum exactly


class PackedConvWeight(Packed):
    """An int8 weight [N, C / groups, kh, kw], packed once for int8_conv2d; made by pack_conv_weight.

    shape: (N, C / groups, kh, kw). groups: as torch.nn.Conv2d has it. scale: float32 [N].
    buffer: on the CPU, uint8: the packed matrices [N / groups, kh * kw * C / groups] of the groups, one after
        the other, narrow ones joined with zeros beside them; a depthwise weight of up to 1024 taps is int8
        [kh * kw, N] instead. On a device, the int8 weight itself.
    Treat it as immutable. It pickles; loading checks the buffer.
    """

    __slots__ = ("buffer", "groups", "scale", "shape")

    def __init__(self, buffer: Array, scale: Array, shape: Sequence[int], groups: int = 1) -> None:
        kind_of(buffer=buffer, scale=scale)
        n, c, kh, kw = self.shape = weight_shape(shape, groups)
        if scale is None:
            raise TypeError("scale: expected a float32 array, got None")
        check_scale(scale, "scale", n)
        if buffer.ndim == 1:
            m = bundle_of(self.shape, groups)
            matrix = n // groups * m, c * kh * kw * m
            for part in _matrices(buffer, groups // m):
                header = read_header(part)
                check_home(part, header)
                if header[:2] != matrix:
                    raise ValueError(f"buffer: expected a packed {list(matrix)}, got {list(header[:2])}")
                check_parts(part, header)
            buffer = aligned(buffer)
        else:
            check_dtype(buffer, "buffer", "int8")
            taps = buffer.ndim == 2 and is_depthwise(self.shape, groups)
            check_shape(buffer, "buffer", (kh * kw, n) if taps else self.shape)
        self.buffer, self.scale, self.groups = buffer, contiguous(scale).reshape(n), groups

    @classmethod
    def trusted(cls, buffer: Array, scale: Array, shape: Sequence[int], groups: int) -> PackedConvWeight:
        """From arrays that pack_conv has made: nothing is checked."""
        self = object.__new__(cls)
        n, c, kh, kw = shape
        self.buffer, self.scale, self.shape, self.groups = buffer, scale, (n, c, kh, kw), groups
        return self

    @property
    def nbytes(self) -> int:
        """The bytes that buffer and scale hold."""
        return int(self.buffer.nbytes) + int(self.scale.nbytes)

    def unpack(self) -> tuple[Array, Array]:
        """(int8 [N, C / groups, kh, kw], scale [N]): exactly what went in, in new memory."""
        return unpack_conv(self.buffer, self.shape, self.groups), copy_contiguous(self.scale)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedConvWeight, (self.buffer, self.scale, self.shape, self.groups)

    def __repr__(self) -> str:
        return f"PackedConvWeight(shape={self.shape}, groups={self.groups}, nbytes={self.nbytes})"


def pack_conv_weight(weight: Array, scale: Array | None = None, *, groups: int = 1) -> PackedConvWeight:
    """Packs a weight for int8_conv2d. Do it once: it costs a pass over the weight.

    weight: [N, C / groups, kh, kw], any strides: float (quantized here with one scale per output channel, as
        quantize(weight.reshape(N, -1)) does) or int8; C / groups * kh * kw <= 131,071, N a multiple of
        groups.
    scale: float32 [N] for an int8 weight, None for a float one.

    NumPy arrays and torch tensors; TypeError or ValueError for anything else.
    """
    check_kinds(weight=weight, scale=scale)
    shape = weight_shape(weight.shape, groups)
    weight, scale = detached("pack_conv_weight", weight, scale)
    if dtype_name(weight.dtype) in FLOATS:
        if scale is not None:
            raise ValueError("scale: expected None with a float weight, which is quantized here, got a scale")
        data, scale, _ = quantize(weight.reshape(shape[0], math.prod(shape[1:])))
        weight = data.reshape(shape)
    else:
        check_dtype(weight, "weight", "int8", *FLOATS)
        if scale is None:
            raise ValueError("scale: expected a float32 [N] with an int8 weight, got None")
        check_scale(scale, "scale", shape[0])
        scale = copy_contiguous(scale).reshape(shape[0])
    return PackedConvWeight.trusted(pack_conv(weight, groups), scale, shape, groups)


def is_depthwise(shape: Sequence[int], groups: int) -> bool:
    """Whether every channel has taps of its own, which are summed without a matrix product."""
    n, c, kh, kw = shape
    return c == 1 and n == groups and kh * kw <= MAX_TAPS


def pack_conv(weight: Array, groups: int) -> Array:
    """int8 [N, C / groups, kh, kw], any strides -> PackedConvWeight.buffer, in new memory."""
    n, c, kh, kw = weight.shape
    if not isinstance(weight, np.ndarray) and not weight.is_cpu:
        return copy_contiguous(weight)
    if is_depthwise(weight.shape, groups):
        return copy_contiguous(weight.reshape(n, kh * kw).T)
    m = bundle_of(weight.shape, groups)
    bundles, each = groups // m, n // groups
    rows = moved(weight, 0, 2, 3, 1)
    if m > 1:
        blocks = rows.reshape(bundles, m, each, kh, kw, c)
        rows = empty((bundles, m, each, kh, kw, m, c), "int8", weight)
        rows[...] = 0
        for i in range(m):
            rows[:, i, :, :, :, i] = blocks[:, i]
    rows = rows.reshape(bundles, m * each, kh * kw * m * c)
    layout = "auto" if groups == 1 else "dense"  # of one size each
    buffer = joined([pack_matrix(part, layout) for part in rows])
    return aligned(buffer) if isinstance(buffer, np.ndarray) else buffer


def unpack_conv(buffer: Array, shape: Sequence[int], groups: int) -> Array:
    """PackedConvWeight.buffer -> int8 [N, C / groups, kh, kw], in new memory."""
    n, c, kh, kw = shape
    if buffer.ndim == 4:
        return copy_contiguous(buffer)
    if buffer.ndim == 2:
        return copy_contiguous(buffer.T).reshape(n, 1, kh, kw)
    m = bundle_of(shape, groups)
    bundles, each = groups // m, n // groups
    engine = None if on_cuda(buffer) or needs_dispatcher(buffer) else native_for(buffer)
    if engine is not None:
        return _unpack_native(engine, contiguous(buffer), (n, c, kh, kw), bundles, m)
    parts = [unpack_matrix(part, m * each, kh * kw * m * c) for part in _matrices(buffer, bundles)]
    rows = joined(parts).reshape(bundles, m, each, kh, kw, m, c)
    blocks = empty((bundles, m, each, kh, kw, c), "int8", buffer)
    for i in range(m):
        blocks[:, i] = rows[:, i, :, :, :, i]
    return copy_contiguous(moved(blocks.reshape(n, kh, kw, c), 0, 3, 1, 2))


def _unpack_native(
    engine: Engine, buffer: Array, shape: tuple[int, int, int, int], bundles: int, m: int
) -> Array:
    """Without a check of each matrix in Python: grouped weights have tens of small ones."""
    (kernels, where), (n, c, kh, kw) = engine, shape
    packed = kernels.ConvWeight(
        pointer(buffer),
        nbytes=buffer.nbytes,
        n=n,
        channels=bundles * m * c,
        kernel_h=kh,
        kernel_w=kw,
        groups=bundles,
    )
    parts = _matrices(buffer, bundles)
    if to_host(buffer[8 :: parts[0].shape[0]]).any():  # their layouts: 0 is dense
        for part in parts:
            check_parts(part, read_header(part))
    weight = empty(shape, "int8", buffer)
    kernels.unpack_conv_weight(packed, bundle=m, w=pointer(weight), where=where)
    return weight


def bundle_of(shape: Sequence[int], groups: int) -> int:
    """How many groups one packed matrix holds, as blocks in zeros: as many as fill a panel of the kernels."""
    n, c, kh, kw = shape
    found = 1
    for m in range(2, _PANEL + 1):
        if groups % m == 0 and n // groups * m <= _PANEL and c * kh * kw * m <= MAX_K:
            found = m
    return found


def _matrices(buffer: Array, count: int) -> list[Array]:
    nbytes = buffer.shape[0] // count
    return [buffer[i * nbytes : i * nbytes + nbytes] for i in range(count)]


def weight_shape(shape: Sequence[int], groups: int) -> tuple[int, int, int, int]:
    """shape, if it is that of a weight with as many groups."""
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"groups: expected a number, got {groups!r}")
    if len(shape) != 4 or shape[2] < 1 or shape[3] < 1:
        raise ValueError(f"weight: expected shape (N, C / groups, kh, kw), got {tuple(shape)}")
    n, c, kh, kw = shape
    if groups < 1 or n % groups:
        raise ValueError(f"groups: expected a divisor of the {n} output channels, got {groups}")
    if c * kh * kw > MAX_K:
        raise ValueError(
            f"weight: expected C / groups * kh * kw <= {MAX_K}, for exact int32 sums, got {c * kh * kw}"
        )
    return n, c, kh, kw


def moved(x: Array, *axes: int) -> Array:
    return x.transpose(axes) if isinstance(x, np.ndarray) else x.permute(axes)


def joined(parts: list[Array], axis: int = 0) -> Array:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis)
    return sys.modules["torch"].cat(parts, axis)


def check_kinds(**arrays: Array | None) -> None:
    if kind_of(**arrays) == "cupy":
        name = next(iter(arrays))
        raise TypeError(f"{name}: expected a numpy.ndarray or a torch.Tensor, got a cupy.ndarray")
