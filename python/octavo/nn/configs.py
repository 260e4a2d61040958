"""What quantize_ makes of a layer: how weights and activations are kept, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Int8Dynamic:
    """int8 weights with one scale per output row; activations quantized per row, in every call.

    Weights and activations are symmetric; biases stay in the model's dtype.
    """


Config = Int8Dynamic
DEFAULT = Int8Dynamic()


def check_config(config: object) -> None:
    if not isinstance(config, Config):
        raise TypeError(f"config: expected an octavo.Int8Dynamic, got {config!r}")
