"""octavo makes neural networks smaller and faster: magnitude pruning, int8 quantization and int8 products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .backends import (
    explain,
    force_isa,
    get_isa,
    get_num_threads,
    set_num_threads,
    show_config,
    use_backend,
)
from .ops import (
    PackedWeight,
    Quantized,
    dequantize,
    int8_linear,
    int_mm,
    layer_norm_quantize,
    magnitude_threshold,
    pack_mask,
    pack_weight,
    prune,
    prune_,
    prune_mask,
    prune_quantize,
    quantize,
    rms_norm_quantize,
    scaled_int_mm,
    unpack_mask,
)

if TYPE_CHECKING:
    from . import nn
    from .nn import Int8Dynamic, fuse_, prune_model_, quantize_

__version__ = "0.1.0"

__all__ = [
    "Int8Dynamic",
    "PackedWeight",
    "Quantized",
    "__version__",
    "dequantize",
    "explain",
    "force_isa",
    "fuse_",
    "get_isa",
    "get_num_threads",
    "int8_linear",
    "int_mm",
    "layer_norm_quantize",
    "magnitude_threshold",
    "nn",
    "pack_mask",
    "pack_weight",
    "prune",
    "prune_",
    "prune_mask",
    "prune_model_",
    "prune_quantize",
    "quantize",
    "quantize_",
    "rms_norm_quantize",
    "scaled_int_mm",
    "set_num_threads",
    "show_config",
    "unpack_mask",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """nn and what it defines import torch: only when asked for."""
    if name == "nn" or name in ("Int8Dynamic", "fuse_", "prune_model_", "quantize_"):
        import importlib

        nn = importlib.import_module(".nn", __name__)
        value = nn if name == "nn" else getattr(nn, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
