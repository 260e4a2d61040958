"""Layers that hold and multiply int8, and the call that puts them into a model; pruning of modules."""

from __future__ import annotations

from ..torch_pruning import (
    L1SemiStructured,
    L1Structured,
    L1Unstructured,
    PruningMask,
    RatioUnstructured,
    ThresholdUnstructured,
    l1_unstructured,
    prune_model_,
)
from .configs import Int8Dynamic
from .convert import quantize_
from .fusion import fuse_, fusions, unfuse_
from .fusion_patterns import Fusion
from .linear import Int8Linear

__all__ = [
    "Fusion",
    "Int8Dynamic",
    "Int8Linear",
    "L1SemiStructured",
    "L1Structured",
    "L1Unstructured",
    "PruningMask",
    "RatioUnstructured",
    "ThresholdUnstructured",
    "fuse_",
    "fusions",
    "l1_unstructured",
    "prune_model_",
    "quantize_",
    "unfuse_",
]
