"""pack_conv_weight and int8_conv2d: what they check, allocate and call."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import reference
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
    is_readable,
    is_torch,
    kind_of,
    native_dtype,
    needs_dispatcher,
    on_cuda,
    pointer,
)
from .engines import Engine, native_for
from .linear import _check_epilogue
from .packed import (
    MAX_K,
    aligned,
    check_home,
    check_parts,
    check_scale,
    pack_buffer,
    read_header,
    unpack_buffer,
)
from .products import _scaled_int_mm
from .quantization import _quantize, quantize

_PANEL = 16  # kPanelN of csrc/layouts.h
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
        the other, narrow ones joined with zeros beside them; a depthwise weight of up to 1024 taps is int8
        [kh * kw, N] instead. On a device, the int8 weight itself.
    Treat it as immutable. It pickles; loading checks the buffer.
    """

    __slots__ = ("buffer", "groups", "scale", "shape")

    def __init__(self, buffer: Array, scale: Array, shape: Sequence[int], groups: int = 1) -> None:
        kind_of(buffer=buffer, scale=scale)
        n, c, kh, kw = self.shape = _weight_shape(shape, groups)
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
    _check_kinds(weight=weight, scale=scale)
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
        check_scale(scale, "scale", shape[0])
        scale = copy_contiguous(scale).reshape(shape[0])
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
        per sample, as quantize(x.reshape(B, -1)) does; or [C, H, W], one sample.
    weight: of shape (N, C / groups, kh, kw), whose groups are those of the convolution. bias: [N] of any
        float dtype.
    stride, padding, dilation: a number, or one for each of the two dimensions; padding (zeros) also "valid"
        or "same", as in torch.nn.Conv2d.
    activation, out_dtype: as for int8_linear, but for "int32".

    Returns [B, N, H', W'], for one sample [N, H', W'], in channels_last memory if x is, else contiguous. A
    sample's result depends on nothing but that sample. NumPy arrays and torch tensors; TypeError or
    ValueError for anything else. On a GPU this is quantize, a gathering of windows and scaled_int_mm, one
    after the other.
    """
    if not isinstance(weight, PackedConvWeight):
        raise TypeError(
            f"weight: expected a PackedConvWeight (pack_conv_weight), got {type(weight).__name__}"
        )
    window = as_window(stride, padding, dilation, weight.shape[2:])
    name = None if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", _OUT_DTYPES)
    run: Callable[..., Array] = _int8_conv2d
    if needs_dispatcher(x, weight.buffer, weight.scale, bias):
        from . import torch_ops

        run = torch_ops.int8_conv2d
    if getattr(x, "ndim", 4) == 3:
        kind_of(x=x)
        return run(x[None], weight, bias, window, activation, name)[0]
    return run(x, weight, bias, window, activation, name)


def _int8_conv2d(
    x: Array,
    weight: PackedConvWeight,
    bias: Array | None,
    window: Window,
    activation: str | None = None,
    out_dtype: str | None = None,
) -> Array:
    """int8_conv2d, without torch's dispatcher."""
    _check_kinds(x=x, weight=weight.buffer, weight_scale=weight.scale, bias=bias)
    x_code = float_code(x, "x")
    size = output_size(x.shape, weight.shape, weight.groups, window)
    name = out_dtype or FLOATS[x_code % 3]  # float32 for float64
    codes = _check_epilogue(weight.shape[0], weight.scale, bias, activation, name)
    engine = None if on_cuda(x) else native_for(x)
    if engine is not None:
        return _native_conv2d(engine, x, weight, bias, window, codes, name, size)
    plain = unpack_conv(weight.buffer, weight.shape, weight.groups)
    arguments = (x, plain, weight.scale, bias, *window, weight.groups, activation, name)
    y = reference.int8_conv2d(*arguments) if isinstance(x, np.ndarray) else _compose_conv2d(*arguments)
    result = _empty_result(x, (x.shape[0], weight.shape[0], *size), name)
    result[...] = y
    return result


def _native_conv2d(
    engine: Engine,
    x: Array,
    weight: PackedConvWeight,
    bias: Array | None,
    window: Window,
    codes: tuple[int, int],
    name: str,
    size: tuple[int, int],
) -> Array:
    n = weight.shape[0]
    result = _empty_result(x, (x.shape[0], n, *size), name)
    innermost = is_channels_last(x)
    x = x if is_readable(x) else copy_contiguous(x)
    buffer = pack_conv(weight.buffer, weight.groups) if weight.buffer.ndim == 4 else contiguous(weight.buffer)
    bias = None if bias is None else contiguous(bias)
    activation, bias_code = codes
    kernels, where = engine
    batch, channels, height, width = x.shape
    batch_stride, channel_stride, row_stride, col_stride = element_strides(x)
    image = kernels.Image(
        pointer(x),
        dtype=float_code(x, "x"),
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        batch_stride=batch_stride,
        channel_stride=channel_stride,
        row_stride=row_stride,
        col_stride=col_stride,
    )
    packed = kernels.ConvWeight(
        pointer(buffer),
        nbytes=buffer.nbytes,
        n=n,
        channels=channels,
        kernel_h=weight.shape[2],
        kernel_w=weight.shape[3],
        groups=weight.groups // (1 if buffer.ndim == 2 else bundle_of(weight.shape, weight.groups)),
    )
    (stride_h, stride_w), (dilation_h, dilation_w) = window.stride, window.dilation
    top, _, left, _ = window.padding
    kernels.int8_conv2d(
        image,
        weight=packed,
        window=kernels.Window(
            stride_h=stride_h,
            stride_w=stride_w,
            dilation_h=dilation_h,
            dilation_w=dilation_w,
            pad_top=top,
            pad_left=left,
        ),
        scale=pointer(weight.scale),
        bias=0 if bias is None else pointer(bias),
        bias_dtype=bias_code,
        activation=activation,
        out=pointer(result),
        out_dtype=DTYPE_CODES[name],
        out_height=size[0],
        out_width=size[1],
        channels_last=innermost,
        where=where,
    )
    return result


def _compose_conv2d(
    x: Array,
    weight: Array,
    weight_scale: Array,
    bias: Array | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str | None,
    out_dtype: str,
) -> Array:
    """int8_conv2d of torch tensors by other operations of octavo, where it has no kernel of its own."""
    from . import torch_reference

    batch, n = x.shape[0], weight.shape[0]
    data, scale, _ = _quantize(x.reshape(batch, math.prod(x.shape[1:])))
    windows = torch_reference.windows(
        data.reshape(x.shape), tuple(weight.shape[2:]), stride, padding, dilation, groups
    )
    m, (height, width) = n // groups, windows.shape[2:4]
    parts = []
    for group in range(groups):
        out = slice(group * m, group * m + m)
        rows = weight[out].reshape(m, math.prod(weight.shape[1:]))
        scales = scale.reshape(batch, 1, 1).expand(batch, height, width)
        part = None if bias is None else bias[out]
        parts.append(
            _scaled_int_mm(windows[group], scales, rows, weight_scale[out], part, None, activation, out_dtype)
        )
    return _joined(parts, -1).permute(0, 3, 1, 2)


# ---- weights ----


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
    blocks = _moved(weight, 0, 2, 3, 1).reshape(bundles, m, each, kh, kw, c)
    rows = empty((bundles, m, each, kh, kw, m, c), "int8", weight)
    rows[...] = 0
    for i in range(m):
        rows[:, i, :, :, :, i] = blocks[:, i]
    rows = rows.reshape(bundles, m * each, kh * kw * m * c)
    if needs_dispatcher(weight):
        from .torch_products import pack_weight

        pack: Callable[[Array], Array] = pack_weight
    else:

        def pack(part: Array) -> Array:
            return pack_buffer(part, "auto" if groups == 1 else "dense")  # of one size each

    buffer = _joined([pack(part) for part in rows])
    return aligned(buffer) if isinstance(buffer, np.ndarray) else buffer


def unpack_conv(buffer: Array, shape: Sequence[int], groups: int) -> Array:
    """PackedConvWeight.buffer -> int8 [N, C / groups, kh, kw], in new memory."""
    n, c, kh, kw = shape
    if buffer.ndim == 4:
        return copy_contiguous(buffer)
    if buffer.ndim == 2:
        return copy_contiguous(buffer.T).reshape(n, 1, kh, kw)
    if needs_dispatcher(buffer):
        from .torch_products import unpack_weight as unpack
    else:
        unpack = unpack_buffer
    m = bundle_of(shape, groups)
    bundles, each = groups // m, n // groups
    parts = [unpack(part, m * each, kh * kw * m * c) for part in _matrices(buffer, bundles)]
    rows = _joined(parts).reshape(bundles, m, each, kh, kw, m, c)
    blocks = empty((bundles, m, each, kh, kw, c), "int8", buffer)
    for i in range(m):
        blocks[:, i] = rows[:, i, :, :, :, i]
    return copy_contiguous(_moved(blocks.reshape(n, kh, kw, c), 0, 3, 1, 2))


def bundle_of(shape: Sequence[int], groups: int) -> int:
    """How many groups one packed matrix holds, as blocks in zeros: as many as fill a panel of the kernels."""
    n, c, kh, kw = shape
    fitting = [m for m in range(1, _PANEL + 1) if groups % m == 0 and n // groups * m <= _PANEL]
    return max((m for m in fitting if c * kh * kw * m <= MAX_K), default=1)


def _matrices(buffer: Array, count: int) -> list[Array]:
    nbytes = buffer.shape[0] // count
    return [buffer[i * nbytes : i * nbytes + nbytes] for i in range(count)]


def _weight_shape(shape: Sequence[int], groups: int) -> tuple[int, int, int, int]:
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


# ---- shapes and memory ----


def as_window(stride: Pair, padding: Pair | str, dilation: Pair, kernel: Sequence[int]) -> Window:
    """The arguments of a convolution, checked, as a Window."""
    strides, dilations = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ValueError(f"padding: expected a number, a pair, 'valid' or 'same', got {padding!r}")
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel, strict=True)]
        if padding == "same" and strides != (1, 1):
            raise ValueError(f"padding: expected no 'same' with a stride, got stride {strides}")
        top, left = (each // 2 for each in reach)  # what is odd goes below and right, as torch does it
        return Window(strides, (top, reach[0] - top, left, reach[1] - left), dilations)
    high, wide = _pair(padding, "padding", 0)
    return Window(strides, (high, high, wide, wide), dilations)


def _pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (list, tuple)) or not all(type(each) is int for each in pair):
        raise TypeError(f"{name}: expected a number or a pair of them, got {value!r}")
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name}: expected two numbers of at least {least}, got {value!r}")
    return pair[0], pair[1]


def output_size(shape: Sequence[int], weight: Sequence[int], groups: int, window: Window) -> tuple[int, int]:
    """(height, width) of the result for x and a weight of these shapes, which are checked."""
    _, c, kh, kw = weight
    if len(shape) != 4 or shape[1] != c * groups:
        raise ValueError(f"x: expected shape (B, {c * groups}, H, W), got {tuple(shape)}")
    top, bottom, left, right = window.padding
    (sh, sw), (dh, dw) = window.stride, window.dilation
    room = shape[2] + top + bottom - dh * (kh - 1) - 1, shape[3] + left + right - dw * (kw - 1) - 1
    if room[0] < 0 or room[1] < 0:
        raise ValueError(
            f"x: expected an image that holds the kernel {(kh, kw)} after padding, got shape {tuple(shape)}"
        )
    return room[0] // sh + 1, room[1] // sw + 1


def is_channels_last(x: Array) -> bool:
    """Whether the channels of x [B, C, H, W] are innermost in dense memory, and x is not contiguous."""
    if isinstance(x, np.ndarray):
        return bool(not x.flags.c_contiguous and x.transpose(0, 2, 3, 1).flags.c_contiguous)
    return not x.is_contiguous() and x.is_contiguous(memory_format=sys.modules["torch"].channels_last)


def _empty_result(x: Array, shape: tuple[int, int, int, int], dtype: str) -> Array:
    """In channels_last memory if x is. No view in torch: autograd wants none of an operator."""
    if not is_channels_last(x):
        return empty(shape, dtype, x)
    b, n, h, w = shape
    if isinstance(x, np.ndarray):
        return empty((b, h, w, n), dtype, x).transpose(0, 3, 1, 2)
    torch = sys.modules["torch"]
    wanted = native_dtype(dtype, x)
    return torch.empty(shape, dtype=wanted, device=x.device, memory_format=torch.channels_last)


def _moved(x: Array, *axes: int) -> Array:
    return x.transpose(axes) if isinstance(x, np.ndarray) else x.permute(axes)


def _joined(parts: list[Array], axis: int = 0) -> Array:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis)
    return sys.modules["torch"].cat(parts, axis)


def _check_kinds(**arrays: Array | None) -> None:
    if kind_of(**arrays) == "cupy":
        name = next(iter(arrays))
        raise TypeError(f"{name}: expected a numpy.ndarray or a torch.Tensor, got a cupy.ndarray")
