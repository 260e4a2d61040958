"""Int8Linear and Int8WeightOnlyLinear: linear layers that hold int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...ops.layouts import MAX_K_UNSIGNED, check_k
from ...ops.linear import INT8_LINEAR
from ...ops.linear_tiny import tiny_int8_linear
from ...ops.operand import ACTIVATIONS, CUDA_ROW, check_epilogue
from ...ops.pack import PackedWeight, pack_matrix
from ...ops.quantize import quantize
from ...ops.weight_only import WEIGHT_ONLY_LINEAR, tiny_weight_only_linear
from ...runtime import backends
from ...runtime.arrays import needs_dispatcher, on_cuda
from ...torch_ops.linear import int8_linear_op
from ...torch_ops.pack import unpack_weight_op
from ...torch_ops.weight_only import weight_only_linear_op
from ..configs import DEFAULT, Int8Dynamic, Int8WeightOnly, check_config, check_flag
from .base import PackedModule, in_dtype_of, leaf

if TYPE_CHECKING:
    from typing_extensions import Self


_WEIGHT_ONLY = Int8WeightOnly()


class PackedLinear(PackedModule):
    """What linear layers with an int8 weight share.

    The state dict holds the logical values: `weight_int8` int8 [N, K], `weight_scale` float32 [N, G] (one
    scale for each of G groups of a row's weights) and `bias`. In memory there is one copy of the weight,
    packed for the kernels on the CPU, and on a GPU where rows are not whole multiples of 16 bytes, else
    plain. `.to(dtype)` casts the bias, and says what `weight` looks like: every float dtype is taken, and
    returned.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dtype)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {tuple(ACTIVATIONS)}, got {activation!r}")
        check_k(in_features, "in_features")
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        weight = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        self.register_buffer("_stored", _stored_form(weight), persistent=False)
        self.register_buffer("weight_scale", torch.ones(out_features, 1, dtype=torch.float32, device=device))
        if bias:
            zeros = torch.zeros(out_features, device=device, dtype=dtype)
            self.bias = nn.Parameter(zeros, requires_grad=False)
        else:
            self.register_parameter("bias", None)
            self._add_like(device)

    @classmethod
    def _of(cls, linear: nn.Linear, **options: Any) -> Self:
        """The int8 form of a float layer."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: expected a torch.nn.Linear, got {type(linear).__name__}")
        weight = linear.weight
        n, k = weight.shape  # linear.out_features may be older, where a weight was cut
        with torch.no_grad():
            options |= {"device": "meta", "dtype": weight.dtype}
            new = cls(k, n, linear.bias is not None, **options)
            new._set_float(weight)
            check_epilogue(n, new.weight_scale, linear.bias, None, "float32")
            if linear.bias is not None:
                new.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return new.train(linear.training)

    def reset_parameters(self) -> None:
        """As torch.nn.Linear does, and quantizes the weight."""
        nn.Linear.reset_parameters(self)  # type: ignore[arg-type]

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _packed(self, weight: Tensor) -> Tensor:
        return _stored_form(weight)

    def _unpacked(self, stored: Tensor) -> Tensor:
        weight: Tensor = unpack_weight_op(stored, *self._shape)
        return weight

    def extra_repr(self) -> str:
        text = (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
        return text if self.activation is None else f"{text}, activation={self.activation!r}"


class Int8Linear(PackedLinear):
    """y = activation(x @ weight.T + bias) with an int8 weight; x is quantized per row on the fly.

    symmetric=False: each row of x has a zero point, as octavo.int8_linear has it. The state dict holds the
    logical values: `weight_int8` int8 [N, K], `weight_scale` float32 [N, 1] and `bias`.
    """

    kernel = "int8_linear"
    _checked: tuple[Tensor, Tensor, PackedWeight] | None = None  # buffers after checks

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str | None = None,
        symmetric: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_flag(symmetric, "symmetric")
        check_k(in_features, "in_features", symmetric)
        super().__init__(in_features, out_features, bias, activation=activation, device=device, dtype=dtype)
        self.symmetric = symmetric

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        config: Int8Dynamic | Int8WeightOnly = DEFAULT,
        *,
        activation: str | None = None,
    ) -> PackedLinear:
        """The int8 form of a linear layer, for Int8WeightOnly an Int8WeightOnlyLinear. ValueError for a
        weight with NaN or Inf."""
        check_config(config, Int8Dynamic, Int8WeightOnly)
        if isinstance(config, Int8WeightOnly):
            return Int8WeightOnlyLinear.from_float(linear, config, activation=activation)
        if not config.symmetric and linear.weight.shape[1] > MAX_K_UNSIGNED:
            got = linear.weight.shape[1]
            raise ValueError(f"linear: expected K <= {MAX_K_UNSIGNED} with symmetric=False, got {got}")
        return cls._of(linear, activation=activation, symmetric=config.symmetric)

    def forward(self, input: Tensor) -> Tensor:
        # the dictionaries of nn.Module, read directly: its __getattr__ costs more than a small kernel
        stored, scale, bias = (
            self._buffers["_stored"],
            self._buffers["weight_scale"],
            self._parameters["bias"],
        )
        if needs_dispatcher(input, stored, bias):
            y: Tensor = int8_linear_op(
                input, stored, scale, bias, activation=self.activation, symmetric=self.symmetric
            )
            return in_dtype_of(input, y)
        checked = self._checked
        if checked is None or checked[0] is not stored or checked[1] is not scale:
            if on_cuda(stored):  # no PackedWeight: to check a header would wait for the device
                y = INT8_LINEAR.run(input, stored, scale, bias, self.activation, None, self.symmetric)
                return in_dtype_of(input, y)
            checked = self._check(stored, scale)
        weight, activation, symmetric = checked[2], self.activation, self.symmetric
        if backends.native:  # what run() tries first, a call earlier
            short = tiny_int8_linear(input, weight, None, bias, activation, None, symmetric)
            if short is not None:
                return short  # type: ignore[no-any-return]
        traced = leaf(self, input)
        if traced is not None:
            return traced  # type: ignore[no-any-return]
        return in_dtype_of(input, INT8_LINEAR.run(input, weight, None, bias, activation, None, symmetric))

    def _check(self, stored: Any, scale: Any) -> tuple[Tensor, Tensor, PackedWeight]:
        self._checked = (stored, scale, PackedWeight(stored, scale))
        return self._checked

    def _linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        stored, scale = self._stored, self.weight_scale
        if needs_dispatcher(x, stored, bias):
            return in_dtype_of(x, int8_linear_op(x, stored, scale, bias, symmetric=self.symmetric))
        weight: tuple[Any, Any] = stored, scale
        if not on_cuda(stored):
            checked = self._checked
            if checked is None or checked[0] is not stored or checked[1] is not scale:
                checked = self._check(stored, scale)
            weight = checked[2], None
        return in_dtype_of(x, INT8_LINEAR.run(x, *weight, bias, None, None, self.symmetric))

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.symmetric else f"{text}, symmetric=False"


class Int8WeightOnlyLinear(PackedLinear):
    """y = activation(x @ (weight * weight_scale).T + bias) with x as it is and an int8 weight.

    The state dict holds the logical values: `weight_int8` int8 [N, K], `weight_scale` float32 [N, 1], or
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
        if group_size is not None and (in_features % group_size or not in_features):
            raise ValueError(
                f"group_size: expected a positive divisor of in_features ({in_features}), got {group_size}"
            )
        super().__init__(in_features, out_features, bias, activation=activation, device=device, dtype=dtype)
        self.group_size = group_size
        if group_size is not None:
            groups = in_features // group_size
            self.weight_scale = torch.ones(out_features, groups, dtype=torch.float32, device=device)

    @classmethod
    def from_float(
        cls, linear: nn.Linear, config: Int8WeightOnly = _WEIGHT_ONLY, *, activation: str | None = None
    ) -> Int8WeightOnlyLinear:
        """The int8 form of a linear layer. ValueError for a weight with NaN or Inf, and for a group_size that
        does not divide its input features."""
        if not isinstance(config, Int8WeightOnly):
            raise TypeError(f"config: expected an octavo.Int8WeightOnly, got {config!r}")
        return cls._of(linear, group_size=config.group_size, activation=activation)

    def forward(self, input: Tensor) -> Tensor:
        # the dictionaries of nn.Module, read directly: its __getattr__ costs more than a small kernel
        stored, scale, bias = (
            self._buffers["_stored"],
            self._buffers["weight_scale"],
            self._parameters["bias"],
        )
        if needs_dispatcher(input, stored, bias):
            y: Tensor = weight_only_linear_op(input, stored, scale, bias, activation=self.activation)
            return in_dtype_of(input, y)
        if backends.native:  # what run() tries first, a call earlier
            short = tiny_weight_only_linear(input, stored, scale, bias, self.activation)
            if short is not None:
                return short  # type: ignore[no-any-return]
        traced = leaf(self, input)
        if traced is not None:
            return traced  # type: ignore[no-any-return]
        return in_dtype_of(input, WEIGHT_ONLY_LINEAR.run(input, stored, scale, bias, self.activation))

    def _linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        weight = self._stored, self.weight_scale
        traced = needs_dispatcher(x, *weight, bias)
        return in_dtype_of(x, (weight_only_linear_op if traced else WEIGHT_ONLY_LINEAR.run)(x, *weight, bias))

    def _quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.group_size is None:
            return super()._quantized(weight)
        size = self.group_size
        data, scale, _ = quantize(weight.detach(), granularity="group", group_size=size, nonfinite="raise")
        return data, scale

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.group_size is None else f"{text}, group_size={self.group_size}"


def _stored_form(weight: Tensor) -> Tensor:
    readable = weight.shape[1] % CUDA_ROW == 0  # by CUDA kernels, as it is
    if readable if on_cuda(weight) else weight.device.type != "cpu":
        return weight
    return pack_matrix(weight, "auto")  # type: ignore[no-any-return]
