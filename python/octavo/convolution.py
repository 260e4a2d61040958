"""pack_conv_weight and int8_conv2d: what they check, allocate and call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .arrays import (
    DTYPE_CODES,
    FLOATS,
    Array,
    as_dtype_name,
    check_dtype,
    check_shape,
    contiguous,
    copy_contiguous,
    dtype_name,
    element_strides,
    empty,
    float_code,
    is_plain,
    is_torch,
    kind_of,
    needs_dispatcher,
    on_cuda,
    pointer,
)
from .engines import Engine, native_for, reference_for
from .linear import _check_epilogue
from .packed import MAX_K, aligned, check_home, check_parts, check_scale, pack_buffer, read_header, unpack_buffer
from .products import _scaled_int_mm
from .quantization import _quantize, quantize

MAX_TAPS = 1024  # kMaxTaps of csrc/octavo.h: what the depthwise kernels sum exactly
_OUT_DTYPES = ("float32", "float16", "bfloat16")

Pair = int | Sequence[int]


class Window(NamedTuple):
    """How a kernel moves over an image. Each is (vertical, horizontal); padding: top, bottom, left, right."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]


class PackedConvWeight:
    """An int8 weight [N, C / groups, kh, kw], packed once for int8_conv2d; made by pack_conv_weight.

    shape: (N, C / groups, kh, kw). groups: as torch.nn.Conv2d has it. scale: float32 [N].
    buffer: on the CPU, uint8: the packed matrices [N / groups, kh * kw * C / groups] of the groups, one after
        the other; a depthwise weight of up to 1024 taps is int8 [kh * kw, N] instead. On a device, the int8
        weight itself, with its channels innermost.
    Treat it as immutable. It pickles; loading checks the buffer.
    """

    __slots__ = ("buffer", "groups", "scale", "shape")

    def __init__(self, buffer: Array, scale: Array, shape: Sequence[int], groups: int = 1) -> None:
        kind_of(buffer=buffer, scale=scale)
        n, c, kh, kw = self.shape = _weight_shape(shape, groups)
        checked = check_scale(scale, "scale", n)
        if checked is None:
            raise TypeError("scale: expected a float32 array, got None")
        if buffer.ndim == 1:
            for part in group_buffers(buffer, groups):
                header = read_header(part)
                check_home(part, header)
                if header[:2] != (n // groups, c * kh * kw):
                    raise ValueError(f"buffer: expected a packed {[n // groups, c * kh * kw]}, got {list(header[:2])}")
                check_parts(part, header)
            buffer = aligned(buffer)
        else:
            check_dtype(buffer, "buffer", "int8")
            check_shape(buffer, "buffer", (kh * kw, n) if buffer.ndim == 2 else self.shape)
        self.buffer, self.scale, self.groups = buffer, checked.reshape(n), groups

    @classmethod
    def trusted(cls, buffer: Array, scale: Array, shape: Sequence[int], groups: int) -> PackedConvWeight:
        """From arrays that pack_conv has made: nothing is checked."""
        self = object.__new__(cls)
        self.buffer, self.scale, self.shape, self.groups = buffer, scale, tuple(shape), groups
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
        quantize(weight.reshape(N, -1)) does) or int8; C / groups * kh * kw <= 131,071, N a multiple of groups.
    scale: float32 [N] for an int8 weight, None for a float one.

    NumPy arrays and torch tensors; TypeError or ValueError for anything else.
    """
    _not_cupy(weight, "weight", weight=weight, scale=scale)
    shape = _weight_shape(weight.shape, groups)
    if is_torch(weight):
        weight, scale = weight.detach(), None if scale is None else scale.detach()
    if dtype_name(weight.dtype) in FLOATS:
        if scale is not None:
            raise ValueError("scale: expected None with a float weight, which is quantized here, got a scale")
        data, scale, _ = quantize(weight.reshape(shape[0], math.prod(shape[1:])))
        weight = data.reshape(shape)
    else:
        check_dtype(weight, "weight", "int8", *FLOATS)
        if scale is None:
            raise ValueError("scale: expected a float32 [N] with an int8 weight, got None")
        scale = copy_contiguous(check_scale(scale, "scale", shape[0])).reshape(shape[0])
    return PackedConvWeight.trusted(pack_conv(weight, groups), scale, shape, groups)


def int8_conv2d(
    x: Array,
    weight: PackedConvWeight,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    activation: str | None = None,
    out_dtype: Any = None,
) -> Array:
    """activation(conv2d(x, weight) + bias), with x quantized on the fly and exact integer sums.

    x: float32, float16, bfloat16 or float64 [B, C, H, W], any strides, quantized symmetrically with one scale
        per sample, as quantize(x.reshape(B, -1)) does. weight: of shape (N, C / groups, kh, kw), whose groups
        are those of the convolution. bias: [N] of any float dtype.
    stride, padding, dilation: a number, or one for each of the two dimensions; padding (zeros) also "valid"
        or "same", as in torch.nn.Conv2d.
    activation, out_dtype: as for int8_linear, but for "int32".

    Returns [B, N, H', W'], in channels_last memory if x is, else contiguous. A sample's result depends on
    nothing but that sample. NumPy arrays and torch tensors; TypeError or ValueError for anything else. On a
    GPU this is quantize, a gathering of windows and scaled_int_mm, one after the other.
    """
    if not isinstance(weight, PackedConvWeight):
        raise TypeError(f"weight: expected a PackedConvWeight (pack_conv_weight), got {type(weight).__name__}")
    window = as_window(stride, padding, dilation, weight.shape[2:])
    name = None if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", _OUT_DTYPES)
    if needs_dispatcher(x, weight.buffer, weight.scale, bias):
        from . import torch_ops

        return torch_ops.int8_conv2d(x, weight, bias, window, activation, name)
    return _int8_conv2d(x, weight, bias, window, activation, name)


def _int8_conv2d(
    x: Array,
    weight: PackedConvWeight,
    bias: Array | None,
    window: Window,
    activation: str | None = None,
    out_dtype: str | None = None,
) -> Array:
    """int8_conv2d, without torch's dispatcher."""
    _not_cupy(x, "x", x=x, weight=weight.buffer, weight_scale=weight.scale, bias=bias)
    x_code = float_code(x, "x")
    out_height, out_width = output_size(x.shape, weight.shape, weight.groups, window)
    name = out_dtype or FLOATS[x_code % 3]  # float32 for float64
    codes = _check_epilogue(weight.shape[0], weight.scale, bias, activation, name)
    if not on_cuda(x):
        engine = native_for(x)
        if engine is not None:
            size = (out_height, out_width)
            return _native_conv2d(engine, x, x_code, weight, bias, window, codes, name, size)
    plain = plain_weight(weight.buffer, weight.shape, weight.groups)
    if native_for(x, "quantize", "linear") is None:
        reference = reference_for(x, "quantize", "linear")
        y = reference.int8_conv2d(x, plain, weight.scale, bias, *window, weight.groups, activation, name)
    else:
        y = _compose_conv2d(x, plain, weight, bias, window, activation, name)
    return _in_format_of(x, y)


def _native_conv2d(
    engine: Engine,
    x: Array,
    x_code: int,
    weight: PackedConvWeight,
    bias: Array | None,
    window: Window,
    codes: tuple[int, int],
    name: str,
    size: tuple[int, int],
) -> Array:
    batch, n = x.shape[0], weight.shape[0]
    innermost = is_channels_last(x)
    shape = (batch, *size, n) if innermost else (batch, n, *size)
    result = empty(shape, name, x)
    if not (is_plain(x) or innermost) and (not _is_aligned(x)):
        x = copy_contiguous(x)
    buffer = weight.buffer
    if buffer.ndim == 4:  # as a device has it
        buffer = pack_conv(buffer, weight.groups)
    bias = None if bias is None else contiguous(bias)
    activation, bias_code = codes
    top, _, left, _ = window.padding
    engine.kernels.int8_conv2d(
        pointer(x),
        x_code,
        tuple(x.shape),
        tuple(element_strides(x)),
        (*weight.shape[2:], top, left),
        (*window.stride, *window.dilation),
        weight.groups,
        n,
        pointer(buffer),
        buffer.nbytes,
        pointer(weight.scale),
        0 if bias is None else pointer(bias),
        bias_code,
        activation,
        pointer(result),
        DTYPE_CODES[name],
        *size,
        innermost,
        *engine.where,
    )
    return _moved(result, 0, 3, 1, 2) if innermost else result
