"""Int8Conv2d: a 2-D convolution that holds and multiplies int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ops.conv import INT8_CONV2D, Window, as_pair, as_window
from ...ops.conv_weight import PackedConvWeight, pack_conv, weight_shape
from ...ops.operand import ACTIVATIONS, check_epilogue
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
    transposed = False
    output_padding = (0, 0)
    _checked: tuple[Tensor, Tensor, PackedConvWeight] | None = None  # buffers after checks
    _said: tuple[tuple[Any, ...], Window] | None = None

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
        kernel = as_pair(kernel_size, "kernel_size", 1)
        weight_shape((out_channels, in_channels // groups, *kernel), groups)  # checks the sums
        window = as_window(stride, padding, dilation, kernel)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = kernel, window.stride, window.dilation
        self.padding = padding if isinstance(padding, str) else window.padding[::2]
        self.padding_mode, self.activation = padding_mode, activation
        self._reversed_padding_repeated_twice = _for_pad(window)  # torch's name
        self._said = (self.stride, self.padding, self.dilation, kernel), window
        weight = torch.zeros(self._shape, dtype=torch.int8, device=device)
        self.register_buffer("_stored", pack_conv(weight, groups), persistent=False)
        scale = torch.ones(out_channels, 1, 1, 1, dtype=torch.float32, device=device)
        self.register_buffer("weight_scale", scale)
        if bias:
            zeros = torch.zeros(out_channels, device=device, dtype=dtype)
            self.bias = nn.Parameter(zeros, requires_grad=False)
        else:
            self.register_parameter("bias", None)
            self._add_like(device)

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
            weight = conv.weight
            n, c, *kernel = weight.shape  # conv.out_channels may be older, where a weight was cut
            new = cls(
                c * conv.groups,
                n,
                kernel,  # type: ignore[arg-type]
                conv.stride,  # type: ignore[arg-type]
                conv.padding,  # type: ignore[arg-type]
                conv.dilation,  # type: ignore[arg-type]
                conv.groups,
                conv.bias is not None,
                conv.padding_mode,
                activation=activation,
                device="meta",
                dtype=weight.dtype,
            )
            new._set_float(weight)
            check_epilogue(n, new.weight_scale, conv.bias, activation, "float32")
            if conv.bias is not None:
                new.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        return new.train(conv.training)

    def reset_parameters(self) -> None:
        """As torch.nn.Conv2d does, and quantizes the weight."""
        nn.Conv2d.reset_parameters(self)  # type: ignore[arg-type]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = nn.Conv2d._conv_forward(self, input, weight, bias)  # type: ignore[arg-type]
        return y

    @property
    def _window(self) -> Window:
        """What stride, padding and dilation say now: other code may set them."""
        said = self.stride, self.padding, self.dilation, self.kernel_size
        if self._said is None or self._said[0] != said:
            self._said = said, as_window(*said)
        return self._said[1]

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

    def forward(self, input: Tensor) -> Tensor:
        traced = leaf(self, input)
        if traced is not None:
            return traced  # type: ignore[no-any-return]
        if isinstance(input, Tensor) and input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        stored, scale, bias, window = self._stored, self.weight_scale, self.bias, self._window
        if self.padding_mode != "zeros":
            input = functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            window = Window(window.stride, (0, 0, 0, 0), window.dilation)
        if needs_dispatcher(input, stored, bias):
            y: Tensor = int8_conv2d_op(
                input,
                stored,
                scale,
                bias,
                *window,
                self.groups,
                kernel_size=self.kernel_size,
                activation=self.activation,
            )
            return in_dtype_of(input, y)
        checked = self._checked
        if checked is None or checked[0] is not stored or checked[1] is not scale:
            packed = PackedConvWeight(stored, scale.reshape(-1), self._shape, self.groups)
            checked = self._checked = (stored, scale, packed)
        more = bias, *window, self.groups, self.kernel_size, self.activation
        return in_dtype_of(input, INT8_CONV2D.run(input, checked[2], None, *more))

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_reversed_padding_repeated_twice" not in state:  # of octavo 0.1
            self._reversed_padding_repeated_twice = _for_pad(self._window)

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


def _for_pad(window: Window) -> list[int]:
    top, bottom, left, right = window.padding
    return [left, right, top, bottom]
