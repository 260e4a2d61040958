"""What layers are, and why they stay as they are: for all that changes the layers of a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def is_conv1d(kind: type) -> bool:
    """Whether this is transformers' Conv1D itself: a linear layer whose weight is [K, N]."""
    return f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D"


def has_transposed_weight(layer: nn.Module) -> bool:
    return any(map(is_conv1d, type(layer).__mro__))


def listed(reasons: Mapping[str, str]) -> str:
    """Why nothing was found, for the end of an error: reasons by the names of layers, each reason once."""
    names: dict[str, list[str]] = {}
    for fqn, why in sorted(reasons.items(), key=lambda item: item[1]):
        names.setdefault(why, []).append(repr(fqn) if fqn else "the model")
    each = [f"{why}: {_few(found)}" for why, found in names.items()]
    return f" ({'; '.join(each)})" if each else ""


def _few(names: list[str]) -> str:
    first, more = names[:3], len(names) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")
