"""Int8WeightOnlyLinear: a linear layer that holds int8 and multiplies floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops, torch_ops
from ..arrays import needs_dispatcher
from .configs import Int8WeightOnly
from .linear import PackedLinear, check_linear

_DEFAULT = Int8WeightOnly()


class Int8WeightOnlyLinear(PackedLinear):
    """y = activation(x @ (weight * weight_scale).T + bias) with x as it is and an int8 weight.

    The state dict holds the logical values: `weight` int8 [N, K], `weight_scale` float32 [N, 1], or
    [N, K / group_size] with a group_size, and `bias`.
    """

    kernel = "weight_only_linear"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group_size: int | None = None,
        activation: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        Int8WeightOnly(group_size)  # checks it
        if group_size is not None and in_features % group_size:
            raise ValueError(
                f"group_size: expected a divisor of in_features ({in_features}), got {group_size}"
            )
        super().__init__(in_features, out_features, bias, activation=activation, device=device, dtype=dtype)
        self.group_size = group_size
        if group_size is not None:
            self.weight_scale = torch.ones(out_features, in_features // group_size, device=device)

    @classmethod
    def from_float(
        cls, linear: nn.Linear, config: Int8WeightOnly = _DEFAULT, *, activation: str | None = None
    ) -> Int8WeightOnlyLinear:
        """The int8 form of a linear layer. ValueError for a weight with NaN or Inf, and for a group_size that
        does not divide its input features."""
        if not isinstance(config, Int8WeightOnly):
            raise TypeError(f"config: expected an octavo.Int8WeightOnly, got {config!r}")
        check_linear(linear)
        size = config.group_size
        data, scale, _ = ops.quantize(
            linear.weight.detach(),
            granularity="row" if size is None else "group",
            group_size=size,
            nonfinite="raise",
        )
        return cls._of(linear, data, scale, group_size=size, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        # the dictionaries of nn.Module, read directly: its __getattr__ costs more than a small kernel
        stored, scale, bias = (
            self._buffers["_stored"],
            self._buffers["weight_scale"],
            self._parameters["bias"],
        )
        if needs_dispatcher(x, stored, bias):
            y: Tensor = torch_ops.weight_only_linear_op(x, stored, scale, bias, activation=self.activation)
            return y
        return ops._weight_only_linear(x, stored, scale, bias, self.activation)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.group_size is None else f"{text}, group_size={self.group_size}"
