"""int8_conv2d."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..runtime.arrays import (
    DTYPE_CODES,
    Array,
    as_dtype_name,
    check_dtype,
    contiguous,
    copy_contiguous,
    element_strides,
    empty,
    empty_channels_last,
    float_code,
    is_readable,
    kind_of,
    on_cuda,
    pointer,
)
from ..runtime.routing import Engine
from .conv_weight import PackedConvWeight, bundle_of, check_kinds, joined, pack_conv, unpack_conv
from .int_mm import SCALED_INT_MM
from .op import Op, Plan
from .operand import ACTIVATIONS, FLOAT_OUT, check_epilogue, default_out_dtype
from .quantize import QUANTIZE

Pair = int | Sequence[int]


class Window(NamedTuple):
    """How a kernel moves over an image. Each is (vertical, horizontal); padding: top, bottom, left, right."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]


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
    name = None if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", FLOAT_OUT)
    more = weight, None, bias, *window, weight.groups, weight.shape[2:], activation, name
    if getattr(x, "ndim", 4) == 3:
        kind_of(x=x)
        return INT8_CONV2D(x[None], *more)[0]
    return INT8_CONV2D(x, *more)


def _plan(
    x: Array,
    weight: PackedConvWeight | Array,
    weight_scale: Array | None,
    bias: Array | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    kernel_size: Sequence[int] | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
) -> Plan:
    if isinstance(weight, PackedConvWeight):
        packed, window = weight, Window(stride, padding, dilation)  # type: ignore[arg-type]  # of as_window
    else:
        kind_of(x=x, weight=weight, weight_scale=weight_scale)
        packed = as_packed(x, weight, weight_scale, groups, kernel_size)
        window = as_checked_window(stride, padding, dilation)
    inputs = {"x": x, "weight": packed.buffer, "weight_scale": packed.scale, "bias": bias}
    check_kinds(**inputs)
    x_code = float_code(x, "x")
    shape = packed.shape
    n = shape[0]
    size = output_size(x.shape, shape, groups, window)
    name = default_out_dtype(x) if out_dtype is None else as_dtype_name(out_dtype, "out_dtype", FLOAT_OUT)
    check_epilogue(n, packed.scale, bias, activation, name)

    def native(engine: Engine, result: Array) -> None:
        if on_cuda(x):  # there by other operations of octavo: it has no kernel of its own
            result[...] = composed()
            return
        plain = x if is_readable(x) else copy_contiguous(x)
        buffer, scale = packed.buffer, contiguous(packed.scale)
        buffer = pack_conv(buffer, groups) if buffer.ndim == 4 else contiguous(buffer)
        biases = None if bias is None else contiguous(bias)
        kernels, where = engine
        batch_step, channel_step, row_step, col_step = element_strides(plain)
        image = kernels.Image(
            pointer(plain),
            dtype=x_code,
            batch=x.shape[0],
            channels=x.shape[1],
            height=x.shape[2],
            width=x.shape[3],
            batch_stride=batch_step,
            channel_stride=channel_step,
            row_stride=row_step,
            col_stride=col_step,
        )
        matrices = kernels.ConvWeight(
            pointer(buffer),
            nbytes=buffer.nbytes,
            n=n,
            channels=x.shape[1],
            kernel_h=shape[2],
            kernel_w=shape[3],
            groups=groups // (1 if buffer.ndim == 2 else bundle_of(shape, groups)),
        )
        steps = kernels.Window(
            stride_h=window.stride[0],
            stride_w=window.stride[1],
            dilation_h=window.dilation[0],
            dilation_w=window.dilation[1],
            pad_top=window.padding[0],
            pad_left=window.padding[2],
        )
        kernels.int8_conv2d(
            image,
            weight=matrices,
            window=steps,
            scale=pointer(scale),
            bias=0 if biases is None else pointer(biases),
            bias_dtype=0 if biases is None else float_code(biases, "bias"),
            activation=ACTIVATIONS[activation],
            out=pointer(result),
            out_dtype=DTYPE_CODES[name],
            out_height=size[0],
            out_width=size[1],
            channels_last=layout == "channels_last",
            where=where,
        )

    def composed() -> Array:
        plain = unpack_conv(packed.buffer, shape, groups)
        return _compose(x, plain, packed.scale, bias, *window, groups, activation, name)

    def reference(module: Any) -> Any:
        if isinstance(x, np.ndarray):
            plain = unpack_conv(packed.buffer, shape, groups)
            y = module.int8_conv2d(x, plain, packed.scale, bias, *window, groups, activation, name)
        else:
            y = composed()
        result = (empty_channels_last if layout else empty)((x.shape[0], n, *size), name, x)
        result[...] = y
        return result

    layout = "channels_last" if is_channels_last(x) else ""
    return Plan(x, inputs, (((x.shape[0], n, *size), name, layout),), native, reference)


def _lower(
    x: Array,
    weight: PackedConvWeight | Array,
    weight_scale: Array | None,
    bias: Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    *more: Any,
) -> tuple[Any, ...]:
    """The arguments as the schema has them; a packed weight's channels are known here, and not there."""
    if isinstance(weight, PackedConvWeight):
        output_size(x.shape, weight.shape, weight.groups, Window(stride, padding, dilation))
        weight, weight_scale = weight.buffer, weight.scale
    return x, weight, weight_scale, bias, stride, padding, dilation, *more


# padding: top, bottom, left, right. weight: int8 [N, C / groups, kh, kw], or PackedConvWeight.buffer with the
# kernel_size that it has no longer.
INT8_CONV2D = Op(
    "int8_conv2d(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, int[2] stride=1, "
    "int[4] padding=0, int[2] dilation=1, int groups=1, *, int[2]? kernel_size=None, str? activation=None, "
    "ScalarType? out_dtype=None) -> Tensor",
    _plan,
    lower=_lower,
)


def as_packed(
    x: Array, weight: Array, weight_scale: Array, groups: int, kernel_size: Sequence[int] | None
) -> PackedConvWeight:
    """The weight of a call: int8 [N, C / groups, kh, kw], or PackedConvWeight.buffer with its kernel_size."""
    if groups < 1:
        raise ValueError(f"groups: expected at least 1, got {groups}")
    check_dtype(weight_scale, "weight_scale", "float32")
    scale = weight_scale.reshape(math.prod(weight_scale.shape))
    if weight.ndim == 4:
        check_dtype(weight, "weight", "int8")
        shape: Sequence[int] = weight.shape
    elif kernel_size is None or len(kernel_size) != 2 or min(kernel_size) < 1 or x.ndim != 4:
        raise ValueError(
            f"kernel_size: expected two numbers of at least 1 with a packed weight and x [B, C, H, W], "
            f"got {kernel_size} and {tuple(x.shape)}"
        )
    else:
        shape = (scale.shape[0], x.shape[1] // groups, *kernel_size)
    if shape[0] != scale.shape[0] or shape[0] % groups:
        raise ValueError(
            f"weight_scale: expected one for each of {shape[0]} output channels, in {groups} groups, "
            f"got shape {tuple(weight_scale.shape)}"
        )
    return PackedConvWeight.trusted(weight, scale, shape, groups)


def _compose(
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
    from ..reference import torch as torch_reference

    batch, n = x.shape[0], weight.shape[0]
    data, scale, _ = QUANTIZE.run(x.reshape(batch, math.prod(x.shape[1:])))
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
            SCALED_INT_MM.run(
                windows[group], scales, rows, weight_scale[out], part, None, activation, out_dtype
            )
        )
    return joined(parts, -1).permute(0, 3, 1, 2)


# ---- shapes and memory ----


def as_window(stride: Pair, padding: Pair | str, dilation: Pair, kernel: Sequence[int]) -> Window:
    """The arguments of a convolution, checked, as a Window."""
    strides, dilations = as_pair(stride, "stride", 1), as_pair(dilation, "dilation", 1)
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ValueError(f"padding: expected a number, a pair, 'valid' or 'same', got {padding!r}")
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel, strict=True)]
        if padding == "same" and strides != (1, 1):
            raise ValueError(f"padding: expected no 'same' with a stride, got stride {strides}")
        top, left = (each // 2 for each in reach)  # what is odd goes below and right, as torch does it
        return Window(strides, (top, reach[0] - top, left, reach[1] - left), dilations)
    high, wide = as_pair(padding, "padding", 0)
    return Window(strides, (high, high, wide, wide), dilations)


def as_pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (list, tuple)) or not all(type(each) is int for each in pair):
        raise TypeError(f"{name}: expected a number or a pair of them, got {value!r}")
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name}: expected two numbers of at least {least}, got {value!r}")
    return pair[0], pair[1]


def as_checked_window(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Window:
    """A Window from the arguments of an operator."""
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            "stride, padding, dilation: expected at least 1, 0 and 1, got "
            f"{tuple(stride)}, {tuple(padding)} and {tuple(dilation)}"
        )
    top, bottom, left, right = padding
    return Window((stride[0], stride[1]), (top, bottom, left, right), (dilation[0], dilation[1]))


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
