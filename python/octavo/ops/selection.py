"""What is to be pruned: the arguments of prune_mask and its relatives, checked."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from ..runtime.arrays import Array

_PATTERN = re.compile(r"(?:unstructured|row|column|block([1-9]\d*)x([1-9]\d*)|([1-9]\d*):([1-9]\d*))")


class Selection(NamedTuple):
    """What is pruned, checked; units: rows and columns of a block, n and m of "n:m", else (0, 0)."""

    threshold: float | None
    ratio: float | None
    sparsity: float | None
    pattern: str
    units: tuple[int, int]


def selection(
    threshold: float | None, ratio: float | None, sparsity: float | None, pattern: str, nonfinite: str
) -> Selection:
    if nonfinite not in ("keep", "raise"):
        raise ValueError(f"nonfinite: expected 'keep' or 'raise', got {nonfinite!r}")
    match = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    numbers = [int(v) for v in match.groups() if v] if match else []
    if not match or (":" in pattern and not numbers[0] < numbers[1] <= 32):
        raise ValueError(
            "pattern: expected 'unstructured', 'n:m' with 1 <= n < m <= 32, 'row', 'column' or "
            f"'block{{r}}x{{c}}', got {pattern!r}"
        )
    given = {"threshold": threshold, "ratio": ratio, "sparsity": sparsity}
    names = [name for name, value in given.items() if value is not None]
    if ":" in pattern:
        if names:
            raise ValueError(f"{names[0]}: expected None with pattern={pattern!r}, got {given[names[0]]!r}")
    elif len(names) != 1:
        raise ValueError(
            f"expected exactly one of threshold, ratio and sparsity, got {' and '.join(names) or 'none'}"
        )
    if threshold is not None and math.isnan(threshold := number(threshold, "threshold")):
        raise ValueError("threshold: expected a number, got nan")
    if ratio is not None and not 0 <= (ratio := number(ratio, "ratio")) < 2.0**127:
        raise ValueError(f"ratio: expected a finite float32 >= 0, got {ratio!r}")
    if sparsity is not None and not 0 <= (sparsity := number(sparsity, "sparsity")) <= 1:
        raise ValueError(f"sparsity: expected a number in [0, 1], got {sparsity!r}")
    return Selection(threshold, ratio, sparsity, pattern, (numbers[0], numbers[1]) if numbers else (0, 0))


def number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    return float(value)


def check_units(w: Array, name: str, chosen: Selection) -> None:
    rows, cols = shape_2d(w)
    if ":" in chosen.pattern:
        if not w.ndim or cols % chosen.units[1]:
            raise ValueError(
                f"{name}: expected a last axis divisible by {chosen.units[1]} for "
                f"pattern={chosen.pattern!r}, got shape {tuple(w.shape)}"
            )
    elif chosen.pattern.startswith("block") and (rows % chosen.units[0] or cols % chosen.units[1]):
        raise ValueError(
            f"{name}: expected a 2-D view of whole {chosen.units[0]} x {chosen.units[1]} blocks for "
            f"pattern={chosen.pattern!r}, got {rows} x {cols}"
        )


def f32_bits(value: float) -> int:
    """The bits of value >= 0 as float32; in integers where that is a denormal, which a caller may flush."""
    if value < 2.0**-126:
        return round(value * 2.0**149)
    with np.errstate(over="ignore"):
        return int(np.float32(value).view(np.uint32))


def from_bits(bits: int) -> float:
    """The float32 of these bits."""
    return bits * 2.0**-149 if bits < 0x00800000 else float(np.uint32(bits).view(np.float32))


def shape_2d(w: Array) -> tuple[int, int]:
    return math.prod(w.shape[:-1]), w.shape[-1] if w.ndim else 1


def unit_shape(w: Array, chosen: Selection) -> tuple[int, int]:
    rows, cols = shape_2d(w)
    return {"row": (1, cols), "column": (rows, 1)}.get(chosen.pattern, chosen.units)
