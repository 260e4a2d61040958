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
from .configs import Int8Dynamic, Int8Static, Int8WeightOnly
from .conv import Int8Conv2d
from .convert import quantize_
from .embedding import Int8Embedding, Int8EmbeddingBag
from .fusion import fuse_, fusions, unfuse_
from .fusion_patterns import Fusion
from .linear import Int8Linear
from .static import Int8StaticLinear
from .training import FakeQuantizedConv2d, FakeQuantizedLinear, convert_qat_, prepare_qat_
from .weight_only import Int8WeightOnlyLinear

__all__ = [
    "FakeQuantizedConv2d",
    "FakeQuantizedLinear",
    "Fusion",
    "Int8Conv2d",
    "Int8Dynamic",
    "Int8Embedding",
    "Int8EmbeddingBag",
    "Int8Linear",
    "Int8MultiheadAttention",
    "Int8Static",
    "Int8StaticLinear",
    "Int8WeightOnly",
    "Int8WeightOnlyLinear",
    "L1SemiStructured",
    "L1Structured",
    "L1Unstructured",
    "PruningMask",
    "RatioUnstructured",
    "ThresholdUnstructured",
    "convert_qat_",
    "fuse_",
    "fusions",
    "l1_unstructured",
    "prepare_qat_",
    "prune_model_",
    "quantize_",
    "unfuse_",
]
