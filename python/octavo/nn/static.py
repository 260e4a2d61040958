"""Int8StaticLinear: activations with a fixed scale; and the calibration that finds it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..arrays import needs_dispatcher
from ..packed import MAX_K_UNSIGNED
from ..torch_ops import quantize_op
from ..torch_products import scaled_int_mm_op
from .configs import Int8Static, check_config
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
        new = super().from_float(linear, activation=activation)
        assert isinstance(new, Int8StaticLinear)
        if not config.symmetric and new.in_features > MAX_K_UNSIGNED:
            raise ValueError(
                f"linear: expected K <= {MAX_K_UNSIGNED} with symmetric=False, got {new.in_features}"
            )
        new.symmetric = config.symmetric
        ends = torch.tensor(input_range, dtype=torch.float32, device=linear.weight.device)
        _, scale, zero_point = ops.quantize(ends, granularity="tensor", symmetric=config.symmetric)
        new.input_scale, new.input_zero_point = scale, zero_point
        return new

    def forward(self, x: Tensor) -> Tensor:
        traced = needs_dispatcher(x, self._stored, self.bias)
        quantize, product = (quantize_op, scaled_int_mm_op) if traced else (ops._quantize, ops._scaled_int_mm)
        scale, zero_point = self.input_scale, self.input_zero_point
        data = quantize(x, "tensor", None, zero_point is None, scale, zero_point)[0]
        y: Tensor = product(
            data,
            scale,
            self._stored,
            self.weight_scale,
            self.bias,
            zero_point,
            activation=self.activation,
            out_dtype=torch.float32 if x.dtype == torch.float64 else x.dtype,
        )
        return y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8StaticLinear:
        scale = self.input_scale
        super()._apply(fn, recurse)
        if self.input_scale.dtype != torch.float32:  # whatever the model's dtype
            self.input_scale = scale.to(self.input_scale.device)
        return self


def calibrate(model: nn.Module, layers: Collection[nn.Module], config: Int8Static) -> dict[int, Range]:
    """Runs the model over config.data; returns, by the id of a layer, the smallest and the largest finite
    value of its inputs. Layers that saw none are left out. ValueError for data without batches."""
    ranges: dict[int, Range] = {}

    def observe(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        found = _range(x.detach())
        if found is not None:
            low, high = ranges.get(id(layer), found)
            ranges[id(layer)] = min(low, found[0]), max(high, found[1])

    forward = config.forward or _forward
    count = 0
    with _observing(model, layers, observe), torch.no_grad():
        for batch in _batches(config):
            forward(model, batch)
            count += 1
    if not count:
        raise ValueError("data: expected at least one batch, got none")
    return ranges


def _range(x: Tensor) -> Range | None:
    """(smallest, largest) of the finite values of x, None if there are none."""
    if x.is_meta:
        raise ValueError("model: expected a model with values, for calibration, got one on the device meta")
    finite = x.isfinite()
    if not finite.all():
        x = x[finite]
    if not x.numel():
        return None
    low, high = x.aminmax()
    return low.item(), high.item()


def _forward(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


@contextmanager
def _observing(
    model: nn.Module, layers: Collection[nn.Module], observe: Callable[..., None]
) -> Iterator[None]:
    """The model in eval mode, its layers observed; as it was, afterwards."""
    training = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    handles = [layer.register_forward_pre_hook(observe, with_kwargs=True) for layer in layers]
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it reads weights and calls no layer
        model.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
        for module, mode in training:
            module.training = mode


def _batches(config: Int8Static) -> Iterable[Any]:
    batches = islice(config.data, config.steps)
    if not config.progress:
        return batches
    try:
        from tqdm import tqdm
    except ImportError:
        return batches
    total = len(config.data) if isinstance(config.data, Sized) else config.steps
    if total is not None and config.steps is not None:
        total = min(total, config.steps)
    bar: Iterable[Any] = tqdm(batches, "calibrating", total, unit="batch", disable=None)  # None: no terminal
    return bar
