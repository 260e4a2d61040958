"""Layers that hold and multiply int8, and those that train in its numbers."""

from __future__ import annotations

from torch import nn

from .attention import Int8MultiheadAttention
from .conv import Int8Conv2d
from .embedding import Int8Embedding, Int8EmbeddingBag
from .linear import Int8Linear, Int8WeightOnlyLinear
from .static import Int8StaticLinear

# those that a file may name (octavo.storage.describe)
INT8_LAYERS: dict[str, type[nn.Module]] = {
    layer.__name__: layer
    for layer in (
        Int8Conv2d,
        Int8Embedding,
        Int8EmbeddingBag,
        Int8Linear,
        Int8MultiheadAttention,
        Int8StaticLinear,
        Int8WeightOnlyLinear,
    )
}
