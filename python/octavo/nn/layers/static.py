"""Int8StaticLinear: a linear layer whose activations have a fixed scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ops.int_mm import SCALED_INT_MM
from ...ops.quantize import QUANTIZE, quantize
from ...runtime.arrays import needs_dispatcher
from ...torch_ops.linear import scaled_int_mm_op
from ...torch_ops.quantize import quantize_op
from ..configs import Int8Dynamic, Int8Static, check_config
from .base import in_dtype_of, leaf
from .linear import Int8Linear

Range = tuple[float, float]


class Int8StaticLinear(Int8Linear):
    """y = activation(x @ weight.T + bias) with an int8 weight; x is quantized with a scale of its own.

    As Int8Linear, but for two more values in the state dict: `input_scale` float32 () and, unless the layer
    is symmetric, `input_zero_point` int32 (). Values beyond the range that they span become its ends. No
    gradient reaches x.
    """

    input_scale: Tensor
    input_zero_point: Tensor | None
    kernel = "quantize, scaled_int_mm"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        symmetric: bool = False,
        activation: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            activation=activation,
            symmetric=symmetric,
            device=device,
            dtype=dtype,
        )
        self.register_buffer("input_scale", torch.ones((), dtype=torch.float32, device=device))
        zero_point = None if symmetric else torch.zeros((), dtype=torch.int32, device=device)
        self.register_buffer("input_zero_point", zero_point)

    @classmethod
    def from_float(  # type: ignore[override]
        cls, linear: nn.Linear, config: Int8Static, *, input_range: Range, activation: str | None = None
    ) -> Int8StaticLinear:
        """The int8 form of a linear layer whose inputs lie in input_range, (smallest, largest).

        ValueError for a weight with NaN or Inf, and for more inputs than a zero point allows.
        """
        check_config(config, Int8Static)
        new = super().from_float(linear, Int8Dynamic(config.symmetric), activation=activation)
        assert isinstance(new, Int8StaticLinear)
        ends = torch.tensor(input_range, dtype=torch.float32, device=linear.weight.device)
        _, scale, zero_point = quantize(ends, granularity="tensor", symmetric=config.symmetric)
        new.input_scale, new.input_zero_point = scale, zero_point
        return new

    def forward(self, input: Tensor) -> Tensor:
        traced = leaf(self, input)
        return self._product(input, self.bias, self.activation) if traced is None else traced

    def _linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._product(x, bias, None)

    def _product(self, x: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
        traced = needs_dispatcher(x, self._stored, bias)
        quantize, product = (quantize_op, scaled_int_mm_op) if traced else (QUANTIZE.run, SCALED_INT_MM.run)
        scale, zero_point = self.input_scale, self.input_zero_point
        data = quantize(x, "tensor", None, zero_point is None, scale, zero_point)[0]
        y: Tensor = product(
            data,
            scale,
            self._stored,
            self.weight_scale,
            bias,
            zero_point,
            activation=activation,
            out_dtype=torch.float32 if x.dtype == torch.float64 else x.dtype,
        )
        return in_dtype_of(x, y)
