"""Calibration: the range of the inputs of layers, from data that a model runs over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..configs import Int8Static
from ..layers.static import Range


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
