"""Layers that hold and multiply int8, and the call that puts them into a model; pruning of modules."""

from __future__ import annotations

from .configs import Int8Dynamic, Int8Static, Int8WeightOnly
from .convert.qat import convert_qat_, prepare_qat_
from .convert.quantize import quantize_
from .fuse.model import fuse_, fusions, unfuse_
from .fuse.patterns import Fusion
from .layers.attention import Int8MultiheadAttention
from .layers.conv import Int8Conv2d
from .layers.embedding import Int8Embedding, Int8EmbeddingBag
from .layers.fake_quantized import FakeQuantizedConv2d, FakeQuantizedLinear
from .layers.linear import Int8Linear, Int8WeightOnlyLinear
from .layers.static import Int8StaticLinear
from .layers.weight import Int8Weight
from .prune import (
    L1SemiStructured,
    L1Structured,
    L1Unstructured,
    PruningMask,
    RatioUnstructured,
    ThresholdUnstructured,
    l1_unstructured,
    prune_model_,
)

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
    "Int8Weight",
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
