"""Int8Conv2d: a 2-D convolution that holds and multiplies int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ops.conv import INT8_CONV2D, Window, as_window
from ...ops.conv_weight import PackedConvWeight, pack_conv
from ...ops.operand import ACTIVATIONS
from ...runtime.arrays import needs_dispatcher
from ...torch_ops.conv import int8_conv2d_op, unpack_conv_weight_op
from ..configs import DEFAULT, Config, check_config
from .base import PackedModule, in_dtype_of, leaf

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Int8Conv2d(PackedModule):
    """activation(conv2d(x, weight) + bias) with an int8 weight; x is quantized per sample on the fly.

    The arguments are those of torch.nn.Conv2d, and octavo.int8_conv2d's activation; x is [B, C, H, W] or
    [C, H, W]. A padding_mode other than "zeros" pads x in its own dtype first, which costs a pass over it.
    The state dict holds the logical values: `weight_int8` int8 [N, C / groups, kh, kw], `weight_scale`
    float32 [N, 1, 1, 1] and `bias`. In memory there is one copy of the weight, packed for the kernels on the
    CPU, plain on a device. `.to(dtype)` casts the bias, and says what `weight` looks like: every float dtype
    is taken, and returned.
    """

    kernel = "int8_conv2d"
    _checked: tuple[Tensor, Tensor, PackedConvWeight] | None = None  # buffers after checks

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        activation: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dtype)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {tuple(ACTIVATIONS)}, got {activation!r}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode: expected one of {PADDING_MODES}, got {padding_mode!r}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups: expected a divisor of {in_channels} and {out_channels} channels, got {groups}"
            )
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self._window = as_window(stride, padding, dilation, kernel)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = kernel, self._window.stride, self._window.dilation
        self.padding = padding if isinstance(padding, str) else self._window.padding[::2]
        self.padding_mode, self.activation = padding_mode, activation
        weight = torch.zeros(self._shape, dtype=torch.int8, device=device)
        self.register_buffer("_stored", pack_conv(weight, groups), persistent=False)
        scale = torch.ones(out_channels, 1, 1, 1, dtype=torch.float32, device=device)
        self.register_buffer("weight_scale", scale)
        if bias:
            zeros = torch.zeros(out_channels, device=device, dtype=dtype)
            self.bias = nn.Parameter(zeros, requires_grad=False)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_float(
        cls, conv: nn.Conv2d, config: Config = DEFAULT, *, activation: str | None = None
    ) -> Int8Conv2d:
        """The int8 form of a convolution. ValueError for a weight with NaN or Inf.

        Activations are symmetric whatever the config says: a zero of the padding is then the 0 of int8.
        """
        check_config(config)
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv: expected a torch.nn.Conv2d, got {type(conv).__name__}")
        with torch.no_grad():
            new = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                conv.stride,  # type: ignore[arg-type]
                conv.padding,  # type: ignore[arg-type]
                conv.dilation,  # type: ignore[arg-type]
                conv.groups,
                False,
                conv.padding_mode,
                activation=activation,
                device="meta",
                dtype=conv.weight.dtype,
            )
            new._set_float(conv.weight)
            if conv.bias is not None:
                new.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        return new.train(conv.training)

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        kh, kw = self.kernel_size
        return self.out_channels, self.in_channels // self.groups, kh, kw

    def _packed(self, weight: Tensor) -> Tensor:
        packed: Tensor = pack_conv(weight, self.groups)
        return packed

    def _unpacked(self, stored: Tensor) -> Tensor:
        weight: Tensor = unpack_conv_weight_op(stored, self._shape, self.groups)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        traced = leaf(self, x)
        if traced is not None:
            return traced  # type: ignore[no-any-return]
        if isinstance(x, Tensor) and x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        stored, scale, bias, window = self._stored, self.weight_scale, self.bias, self._window
        if self.padding_mode != "zeros":
            top, bottom, left, right = window.padding
            x = functional.pad(x, (left, right, top, bottom), mode=self.padding_mode)
            window = Window(window.stride, (0, 0, 0, 0), window.dilation)
        if needs_dispatcher(x, stored, bias):
            y: Tensor = int8_conv2d_op(
                x,
                stored,
                scale,
                bias,
                *window,
                self.groups,
                kernel_size=self.kernel_size,
                activation=self.activation,
            )
            return in_dtype_of(x, y)
        checked = self._checked
        if checked is None or checked[0] is not stored or checked[1] is not scale:
            packed = PackedConvWeight(stored, scale.reshape(-1), self._shape, self.groups)
            checked = self._checked = (stored, scale, packed)
        more = bias, *window, self.groups, self.kernel_size, self.activation
        return in_dtype_of(x, INT8_CONV2D.run(x, checked[2], None, *more))

    def _convolution(
        self, x: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Any:
        if groups != self.groups:
            return NotImplemented
        if x.dim() == 3:
            return self._convolution(x.unsqueeze(0), bias, stride, padding, dilation, groups).squeeze(0)
        weight, window = (
            (self._stored, self.weight_scale),
            as_window(stride, padding, dilation, self.kernel_size),
        )
        traced = needs_dispatcher(x, *weight, bias)
        product = int8_conv2d_op if traced else INT8_CONV2D.run
        return in_dtype_of(x, product(x, *weight, bias, *window, groups, kernel_size=self.kernel_size))

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        for name, plain in (
            ("padding", (0, 0)),
            ("dilation", (1, 1)),
            ("groups", 1),
            ("padding_mode", "zeros"),
        ):
            if getattr(self, name) != plain:
                text += f", {name}={getattr(self, name)!r}"
        text += f", bias={self.bias is not None}"
        return text if self.activation is None else f"{text}, activation={self.activation!r}"
