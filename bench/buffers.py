"""Sets of arrays that elementwise work takes in turn, and octavo's own contenders on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import peers
from common import Contender, Parity

Array = np.ndarray[Any, Any]

STEPS = 1e-3  # share of a peer's integers that may be one off: another order of the same roundings


def inputs(rows: int, cols: int, count: int) -> list[Array]:
    rng = np.random.default_rng(rows + cols)
    first = rng.standard_normal((rows, cols), dtype=np.float32)
    return [np.roll(first, i, axis=1) for i in range(count)]


def outputs(xs: Sequence[Array], *kinds: tuple[Any, bool]) -> list[tuple[Any, ...]]:
    """Per set, one array of each (dtype, whether one per element or one per row); written, so that no call
    pays for page faults."""
    shapes = {True: xs[0].shape, False: xs[0].shape[:1]}
    return [tuple(peers.given(np.ones(shapes[full], dtype)) for dtype, full in kinds) for _ in xs]


def ours(name: str, call: Callable[[int], Any], check: Callable[[], Parity]) -> Contender:
    def checked() -> Parity:
        call(0)
        return check()

    return Contender(name, call, checked, ours=True)
