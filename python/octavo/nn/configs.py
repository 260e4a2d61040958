"""What quantize_ makes of a layer: how weights and activations are kept, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


def check_flag(value: object, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


@dataclass(frozen=True)
class Int8Dynamic:
    """int8 weights with one scale per output row; activations quantized per row, in every call.

    symmetric: False gives each row of activations a zero point. It costs a little time, and keeps more of
        activations that are not centered on 0: after a GELU or a ReLU, or with outliers of one sign.
    Weights are symmetric; biases stay in the model's dtype.
    """

    symmetric: bool = True

    def __post_init__(self) -> None:
        check_flag(self.symmetric, "symmetric")


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


@dataclass(frozen=True, eq=False)
class Int8Static:
    """int8 weights with one scale per output row; activations with one scale for all rows of all calls.

    That scale, and the zero point, come from the smallest and the largest finite value that reaches a layer
    while quantize_ runs the float model over `data`, in eval mode and without gradients. Data like that of
    use, then: larger values will be cut off, and smaller ones get coarse steps. A layer that saw no data
    stays float.

    data: batches, such as a DataLoader or a list. A batch that is a mapping is passed as model(**batch), a
        tuple or a list as model(*batch), anything else as model(batch).
    symmetric: False: activations have a zero point, which pays where they lie on one side of zero, as after a
        ReLU; K is at most 65,793 then.
    forward: called as forward(model, batch) in place of the above, for batches of another form.
    steps: the number of batches to run at most; None: all.
    progress: a bar on stderr, if that is a terminal and tqdm is installed.
    """

    data: Iterable[Any] = field(repr=False)
    symmetric: bool = False
    forward: Callable[[nn.Module, Any], object] | None = None
    steps: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.data, Iterable) or isinstance(self.data, Tensor | Mapping | str):
            got = type(self.data).__name__
            raise TypeError(f"data: expected batches, such as a DataLoader or a list of them, got a {got}")
        check_flag(self.symmetric, "symmetric")
        if self.forward is not None and not callable(self.forward):
            raise TypeError(f"forward: expected a function or None, got {self.forward!r}")
        if self.steps is not None:
            if not isinstance(self.steps, int) or isinstance(self.steps, bool):
                raise TypeError(f"steps: expected an int >= 1 or None, got {self.steps!r}")
            if self.steps < 1:
                raise ValueError(f"steps: expected an int >= 1 or None, got {self.steps}")
        check_flag(self.progress, "progress")


Config = Int8Dynamic | Int8WeightOnly | Int8Static
DEFAULT = Int8Dynamic()


def check_config(config: object, *kinds: type) -> None:
    """TypeError for what is none of these classes (default: all of this module)."""
    kinds = kinds or (Int8Dynamic, Int8WeightOnly, Int8Static)
    if not isinstance(config, kinds):
        names = " or ".join(f"octavo.{kind.__name__}" for kind in kinds)
        raise TypeError(f"config: expected an {names}, got {config!r}")
