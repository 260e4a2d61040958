"""What quantize_ makes of a layer: how weights and activations are kept, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Int8Dynamic:
    """int8 weights with one scale per output row; activations quantized per row, in every call.

    symmetric: False gives each row of activations a zero point. It costs a little time, and keeps more of
        activations that are not centered on 0: after a GELU or a ReLU, or with outliers of one sign.
    Weights are symmetric; biases stay in the model's dtype.
    """

    symmetric: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.symmetric, bool):
            raise TypeError(f"symmetric: expected True or False, got {self.symmetric!r}")


Config = Int8Dynamic
DEFAULT = Int8Dynamic()


def check_config(config: object) -> None:
    if not isinstance(config, Config):
        raise TypeError(f"config: expected an octavo.Int8Dynamic, got {config!r}")
