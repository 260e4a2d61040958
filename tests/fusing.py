"""Models that can be fused, for the tests of fusions, and the unfused octavo operations."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
F, nn = torch.nn.functional, torch.nn

import octavo  # noqa: E402
import octavo.nn  # noqa: E402


def int8(model, dtype=torch.float32, *, symmetric=True):
    """In eval mode, with norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | WrittenRMSNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 2.0)
            if getattr(module, "bias", None) is not None:
                nn.init.normal_(module.bias)
    return octavo.quantize_(model.to(dtype).eval(), octavo.Int8Dynamic(symmetric))


def linear(layer, x, activation=None):
    """The unfused octavo operation."""
    packed = octavo.pack_weight(layer.weight_int8, layer.weight_scale)
    return octavo.int8_linear(x, packed, layer.bias, activation=activation, symmetric=layer.symmetric)


def product(layer, quantized, dtype, activation=None):
    packed = octavo.pack_weight(layer.weight_int8, layer.weight_scale)
    more = {"a_zero_point": quantized.zero_point, "activation": activation, "out_dtype": dtype}
    return octavo.scaled_int_mm(quantized.data, quantized.scale, packed, layer.bias, **more)


def count_graph_calls(fused):
    """A list of one number: how often the graph has run."""
    calls, run = [0], fused.forward._run

    def counted(*values):
        calls[0] += 1
        return run(*values)

    fused.forward._run = counted
    return calls


class WrittenRMSNorm(nn.Module):
    """As in transformers' models."""

    def __init__(self, k, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(k)), eps

    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(dtype)


NORMS = {
    "LayerNorm": lambda k: nn.LayerNorm(k, eps=1e-3),
    "LayerNorm without weight": lambda k: nn.LayerNorm(k, elementwise_affine=False),
    "LayerNorm without bias": lambda k: nn.LayerNorm(k, bias=False),
    "RMSNorm": lambda k: nn.RMSNorm(k, eps=1e-3),
    "RMSNorm with torch's eps": nn.RMSNorm,
    "written RMSNorm": WrittenRMSNorm,
}


def normalize(norm, x, **options):
    if isinstance(norm, nn.LayerNorm):
        return octavo.layer_norm_quantize(x, norm.weight, norm.bias, eps=norm.eps, **options)
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    return octavo.rms_norm_quantize(x, norm.weight, eps=eps, **options)


class PreNorm(nn.Module):
    """The sum goes on as the residual; the normalized row goes to linear layers only."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.up, self.gate, self.down = norm, *(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x, residual):
        total = residual + x
        y = self.norm(total)
        return total + self.down(F.silu(self.gate(y)) * self.up(y))


class Applied(nn.Module):
    """f(layers, x)"""

    def __init__(self, f, *layers):
        super().__init__()
        self.f, self.layers = f, nn.ModuleList(layers)

    def forward(self, *inputs):
        return self.f(self.layers, *inputs)
