"""Pruning of torch modules."""

from __future__ import annotations

from .methods import (
    L1SemiStructured,
    L1Structured,
    L1Unstructured,
    RatioUnstructured,
    ThresholdUnstructured,
    l1_unstructured,
)
from .model import PruningMask, prune_model_

__all__ = [
    "L1SemiStructured",
    "L1Structured",
    "L1Unstructured",
    "PruningMask",
    "RatioUnstructured",
    "ThresholdUnstructured",
    "l1_unstructured",
    "prune_model_",
]
