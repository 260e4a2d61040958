"""torch.compile(model, backend="octavo"): octavo's fusions, then inductor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .patterns import fuse_graph

_log = logging.getLogger("octavo")


def backend(
    module: GraphModule, inputs: Sequence[Tensor], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """The backend "octavo" of torch.compile: what octavo.fuse_ fuses, and inductor for the rest.

    A graph through which gradients go is inductor's alone, so compile for torch.inference_mode or
    torch.no_grad. What is fused is told at the level INFO to the logger "octavo". options: inductor's.

    RuntimeError where inductor finds no C++ compiler; octavo.fuse_ needs none.
    """
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.exc import InvalidCxxCompiler

    if not _wants_gradients(module, inputs):
        for fusion in fuse_graph(module.graph):
            _log.info("octavo: %s: %s: %s", fusion.kind, ", ".join(fusion.layers), fusion.note)
        module.recompile()
    try:
        return compile_fx(module, list(inputs), config_patches=options)  # type: ignore[return-value]
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            'backend "octavo": expected a C++ compiler for inductor, which gets what octavo does not fuse, '
            "got none; octavo.fuse_ needs no compiler"
        ) from error


def _wants_gradients(module: GraphModule, inputs: Sequence[Any]) -> bool:
    switches = module.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled)
    if not torch.is_grad_enabled() and not any(True in node.args for node in switches):
        return False
    return any(isinstance(each, Tensor) and each.requires_grad for each in (*inputs, *module.parameters()))
