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
from .attention import Int8MultiheadAttention
from .configs import Int8Dynamic, Int8Static
from .convert import quantize_
from .linear import Int8Linear
from .static import Int8StaticLinear

__all__ = [
    "Int8Dynamic",
    "Int8Linear",
    "Int8MultiheadAttention",
    "Int8Static",
    "Int8StaticLinear",
    "L1SemiStructured",
    "L1Structured",
    "L1Unstructured",
    "PruningMask",
    "RatioUnstructured",
    "ThresholdUnstructured",
    "l1_unstructured",
    "prune_model_",
    "quantize_",
]
