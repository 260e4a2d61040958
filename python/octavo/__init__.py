"""octavo makes neural networks smaller and faster: magnitude pruning, int8 quantization and int8 products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import old_paths
from .ops import op
from .ops.conv import int8_conv2d
from .ops.conv_weight import PackedConvWeight, pack_conv_weight
from .ops.embedding import int8_embedding, int8_embedding_bag
from .ops.int_mm import int_mm, scaled_int_mm
from .ops.linear import int8_linear
from .ops.masks import pack_mask, unpack_mask
from .ops.norm import layer_norm_quantize, rms_norm_quantize
from .ops.pack import PackedWeight, pack_weight
from .ops.prune import magnitude_threshold, prune, prune_, prune_mask, prune_quantize
from .ops.quantize import Quantized, dequantize, quantize
from .ops.weight_only import weight_only_linear
from .report import explain
from .runtime.backends import (
    force_isa,
    get_isa,
    get_num_threads,
    set_num_threads,
    show_config,
    use_backend,
)
from .version import __version__

if TYPE_CHECKING:
    from . import nn
    from .export.compressed_tensors import export_compressed_tensors, load_compressed_tensors
    from .nn import (
        Int8Dynamic,
        Int8Static,
        Int8WeightOnly,
        convert_qat_,
        fuse_,
        prepare_qat_,
        prune_model_,
        quantize_,
    )
    from .storage.checkpoint import load, save

__all__ = [
    "Int8Dynamic",
    "Int8Static",
    "Int8WeightOnly",
    "PackedConvWeight",
    "PackedWeight",
    "Quantized",
    "__version__",
    "convert_qat_",
    "dequantize",
    "explain",
    "export_compressed_tensors",
    "force_isa",
    "fuse_",
    "get_isa",
    "get_num_threads",
    "int8_conv2d",
    "int8_embedding",
    "int8_embedding_bag",
    "int8_linear",
    "int_mm",
    "layer_norm_quantize",
    "load",
    "load_compressed_tensors",
    "magnitude_threshold",
    "nn",
    "pack_conv_weight",
    "pack_mask",
    "pack_weight",
    "prepare_qat_",
    "prune",
    "prune_",
    "prune_mask",
    "prune_model_",
    "prune_quantize",
    "quantize",
    "quantize_",
    "rms_norm_quantize",
    "save",
    "scaled_int_mm",
    "set_num_threads",
    "show_config",
    "unpack_mask",
    "use_backend",
    "weight_only_linear",
]


old_paths.install()


def _load_torch_ops() -> None:
    from . import torch_ops  # noqa: F401


op.load_torch_ops = _load_torch_ops

# What imports torch, and so only when it is asked for: the module of each name.
_LAZY = {
    "Int8Dynamic": "nn",
    "Int8Static": "nn",
    "Int8WeightOnly": "nn",
    "convert_qat_": "nn",
    "export_compressed_tensors": "export.compressed_tensors",
    "fuse_": "nn",
    "load": "storage.checkpoint",
    "load_compressed_tensors": "export.compressed_tensors",
    "prepare_qat_": "nn",
    "prune_model_": "nn",
    "quantize_": "nn",
    "save": "storage.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name != "nn" and name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module("." + _LAZY.get(name, name), __name__)
    value = globals()[name] = module if name == "nn" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
