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


@dataclass(frozen=True)
class Int8WeightOnly:
    """int8 weights only: activations stay float, and no float weight is made in memory.

    group_size: None: one scale per output row; else one for each group of so many adjacent weights of a row,
        a multiple of 4 that divides every layer's input features.
    """

    group_size: int | None = None

    def __post_init__(self) -> None:
        size = self.group_size
        if size is None:
            return
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"group_size: expected None or an int, got {size!r}")
        if size < 1 or size % 4:
            raise ValueError(f"group_size: expected a positive multiple of 4, got {size}")


Config = Int8Dynamic | Int8WeightOnly
DEFAULT = Int8Dynamic()


def check_config(config: object) -> None:
    if not isinstance(config, Config):
        raise TypeError(f"config: expected an octavo.Int8Dynamic or octavo.Int8WeightOnly, got {config!r}")
