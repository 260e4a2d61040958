"""What the tables of the zoo are made of: a model that can be made again, and what to call it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    build: Callable[[], nn.Module]
    inputs: Inputs
    # it takes the largest of something (experts, hashes, queries), where the smallest error can change all
    chooses: bool = False
    generates: bool = True  # if it has generate

    def make(self) -> nn.Module:
        """In eval mode, the same every time."""
        torch.manual_seed(0)
        return enliven_(self.build()).eval()

    def call(self) -> dict[str, Any]:
        torch.manual_seed(1)
        return self.inputs()


def enliven_(model: nn.Module) -> nn.Module:
    """Weights as in a trained model, where every layer counts: fresh ones are so small, or zero, that the
    model hands its embeddings on to its output, whatever its layers compute."""
    torch.manual_seed(0)
    fades = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # of fresh ones it does
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            if "norm" in type(module).__name__.lower():
                continue
            if name == "weight" and value.dim() > 1 and value.numel():
                embeds = isinstance(module, nn.Embedding)
                gain = 2 if isinstance(module, nn.Conv2d) else 1  # a ReLU follows
                nn.init.normal_(value, std=0.5 if embeds else (gain * len(value) / value.numel()) ** 0.5)
            elif name == "bias":
                nn.init.normal_(value, std=0.0 if fades else 0.1)
            elif value.dim() == 1 and value.abs().max() < 0.2:  # the scale of a layer
                nn.init.uniform_(value, 0.5, 1.0)
    return model


def tokens(vocabulary: int = 96, length: int = 9, **more: Any) -> dict[str, Any]:
    ids = torch.randint(3, vocabulary, (2, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def pixels(size: int = 32, channels: int = 3, **more: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, channels, size, size), **more}
