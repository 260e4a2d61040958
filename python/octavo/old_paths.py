"""Modules under the names that they had in octavo 0.1: pickles hold the module of every class.

`import octavo.packed` gives octavo.ops.pack, and so on; nothing else may use these names.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MOVED = {
    "octavo.convolution": "octavo.ops.conv",
    "octavo.nn.attention": "octavo.nn.layers.attention",
    "octavo.nn.conv": "octavo.nn.layers.conv",
    "octavo.nn.embedding": "octavo.nn.layers.embedding",
    "octavo.nn.fusion_patterns": "octavo.nn.fuse.patterns",
    "octavo.nn.linear": "octavo.nn.layers.linear",
    "octavo.nn.static": "octavo.nn.layers.static",
    "octavo.nn.training": "octavo.nn.layers.fake_quantized",
    "octavo.nn.weight_only": "octavo.nn.layers.linear",
    "octavo.packed": "octavo.ops.pack",
    "octavo.quantization": "octavo.ops.quantize",
    "octavo.selection": "octavo.ops.selection",
    "octavo.torch_pruning": "octavo.nn.prune",
}


class _OldPaths(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(_MOVED[module.__name__])


def install() -> None:
    sys.meta_path.append(_OldPaths())
